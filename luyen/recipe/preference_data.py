"""Preferences as the verb `dpo` learns from them: read, cut, mixed, and each step of it told."""

from __future__ import annotations

from typing import Any, cast

import torch

from luyen.algorithms.kto import GOOD
from luyen.core import progress
from luyen.core.errors import DataError
from luyen.core.plural import exactly
from luyen.core.records import Feedback
from luyen.core.seed import derive
from luyen.data.branches import Group
from luyen.data.mixture import Mixture
from luyen.data.pairs import Groups, GroupStream, PairRules, feedback_groups, mismatched, preference_groups
from luyen.data.samples import TOO_LONG
from luyen.recipe.documents import read_whole
from luyen.recipe.preference_configs import PreferenceConfig
from luyen.recipe.stage import Stage
from luyen.tokenizer.load import Tokenizer


class PreferenceReader:
    """Reads the data of one config, sequences of `length` positions at most; `share` says whether answers share their prompt's pass."""

    def __init__(self, config: PreferenceConfig, stage: Stage, tokenizer: Tokenizer, length: int, share: bool) -> None:
        self.config, self.stage, self.tokenizer, self.share = config, stage, tokenizer, share
        self.rules = PairRules(length, config.batch.truncation, config.batch.turns, config.read.strict)
        self.accounts: dict[str, Any] = {}

    def train(self) -> GroupStream:
        """What is learned from. DataError where a source gives nothing."""
        config, values = self.config, [self.config.data] if isinstance(self.config.data, str) else self.config.data
        parts = [self._read(value, f"source{number}", config.loss.unpaired) for number, value in enumerate(values)]
        order = None
        if config.weights is not None:
            sources = {f"source{number}": cast(Any, part.groups) for number, part in enumerate(parts)}
            order = Mixture(sources, dict(zip(sources, config.weights, strict=True)), seed=derive(self.stage.seed, "mixture")).order
        whole = Groups()
        for part in parts:
            whole.add(part)
        self.stage.metrics["data"] = self.accounts
        groups, columns = whole.groups, {}
        if config.loss.unpaired:
            columns[GOOD] = torch.tensor([record.label for record in whole.records if isinstance(record, Feedback)])
            _tell_balance(columns[GOOD], config)
        if config.loss.name == "kto":
            groups = self._with_others(whole)
        seed = derive(self.stage.seed, "order")
        return GroupStream(groups, size=config.batch.pairs, seed=seed, share=self.share, columns=columns, order=order)

    def heldout(self) -> GroupStream | None:
        """The pairs to measure on, if there are to be any."""
        value = self.config.heldout_pairs
        if value is None:
            return None
        return GroupStream(self._read(value, "heldout", False).groups, size=self.config.batch.pairs, seed=0, share=self.share)

    def _with_others(self, whole: Groups) -> list[Group]:
        if len(whole.groups) < 2:
            raise DataError("loss.name=kto needs answers to several prompts", found=f"{len(whole.groups)} judged answer",
                            expected="two at least", fix="Give more, or set loss.name=apo_zero_unpaired.")  # fmt: skip
        return mismatched(whole, self.tokenizer, self.rules, derive(self.stage.seed, "mismatched"))

    def _read(self, value: str, name: str, unpaired: bool) -> Groups:
        path = self.stage.data(value)
        dataset = read_whole(path, self.config.read, self.stage.folder / f"rejected-{name}.jsonl")
        make = feedback_groups if unpaired else preference_groups
        made = make(dataset.records, self.tokenizer, self.rules, dataset.origins, name)
        self.accounts[f"{name}: {value}"] = {
            "format": dataset.format, "rows": dataset.account.as_dict(), "tokens": made.account.as_dict(), "faults": made.faults,
        }  # fmt: skip
        self._tell(value, made, "judged answer" if unpaired else "pair")
        return made

    def _tell(self, value: str, made: Groups, what: str) -> None:
        """What became of a source's rows, and why. DataError when none is left."""
        account, length = made.account, self.rules.length
        why = ", ".join(f"{count:,} {reason}" for reason, count in account.dropped.items())
        why = why.replace(TOO_LONG, f"longer than {length:,} tokens")
        progress.say(
            f"  {value}: {exactly(account.samples, what)} used, {account.truncated:,} cut, {account.num_dropped:,} left out"
            f"{f' ({why})' if why else ''}; {exactly(account.trained, 'answer token')} trained, {account.lost:,} lost"
        )
        for fault in made.faults:
            progress.say(f"    left out {fault}")
        if not account.samples:
            longer = f"Set batch.length (rows are up to {account.longest:,} tokens) or batch.truncation=keep_end."
            fix = longer if TOO_LONG in account.dropped else "Look at its rows: luyen inspect DATA model=MODEL."
            raise DataError(f"{value}: no {what} is left to learn from", found=why or "no rows", fix=fix)


def _tell_balance(good_N: torch.Tensor, config: PreferenceConfig) -> None:
    """Say where good and bad answers do not weigh about the same (KTO, arXiv:2402.01306, equation 9: 1 to 4/3)."""
    numbers = config.loss.numbers()
    good, bad = int(good_N.sum()), int((~good_N).sum())
    ratio = good * numbers["desirable_weight"] / max(bad * numbers["undesirable_weight"], 1e-9)
    progress.say(f"  {exactly(good, 'good answer')}, {bad:,} bad")
    if bad and good and not 0.99 <= ratio <= 1.34:
        fit = bad * numbers["undesirable_weight"] / good
        progress.say(f"  good answers weigh {ratio:.2f} times the bad ones; 1 to 1.33 is advised: loss.desirable_weight={fit:.3g}")
