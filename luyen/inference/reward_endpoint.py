"""An HTTP endpoint that scores answers: POST {"answers": [row, ...]}, reply {"scores": [number, ...]}; rows as programs get them.

No proxy of the environment is used and no redirect followed: what was allowed is what is asked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import httpx2

from luyen.core import consent, interrupt
from luyen.core.errors import DataError, UserError
from luyen.inference.reward_config import check_url
from luyen.inference.reward_process import number_in, row_of
from luyen.tasks.reward import Written

TOLD_IDS = 3
"""Prompts that an error names of a request of several."""


class EndpointReward:
    """What an endpoint says of each answer."""

    def __init__(self, url: str, seconds: float, batch: int, key: str = "") -> None:
        """`key` names an environment variable. UserError for an address that nobody allowed, or a variable that is not there."""
        consent.check_host(*check_url(url))
        self.url, self.seconds, self.batch, self.headers = url, seconds, batch, {}
        if key:
            if not os.environ.get(key):
                raise UserError(f"{url} wants a key, and the environment has no {key}", fix=f"Set {key}.")
            self.headers["Authorization"] = f"Bearer {os.environ[key]}"

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order. DataError names the answers that got none."""
        found: list[float] = []
        with httpx2.Client(timeout=self.seconds, trust_env=False, follow_redirects=False) as client:
            for start in range(0, len(written), self.batch):
                interrupt.check()
                found += self._some(client, written[start : start + self.batch])
        return found

    def _some(self, client: httpx2.Client, written: Sequence[Written]) -> list[float]:
        try:
            reply = client.post(self.url, json={"answers": [row_of(item) for item in written]}, headers=self.headers)
            reply.raise_for_status()
            values: Any = reply.json()["scores"]
            scores = [number_in(value) for value in values]
        except httpx2.TimeoutException:
            raise self._error(written, f"no reply within {self.seconds:g} s") from None
        except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
            raise self._error(written, f"{type(error).__name__}: {str(error)[:200]}") from error
        if len(scores) != len(written):
            raise self._error(written, f"{len(scores)} scores for {len(written)} answers")
        for item, score in zip(written, scores, strict=True):
            if score is None:
                raise self._error([item], "something else than a number")
        return [float(score) for score in scores if score is not None]

    def _error(self, written: Sequence[Written], found: str) -> DataError:
        names = ", ".join(item.id for item in written[:TOLD_IDS])
        more = f" and {len(written) - TOLD_IDS} more" if len(written) > TOLD_IDS else ""
        return DataError(f"{self.url} gave no scores of answers to {names}{more}", found=found,
                         expected='{"scores": [a number for each]}', fix="No update was made from these answers.")  # fmt: skip
