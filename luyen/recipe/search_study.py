"""What optuna decides in a search: the next values, whether a trial goes on, which key matters.

TPE: Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization", section 4; here over all keys together. Pruning: worse than the
median of the trials before at the same step (Golovin et al., 2017, section 3.2.2), or asynchronous successive halving (Li et al., 2020,
arXiv:1810.05934). Importance: PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255).

optuna holds a study in memory that is made anew from the finished trials before each decision, with a seed of the trial's number. So a
decision depends on the finished trials alone, and a search that was killed goes on with the decisions that it would have made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luyen.core.errors import UserError
from luyen.core.seed import derive
from luyen.recipe.search_space import Dimension

RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
STARTUP = 5
"""Trials that are drawn at random before TPE proposes, and that are complete before the median prunes."""
DIGITS = 4
"""Significant digits of a proposed number: more would suggest a precision that no search has."""


PRUNERS: dict[str, Callable[[Any, int], Any]] = {
    "median": lambda pruners, first: pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
    "asha": lambda pruners, first: pruners.SuccessiveHalvingPruner(min_resource=first),
    "none": lambda pruners, first: pruners.NopPruner(),
}
"""What ends a trial early, by name: made of optuna's module of them and the step of the first evaluation."""


@dataclass
class Trial:
    """One set of values and what came of it; `values` are the figures by step."""

    number: int
    params: dict[str, Any]
    own: bool = False
    """Whether these are the recipe's own settings."""
    state: str = RUNNING
    value: float | None = None
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, float] = field(default_factory=dict)
    """Successive halving: the figure at each rung that it came to."""

    def until(self, step: int) -> dict[int, float]:
        """The figures up to a step, in order."""
        return {int(at): self.values[at] for at in sorted(self.values, key=int) if int(at) <= step}


@dataclass(frozen=True)
class Judge:
    """How a search proposes and prunes."""

    dimensions: tuple[Dimension, ...]
    direction: str
    pruner: str
    first: int
    """Step of the first evaluation, the first rung of successive halving."""
    seed: int

    def propose(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Values for the trial after these, in the order of their names."""
        study = self._study(trials, derive(self.seed, "search", len(trials)))
        asked = study.ask({item.key: distribution(item) for item in self.dimensions}).params
        return {item.key: _rounded(asked[item.key], item) for item in sorted(self.dimensions, key=lambda item: item.key)}

    def hopeless(self, trials: Sequence[Trial], step: int) -> bool:
        """Whether the last trial ends here, judged by its figures up to `step`; notes the rungs that it came to.

        A trial that goes on from a checkpoint may have later figures; rungs are therefore counted again from the first figure on.
        """
        optuna = library()
        trial, ended = trials[-1], False
        trial.rungs = {}
        for at in trial.until(step) if self.pruner == "asha" else (step,):
            study = self._study(trials[:-1], 0)
            study.add_trial(optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=trial.params, system_attrs=trial.rungs,
                distributions={item.key: distribution(item) for item in self.dimensions}, intermediate_values=trial.until(at),
            ))  # fmt: skip
            ended = study.pruner.prune(study, study.get_trials(deepcopy=False)[-1])
            trial.rungs = dict(study.get_trials(deepcopy=False)[-1].system_attrs)
        return bool(ended)

    def importance(self, trials: Sequence[Trial]) -> dict[str, float] | None:
        """Each key's share in what puts a trial among the best; None with too few completed trials to say."""
        optuna = library()
        complete = sum(trial.state == COMPLETE for trial in trials)
        if complete < 2 * STARTUP:
            return None
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best_share(complete))
        found = optuna.importance.get_param_importances(self._study(trials, 0), evaluator=evaluator)
        return {key: float(share) for key, share in sorted(found.items(), key=lambda item: (-item[1], item[0]))}

    def _study(self, trials: Sequence[Trial], seed: int) -> Any:
        """The finished trials as a study in memory.

        A failed trial is shown as one that was pruned before its first figure: optuna would leave it out and propose the like again.
        """
        optuna = library()
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=STARTUP)
        pruner = PRUNERS[self.pruner](optuna.pruners, self.first)
        study = optuna.create_study(direction=self.direction, sampler=sampler, pruner=pruner)
        kinds = {item.key: distribution(item) for item in self.dimensions}
        for trial in trials:
            if trial.state == RUNNING:
                continue
            complete = trial.state == COMPLETE
            state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
            figures = {} if trial.state == FAILED else trial.until(max(map(int, trial.values), default=0))
            study.add_trial(optuna.trial.create_trial(
                state=state, params=trial.params, distributions=kinds, value=trial.value if complete else None,
                intermediate_values=figures, system_attrs={} if trial.state == FAILED else trial.rungs,
            ))  # fmt: skip
        return study


def library() -> Any:
    """optuna, quiet. Raises UserError with the remedy when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("luyen search needs optuna, which is not installed", fix="pip install '.[search]' in luyen's folder") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def best_share(complete: int) -> float:
    """The share of the completed trials that importance calls the best: a tenth, but at least five trials, and at most half."""
    return max(0.1, min(0.5, 5 / complete))


def distribution(item: Dimension) -> Any:
    """A key's range or choices as optuna has them."""
    optuna = library()
    if item.choices:
        return optuna.distributions.CategoricalDistribution(item.choices)
    if item.whole:
        return optuna.distributions.IntDistribution(int(item.low), int(item.high), log=item.log)
    return optuna.distributions.FloatDistribution(item.low, item.high, log=item.log)


def _rounded(value: Any, item: Dimension) -> Any:
    if item.choices or item.whole or not math.isfinite(value):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), item.low), item.high)
