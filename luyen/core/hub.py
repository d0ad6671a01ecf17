"""Model and data set folders from the Hugging Face hub, and one clear line when the hub does not give them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from luyen.core.errors import DataError, ModelError, UserError
from luyen.core.storage import storage_errors

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
Kind = Literal["model", "dataset"]
LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "requests")
"""Whose exceptions mean that files could not be had."""
NOUNS: dict[Kind, str] = {"model": "model", "dataset": "data set"}


def has_hub_form(name: str) -> bool:
    """Whether a name reads owner/name or owner/name@revision, as those on the hub do; a path of two parts reads so too."""
    return bool(_NAME.fullmatch(name))


def download(name: str, kind: Kind, patterns: Sequence[str]) -> Path:
    """The files of `owner/name` or `owner/name@revision` that match `patterns`, in huggingface_hub's cache on this machine.

    Raises ModelError or DataError (by `kind`) when it is not in the cache and the hub does not give it, StorageError when the
    disk is full.
    """
    from huggingface_hub import constants, snapshot_download  # a second to import, and most runs are offline

    repository, _, revision = name.partition("@")
    try:
        with storage_errors(Path(constants.HF_HUB_CACHE)):
            found = snapshot_download(
                repository, repo_type=kind, revision=revision or None, allow_patterns=list(patterns)
            )  # fmt: skip
    except Exception as error:
        if not _of_the_hub(error):
            raise
        raise refusal(name, kind, error) from error
    return Path(found)


def refusal(name: str, kind: Kind, error: BaseException) -> UserError:
    """What to tell the user when the hub did not give `name`: by the type of the exception, never by its text."""
    what, fix = _reason(name, kind, error)
    error_class = ModelError if kind == "model" else DataError
    return error_class(f"{NOUNS[kind]} {name!r}: {what}", fix=fix)


def _reason(name: str, kind: Kind, error: BaseException) -> tuple[str, str]:
    from huggingface_hub import errors

    noun = NOUNS[kind]
    causes = tuple(_chain(error))
    if isinstance(error, errors.HFValidationError):
        return "no such path here, and no name that the hub can have", f"Give a path, or a name such as owner/{noun.replace(' ', '-')}."
    if isinstance(error, errors.GatedRepoError):
        return "the hub gives it only to accounts that were let in", "Accept its terms on the hub and log in (`hf auth login`)."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such path here, and the hub knows no such public {noun}", "Check the name; for a private one log in (`hf auth login`)."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {name.partition('@')[2]!r} of it", "Check what stands after the @."
    answered = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    if answered is not None:
        status = getattr(answered.response, "status_code", "unknown")
        return f"not in the cache, and the hub answered with status {status}", "Try again later, or give a path."
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return "not in the cache, and the hub is switched off", "Unset HF_HUB_OFFLINE, or give a path."
    return "no such path here, not in the cache, and the hub cannot be reached", "Check the name and the network, or give a path."


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _of_the_hub(error: BaseException) -> bool:
    """Whether an exception tells that files could not be had; anything else is a defect and keeps its trace."""
    rooms = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, OSError) or not rooms.isdisjoint(LIBRARIES)
