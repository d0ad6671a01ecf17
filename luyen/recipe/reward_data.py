"""Preferences as the verb `reward` learns from them and measures on: read, held out, mixed, and each step of it told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from luyen.algorithms.reward_model import ended
from luyen.core import progress
from luyen.core.errors import DataError
from luyen.core.plural import exactly
from luyen.core.records import Preference
from luyen.core.seed import derive
from luyen.data.branches import Group
from luyen.data.mixture import Mixture
from luyen.data.pairs import Groups, PairRules, preference_groups
from luyen.data.samples import TOO_LONG
from luyen.data.shuffle import permutation
from luyen.recipe.documents import read_whole
from luyen.recipe.reward_configs import MIXED, PairDataConfig
from luyen.recipe.stage import Stage
from luyen.tokenizer.load import Tokenizer

HELD_OUT_ONE_IN = 20


@dataclass
class Pairs:
    """Pairs with their rows and the data sets that they come from."""

    groups: list[Group] = field(default_factory=list)
    rows: list[Preference] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def part(self, places: Sequence[int]) -> Pairs:
        """Those of these numbers."""
        return Pairs(*([own[place] for place in places] for own in cast(Any, (self.groups, self.rows, self.sources))))

    def add(self, other: Pairs) -> None:
        """Take up those of another source."""
        for own, others in ((self.groups, other.groups), (self.rows, other.rows), (self.sources, other.sources)):
            cast(list[Any], own).extend(others)


@dataclass
class PairData:
    """What is learned from and what is measured on."""

    train: Pairs
    heldout: Pairs
    order: Callable[[int], NDArray[np.int64]] | None = None
    """Of the training pairs in an epoch, where the data sets have weights."""


class Reader:
    """Reads the data sets of one config, `length` tokens at most."""

    def __init__(self, config: PairDataConfig, stage: Stage, tokenizer: Tokenizer, length: int) -> None:
        self.config, self.stage, self.tokenizer = config, stage, tokenizer
        self.rules = PairRules(length - 1, config.truncation, strict=config.read.strict)  # the end of the answer is one token more
        self.accounts: dict[str, Any] = {}

    def read(self) -> PairData:
        """All of it. DataError where nothing is left to learn from or to measure on."""
        config = self.config
        own = [self._source(value, f"pair{number}") for number, value in enumerate(_listed(config.data))]
        other = Pairs()
        for number, value in enumerate(config.other):
            other.add(self._source(value, f"other{number}"))
        heldout = Pairs()
        if config.heldout is None:
            own, heldout = self._hold_out(own)
            other = other.part([place for place, row in enumerate(other.rows) if not _held(row)])
        for number, value in enumerate(_listed(config.heldout or [])):
            heldout.add(self._source(value, f"heldout{number}"))
        train = Pairs()
        for part in own:
            train.add(part)
        order = self._order(own) if config.weights is not None else None
        if config.mix != "none":
            train.add(self._drawn(other, len(train.groups)))
        self.stage.metrics["data"] = self.accounts
        progress.say(f"  {exactly(len(train.groups), 'pair')} to learn from, {len(heldout.groups):,} to measure on")
        return PairData(train, heldout, order)

    def _source(self, value: str, name: str) -> Pairs:
        stage = self.stage
        path = stage.data(value)
        dataset = read_whole(path, self.config.read, stage.folder / f"rejected-{name}.jsonl")
        made = preference_groups(dataset.records, self.tokenizer, self.rules, dataset.origins, name)
        self.accounts[f"{name}: {value}"] = {
            "format": dataset.format, "rows": dataset.account.as_dict(), "tokens": made.account.as_dict(), "faults": made.faults,
        }  # fmt: skip
        _tell(value, made, self.rules.length + 1)
        rows = [record for record in made.records if isinstance(record, Preference)]
        return Pairs([ended(group) for group in made.groups], rows, [value] * len(rows))

    def _hold_out(self, own: Sequence[Pairs]) -> tuple[list[Pairs], Pairs]:
        """The data sets without the pairs of one prompt in twenty, and those."""
        kept, heldout = [], Pairs()
        for part in own:
            away = [place for place, row in enumerate(part.rows) if _held(row)]
            heldout.add(part.part(away))
            kept.append(part.part(sorted(set(range(len(part.rows))) - set(away))))
        if not heldout.groups or not any(part.groups for part in kept):
            raise DataError(
                "no pair can be held out to measure on", found=f"{sum(len(part.groups) for part in own)} pairs",
                expected=f"prompts of which one in {HELD_OUT_ONE_IN} is held out", fix="Name pairs to measure on: heldout=FILE.",
            )  # fmt: skip
        return kept, heldout

    def _order(self, own: Sequence[Pairs]) -> Callable[[int], NDArray[np.int64]]:
        assert self.config.weights is not None
        sources = {f"data {number}": cast(Any, part.groups) for number, part in enumerate(own)}
        weights = dict(zip(sources, self.config.weights, strict=True))
        return Mixture(sources, weights, seed=derive(self.stage.seed, "mixture")).order

    def _drawn(self, other: Pairs, own: int) -> Pairs:
        """As many pairs of the others as the mix asks for, drawn uniformly without any twice."""
        share = MIXED[self.config.mix]
        wanted = round(own * share / (1 - share))
        found = other.part(permutation(len(other.groups), self.stage.seed, "mix")[:wanted].tolist())
        progress.say(f"  mix {self.config.mix}: {own:,} pairs of data and {len(found.groups):,} of other")
        if len(found.groups) < wanted:
            progress.say(f"  the mix asks for {wanted:,} of other, which has {len(other.groups):,}")
        return found


def _held(row: Preference) -> bool:
    prompt = "\0".join(f"{turn.role}\0{turn.content}" for turn in row.prompt)
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def _listed(value: Sequence[str] | str) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _tell(value: str, made: Groups, length: int) -> None:
    """What became of a source's rows, and why. DataError when none is left."""
    account = made.account
    why = ", ".join(f"{count:,} {reason}" for reason, count in account.dropped.items()).replace(TOO_LONG, f"longer than {length:,} tokens")
    progress.say(f"  {value}: {exactly(account.samples, 'pair')} used, {account.num_dropped:,} left out{f' ({why})' if why else ''}")
    for fault in made.faults:
        progress.say(f"    {fault}")
    if not account.samples:
        longer = f"Set batch.length (rows are up to {account.longest + 1:,} tokens) or truncation=keep_end."
        fix = longer if TOO_LONG in account.dropped else "Look at its rows: luyen inspect DATA model=MODEL."
        raise DataError(f"{value}: no pair is left", found=why or "no rows", fix=fix)
