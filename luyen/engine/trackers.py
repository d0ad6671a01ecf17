"""Services that keep the curves of many runs side by side: Weights & Biases, MLflow, trackio. Only those that a config names are imported.

A tracker may fail, training may not: one that raises is named once with its error and left out from then on. What it draws from the
generators of Python and numpy is put back. Every process that trains is a run of its own there, under the same name.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy

from luyen.core import progress
from luyen.core.errors import ConfigError

FOLDER = "trackers"
"""Where a tracker keeps files of its own, in the stage's folder."""


class Tracker(Protocol):
    """What is asked of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures of a step by name."""

    def close(self) -> None:
        """The run is over; send what is left."""


class _WandB:
    """Queues and sends from a process of its own; WANDB_MODE=offline keeps everything here.

    It drops figures of a step before the newest one that it was given. Those of a save that ended beside later steps are therefore
    filed under the newest; the other trackers take steps in any order.
    """

    def __init__(self, module: Any, project: str, name: str, config: Mapping[str, Any], folder: Path) -> None:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        self._run = module.init(project=project, name=name, config=dict(config), dir=str(folder / FOLDER))
        self._newest = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._newest = max(self._newest, step)
        self._run.log(dict(values), step=self._newest)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """Writes where MLFLOW_TRACKING_URI says, from a thread of its own."""

    def __init__(self, module: Any, project: str, name: str, config: Mapping[str, Any], folder: Path) -> None:
        del folder
        self._module = module
        module.set_experiment(project)
        module.start_run(run_name=name)
        module.log_params(dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log_metrics(dict(values), step=step, synchronous=False)

    def close(self) -> None:
        self._module.end_run()


class _Trackio:
    """Keeps a database on this machine; TRACKIO_SPACE_ID sends it elsewhere."""

    def __init__(self, module: Any, project: str, name: str, config: Mapping[str, Any], folder: Path) -> None:
        del folder
        self._run = module.init(project=project, name=name, config=dict(config), embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, tuple[str, Callable[[Any, str, str, Mapping[str, Any], Path], Tracker]]] = {
    "wandb": ("wandb", _WandB),
    "mlflow": ("mlflow", _MLflow),
    "trackio": ("trackio", _Trackio),
}
"""Name -> its package and what talks to it."""


class Trackers:
    """All that a config names; each is left out once it has failed."""

    def __init__(self, names: Sequence[str], project: str, config: Mapping[str, Any], folder: Path) -> None:
        """A run named after `folder` and the one above it begins with the first figures. Raises ConfigError when a package is missing."""
        self._waiting = {name: _module(name) for name in names}
        self._active: dict[str, Tracker] = {}
        self._project, self._config, self._folder = project, config, folder

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give figures of a step to every tracker."""
        while self._waiting:
            self._begin(*self._waiting.popitem())
        for name, tracker in list(self._active.items()):
            self._try(name, partial(tracker.log, step, values))

    def close(self) -> None:
        """End the run in every tracker."""
        for name, tracker in list(self._active.items()):
            self._try(name, tracker.close)
        self._active = {}

    def _begin(self, name: str, module: Any) -> None:
        title = f"{self._folder.parent.name}/{self._folder.name}"
        began = self._try(name, partial(TRACKERS[name][1], module, self._project, title, self._config, self._folder))
        if began is not None:
            self._active[name] = began

    def _try(self, name: str, action: Callable[[], Any]) -> Any:
        try:
            with _random_numbers_kept():
                return action()
        except Exception as error:  # whatever a library or a network does, training goes on
            progress.say(f"{name} failed and is left out from now on; training continues: {' '.join(repr(error).split())[:300]}")
            self._active.pop(name, None)
            return None


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    before = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])


def _module(name: str) -> Any:
    try:
        with _random_numbers_kept():
            return importlib.import_module(TRACKERS[name][0])
    except ImportError as error:
        raise ConfigError(
            f"train.watch.trackers names {name}, whose package cannot be imported", found=error,
            fix=f"pip install '.[{name}]' in luyen's folder, or leave it out.",
        ) from error  # fmt: skip
