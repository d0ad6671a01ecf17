"""`luyen label`: a page on which people say which of two answers is better; and what becomes of what they said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from luyen.cli.arguments import field_help, plain_command, program, split_words, warn, working
from luyen.core import interrupt, progress
from luyen.core.config import Config, load, merge, read_yaml
from luyen.core.errors import ConfigError, UserError, nearest
from luyen.core.plural import exactly
from luyen.serving.label_config import LabelConfig

if TYPE_CHECKING:
    from luyen.serving.label_store import Store
    from luyen.serving.label_writer import PairMaker

HELP = """Serve a page on which people say which of two answers is better: docs/label.md.

  luyen label models.chat=DIR prompts=questions.jsonl
  luyen label pairs=pairs.jsonl

Everything is in FOLDER (labels unless --out names another), every click on the disk before the next pair appears; the same command goes
on. Each week of clicks is a folder of its own, closed with a manifest and a preferences.jsonl when the week is over.

  luyen label stats FOLDER                          agreement, and whether a place wins
  luyen label close FOLDER                          close the weeks that are open
  luyen label export FOLDER FILE form=preferences   also form=hh, form=label-studio; domain=safety
  luyen label import FOLDER FILE                    any of these forms, as if they had been judged here

Settings, as key=value (nested keys with dots), with their defaults:"""
DEFAULT = "labels"
REJECTED = "rejected.jsonl"


class ExportConfig(Config):
    """What is exported."""

    form: Literal["preferences", "hh", "label-studio"] = "preferences"
    """preferences, hh or label-studio."""
    domain: Literal["", "helpfulness", "safety"] = ""
    """Only what was judged by this guideline."""


def command(name: str) -> click.Command:
    """The command `label`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[stats | close | export | import] [KEY=VALUE]..."),
        click.Option(["--config"], metavar="FILE", help="YAML file with settings; the command line goes over it."),
        click.Option(["--out"], metavar="FOLDER", help="Where pairs and judgements are. Default: labels."),
    ]
    return plain_command(name, _label, f"{HELP}\n\n{field_help(LabelConfig)}", params)


def _label(words: tuple[str, ...], config: str | None, out: str | None) -> None:
    action = words[0] if words else ""
    if action in ACTIONS:
        if config or out:
            raise UserError(f"luyen label {action} takes its folder behind it", fix=f"Write: luyen label {action} FOLDER")
        ACTIONS[action](words[1:])
        return
    plain, settings = split_words(words)
    if plain:
        raise ConfigError(f"cannot read {plain[0]!r}", expected="key=value, or an action", fix=nearest(plain[0], ACTIONS))
    _serve(load(LabelConfig, merge(read_yaml(Path(config)) if config else {}, settings), "luyen label"), Path(out or DEFAULT))


def _serve(config: LabelConfig, folder: Path) -> None:
    """Open the folder, read what is to be judged, and serve until a signal."""
    from luyen.serving.label_server import serve
    from luyen.serving.label_store import Store

    with working(), Store.open(folder, config.seed) as store:
        progress.say(f"{exactly(len(store.pairs), 'pair')} and {exactly(len(store.current()), 'judgement')} are in {folder}")
        maker = _maker(config, store) if config.pairs is None else None
        if maker is None:
            _ready_pairs(config, store)
        serve(config, store, maker, lambda address: click.echo(address))
        progress.say(f"everything is in {folder}; its figures: {program()} label stats {folder}")
        interrupt.check()


def _ready_pairs(config: LabelConfig, store: Store) -> None:
    """Put the pairs of a file into the store."""
    from luyen.core.records import Preference
    from luyen.recipe.documents import read_whole
    from luyen.recipe.stage import Stage
    from luyen.serving.label_records import Pair

    source = Stage("label", store.folder, store.seed).data(str(config.pairs))
    dataset = read_whole(source, config.read, store.folder / REJECTED)
    pairs = [Pair.of(record) for record in dataset.records if isinstance(record, Preference)]
    if not pairs:
        raise UserError(f"{config.pairs} holds no pairs", found=dataset.format, expected="prompt/chosen/rejected or Anthropic HH")
    if len(pairs) < len(dataset.records):
        progress.say(f"{exactly(len(dataset.records) - len(pairs), 'row')} that hold no pair are left out")
    progress.say(f"{exactly(store.add(pairs), 'new pair')} to judge")


def _maker(config: LabelConfig, store: Store) -> PairMaker:
    """What writes pairs while people judge."""
    from luyen.core.device import pick_device
    from luyen.recipe.prompts import read_prompts
    from luyen.recipe.stage import Stage
    from luyen.serving.label_writer import PairMaker, open_writers

    place = Stage("label", store.folder, store.seed)
    prompts = read_prompts(place.data(str(config.prompts)), config.read, store.folder / REJECTED)
    models = {name: place.model(value) for name, value in config.models.items()}
    writers = open_writers(models, config.temperatures, config.sampling, pick_device(config.device))
    return PairMaker(store, [prompt.messages for prompt in prompts], writers, config.ahead, config.judges)


def _folder(words: Sequence[str], more: int = 0, what: str = "") -> list[str]:
    if len(words) != 1 + more:
        raise UserError(f"give a folder{what}", found=f"{len(words)} words", expected=1 + more)
    return list(words)


def _stats(words: Sequence[str]) -> None:
    from luyen.serving.label_statistics import statistics
    from luyen.serving.label_store import Store
    from luyen.serving.label_text import lines

    store = Store.read(Path(_folder(words or [DEFAULT])[0]))
    for line in lines(statistics(store.current())):
        print(line)


def _close(words: Sequence[str]) -> None:
    from luyen.serving.label_store import Store

    folder = Path(_folder(words or [DEFAULT])[0])
    Store.read(folder)  # a folder of another kind is refused before anything is written to it
    with Store.open(folder, keep_seed=True) as store:
        closed = store.close()
        for name in closed:
            print(store.folder / name)
    if not closed:
        warn(f"{folder} has no week that is open")


def _export(words: Sequence[str]) -> None:
    from luyen.core.files import replace_jsonl
    from luyen.core.storage import write_json
    from luyen.serving.label_formats import hh_rows, label_studio_tasks, preference_rows
    from luyen.serving.label_store import Store

    settings = [word for word in words if word.startswith(("form=", "domain="))]
    config = load(ExportConfig, split_words(settings)[1], "luyen label export")
    folder, target = map(Path, _folder([word for word in words if word not in settings], 1, " and a file to write"))
    store = Store.read(folder)
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{target} is in {folder}, which is the page's own", fix="Choose a file outside of it.")
    if target.exists():
        raise UserError(f"{target} exists", fix="Choose another name, or delete it yourself.")
    found = store.current(config.domain)
    if config.form == "label-studio":
        tasks = label_studio_tasks(found)
        write_json(target, tasks)
        print(f"{target}: {exactly(len(tasks), 'task')}")
        return
    rows = list(hh_rows(found) if config.form == "hh" else preference_rows(found))
    kept = [row for row in rows if not isinstance(row, str)]
    if len(kept) < len(rows):
        reason = next(row for row in rows if isinstance(row, str))
        warn(f"{exactly(len(rows) - len(kept), 'judgement')} cannot be a transcript: {reason}")
    replace_jsonl(target, kept)
    print(f"{target}: {exactly(len(kept), 'row')}")


def _import(words: Sequence[str]) -> None:
    from luyen.serving.label_formats import read_file
    from luyen.serving.label_store import Store, now

    folder, source = map(Path, _folder(words, 1, " and a file to read"))
    moment = now()
    found = read_file(source, moment)
    with Store.open(folder, keep_seed=True) as store:
        new = sum(store.take(judgement, moment) for judgement in found.judgements)
        pairs = store.add(found.pairs)
    for reason in found.left_out[:5]:
        warn(f"left out {reason}")
    out = f", {exactly(len(found.left_out), 'row')} left out" if found.left_out else ""
    print(f"{folder}: {exactly(new, 'new judgement')} of {len(found.judgements)}, {exactly(pairs, 'new pair')} to judge{out}")


ACTIONS: dict[str, Callable[[Sequence[str]], Any]] = {"stats": _stats, "close": _close, "export": _export, "import": _import}
