"""What the hub does not give is told in one line of our own words, by the type of the exception."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from luyen.core.errors import DataError, ModelError, StorageError
from luyen.core.hub import Kind, download

STORY = "Got: ConnectError\nAn error happened while trying to locate the files on the Hub.\nhttps://somewhere/api\nRequest ID: 7"


def answered(error_class: type[errors.HfHubHTTPError], status: int) -> Exception:
    return error_class(STORY, response=httpx2.Response(status, request=httpx2.Request("GET", "https://somewhere/api")))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CASES: list[tuple[str, Exception]] = [
    ("the hub knows no such public", answered(errors.RepositoryNotFoundError, 404)),
    ("only to accounts that were let in", answered(errors.GatedRepoError, 403)),
    ("the hub has no revision 'v9'", answered(errors.RevisionNotFoundError, 404)),
    ("the hub answered with status 503", answered(errors.HfHubHTTPError, 503)),
    ("the hub answered with status 502", caused(errors.LocalEntryNotFoundError(STORY), answered(errors.HfHubHTTPError, 502))),
    ("the hub cannot be reached", caused(errors.LocalEntryNotFoundError(STORY), httpx2.ConnectError(STORY))),
    ("the hub cannot be reached", httpx2.ReadTimeout(STORY)),
    ("the hub is switched off", caused(errors.LocalEntryNotFoundError(STORY), errors.OfflineModeIsEnabled(STORY))),
    ("no name that the hub can have", errors.HFValidationError(STORY)),
]


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(("message", "error"), CASES, ids=[f"{message} {type(error).__name__}" for message, error in CASES])
def test_every_refusal_is_one_line_without_the_hubs_own_text(
    kind: Kind, message: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError if kind == "model" else DataError) as told:
        download("owner/name@v9", kind, ["*.json"])
    line = str(told.value)
    noun = "model" if kind == "model" else "data set"
    assert line.startswith(f"{noun} 'owner/name@v9': ") and message in line
    assert "\n" not in line and "Got:" not in line and "https" not in line and "Request ID" not in line


def test_a_defect_is_no_refusal_and_a_full_disk_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise KeyError("a defect")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(KeyError):
        download("owner/name", "model", [])

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(StorageError, match="No space left"):
        download("owner/name", "model", [])


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def give(name: str, **arguments: object) -> str:
        asked.append((name, arguments))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    assert download("owner/name@v1", "dataset", ("*.csv",)) == tmp_path
    assert asked == [("owner/name", {"repo_type": "dataset", "revision": "v1", "allow_patterns": ["*.csv"]})]


def test_a_fresh_process_without_a_network_gets_one_line(tmp_path: Path) -> None:
    code = "from luyen.core.hub import download; download('owner/name', 'model', ['*.json'])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stderr.splitlines()[-1].endswith("ModelError: model 'owner/name': not in the cache, and the hub is switched off. Unset "
                                                   "HF_HUB_OFFLINE, or give a path.")  # fmt: skip
