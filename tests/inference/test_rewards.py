"""Every kind of reward: what it gives, what it refuses, and that an answer without a score is named."""

from __future__ import annotations

import http.server
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luyen.core import consent
from luyen.core.config import dump, load, parse_overrides
from luyen.core.errors import ConfigError, DataError, ModelError, UserError
from luyen.core.records import Message
from luyen.inference.reward_config import RewardConfig, check_consent, sources
from luyen.inference.reward_endpoint import EndpointReward
from luyen.inference.reward_model import score_texts
from luyen.inference.reward_process import ProgramReward
from luyen.inference.rewards import GatedReward, MeasureReward, MixedReward, ModelReward, Where, open_reward
from luyen.models import scored_files
from luyen.models.config import TransformerConfig
from luyen.models.scored import ScoredDecoder, without_words
from luyen.models.transformer import Transformer
from luyen.tasks.question_answering import Example
from luyen.tasks.reward import Written, checked
from luyen.tokenizer.train import TokenizerConfig, train

LENGTH = 'from luyen.tasks.scoring import serve\nserve(lambda row: len(row["answer"]))\n'


def written(*answers: str, reference: str = "", question: str = "Why?", name: str = "") -> list[Written]:
    turns = (Message("user", question),)
    return [Written(f"p{place}", turns, text, example=Example(f"p{place}", turns, reference, {"set": name})) for place, text in
            enumerate(answers)]  # fmt: skip


def config(*settings: str) -> RewardConfig:
    return load(RewardConfig, parse_overrides(settings))


class Fixed:
    """Known scores in order."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def score(self, written: Any) -> list[float]:
        return list(self.scores[: len(written)])


def program(folder: Path, text: str) -> Path:
    path = folder / "score.py"
    path.write_text(text)
    return path


def test_a_program_scores_answers_in_a_process_that_stays(tmp_path: Path) -> None:
    path = program(tmp_path, "import os\n" + LENGTH.replace("len(", "os.getpid() + len("))
    with consent.allowing([str(path)]):
        reward = open_reward(config(f"program={path}", "seconds=30"), Where())
    first = reward.score(written("", "ab", "ünï"))
    assert [score - first[0] for score in first] == [0, 2, 3] and first[0] != os.getpid()
    assert reward.score(written("")) == first[:1], "the same process"
    assert isinstance(reward, ProgramReward) and reward._process is not None
    process = reward._process
    reward.close()
    assert process.poll() is not None


def test_what_a_program_prints_beside_is_no_score_and_it_sees_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "secret")
    text = 'def score(row):\n    print("noise")\n    return float("MY_API_KEY" in os.environ)\n'
    path = program(tmp_path, f"import os\nfrom luyen.tasks.scoring import serve\n{text}serve(score)\n")
    with consent.allowing([str(path)]):
        assert ProgramReward(path, 30).score(written("a")) == [0.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import time\nprint(1.5, flush=True)\ntime.sleep(60)\n", "score of an answer to p1; found none within 1 s"),
        ("import sys\nsys.exit('no model here')\n", "answer to p0; found a program that ended; it said: no model here"),
        ("print('good', flush=True)\nimport time\ntime.sleep(60)\n", "answer to p0; found the line 'good'"),
        ("print(True, flush=True)\nimport time\ntime.sleep(60)\n", "answer to p0; found the line 'True'"),
        ("while True: print('1' * 99999, end='', flush=True)\n", "more than 65,536 bytes"),
    ],
)
def test_a_program_without_a_score_names_the_answer_and_is_ended(text: str, told: str, tmp_path: Path) -> None:
    path = program(tmp_path, text)
    with consent.allowing([str(path)]):
        reward = ProgramReward(path, 1.0)
    started = time.monotonic()
    with pytest.raises(DataError, match=told):
        reward.score(written("a", "b"))
    assert reward._process is None and time.monotonic() - started < 20


def test_a_score_that_is_nan_names_the_answer(tmp_path: Path) -> None:
    path = program(tmp_path, LENGTH.replace('len(row["answer"])', 'float("nan") if row["answer"] == "b" else 1.0'))
    with consent.allowing([str(path)]), pytest.raises(DataError, match="the reward of an answer to p1 is not a finite number"):
        checked(ProgramReward(path, 30), written("a", "b"))


def test_nothing_runs_and_nothing_is_sent_unasked(tmp_path: Path) -> None:
    path = program(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    mixed = config("mix.a.weight=1", f"mix.a.program={path}", "mix.b.url=https://example.org/score")
    with pytest.raises(UserError, match=rf"is a program, and a recipe must not .* --allow {path}"):
        check_consent(mixed)
    with consent.allowing([str(path)]), pytest.raises(UserError, match="example.org is another machine, .* --allow example.org"):
        check_consent(mixed)
    with consent.allowing([str(path), "example.org:80"]), pytest.raises(UserError, match="another machine"):
        check_consent(config("url=https://example.org:443/score"))
    with consent.allowing([str(path), "example.org"]):
        check_consent(mixed)
    for address in ("http://127.0.0.1:8/a", "http://localhost/a", "http://[::1]:8/a"):
        check_consent(config(f"url={address}"))
    for address in ("http://127.0.0.1.evil.org/", "http://10.0.0.1/", "http://0x7f000001/"):
        with pytest.raises(UserError, match="another machine"):
            EndpointReward(address, 1, 1)
    with pytest.raises(ConfigError, match="path of a .py file"):
        check_consent(config(f"program={tmp_path}"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], "give one of reward.model, reward.measure, reward.program, reward.url, reward.gate, reward.mix; not none"),
        (["model=a", "measure=f1"], "not model and measure"),
        (["measure=f1", "output=safety"], "is a reward model's"),
        (["measure=f1", "seconds=3"], "seconds=3 is read with url or program alone"),
        (["measure=f1", "key=A_KEY"], "sent to a url, and none is given"),
        (["url=http://127.0.0.1/", "key=HOME"], "ends in _KEY or _TOKEN"),
        (["url=ftp://127.0.0.1/"], "is no address"),
        (["url=http://a:b@127.0.0.1/"], "without a user name"),
        (["gate.helpful.measure=chrf", "gate.safe.measure=right"], "goes to 100"),
    ],
)
def test_what_does_not_go_together_is_told(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(*settings)


def test_a_config_is_written_and_read_back_and_names_all_its_sources() -> None:
    whole = config("mix.both.gate.helpful.model=h", "mix.both.gate.safe.model=s", "mix.short.program=p.py", "mix.short.weight=-0.1")
    assert load(RewardConfig, dump(whole)) == whole
    assert [source.model or source.program for source in sources(whole)] == ["h", "s", "p.py"]


def test_the_gate_by_hand() -> None:
    """Logit of 0.15 is -1.7346: the safety score counts below it, and for safety prompts; else the helpfulness score."""
    assert math.log(0.15 / 0.85) == pytest.approx(-1.7346, abs=1e-4)
    helpful, safe = Fixed(2.0, 2.0, 2.0), Fixed(3.0, -1.74, -1.73)
    assert GatedReward(helpful, safe).score(written("a", "b", "c")) == [2.0, -1.74, 2.0]
    assert GatedReward(helpful, safe, sets=["invented"]).score(written("a", "b", "c", name="invented")) == [3.0, -1.74, -1.73]
    marked = {(Message("user", "How do I harm?"),)}
    assert GatedReward(helpful, safe, prompts=marked).score(written("a", question="How do I harm?")) == [3.0]
    assert GatedReward(helpful, safe, prompts=marked).score(written("a")) == [2.0]


def test_a_gate_of_probabilities() -> None:
    gate = GatedReward(Fixed(0.9, 0.5, 1.0), Fixed(0.5, 0.1, 0.15), (False, False))
    assert gate.score(written("a", "b", "c")) == pytest.approx([math.log(9), math.log(1 / 9), math.log((1 - 1e-4) / 1e-4)])
    with pytest.raises(DataError, match="reward.gate.safe: the score of an answer to p0 is no probability; found 1.5"):
        GatedReward(Fixed(0.5), Fixed(1.5), (False, False)).score(written("a"))


def test_a_mixture_is_a_weighted_sum_and_names_the_part_that_fails() -> None:
    mixed = MixedReward({"a": (0.5, Fixed(1.0, 2.0)), "b": (-2.0, Fixed(3.0, 0.5))})
    assert mixed.score(written("x", "y")) == [-5.5, 0.0]
    with pytest.raises(DataError, match="reward.mix.b: the reward of an answer to p1 is not a finite number"):
        MixedReward({"a": (1.0, Fixed(1.0, 1.0)), "b": (1.0, Fixed(1.0, math.inf))}).score(written("x", "y"))


def test_measures_of_a_task() -> None:
    reward = open_reward(config("measure=number"), Where())
    assert reward.score(written("So it is 72.", "about 71", "none", reference="48+24=72\n#### 72")) == [1.0, 0.0, 0.0]
    with pytest.raises(DataError, match="reward.measure=number says nothing of the prompt p0"):
        reward.score(written("72", reference="many"))
    assert MeasureReward("right", ["not know"]).score(written("I do not know.", "Yes.")) == [1.0, 0.0]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of its own tokenizer with two outputs."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = train(["Why? Because it is so. It is. No."] * 3, TokenizerConfig(vocab_size=280))
    torch.manual_seed(0)
    size = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=64
    )
    model = ScoredDecoder(without_words(Transformer(size)), outputs=2)
    torch.nn.init.normal_(model.score.weight)
    scored_files.save(model, folder)
    tokenizer.save(folder)
    return folder


def test_a_reward_model_reads_the_text_and_has_two_outputs(judge: Path) -> None:
    asked = written("It is.", "No.")
    reward, safety = (open_reward(config("model=stage", f"output={name}"), Where(lambda name: str(judge))) for name in ("reward", "safety"))
    assert isinstance(reward, ModelReward)
    talks = [(*item.prompt, Message("assistant", item.answer)) for item in asked]
    assert reward.score(asked) == pytest.approx(score_texts(reward.model, reward.tokenizer, talks))
    assert safety.score(asked) != reward.score(asked)
    single = ScoredDecoder(reward.model.decoder)
    with pytest.raises(ModelError, match="no second output for what is safe"):
        ModelReward(single, reward.tokenizer, "safety")


class Handler(http.server.BaseHTTPRequestHandler):
    """Scores by length, or what the path asks for."""

    seen: list[dict[str, Any]] = []

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append({"rows": body["answers"], "key": self.headers.get("Authorization")})
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/score")
            self.end_headers()
            return
        if self.path == "/slow":
            time.sleep(2)
        scores: Any = [len(row["answer"]) for row in body["answers"]]
        scores = {"/short": scores[1:], "/words": ["good" for _ in scores]}.get(self.path, scores)
        reply = json.dumps({"scores": scores}).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()
    thread.join()


def test_an_endpoint_scores_answers_in_requests(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "abc")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    Handler.seen.clear()
    reward = open_reward(config(f"url={server}/score", "batch=2", "key=SCORE_KEY"), Where())
    assert reward.score(written("a", "bb", "ccc", reference="r")) == [1.0, 2.0, 3.0]
    assert [len(item["rows"]) for item in Handler.seen] == [2, 1] and Handler.seen[0]["key"] == "Bearer abc"
    row = {"id": "p0", "prompt": [{"role": "user", "content": "Why?"}], "answer": "a", "stopped": True, "reference": "r"}
    assert Handler.seen[0]["rows"][0] == row
    monkeypatch.delenv("SCORE_KEY")
    with pytest.raises(UserError, match="the environment has no SCORE_KEY"):
        EndpointReward(f"{server}/score", 1, 1, "SCORE_KEY")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/slow", "gave no scores of answers to p0, p1, p2 and 1 more; found no reply within 0.5 s"),
        ("/short", "3 scores for 4 answers"),
        ("/words", "answers to p0; found something else than a number"),
        ("/broken", "500"),
        ("/moved", "302"),
    ],
)
def test_an_endpoint_without_scores_names_the_answers(server: str, path: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        EndpointReward(server + path, 0.5, 32).score(written("a", "b", "c", "d"))
