"""Folders that are whole or not there, and manifests that notice every change."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luyen.core import lock, manifest, progress, storage
from luyen.core.errors import DamagedFile, StorageError, UserError


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
    storage.write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as error:
        storage.write_json(path, {"new": 2})
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


def test_equal_values_have_equal_fingerprints() -> None:
    assert manifest.fingerprint({"b": [1, 2.5], "a": "ư"}) == manifest.fingerprint({"a": "ư", "b": [1, 2.5]})
    assert manifest.fingerprint({"a": 1}) != manifest.fingerprint({"a": "1"})
    with pytest.raises(ValueError, match="[Oo]ut of range|not JSON"):
        manifest.fingerprint(float("nan"))


KILLED = """
import os, sys
from pathlib import Path
from luyen.core import manifest

final, call, nth, when, sealed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "sealed"
owner, name = (manifest.shutil, "rmtree") if call == "rmtree" else (manifest.os, call)
plain, passed = getattr(owner, name), []

def stop(*arguments, **keywords):
    passed.append(1)
    if len(passed) == nth and when == "before":
        os._exit(9)
    plain(*arguments, **keywords)
    if len(passed) == nth:
        os._exit(9)

with manifest.new_folder(final) as folder:
    (folder / "a.txt").write_text("new")
    if sealed:
        manifest.seal(folder, "test")
    setattr(owner, name, stop)
"""


def killed(final: Path, call: str, nth: int, when: str, sealed: bool = True) -> None:
    """A process that dies while it replaces `final`."""
    words = [sys.executable, "-c", KILLED, str(final), call, str(nth), when, "sealed" if sealed else "open"]
    assert subprocess.run(words, check=False, timeout=60).returncode == 9


def text(folder: Path) -> str:
    return (folder / "a.txt").read_text()


@pytest.mark.parametrize(
    ("call", "nth", "when", "expected"),
    [
        ("rename", 1, "before", "alpha"), ("rename", 1, "after", "new"), ("rename", 2, "before", "new"), ("rename", 2, "after", "new"),
        ("rmtree", 1, "before", "new"), ("rmtree", 1, "after", "new"),
    ],
)  # fmt: skip
def test_a_kill_at_any_point_of_a_replacement_loses_nothing(tmp_path: Path, call: str, nth: int, when: str, expected: str) -> None:
    for opened in ("verify", "recover", "new"):
        folder = sealed(tmp_path / opened / "kept")
        killed(folder, call, nth, when)
        if opened == "new":
            with pytest.raises(RuntimeError), manifest.new_folder(folder):
                raise RuntimeError  # the next attempt fails too
            assert [path.name for path in folder.parent.iterdir()] == ["kept"]
        else:
            getattr(manifest, opened)(folder)
        assert text(folder) == expected and manifest.verify(folder)["kind"] == "test"


def test_a_new_folder_that_is_not_whole_gives_way_to_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress.use(progress.Plain())
    unsealed, broken = sealed(tmp_path / "unsealed"), sealed(tmp_path / "broken")
    killed(unsealed, "rename", 1, "after", sealed=False)
    killed(broken, "rename", 1, "after")
    next(tmp_path.glob(".tmp-new-*-broken/a.txt")).write_text("nex")
    for folder in (unsealed, broken):
        assert not folder.exists()
        manifest.recover(folder)
        assert text(folder) == "alpha"
        assert f"{folder} was being replaced when the process was killed" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "unsealed"]


def test_leftovers_of_another_artefact_are_not_touched(tmp_path: Path) -> None:
    """`base` is a part of `x-base`, of `old-base` and of `1-2-base`."""
    others = ["x-base", "old-base", "new-1-2-base", "1-2-base"]
    for name in others:
        killed(sealed(tmp_path / name), "rename", 1, "before")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert len(before) == 2 * len(others)
    sealed(tmp_path / "base")
    sealed(tmp_path / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "base"])
    manifest.clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "base"])


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    """Also when its id is that of an earlier one: this very process."""
    with manifest.new_folder(tmp_path / "base") as first:
        (first / "a.txt").write_text("first")
        dead = first.with_name(first.name.replace("-0-base", "-7-base"))
        dead.mkdir()
        with manifest.new_folder(tmp_path / "base") as second:
            (second / "a.txt").write_text("second")
        manifest.clean_up(tmp_path)
        assert first.is_dir() and not dead.exists() and text(tmp_path / "base") == "second"
    assert text(tmp_path / "base") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename, passed = sealed(tmp_path / "kept"), os.rename, []

    def fail_second(source: Path, target: Path) -> None:
        passed.append(1)
        if len(passed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(StorageError), manifest.new_folder(folder):
        pass
    assert text(folder) == "alpha" and [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="is a file"), manifest.new_folder(tmp_path / "notes"):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_listed_path_is_checked_against_the_nearest_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "one")
    for path in (folder, folder / "a.txt", folder / "sub", folder / "sub" / "b.bin", folder / "other.txt", tmp_path, tmp_path / "x"):
        manifest.verify_listed(path)
    (folder / "sub" / "b.bin").write_bytes(b"x" * 256)
    manifest.verify_listed(folder / "a.txt")
    monkeypatch.chdir(folder / "sub")
    for path in (folder, folder / "sub", folder / "sub" / "b.bin", Path("b.bin"), Path("../sub/b.bin"), Path(".")):
        with pytest.raises(DamagedFile, match=r"sub/b\.bin: does not have the sha256"):
            manifest.verify_listed(path)
    (folder / "a.txt").unlink()
    with pytest.raises(DamagedFile, match=r"a\.txt: is missing"):
        manifest.verify_listed(folder / "a.txt")


def test_a_manifest_two_folders_up_is_not_asked(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "one")
    (folder / "sub" / "deep").mkdir()
    (folder / "sub" / "deep" / "c").write_text("c")
    manifest.seal(folder, "test")
    (folder / "sub" / "deep" / "c").write_text("d")
    manifest.verify_listed(folder / "sub" / "deep" / "c")
    with pytest.raises(DamagedFile, match=r"deep/c: does not have"):
        manifest.verify_listed(folder / "sub" / "deep")  # one folder nearer it is asked, and the damage is there to be seen


def test_a_folder_in_a_new_folder(tmp_path: Path) -> None:
    """What is written inside a folder that is being written needs no second lock; waiting for one would never end."""
    done = threading.Event()

    def write() -> None:
        with manifest.new_folder(tmp_path / "outer") as outer:
            sealed(outer / "inner")
            manifest.clean_up(outer)
            manifest.seal(outer, "test")
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(20)
    assert set(manifest.verify(tmp_path / "outer")["files"]) == {"inner/a.txt", "inner/sub/b.bin", "inner/luyen.json"}


WRITING = """
import sys, time
from pathlib import Path
from luyen.core import storage
def stop(descriptor):
    print("there", flush=True)
    time.sleep(60)
storage.os.fsync = stop
storage.write_json(Path(sys.argv[1]), {})
"""


def test_what_a_kill_left_of_a_small_file_is_removed_and_a_living_writers_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path / "state.json")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    manifest.clean_up(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    process.kill()
    process.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    manifest.clean_up(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_finds_what_a_kill_left_under_its_temporary_name(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "kept")
    killed(folder, "rename", 1, "after", sealed=False)
    assert not folder.exists()
    assert manifest.existing(str(folder)) == folder and text(folder) == "alpha"
    assert manifest.existing(tmp_path / "other") is None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*Is a directory"):
        manifest.sha256_file(tmp_path)


def test_one_process_at_a_time_renames_in_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from luyen.core import lock\nwith lock.exclusive(Path(sys.argv[1])): print('in', flush=True)"
    )
    with lock.exclusive(tmp_path):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
    assert process.communicate(timeout=20)[0] == "in\n"


def test_what_was_released_is_not_taken_for_owned(tmp_path: Path) -> None:
    """The next folder may get the same inode."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    lock.own(descriptor)
    assert lock.owned(tmp_path)
    lock.release(descriptor)
    os.close(descriptor)
    assert not lock.owned(tmp_path) and not lock._ours


@pytest.mark.parametrize("name", ["x" * 300, "y" * 3000, "\ud800", "a\x00b", "\x1b[2J"])
def test_names_that_no_file_can_have_are_damage(tmp_path: Path, name: str) -> None:
    (tmp_path / manifest.MANIFEST).write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(DamagedFile) as error:
        manifest.verify(tmp_path)
    str(error.value).encode()


def test_a_home_that_nobody_has(tmp_path: Path) -> None:
    assert manifest.existing("~nobodyhere/x") is None


def test_a_folder_that_a_user_names_is_replaced_only_where_all_in_it_is_ours(tmp_path: Path) -> None:
    """What stands there stays to the byte, and the block is not begun; a free or empty name and an earlier result are taken."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    beside = sealed(tmp_path / "beside")
    (beside / "sub" / "notes.txt").write_text("added later")
    damaged = sealed(tmp_path / "damaged")
    (damaged / manifest.MANIFEST).write_text("{}")
    for folder, told in ((mine, "was not made by Luyện"), (beside, "found sub/notes.txt"), (damaged, "cannot be read")):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=told), manifest.new_folder(folder, named_by_user=True):
            raise AssertionError("it was begun")
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "free", tmp_path / "empty", sealed(tmp_path / "earlier")):
        with manifest.new_folder(folder, named_by_user=True) as new:
            (new / "c.txt").write_text("new")
        assert [path.name for path in folder.iterdir()] == ["c.txt"]
    with pytest.raises(UserError, match="was not made"), manifest.new_folder(tmp_path / "late", named_by_user=True):
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "thesis.txt").write_text("put there meanwhile")
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["thesis.txt"] and not list(tmp_path.glob(".tmp-*"))
