"""Policies as stages: a few steps from a recipe's model and questions, what they write, go on with and refuse."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import yaml  # noqa: E402
from alone import lines, verb  # noqa: E402
from toy import recipe, write_pages  # noqa: E402

from luyen.adapters import files  # noqa: E402
from luyen.algorithms import rollout  # noqa: E402
from luyen.core import progress  # noqa: E402
from luyen.core.config import dump, load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError, DataError  # noqa: E402
from luyen.core.records import Message  # noqa: E402
from luyen.data.config import ReadConfig  # noqa: E402
from luyen.models import hf, scored_files  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.scored import ScoredDecoder, without_words  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402
from luyen.recipe.policy_configs import GRPOConfig, PPOConfig  # noqa: E402
from luyen.recipe.prompts import read_prompts  # noqa: E402
from luyen.recipe.run import run  # noqa: E402
from luyen.tasks.measure import measured as right  # noqa: E402
from luyen.tasks.question_answering import Answer, Example, QuestionAnswering  # noqa: E402
from luyen.tokenizer.load import Tokenizer  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

ROWS = [{"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]} for n in range(8)]
ASKED = [
    {"id": f"q{n}", "set": "taught", "source": "", "entry": "", "messages": [{"role": "user", "content": f"Is it {n}?"}], "answer": answer}
    for n, answer in enumerate(["Yes.", "No.", ""])
]
LOOP = ("train.steps=2", "train.device=cpu", "train.optimizer.learning_rate=1e-3", "rollout.prompts=4", "rollout.samples=2",
        "rollout.minibatch=2", "rollout.max_new_tokens=6", "train.checkpoint.every_steps=1", "reward.measure=chrf")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    tokenizer = train(["What is one? It is one. Yes. No."] * 3, TokenizerConfig(vocab_size=290))
    tokenizer.save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=96
    )
    hf.save(Transformer(size), folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    lines(folder / "train.jsonl", ROWS)
    lines(folder / "evaluation.jsonl", ASKED[:2])
    (folder / "template.json").write_text('{"admissions": ["not know"]}')
    return folder


def metrics(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_two_steps_of_a_policy(name: str, base: Path, questions: Path, tmp_path: Path) -> None:
    given = (f"model={base}", f"prompts={questions}", *LOOP, "ask=[Hello]", f"score.questions={questions}", "loss.kl.beta=0.1")
    stage = verb(name, tmp_path / "run", *given)
    before, after = hf.load(base), hf.load(stage / "model")
    assert not torch.equal(before.head_weight, after.head_weight)
    rows = metrics(stage)
    steps, measured = [row for row in rows if "loss" in row], [row for row in rows if "score" in row]
    assert [row["step"] for row in steps] == [1, 2] and [row["step"] for row in measured] == [0, 2]
    assert {"score_taught", "heldout_reward"} <= measured[0].keys() and abs(steps[0]["kl"]) < 1e-5
    assert {"reward", "reward_std", "length", "stopped", "entropy", "clip_fraction"} <= steps[0].keys()
    assert (name == "ppo") == ("value_explained" in steps[0])
    facts = json.loads((stage / "luyen.json").read_text())
    assert facts["metrics"]["prompts"] == {"given": 8, "used": 8} and not any(key.startswith("rollouts") for key in facts["files"])
    assert json.loads((stage / "samples.jsonl").read_text().splitlines()[0])["prompt"] == "Hello"
    assert "true score" in facts["metrics"]["summary"] and facts["metrics"]["ended"] == "steps"


def test_with_an_adapter_there_is_no_second_model(base: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[rollout.Policy] = []
    plain = rollout.Policy.__init__

    def seen(self: rollout.Policy, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        made.append(self)

    monkeypatch.setattr(rollout.Policy, "__init__", seen)
    stage = verb("ppo", tmp_path / "run", f"model={base}", f"prompts={questions}", *LOOP, "adapter.method=lora", "adapter.rank=2")
    assert files.is_adapter(stage / "adapter") and made[0].reference is None
    again = verb("grpo", tmp_path / "on", f"model={base}", f"prompts={questions}", *LOOP, "adapter.method=lora", "adapter.rank=2",
                 f"start={stage}", "loss.kl.beta=0.1")  # fmt: skip
    assert made[1].reference is not None and abs(metrics(again)[0]["kl"]) < 1e-4, "compared with the adapter that it began as"


def test_a_stopped_stage_ends_in_the_same_bits(base: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (f"model={base}", f"prompts={questions}", *LOOP, "train.steps=5", f"critic={base}")
    whole = verb("ppo", tmp_path / "whole", *given)
    made, asked = rollout.generate, iter(range(100))
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(rollout, "generate", lambda *words: 1 / 0 if next(asked) == 2 else made(*words))
        verb("ppo", tmp_path / "cut", *given)
    cut = verb("ppo", tmp_path / "cut", *given)
    assert (whole / "model" / "model.safetensors").read_bytes() == (cut / "model" / "model.safetensors").read_bytes()


def test_llama_2s_settings_are_a_preset_that_keys_change() -> None:
    given = ["model=m", "prompts=p", "preset=llama-2", "rollout.prompts=128", "reward.measure=chrf"]
    config = load(PPOConfig, parse_overrides(given))
    assert (config.rollout.prompts, config.rollout.minibatch, config.loss.kl.beta, config.loss.clip) == (128, 64, 0.01, 0.2)
    optimizer = config.train.optimizer
    assert (optimizer.learning_rate, optimizer.beta2, optimizer.epsilon, optimizer.clip_norm) == (1e-6, 0.95, 1e-5, 1.0)
    assert config.loss.whiten_scores and config.train.schedule.name == "constant"
    assert load(PPOConfig, dump(config)) == config
    assert load(PPOConfig, parse_overrides([*given[:2], "preset=llama-2-large", given[-1]])).loss.kl.beta == 0.005


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (PPOConfig, ["preset=llama2"], "unknown preset 'llama2'. Known: llama-2, llama-2-large"),
        (PPOConfig, ["rollout.prompts=10", "rollout.minibatch=4"], "rollout.prompts is 10, which is no multiple of"),
        (PPOConfig, ["train.parallel.shard=2"], "train.parallel.shard=2 splits the model"),
        (PPOConfig, ["train.parallel.pipeline=2"], "train.parallel.pipeline=2 splits the model"),
        (PPOConfig, ["adapter.method=lora", "adapter.dropout=0.1"], "adapter.dropout=0.1 makes the policy that learns another"),
        (PPOConfig, ["adapter.method=lora", "tokens=[<x>]"], "new tokens never stand"),
        (PPOConfig, ["loss.kl.target=6", "loss.kl.beta=0"], "0 stays 0"),
        (GRPOConfig, ["rollout.samples=1"], "rollout.samples is 1, and grpo compares answers"),
        (GRPOConfig, ["loss.name=rlo"], "loss.name"),
        (GRPOConfig, ["reward.model=r"], "give one of reward.model, reward.measure, .*; not model and measure"),
    ],
)
def test_what_does_not_go_together_is_told_at_once(kind: Any, settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(kind, parse_overrides(["model=m", "prompts=p", "reward.measure=chrf", *settings]))


def test_prompts_come_from_all_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)

    def read(rows: list[dict[str, object]]) -> list[tuple[str, str]]:
        path = lines(tmp_path / "rows.jsonl", rows)
        return [(example.question, example.answer) for example in read_prompts(path, ReadConfig(), tmp_path / "rejected.jsonl")]

    turn = [{"role": "user", "content": "Why?"}]
    pair = {"prompt": turn, "chosen": [{"role": "assistant", "content": "So."}], "rejected": [{"role": "assistant", "content": "No."}]}
    assert read(list(ROWS[:2])) == [("What is 0?", "It is 0."), ("What is 1?", "It is 1.")]
    assert read(list(ASKED)) == [("Is it 0?", "Yes."), ("Is it 1?", "No."), ("Is it 2?", "")]
    assert read([dict(pair)]) == [("Why?", "So.")]
    assert read([{"text": "Hello?"}]) == [("Hello?", "")]
    with pytest.raises(DataError, match="holds no prompts"):
        read([{"tokens": ["a"], "tags": ["B"]}])


def test_prompts_without_room_are_left_out(base: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt leaves room for an answer"):
        verb("grpo", tmp_path / "run", f"model={base}", f"prompts={questions}", *LOOP, "rollout.max_new_tokens=94")


def test_what_a_measure_says_nothing_of_is_told_before_an_answer_is_drawn(base: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "asked.jsonl", ASKED)
    with pytest.raises(DataError, match=r"reward.measure=chrf says nothing of the prompt q2. Take another measure, such as right"):
        verb("grpo", tmp_path / "run", f"model={base}", f"prompts={path}", *LOOP)
    assert not list((tmp_path / "run").glob("*/rollouts"))


def test_right_is_the_answer_or_the_admission_that_there_is_none() -> None:
    task = QuestionAnswering("t", (), ["not know"])
    known, unknown = (Example(name, (Message("user", "?"),), answer) for name, answer in (("a", "Yes."), ("b", "")))
    said = {text: [right(task, example, Answer(text), "right") for example in (known, unknown)] for text in ("yes", "I do not know.")}
    assert said == {"yes": [1.0, 0.0], "I do not know.": [0.0, 1.0]}
    assert [right(task, example, Answer("yes"), "invented") for example in (known, unknown)] == [None, 0.0]
    assert right(task, known, Answer("Yes"), "f1") == 1.0


def test_a_reward_model_scores_and_begins_a_critic(base: Path, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    folder.mkdir()
    judge = ScoredDecoder(without_words(hf.load(base)))
    torch.nn.init.normal_(judge.score.weight)
    scored_files.save(judge, folder)
    Tokenizer.load(base).save(folder)
    given = [word for word in LOOP if not word.startswith("reward.")]
    stage = verb("ppo", tmp_path / "run", f"model={base}", f"prompts={questions}", *given, f"reward.model={folder}", f"critic={folder}")
    steps = metrics(stage)
    assert steps[0]["reward_std"] > 0 and hf.load(stage / "model").config == hf.load(base).config


@pytest.mark.slow
def test_a_recipe_names_stages_inside_sections(tmp_path: Path) -> None:
    values = recipe(write_pages(tmp_path / "pages"))
    stages: dict[str, Any] = values["stages"]  # type: ignore[assignment]
    del stages["before_after"]
    loop = {"model": "chat", "prompts": "questions", "rollout": {"prompts": 4, "samples": 2, "minibatch": 2, "max_new_tokens": 8},
            "train": {"steps": 2, "device": "cpu"}, "score": {"questions": "questions", "examples": 4}}  # fmt: skip
    stages["better"] = {"do": "grpo", **loop, "reward": {"measure": "right"}}
    stages["best"] = {"do": "ppo", **loop, "model": "better", "reward": {"measure": "right"}, "critic": "chat"}
    stages["after"] = {"do": "evaluate", "models": {"chat": "chat", "best": "best"}, "questions": "questions", "examples": 2,
                       "sampling": {"max_new_tokens": 4}}  # fmt: skip
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    made = plan(path, {})
    order = [stage.name for stage in made.stages]
    assert order.index("questions") < order.index("better") < order.index("best") < order.index("after")
    run(made, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run" / "best") if "score" in row]
    assert [row["step"] for row in rows] == [0, 2] and {"score_taught", "score_invented"} <= rows[0].keys()
    assert (tmp_path / "run" / "after" / "results.json").is_file()
    assert "best: up to date" in again(made, tmp_path / "run")


def again(made: Any, folder: Path) -> list[str]:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress, "say", said.append)
        run(made, folder)
    return said
