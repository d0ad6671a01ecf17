"""A whole toy run: what is up to date is skipped, what changed is done again, damage is noticed, lineage is recorded."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_recipe  # noqa: E402

from luyen.core import manifest, progress, storage  # noqa: E402
from luyen.core.config import parse_overrides  # noqa: E402
from luyen.core.errors import Interrupted, LuyenError, StorageError, UserError  # noqa: E402
from luyen.engine import checkpoint  # noqa: E402
from luyen.recipe.estimate import predict  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402
from luyen.recipe.inputs import _fingerprint, neutral_config  # noqa: E402
from luyen.recipe.run import lock_folder, run, standing, up_to_date  # noqa: E402
from luyen.recipe.verbs import pretrain  # noqa: E402

STAGES = ("corpus", "tokenizer", "base", "questions", "chat", "before_after")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe, pages and a finished run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("thư mục với dấu cách и буквы")
    run(plan(write_recipe(folder), {}), folder / "run")
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def events(folder: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [(row["stage"], row["event"]) for row in rows]


def again(finished: Path, folder: Path, *overrides: str) -> dict[str, str]:
    """Run again; what happened to each stage."""
    before = len(events(folder))
    run(plan(finished / "toy.yaml", parse_overrides(overrides)), folder)
    return {stage: event for stage, event in events(folder)[before:] if event != "finished"}


def test_every_stage_leaves_a_manifest_with_its_lineage(finished: Path) -> None:
    folder = finished / "run"
    manifests = {name: manifest.verify(folder / name) for name in STAGES}
    assert [manifests[name]["kind"] for name in STAGES] == ["corpus", "tokenizer", "model", "questions", "model", "evaluation"]
    for found in manifests.values():
        assert found["seconds"] > 0 and found["versions"]["luyen"] and isinstance(found["seed"], int)
    assert manifests["base"]["inputs"]["corpus"] == manifest.content_fingerprint(manifests["corpus"])
    assert manifests["chat"]["inputs"]["base"] == manifest.content_fingerprint(manifests["base"])
    assert manifests["chat"]["metrics"]["steps"] == 4
    for name in ("base", "chat"):
        manifest.verify(folder / name / "model")
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
        assert [row["step"] for row in rows if "heldout_bits_per_byte" in row] == [0, 2, 4]
        assert (folder / name / "samples.jsonl").read_text()
    assert {row["model"] for row in manifests["before_after"]["metrics"]["rows"]} >= {"base", "chat", "retrieval", "n-gram"}
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"]


def test_nothing_is_done_twice(finished: Path, copied: Path) -> None:
    assert again(finished, copied) == dict.fromkeys(STAGES, "skipped")


def test_a_change_redoes_its_stage_and_what_depends_on_it(finished: Path, copied: Path) -> None:
    done = again(finished, copied, "chat.train.steps=3")
    assert done == {**dict.fromkeys(STAGES, "skipped"), "chat": "started", "before_after": "started"}


def test_a_damaged_result_is_noticed_and_made_again_to_the_same_bits(finished: Path, copied: Path) -> None:
    path = copied / "base" / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    done = again(finished, copied)
    assert done["base"] == "started" and done["corpus"] == "skipped"
    assert done["chat"] == "skipped", "the same bits again, so nothing that follows has to be done"
    assert weights(copied / "base") == weights(finished / "run" / "base")


def test_changed_pages_are_noticed(finished: Path, copied: Path, tmp_path: Path) -> None:
    pages = finished / "pages"
    page = next(iter(sorted(pages.iterdir())))
    original = page.read_text()
    try:
        page.write_text(original.replace("Sum", "Total"))
        with pytest.raises(LuyenError):
            again(finished, copied, "tokenizer.vocab_size=3")  # stops after the corpus
    finally:
        page.write_text(original)
    assert events(copied)[-1] == ("tokenizer", "failed") and ("corpus", "started") in events(copied)


def test_a_folder_that_is_not_ours_is_left_alone(finished: Path, tmp_path: Path) -> None:
    mine = tmp_path / "corpus" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="was not made by Luyện"):
        run(plan(finished / "toy.yaml", {}), tmp_path)
    assert mine.read_text() == "mine"


def test_wrong_inputs_are_told_before_anything_is_done(finished: Path, copied: Path) -> None:
    before = sorted(copied.rglob("*"))
    for change, message in (("corpus.source=nowhere", "no such file"), ("base.tokenizer=" + str(finished / "pages"), "is no tokenizer"),
                            ("chat.model=" + str(copied / "corpus"), "is no model"), ("before_after.heldout=gone", "no such file"),
                            ("chat.model=" + str(finished / "run"), "It is a run; name its stage: .*run/base, .*run/chat"),
                            (f"corpus.source={copied / 'corpus'}", "write over its own input")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            again(finished, copied, change)
    assert sorted(copied.rglob("*")) == before


def earlier(run_folder: Path, stage: str) -> list[Path]:
    return sorted((run_folder / ".before").glob(f"{stage}-*"))


def weights(folder: Path) -> str:
    return manifest.sha256_file(folder / "model" / "model.safetensors")


def stop_training(finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """Run until the loop of `base` has saved its first checkpoint, and stop there as Ctrl-C does."""
    plain = checkpoint.write

    def write(*arguments: Any) -> Any:
        plain(*arguments)
        raise Interrupted(2, "stopped")

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(checkpoint, "write", write)
        again(finished, folder, *overrides)


def test_wrong_input_leaves_the_result_that_was_there(finished: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress.use(progress.Plain())
    with pytest.raises(LuyenError):
        again(finished, copied, "tokenizer.vocab_size=3")
    assert "tokenizer: what was there before is back in its place" in capsys.readouterr().out
    assert not earlier(copied, "tokenizer") and manifest.verify(copied / "tokenizer")
    assert set(again(finished, copied).values()) == {"skipped"}


@pytest.mark.slow
def test_wrong_input_leaves_an_unfinished_attempt_and_all_earlier_results(
    finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_training(finished, copied, monkeypatch, "base.train.optimizer.learning_rate=0.01")
    with monkeypatch.context() as patched, pytest.raises(UserError):
        patched.setattr(pretrain, "text_samples", lambda *_: (_ for _ in ()).throw(UserError("wrong")))
        again(finished, copied, "base.train.optimizer.learning_rate=0.02")
    assert (copied / "base" / "checkpoints" / "step-00000002").is_dir()
    assert again(finished, copied)["base"] == "skipped", "the finished one"
    assert again(finished, copied, "base.train.optimizer.learning_rate=0.01")["base"] == "resumed"


def test_only_wrong_input_brings_back_what_was_there(finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk the same command goes on, so the attempt keeps its place."""
    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(pretrain, "text_samples", lambda *_: (_ for _ in ()).throw(StorageError("full")))
        again(finished, copied, "base.train.steps=1")
    assert len(earlier(copied, "base")) == 1 and not (copied / "base" / manifest.MANIFEST).exists()


def test_a_failed_change_keeps_the_result_that_was_there(finished: Path, copied: Path, tmp_path: Path) -> None:
    """Here the failed attempt stays too: it tells why documents were dropped."""
    empty = tmp_path / "none.html"
    empty.write_text("")
    with pytest.raises(LuyenError):
        again(finished, copied, f"corpus.source={empty}")
    assert manifest.verify(earlier(copied, "corpus")[0])["kind"] == "corpus" and list((copied / "corpus").glob("dropped*"))
    assert set(again(finished, copied).values()) == {"skipped"}


@pytest.mark.slow
def test_every_replaced_result_is_kept_and_comes_back(finished: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress.use(progress.Plain())
    original = weights(copied / "chat")
    made = {}
    for steps in ("1", "2"):
        assert again(finished, copied, f"chat.train.steps={steps}")["chat"] == "started"
        made[steps] = weights(copied / "chat")
    (kept, other) = sorted(earlier(copied, "chat"), key=lambda path: weights(path) != original)
    assert f"so it starts anew; the earlier result is kept in {kept} (" in capsys.readouterr().out
    assert [weights(kept), weights(other)] == [original, made["1"]]
    assert up_to_date(plan(finished / "toy.yaml", {}), copied)["chat"] == kept
    assert again(finished, copied)["chat"] == "skipped" and weights(copied / "chat") == original
    assert sorted(map(weights, earlier(copied, "chat"))) == sorted(made.values())


@pytest.mark.slow
def test_an_earlier_result_as_input_of_its_own_stage(finished: Path, copied: Path) -> None:
    """It keeps its name whatever comes and goes beside it."""
    again(finished, copied, "chat.train.steps=1")
    (first,) = earlier(copied, "chat")
    before = weights(first)
    again(finished, copied, f"chat.model={first}", "chat.train.steps=1")
    assert weights(first) == before and first in earlier(copied, "chat")
    assert manifest.read(copied / "chat")["inputs"][str(first)] == manifest.content_fingerprint(manifest.verify(first))


@pytest.mark.slow
def test_an_earlier_result_that_is_damaged_does_not_come_back(finished: Path, copied: Path) -> None:
    again(finished, copied, "chat.train.steps=1")
    (kept,) = earlier(copied, "chat")
    (kept / "model" / "config.json").write_text("{}")
    assert again(finished, copied)["chat"] == "started"
    assert weights(copied / "chat") == weights(finished / "run" / "chat")


def test_a_damaged_result_costs_no_whole_one(finished: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress.use(progress.Plain())
    again(finished, copied, "chat.train.steps=1")
    good = weights(copied / "chat")
    again(finished, copied)
    (copied / "chat" / "model" / "config.json").write_text("{}")
    assert again(finished, copied)["chat"] == "started"
    assert "chat: it is damaged, so it starts anew" in capsys.readouterr().out
    assert good in map(weights, earlier(copied, "chat"))
    assert again(finished, copied, "chat.train.steps=1")["chat"] == "skipped"


@pytest.mark.slow
def test_an_attempt_that_was_put_aside_goes_on(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("corpus", "tokenizer"):
        shutil.copytree(finished / "run" / stage, tmp_path / stage)
    (tmp_path / "events.jsonl").touch()
    stop_training(finished, tmp_path, monkeypatch)
    stop_training(finished, tmp_path, monkeypatch, "base.train.optimizer.learning_rate=0.01")
    assert (earlier(tmp_path, "base")[0] / "checkpoints" / "step-00000002").is_dir()
    assert standing(plan(finished / "toy.yaml", {}), tmp_path)[1] == {"base": 2}
    assert again(finished, tmp_path)["base"] == "resumed"
    assert weights(tmp_path / "base") == weights(finished / "run" / "base")
    assert again(finished, tmp_path, "base.train.optimizer.learning_rate=0.01")["base"] == "resumed"


@pytest.mark.slow
def test_a_kill_while_two_states_change_places(finished: Path, copied: Path) -> None:
    again(finished, copied, "chat.train.steps=1")
    (kept,) = earlier(copied, "chat")
    (copied / "chat").rename(kept.with_name("chat-" + manifest.read(copied / "chat")["fingerprint"][:12]))
    assert again(finished, copied)["chat"] == "skipped"
    assert again(finished, copied, "chat.train.steps=1")["chat"] == "skipped"


def test_what_is_not_ours_is_not_put_aside(finished: Path, copied: Path, tmp_path: Path) -> None:
    (copied / "chat").rename(tmp_path / "elsewhere")
    (copied / "chat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link, and what it leads to no longer fits"):
        again(finished, copied, "chat.train.steps=1")
    assert weights(tmp_path / "elsewhere") == weights(finished / "run" / "chat")
    assert again(finished, copied)["chat"] == "skipped"


def test_a_kill_before_the_first_file_of_a_stage(finished: Path, copied: Path) -> None:
    shutil.rmtree(copied / "chat")
    (copied / "chat").mkdir()
    (copied / "chat" / ".tmp-file-4194304-stage.json").write_text("{")
    (copied / ".tmp-new-4194304-7-chat").mkdir()
    assert again(finished, copied)["chat"] == "started"
    assert not list(copied.glob(".tmp-*"))


def test_when_checkpoints_are_saved_decides_the_model_that_is_their_mean(finished: Path) -> None:
    def neutral(*overrides: str) -> str:
        return manifest.fingerprint(
            [neutral_config(stage.config, {}) for stage in plan(finished / "toy.yaml", parse_overrides(overrides)).stages]
        )

    mean = "base.train.checkpoint.average_last=2"
    assert neutral() == neutral("base.train.checkpoint.every_steps=1") == neutral("base.train.checkpoint.keep_last=9") != neutral(mean)
    assert neutral(mean) == neutral(mean, "base.train.checkpoint.keep_last=9") != neutral(mean, "base.train.checkpoint.every_steps=1")


def test_what_only_decides_how_work_is_done_redoes_nothing(finished: Path, copied: Path) -> None:
    done = again(finished, copied, "base.train.checkpoint.every_steps=1", "corpus.processes=2", "before_after.batch_size=3")
    assert done == dict.fromkeys(STAGES, "skipped")


@pytest.mark.slow
def test_a_stage_of_its_own_seed_gives_other_weights(finished: Path, copied: Path) -> None:
    again(finished, copied, "base.seed=7")
    assert manifest.sha256_file(copied / "base/model/model.safetensors") != manifest.sha256_file(
        finished / "run/base/model/model.safetensors"
    )


def test_two_runs_in_one_folder_are_refused(finished: Path, copied: Path) -> None:
    with lock_folder(copied), pytest.raises(UserError, match="another luyen works in"):
        again(finished, copied)


def test_the_result_loads_in_transformers_with_equal_logits(finished: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luyen.models import hf
    from luyen.tokenizer.load import Tokenizer

    folder = finished / "run" / "chat" / "model"
    text = "What does sum_rows do?\n"
    ours, tokenizer = hf.load(folder), Tokenizer.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.encode(text)
    assert AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"] == ids
    tokens_BT = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens_BT)), theirs(tokens_BT).logits, rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"files": []}', '{"files": {"a": 1}}'])
def test_a_manifest_that_makes_no_sense_means_the_stage_is_done_again(text: str, finished: Path, copied: Path) -> None:
    made = plan(finished / "toy.yaml", {})
    (copied / "corpus" / manifest.MANIFEST).write_text(text)
    done = up_to_date(made, copied)
    assert "corpus" not in done
    predict(made, done)
    run(made, copied)
    assert up_to_date(made, copied).keys() == set(STAGES)


def test_figures_of_a_manifest_that_make_no_sense_are_passed_over(finished: Path, copied: Path) -> None:
    made = plan(finished / "toy.yaml", parse_overrides(["base.train.steps=5"]))
    found = manifest.verify(copied / "corpus")
    for metrics in (None, [], {"bytes": "many", "train": 3}):
        storage.write_json(copied / "corpus" / manifest.MANIFEST, found | {"metrics": metrics})
        assert predict(made, up_to_date(made, copied))["base"].seconds is not None


def test_inputs_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    plain = manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", lambda path: (hashed.append(Path(path).name), plain(path))[1])
    (tmp_path / "large.txt").write_text("one")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.html").write_text("two")
    first = [_fingerprint(str(tmp_path / name)) for name in ("large.txt", "pages", "large.txt", "pages")]
    assert sorted(hashed) == ["a.html", "large.txt"] and first[0] == first[2] and first[1] == first[3]
    (tmp_path / "large.txt").write_text("three")
    assert _fingerprint(str(tmp_path / "large.txt")) == plain(tmp_path / "large.txt") != first[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the whole process")
def test_the_peak_is_the_whole_stages(finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reading and tokenizing held before the loop counts too."""
    plain = pretrain.text_samples

    def greedy(*arguments: Any) -> Any:
        held = bytearray(b"x") * 500_000_000
        assert len(held) == 500_000_000
        del held
        return plain(*arguments)

    monkeypatch.setattr(pretrain, "text_samples", greedy)
    again(finished, copied, "base.train.steps=1")
    before, now = (manifest.read(folder / "base")["peak_bytes"] for folder in (finished / "run", copied))
    assert now > before + 300_000_000
