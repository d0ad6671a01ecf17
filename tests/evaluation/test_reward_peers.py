"""What a reward model is compared with: word counts, a judge behind an endpoint, its own scaling law."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from luyen.core.errors import UserError
from luyen.core.records import Message, Preference
from luyen.evaluation import reward_baselines
from luyen.evaluation.judge import EndpointJudge, judge
from luyen.evaluation.reward_baselines import word_counts
from luyen.evaluation.reward_scaling import Point, draw, fit_law, told


def pair(chosen: str, rejected: str) -> Preference:
    return Preference((Message("user", "q"),), (Message("assistant", chosen),), (Message("assistant", rejected),))


def test_word_counts_find_a_word_that_decides() -> None:
    pytest.importorskip("sklearn")
    train = [pair(f"please {n % 7} yes", f"{n % 5} never mind that") for n in range(40)]
    found = word_counts(train, [pair("please 3", "never 3"), pair("yes", "mind that")])
    assert found is not None and found["accuracy"] == 1 and found["count"] == 2


def test_without_scikit_learn_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_baselines, "NEEDED", "no_such_package")
    assert word_counts([pair("a", "b")], [pair("a", "b")]) is None


class Endpoint(BaseHTTPRequestHandler):
    """Prefers what is kind; the third path is broken."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][0]["content"]
        assert body["model"] == "judge" and body["temperature"] == 0
        said = "A" if "Answer A: kind" in asked else "B"
        whole = json.dumps({"choices": [{"message": {"content": said}}]} if self.path == "/v1/chat/completions" else {"error": 1})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(whole.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_judge_behind_an_endpoint(url: str) -> None:
    found = judge(EndpointJudge(f"{url}/v1/", "judge"), [pair("kind", "rude"), pair("rude", "kind")])
    assert found.chosen == (1, 0) and found.first_place == 0.5
    with pytest.raises(UserError, match="gives no answer.*KeyError"):
        judge(EndpointJudge(f"{url}/v2", "judge"), [pair("kind", "rude")])


def test_the_law_of_exact_points_is_found(tmp_path: Path) -> None:
    points = [Point(n, 2 * n**-0.25, 0.5) for n in (100, 200, 400)]
    law = fit_law(points)
    assert law is not None and (law.a, law.b, law.determined) == pytest.approx((2, 0.25, 1))
    assert law.loss(1600) == pytest.approx(2 * 1600**-0.25) and "twice the pairs: -15.9%" in told("m", points)
    assert fit_law(points[:2]) is None and "needs 3" in told("m", points[:2])
    draw({"small": points, "large": points[:2]}, tmp_path / "law.svg")
    assert "pairs learned from" in (tmp_path / "law.svg").read_text()
