"""PPO on a toy in as many processes as were started. Run by the tests as a program of its own, also under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from luyen.core.errors import LuyenError  # noqa: E402 (the file is also a program)
from luyen.engine.trainer import fit  # noqa: E402
from tests.algorithms.policy_toys import Score, algorithm, bandit, train_config  # noqa: E402


def main(folder: Path, steps: int, broken: bool) -> None:
    """Train in a folder; a broken reward gives no numbers. Prints the error in place of a trace."""
    rollout = {"prompts": 12, "samples": 3, "minibatch": 4, "epochs": 1}
    reward = Score((lambda ids, stopped: float("nan")) if broken else bandit)
    own = algorithm("ppo", folder, reward, rollout=rollout, loss={"kl": {"beta": 0.1, "target": 0.05, "stop": 10.0}})
    try:
        fit(own, train_config(steps, checkpoint={"every_steps": 2}), folder)
    except LuyenError as error:
        print(f"told: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["broken"])
