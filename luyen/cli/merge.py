"""`luyen merge BASE ADAPTER... out=FOLDER`: adapters become part of the model, and the result is compared with the model beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field, PositiveFloat

from luyen.cli.arguments import field_help, plain_command, split_words
from luyen.cli.unfinished import no_adapter
from luyen.core import progress
from luyen.core.config import Config, load

TEXT = (
    "A language model gives each next word a probability. It has read many pages, and what it has not read it cannot know. "
    "Mô hình ngôn ngữ gán cho mỗi từ tiếp theo một xác suất. Nó đã đọc nhiều trang, và điều chưa đọc thì nó không thể biết. "
    "Языковая модель даёт каждому следующему слову вероятность. Она прочла много страниц, а чего не читала, того знать не может. "
)
"""What merged and unmerged models are compared on where no text is given."""
TOKENS = 512


class MergeConfig(Config):
    """How adapters are merged, and how exact the result must be."""

    out: str
    """Folder to make."""
    what: Literal["model", "adapter"] = "model"
    """model: a plain model. adapter: one LoRA that stands for all, where the combination has a low rank."""
    how: Literal["linear", "cat", "svd", "ties", "dare"] = "linear"
    """linear, cat: the exact sum of the changes. svd: that sum with a smaller rank. ties: the largest entries, by majority of signs.
    dare: entries at random, made larger."""
    weights: list[float] = []
    """Factor of each adapter; empty: 1 each, which is the sum."""
    density: float = Field(default=0.5, gt=0, le=1)
    """ties, dare: share of each change's entries that stays."""
    rank: int = Field(default=0, ge=0)
    """svd: rank of each weight's change; 0: the largest of the adapters'."""
    tolerance: PositiveFloat | None = None
    """Largest difference of a logit, as a share of the largest logit; empty: 1e-4 for fp32, 0.01 for fp16, 0.05 for bf16 weights."""
    text: str = ""
    """File whose beginning the models are compared on; empty: a few sentences in English, Vietnamese and Russian."""
    seed: int = 0
    """dare: which entries are dropped."""


HELP = """Merge adapters into their base, and compare what the result computes with what they do.

  luyen merge base runs/mine/chat/adapter out=model

  luyen merge base style law out=model how=ties weights=[1,0.7]

What is combined is each adapter's change of the weights, with its own scale and rank. Logits of the merged and of the unmerged model are
compared on a text, and nothing is written when they differ by more than the tolerance.

svd, ties and dare make another change than the sum of the adapters'. Then that comparison shows only that the file holds the combined
change, and how far this is from the sum is told beside it."""
READ_BY = {"density": ("ties", "dare"), "rank": ("svd",), "seed": ("dare",)}
"""Settings that some ways to combine alone read."""


def command(name: str) -> click.Command:
    """The command `merge`."""
    params: list[click.Parameter] = [click.Argument(["words"], nargs=-1, metavar="BASE ADAPTER... out=FOLDER")]
    return plain_command(name, _merge, HELP + "\n\n" + field_help(MergeConfig), params)


def _check_out(out: Path, inputs: list[str]) -> None:
    """UserError where the result would take the place of a folder that is not ours, or of one that it is made of."""
    from luyen.core import manifest
    from luyen.core.errors import UserError

    place = out.expanduser().resolve()
    for path in (Path(name).expanduser().resolve() for name in inputs):
        if place == path or place in path.parents:
            raise UserError(f"out={out} holds what is merged", found=path, fix="Choose a folder of its own.")
    manifest.check_replaceable(place)


def _merge(words: tuple[str, ...]) -> None:
    plain, settings = split_words(words)
    from luyen.core.errors import UserError

    if len(plain) < 2:
        raise UserError("give the base and at least one adapter", found=f"{len(plain)} words", fix="luyen merge BASE ADAPTER out=FOLDER")
    config = load(MergeConfig, settings, "luyen merge")
    for key, ways in READ_BY.items():
        if key in config.model_fields_set and config.how not in ways:
            fix = f"Leave it out, or take how={' or '.join(ways)}."
            raise UserError(f"{key}={getattr(config, key)} is not read by how={config.how}", fix=fix)
    base, names = plain[0], plain[1:]
    _check_out(Path(config.out), plain)
    progress.use(progress.automatic())
    from luyen.adapters import files, merged
    from luyen.adapters.foreign import other_name
    from luyen.adapters.merge import Plan

    adapters: dict[str, str] = {}
    for name in names:
        if (folder := files.locate(name)) is None:
            other = UserError(f"{name} is not an adapter", expected=f"a folder with {files.CONFIG}", fix="The base comes first.")
            raise no_adapter(name) or other
        adapters[name] = str(folder)
        if different := other_name(name, base):
            progress.say(different)
    bringing = merged.bring_tokens(files.open_model(base, "meta"), list(adapters.values()))
    tokenizer = _tokenizer(base, list(adapters.values()), bringing)
    plan = Plan(config.how, tuple(config.weights), config.density, config.rank, config.seed)
    result = merged.merge(base, list(adapters.values()), plan, _ids(tokenizer, config.text, base), config.what == "adapter")
    for line in _told(result, config):
        print(line)
    merged.check(result, config.tolerance)
    _write(result, tokenizer, config, base, adapters)
    print(config.out)


def _tokenizer(base: str, adapters: list[str], bringing: str | None) -> Any:
    """The tokenizer of what is merged: that of the adapter with new tokens, else of the first with a chat template, else the base's."""
    from luyen.adapters import files
    from luyen.tokenizer.load import Tokenizer

    own = {name: Tokenizer.load(name) for name in adapters if (Path(name) / "tokenizer.json").is_file()}
    chatting = {name: tokenizer for name, tokenizer in own.items() if tokenizer.has_template}
    chosen = bringing or next(iter(chatting), None)
    if chosen in chatting and len({tokenizer.template.jinja for tokenizer in chatting.values()}) > 1:
        progress.say(f"the adapters have different chat templates; that of {chosen} is written")
    return own[chosen] if chosen in own else Tokenizer.load(files.locate_tokenizer(chosen or base))


def _ids(tokenizer: Any, text: str, base: str) -> Any:
    """The beginning of the text as the model reads it."""
    import torch

    from luyen.adapters import files
    from luyen.core.errors import DataError

    try:
        content = Path(text).read_text(encoding="utf-8") if text else TEXT
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text} cannot be read as text", found=error, fix="Give a file of text.") from error
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    limit = min(TOKENS, files.open_model(base, "meta").config.context_length)
    ids = [*start, *tokenizer.encode(content[: 16 * TOKENS])][:limit]
    if len(ids) < 2:
        raise DataError("the text is too short to compare models on", found=f"{len(ids)} tokens", expected="2 or more")
    return torch.tensor(ids)


def _told(result: Any, config: MergeConfig) -> list[str]:
    """What the comparison found."""
    compared = result.comparison
    if result.to_sum is None:
        lines = [_line("merged against unmerged", compared)]
    else:
        lines = [
            _line("checked: the file holds the combined change", compared),
            _line("how far it is from the sum of the adapters", result.to_sum),
        ]
    if config.how == "svd":
        lines.append(f"rank cut: {result.lost:.2%} of the change (Frobenius norm) is left out")
    if result.bits is not None:
        kind = result.bits["kind"]
        where = "stays on" if config.what == "adapter" else "is merged into the numbers of"
        lines.append(
            f"the base was held as {kind} while the adapters were trained, so what they learned {where} {kind}, not of the base itself"
        )
        lines.append(_line("against the base in numbers with the same adapters", result.to_full))
    return lines


def _line(what: str, compared: Any) -> str:
    return (
        f"{what}: logits differ by at most {compared.difference:.2e}, {compared.share:.2e} of the largest; "
        f"the likeliest token is the same at {compared.agree:.1%} of places"
    )


def _write(result: Any, tokenizer: Any, config: MergeConfig, base: str, adapters: Mapping[str, str]) -> None:
    """A sealed folder that names what it was made of."""
    from luyen.adapters import files
    from luyen.core import manifest
    from luyen.models import hf
    from luyen.recipe.environment import versions

    digest = files.weights_digest(base)
    made: Mapping[str, Any] = {
        "algorithm": "merge", "base": base, "base_weights": digest, "config": config.model_dump(mode="json", exclude={"out"}),
        "adapters": {name: files.weights_digest(folder, base) for name, folder in adapters.items()}, "difference": result.comparison.share,
    }  # fmt: skip
    if result.config is not None:
        files.save(result.model, result.config, Path(config.out), base=base, digest=digest, lineage=made, versions=versions())
        return
    with manifest.new_folder(Path(config.out)) as folder:
        hf.save(result.model.to(result.dtype), folder, bos_id=tokenizer.bos_id, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
        tokenizer.save(folder)
        manifest.seal(folder, "model", lineage=made, versions=versions())
