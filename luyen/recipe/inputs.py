"""Inputs of stages: checked before any work, and known by their content instead of their names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luyen.core import manifest
from luyen.core.config import Config, dump, input_fields
from luyen.core.errors import ModelError, UserError
from luyen.core.folders import ADAPTER_FILE, MODEL_FILE
from luyen.core.hub import has_hub_form
from luyen.inference.reward_config import RewardConfig, check_consent
from luyen.recipe.graph import Plan, input_values, sections
from luyen.tokenizer.templates import JINJA_FILE

WATCHING = tuple(f"train.watch.{key}" for key in ("trackers", "project", "profile", "synchronise", "carbon"))
MAY_CHANGE = (
    *(f"train.checkpoint.{key}" for key in ("keep_last", "asynchronous", "format")),
    "train.device", "train.parallel", *WATCHING, "device", "batch_size", "processes",
)  # fmt: skip
"""Keys that decide how work is done and not what comes of it; a change of them does not make a stage out of date."""
TEMPLATE_FILES = (".yaml", ".yml", JINJA_FILE)
"""Endings of a `template` that is a file: of questions, or of a chat."""
NEEDED = {"model": MODEL_FILE, "models": MODEL_FILE, "base": MODEL_FILE, "start": ADAPTER_FILE, "tokenizer": "tokenizer.json"}
"""Config field -> file that makes a folder what the field asks for; an adapter stands for its model."""
WRITTEN_BESIDE = ("README.md", "report.html", "environment.json")
"""Files that a run writes into its folder beside the stages' folders, of any name that a user's own may have."""


def check_inputs(plan: Plan, folder: Path) -> None:
    """UserError when an input that is no stage is missing, when a user's own files lie where a result would be put, or when a reward is a
    program or another machine that nobody allowed. Imports no torch."""
    _check_place(folder)
    names = {stage.name for stage in plan.stages}
    for stage in plan.stages:
        template = getattr(stage.config, "template", "")
        if template.endswith(TEMPLATE_FILES) and not Path(template).expanduser().is_file():
            raise UserError(f"{stage.name}: no template file {template!r}", fix="Check the path.")
        for field, value in input_values(stage.config):
            if value in names:
                continue
            path = manifest.existing(value)
            if path is not None:
                result = (folder / stage.name).resolve()
                if result == path.resolve() or result in path.resolve().parents or path.resolve() in result.parents and path.is_file():
                    raise UserError(f"{stage.name} would write over its own input {value}", fix="Choose another run folder with --out.")
                _check_kind(stage.name, field, path)
            elif not is_hub_name(value):
                kind = "a path that exists, or a hub name owner/name" if "/" in value else "a path that exists"
                raise UserError(f"{stage.name}: no such file or folder {value!r}", expected=kind, fix="Check the spelling.")
        for section in (section for _, section in sections(stage.config) if isinstance(section, RewardConfig)):
            check_consent(section)


def _check_place(folder: Path) -> None:
    """UserError when the folder is no run's and holds a file that a run would write over; stages' folders are looked at by `attempts`."""
    found = [name for name in WRITTEN_BESIDE if (folder / name).exists()]
    if found and not (folder / "recipe.resolved.yaml").is_file():
        raise UserError(
            f"{folder} is no run and holds {found[0]}, which a run would write over", fix="Choose another run folder with --out."
        )


def _check_kind(stage: str, field: str, path: Path) -> None:
    """A folder given as a model or tokenizer holds one, itself, in `model`, or because it is a finished stage."""
    needed = NEEDED.get(field)
    places = [folder for folder in (path, path / "model", path / "adapter") if manifest.existing(folder)]
    taken = (needed, ADAPTER_FILE) if needed == MODEL_FILE else (needed,)
    if needed and not any((folder / file).is_file() for folder in places for file in taken):
        inside = sorted(str(found.parent.parent) for file in taken for found in path.glob(f"*/*/{file}"))
        fix = f"It is a run; name its stage: {', '.join(inside[:5])}." if inside else ""
        if (path / "state.json").is_file():
            fix = "It is a training checkpoint; `luyen export` makes a model of it."
        raise ModelError(
            f"{stage}: {path} is no {field.removesuffix('s')}", found=f"no {needed} in it", expected="a folder that has it", fix=fix
        )


def is_hub_name(value: str) -> bool:
    """Whether a value has the form of a name on the hub and no such path is here, nor its first folder: then a path was misspelt."""
    return has_hub_form(value) and not Path(value).exists() and not Path(value).parent.exists()


def fingerprint_inputs(config: Config, stages: Mapping[str, str]) -> dict[str, str]:
    """Input -> fingerprint of its content: a stage's, a file's or folder's; a hub name stands for itself."""
    found = {value: stages.get(value) or _fingerprint(value) for _, value in input_values(config)}
    template = getattr(config, "template", "")
    if template.endswith(TEMPLATE_FILES):  # a file of the user's, or else the name of a built-in one
        found[template] = _fingerprint(template)
    return found


def _fingerprint(value: str) -> str:
    path = manifest.existing(value)
    return value if path is None else _of_content(path, _signature(path))


def _signature(path: Path) -> tuple[tuple[object, ...], ...]:
    """Names, sizes and times of every file: as long as they stay, a large input is hashed once in a process."""
    files = [path] if path.is_file() else [item for item in sorted(path.rglob("*")) if item.is_file()]
    return tuple((str(file), (status := file.stat()).st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for file in files)


@functools.lru_cache(maxsize=1024)
def _of_content(path: Path, signature: tuple[tuple[object, ...], ...]) -> str:
    del signature  # part of the key alone
    if path.is_file():
        return manifest.sha256_file(path)
    if (path / manifest.MANIFEST).is_file():
        return manifest.content_fingerprint(manifest.verify(path))
    return manifest.fingerprint(
        {item.relative_to(path).as_posix(): manifest.sha256_file(item) for item in sorted(path.rglob("*")) if item.is_file()}
    )


def neutral_config(config: Config, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The config as far as it decides the result: every input by the fingerprint of its content, no key of MAY_CHANGE."""
    values = dump(config)
    _put_inputs(config, values, inputs)
    for key in MAY_CHANGE:
        *sections, last = key.split(".")
        section: Any = values
        for part in sections:
            section = section.get(part, {})
        section.pop(last, None)
    saving = values.get("train", {}).get("checkpoint", {})
    if saving.get("average_last") == 1:  # else the model is a mean of what was saved, and when that was decides it
        saving.pop("every_steps")
    return values


def _put_inputs(config: Config, values: dict[str, Any], inputs: Mapping[str, str]) -> None:
    """Replace every input in the plain values of a config and of its sections by its fingerprint."""
    for name in {*input_fields(type(config)), "template"} & values.keys():
        values[name] = _replace(values[name], inputs)
    for name, section in sections(config):
        key, _, place = name.partition(".")
        inside = values[key] if not place else values[key][int(place) if isinstance(values[key], list) else place]
        _put_inputs(section, inside, inputs)


def _replace(value: Any, inputs: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return inputs.get(value, value)
    if isinstance(value, list):
        return [_replace(item, inputs) for item in value]
    if isinstance(value, dict):
        return {key: _replace(item, inputs) for key, item in value.items()}
    return value
