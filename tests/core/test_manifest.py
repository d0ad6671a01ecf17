"""Folders that are whole or not there, and manifests that notice every change."""

import errno
import json
import os
from pathlib import Path

import pytest

from luyen.core import manifest
from luyen.core.errors import DamagedFile, StorageError


def sealed(folder: Path) -> Path:
    with manifest.new_folder(folder) as new:
        (new / "a.txt").write_text("alpha")
        (new / "sub").mkdir()
        (new / "sub" / "b.bin").write_bytes(bytes(range(256)))
        manifest.seal(new, "test", note="x")
    return folder


def test_a_sealed_folder_verifies_and_names_its_content(tmp_path: Path) -> None:
    one, two = sealed(tmp_path / "one"), sealed(tmp_path / "two")
    found = manifest.verify(one)
    assert found["kind"] == "test" and found["note"] == "x" and set(found["files"]) == {"a.txt", "sub/b.bin"}
    assert manifest.content_fingerprint(found) == manifest.content_fingerprint(manifest.verify(two))
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["a.txt", "sub/b.bin"])
def test_every_damage_is_named(tmp_path: Path, name: str) -> None:
    for damage in ("flip", "truncate", "empty", "delete"):
        folder = sealed(tmp_path / damage)
        path = folder / name
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        elif damage == "delete":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2 if damage == "truncate" else 0])
        with pytest.raises(DamagedFile, match=path.name):
            manifest.verify(folder)


@pytest.mark.parametrize(
    "files", [{"a": 1}, {"a": {}}, {"/etc/passwd": {"bytes": 1, "sha256": ""}}, {"../x": {"bytes": 1, "sha256": ""}}, [], None]
)
def test_a_manifest_that_makes_no_sense_is_damage(tmp_path: Path, files: object) -> None:
    (tmp_path / manifest.MANIFEST).write_text(json.dumps({"kind": "test", "files": files}))
    with pytest.raises(DamagedFile):
        manifest.verify(tmp_path)


def test_a_failed_attempt_leaves_the_old_folder_and_no_rubbish(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "kept")
    with pytest.raises(RuntimeError), manifest.new_folder(folder) as new:
        (new / "half").write_text("x")
        raise RuntimeError
    assert manifest.verify(folder)["kind"] == "test"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    manifest.write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as error:
        manifest.write_json(path, {"new": 2})
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


def test_equal_values_have_equal_fingerprints() -> None:
    assert manifest.fingerprint({"b": [1, 2.5], "a": "ư"}) == manifest.fingerprint({"a": "ư", "b": [1, 2.5]})
    assert manifest.fingerprint({"a": 1}) != manifest.fingerprint({"a": "1"})
    with pytest.raises(ValueError, match="[Oo]ut of range|not JSON"):
        manifest.fingerprint(float("nan"))
