"""Rejection sampling as a stage: what it writes, what goes on from it, where it goes on after a stop, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.adapters import files  # noqa: E402
from luyen.algorithms import rejection_sampling, sft  # noqa: E402
from luyen.algorithms.rejection_sampling import Best  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError, DataError, UserError  # noqa: E402
from luyen.core.records import Conversation, Message, Preference  # noqa: E402
from luyen.data.config import ReadConfig  # noqa: E402
from luyen.data.formats import read  # noqa: E402
from luyen.data.samples import NOT_TRAINED  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.reject_configs import RejectConfig  # noqa: E402
from luyen.recipe.verbs.reject import best_samples  # noqa: E402
from luyen.tokenizer.load import Tokenizer  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

TURNS = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Yes."}]
ROWS: list[dict[str, object]] = [
    {"messages": [*(TURNS if n == 0 else []), {"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "One."}]}
    for n in range(6)
]
LOOP = ("train.device=cpu", "train.optimizer.learning_rate=1e-2", "draw.max_new_tokens=6", "draw.part=2", "samples=6", "batch.rows=1",
        "batch.length=64", "train.checkpoint.every_steps=1", "reward.measure=chrf")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its answers often."""
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    tokenizer = train(["What is one? It is one. Yes. No."] * 3, TokenizerConfig(vocab_size=290))
    tokenizer.save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=96
    )
    hf.save(Transformer(size), folder)
    more = [{"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": "It is."}]} for n in range(40)]
    path = lines(folder.parent / "rows.jsonl", [*ROWS, *more])
    return verb("sft", folder.parent / "chat", f"model={folder}", f"data={path}", "train.steps=30", "train.device=cpu",
                "batch.rows=4", "batch.length=64", "train.optimizer.learning_rate=1e-2", "train.evaluate_every=0")  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("asked") / "rows.jsonl", [*ROWS, ROWS[-1]])


def facts(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage / "luyen.json").read_text())
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def first(base: Path, asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verb("reject", tmp_path_factory.mktemp("first"), f"model={base}", f"prompts={asked}", *LOOP, "draw.temperatures=[0.7,1.3]",
                "draw.search=2", "ask=[Hello]")  # fmt: skip


def test_what_a_stage_leaves(base: Path, first: Path) -> None:
    drawn, best, curve = rows(first / "drawn.jsonl"), rows(first / "best.jsonl"), json.loads((first / "curve.json").read_text())
    assert len(drawn) == 6 * 6, "the prompt that stands twice is asked once"
    assert {"answer", "reward", "stopped"} <= drawn[0].keys()
    groups = [[row for row in drawn if row["id"] == item["id"]] for item in best]
    usable = [[row["reward"] for row in group if row["stopped"] and row["answer"]] for group in groups]
    assert [item["reward"] for item in best] == [max(group) for group in usable]
    assert [row["answers"] for row in curve["rows"]] == list(range(1, 7)) and "<svg" in (first / "curve.svg").read_text()
    assert curve["rows"][-1]["max"] == pytest.approx(facts(first)["metrics"]["rewards"]["max"])
    assert curve["rows"][0]["max"] == pytest.approx(facts(first)["metrics"]["rewards"]["mean"])
    metrics = facts(first)["metrics"]
    assert metrics["temperature"] in (0.7, 1.3) and set(metrics["temperatures"]) == {"0.7", "1.3"}
    assert "best of 6: reward" in metrics["summary"] and not any(name.startswith("rollouts") for name in facts(first)["files"])
    assert rows(first / "samples.jsonl")[0]["prompt"] == "Hello"
    assert not torch.equal(hf.load(base / "model").head_weight, hf.load(first / "model").head_weight)


def test_both_files_are_data_like_any_other(first: Path) -> None:
    best, made = read(first / "best.jsonl", ReadConfig()).records, read(first / "preferences.jsonl", ReadConfig()).records
    assert all(isinstance(item, Conversation) for item in best) and all(isinstance(item, Preference) for item in made) and made


def test_only_the_last_answer_is_learned(base: Path) -> None:
    tokenizer = Tokenizer.load(base / "model")
    turns = Message("user", "Hello!"), Message("assistant", "Yes."), Message("user", "What?")
    (sample,), account = best_samples([Best("a", turns, "It is one.", 1.0)], tokenizer, 64)
    trained = [int(token) for token in sample.targets if token != NOT_TRAINED]
    assert tokenizer.decode(trained).strip().startswith("It is one.") and trained[-1] in tokenizer.stop_ids
    assert account.samples == 1 and len(trained) < len(tokenizer.encode("It is one.")) + 3


def test_what_earlier_rounds_found_stays(first: Path, asked: Path, tmp_path: Path) -> None:
    fewer = lines(tmp_path / "fewer.jsonl", ROWS[:3])
    second = verb("reject", tmp_path / "run", f"model={first}", f"prompts={fewer}", *LOOP, f"previous=[{first}]")
    before = {json.dumps(row["messages"][:-1]): row for row in rows(first / "best.jsonl")}
    after = {json.dumps(row["messages"][:-1]): row for row in rows(second / "best.jsonl")}
    assert before.keys() <= after.keys()
    assert all(after[prompt]["reward"] >= before[prompt]["reward"] - 1e-9 for prompt in before)
    assert facts(second)["metrics"]["rewards"]["earlier"] >= len(before) - 3
    with pytest.raises(DataError, match=r"is no stage of rejection sampling; found no best.jsonl"):
        verb("reject", tmp_path / "no", f"model={first}", f"prompts={asked}", *LOOP, f"previous=[{asked.parent}]")


def test_the_answers_of_the_data_may_be_candidates(base: Path, asked: Path, tmp_path: Path) -> None:
    given = (f"model={base}", f"prompts=[{asked}]", *LOOP, "train.steps=1", "references=true", "samples=1", "draw.max_new_tokens=1")
    stage = verb("reject", tmp_path / "run", *given)
    found = rows(stage / "best.jsonl")
    assert [(row["source"], row["messages"][-1]["content"], row["reward"]) for row in found] == [("the data", "One.", 100.0)] * 6
    assert facts(stage)["metrics"]["rewards"]["references"] == 6 and [row["id"][:2] for row in found] == ["0:"] * 6


def test_preferences_go_on_into_dpo(first: Path, tmp_path: Path) -> None:
    stage = verb("dpo", tmp_path / "run", f"model={first}", f"data={first}", "train.steps=1", "train.device=cpu")
    assert (stage / "model" / "model.safetensors").is_file()


def test_with_an_adapter_the_base_draws(base: Path, asked: Path, tmp_path: Path) -> None:
    given = (f"model={base}", f"prompts={asked}", *LOOP, "train.steps=1")
    plain = verb("reject", tmp_path / "plain", *given)
    prefix = verb("reject", tmp_path / "prefix", *given, "adapter.method=prefix")
    assert files.is_adapter(prefix / "adapter")
    same = [one["answer"] == other["answer"] for one, other in zip(rows(plain / "drawn.jsonl"), rows(prefix / "drawn.jsonl"), strict=True)]
    assert sum(same) >= len(same) - 1, "not what a prefix says that nothing taught yet; rounding may turn a draw"


@pytest.mark.parametrize(("where", "name", "number"), [(rejection_sampling, "generate", 1), (rejection_sampling, "checked", 2),
                                                       (sft, "next_token_loss", 1)])  # fmt: skip
def test_a_stopped_stage_ends_in_the_same_bits(
    where: Any, name: str, number: int, base: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (f"model={base}", f"prompts={asked}", *LOOP, "train.steps=3", "epochs=20")
    whole = verb("reject", tmp_path / "whole", *given)
    plain, calls = getattr(where, name), iter(range(100))
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(where, name, lambda *words, **named: 1 / 0 if next(calls) == number else plain(*words, **named))
        verb("reject", tmp_path / "cut", *given)
    cut = verb("reject", tmp_path / "cut", *given)
    for file in ("model/model.safetensors", "best.jsonl", "drawn.jsonl", "preferences.jsonl", "curve.json", "curve.svg"):
        assert (whole / file).read_bytes() == (cut / file).read_bytes(), file


def test_a_program_in_a_recipe_runs_only_when_it_was_allowed(base: Path, asked: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    given = [word for word in LOOP if not word.startswith("reward.")]
    with pytest.raises(UserError, match=r"add --allow .*score.py to the command"):
        verb("reject", tmp_path / "run", f"model={base}", f"prompts={asked}", *given, f"reward.program={path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["samples=1"], "samples is 1, of which the best is the only one"),
        (["draw.temperatures=[1,1]"], "expected one or more different numbers"),
        (["train.parallel.tensor=2"], "train.parallel.tensor=2 splits the model"),
        (["adapter.method=esft"], "answers are not there before"),
        (["draw.temperatures=[0]"], "draw.temperatures"),
    ],
)
def test_what_does_not_go_together_is_told_at_once(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(RejectConfig, parse_overrides(["model=m", "prompts=p", "reward.measure=chrf", *settings]))
