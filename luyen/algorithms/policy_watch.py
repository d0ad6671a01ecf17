"""What goes wrong with a policy, in plain language with the knob to turn: it leaves its reference, repeats itself, babbles, or fools its
reward (Gao et al., 2022, arXiv:2210.10760: past some divergence the true score falls while the learned one still rises)."""

from __future__ import annotations

from collections.abc import Mapping

from luyen.algorithms.policy_config import KLConfig

COLLAPSED = 0.2
"""Share of the first rollout's entropy below which answers are told as all alike."""
GROWN, SHRUNK = 2.0, 0.5
"""Length over that of the first rollout which is told."""
UNFINISHED = 0.5
"""Share of answers that did not end by themselves which is told, where it was less in the first rollout."""
RISE, FALL = 0.02, 0.02
"""Change of the reward and of the true score, as shares of the larger of their sizes, from which one is said to rise and fall."""


class PolicyWatch:
    """Tells a thing when it begins to be true, and again only after it was false."""

    def __init__(self, kl: KLConfig) -> None:
        self.kl = kl
        self._true: set[str] = set()
        self._best: tuple[float, float] | None = None

    def judge(self, iteration: int, figures: Mapping[str, float], first: Mapping[str, float]) -> list[str]:
        """What is to be said of an iteration's figures beside those of the first one."""
        kl, entropy, length = figures.get("kl", 0.0), figures.get("entropy"), figures["length"]
        found: dict[str, str] = {}
        if kl > self.kl.warn:
            found["kl"] = (
                f"answers are {kl:.1f} nats from the reference's (loss.kl.warn is {self.kl.warn:g}): the policy leaves what it was trained "
                "to say. Raise loss.kl.beta, or lower train.optimizer.learning_rate or rollout.epochs"
            )
        if entropy is not None and entropy < COLLAPSED * first.get("entropy", 0.0):
            found["entropy"] = (
                f"the entropy of a token fell from {first['entropy']:.2f} to {entropy:.2f} nats: the answers to a prompt are nearly all "
                "alike, and nothing new is tried. Raise loss.kl.beta or rollout.temperature, or lower train.optimizer.learning_rate"
            )
        if length > GROWN * first["length"] or figures["stopped"] < UNFINISHED < first["stopped"]:
            found["length"] = (
                f"answers grew from {first['length']:.0f} to {length:.0f} tokens, {1 - figures['stopped']:.0%} of them without an end: the "
                "reward may pay for length. Set rollout.unfinished, or look at what scores them"
            )
        if length < SHRUNK * first["length"]:
            found["short"] = (
                f"answers shrank from {first['length']:.0f} to {length:.0f} tokens: the reward may pay for saying little. Look at what "
                "scores them, or raise loss.kl.beta"
            )
        if figures["reward_std"] == 0:
            found["flat"] = (
                f"all answers got the same reward, {figures['reward']:g}: there is nothing to learn from. Take a finer reward, other "
                "prompts, or raise rollout.temperature or rollout.samples"
            )
        return self._new(f"rollout {iteration + 1}", found)

    def compare(self, evaluation: int, reward: float, score: float) -> list[str]:
        """What is to be said of the reward and the true score of held-out answers, beside those of the best evaluation before."""
        found = {}
        if self._best is not None:
            before, best = self._best
            rose = reward - before > RISE * max(abs(reward), abs(before))
            if rose and best - score > FALL * max(abs(score), abs(best)):
                found["hacking"] = (
                    f"on held-out prompts the reward rose from {before:.3f} to {reward:.3f} while the true score fell from {best:.3f} to "
                    f"{score:.3f}: the policy learns to please the reward. Take an earlier checkpoint, raise loss.kl.beta, or mend "
                    "the reward"
                )
        if self._best is None or score > self._best[1]:
            self._best = (reward, score)
        return self._new(f"evaluation {evaluation}", found)

    def _new(self, when: str, found: Mapping[str, str]) -> list[str]:
        kinds = {"hacking"} if when.startswith("evaluation") else {"kl", "entropy", "length", "short", "flat"}
        lines = [f"warning: {when}: {text}" for kind, text in found.items() if kind not in self._true]
        self._true = (self._true - kinds) | found.keys()
        return lines
