"""The page and its four addresses: / to judge, /stats to look at the figures, /next and /judge for the page's script.

No address and no field names a file: a pair is named by its hash and looked up among those that are there. Model text reaches the browser
as JSON and is set as text, never as markup; what the templates write is escaped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from luyen.core.errors import StorageError
from luyen.data.convert import GRADES
from luyen.serving.label_guard import Guard
from luyen.serving.label_guidelines import DOMAIN_GUIDELINES, GRADE_WORDS, SAFETY_WORDS
from luyen.serving.label_records import LONGEST_EDIT, LONGEST_NAME, Judgement, Pair, Submission, left_of, name_of, told
from luyen.serving.label_statistics import statistics
from luyen.serving.label_store import Conflict, Store, now

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 512 * 1024
"""Of a request: two answers edited to their limit, written as \\uXXXX, fit."""


class Maker(Protocol):
    """Whoever adds pairs to the store while the page is open."""

    @property
    def finished(self) -> bool:
        """Whether no more will come."""

    @property
    def problem(self) -> str:
        """Why it ended too early; "" when it did not."""


@dataclass(frozen=True)
class Site:
    """What is served, and to whom."""

    store: Store
    host: str = "127.0.0.1"
    port: int = 8765
    key: str = ""
    judges: int = 0
    categories: tuple[str, ...] = ()
    maker: Maker | None = None
    environment: Environment = field(default_factory=lambda: environment())

    def application(self) -> Guard:
        """The guarded application."""
        routes = [
            Route("/", self.page), Route("/stats", self.stats), Route("/label.js", _script), Route("/label.css", _style),
            Route("/next", self.next), Route("/judge", self.judge, methods=["POST"]),
        ]  # fmt: skip
        return Guard(Starlette(routes=routes), self.host, self.port, self.key)

    def page(self, request: Request) -> Response:
        """The page to judge on; without a name it asks for one."""
        order = [("left", grade) for grade in GRADES] + [("right", grade) for grade in reversed(GRADES)]
        return self._html(
            "label.html.jinja", annotator=_annotator(request), categories=self.categories, domains=DOMAIN_GUIDELINES, safety=SAFETY_WORDS,
            grades=[(side, grade, GRADE_WORDS[grade]) for side, grade in order], longest_name=LONGEST_NAME, longest_edit=LONGEST_EDIT,
        )  # fmt: skip

    def stats(self, request: Request) -> Response:
        """The figures of all that was judged."""
        figures, batches = statistics(self.store.current()), [(name, self.store.closed(name)) for name in self.store.batches()]
        return self._html("stats.html.jinja", figures=figures, batches=batches, annotator=_annotator(request))

    def _html(self, name: str, **values: Any) -> Response:
        return HTMLResponse(self.environment.get_template(name).render(**values).encode("utf-8", "replace"))

    def next(self, request: Request) -> Response:
        """What a person sees next: a pair, or with `back` the last one again; else why there is none."""
        try:
            annotator = name_of(request.query_params.get("annotator", ""))
        except ValueError as error:
            return _refusal(400, str(error))
        if "back" in request.query_params:
            pair = self.store.last(annotator)
            return self._pair(pair, annotator) if pair else _refusal(404, "there is nothing to go back to")
        pair = self.store.next_pair(annotator, self.judges)
        if pair is not None:
            return self._pair(pair, annotator)
        if self.maker is None or (self.maker.finished and not self.maker.problem):
            return JSONResponse({"state": "done"})
        return JSONResponse({"state": "failed", "reason": self.maker.problem} if self.maker.problem else {"state": "writing"})

    def _pair(self, pair: Pair, annotator: str) -> Response:
        """A pair as this person sees it, with what they said of it before. Nothing tells who wrote which."""
        left, given = left_of(self.store.seed, pair.id, annotator), self.store.given(annotator, pair.id)
        before = given[-1] if given else None
        shown = [told(pair.answers[number].turns) for number in (left, 1 - left)]
        return JSONResponse({
            "state": "pair", "pair": pair.id, "revision": len(given), "prompt": told(pair.prompt), "left": shown[0], "right": shown[1],
            "judged": self._judged(annotator), "before": _before(before, left) if before and before.preferred is not None else None,
        })  # fmt: skip

    def _judged(self, annotator: str) -> int:
        return sum(item.annotator == annotator and item.preferred is not None for item in self.store.current())

    async def judge(self, request: Request) -> Response:
        """Keep a judgement, and say so only when it is on the disk."""
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return _refusal(413, f"more than {MOST_BYTES:,} bytes")
        return await run_in_threadpool(self._keep, body)

    def _keep(self, body: bytes) -> Response:
        try:
            sent = Submission.model_validate(_object(body))
            annotator = name_of(sent.annotator)
            pair = self.store.pairs.get(sent.pair)
            if pair is None:
                return _refusal(404, "there is no such pair")
            if strange := sorted(set(sent.categories) - set(self.categories)):
                return _refusal(422, f"no category {strange[0]!r}")
            judgement = Judgement.of(sent, pair, left_of(self.store.seed, pair.id, annotator), now())
            new = self.store.judge(judgement)
        except ValidationError as error:
            first = error.errors()[0]
            return _refusal(422, f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": "))
        except ValueError as error:
            return _refusal(422, str(error))
        except Conflict as error:
            return _refusal(409, str(error))
        except (StorageError, OSError) as error:
            return _refusal(507, f"not saved: {error}")
        return JSONResponse({"state": "kept", "new": new})


def _annotator(request: Request) -> str:
    """Who says to be there, "" where nobody does."""
    try:
        return name_of(request.query_params.get("annotator", ""))
    except ValueError:
        return ""


def _before(judgement: Judgement, left: int) -> dict[str, Any]:
    """What was said of a pair, by the sides of the page."""
    return {
        "side": "left" if judgement.preferred == left else "right", "grade": judgement.grade, "domain": judgement.domain,
        "safety": judgement.safety, "categories": list(judgement.categories), "edit_left": judgement.edits[left],
        "edit_right": judgement.edits[1 - left],
    }  # fmt: skip


async def _body(request: Request) -> bytes | None:
    """The body, None as soon as it is too long; what its length header says is not believed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    text = json.dumps(value, ensure_ascii=False)
    text.encode()  # halves of surrogate pairs, which no file can hold, are a ValueError here
    return value


def _refusal(status: int, reason: str) -> Response:
    return JSONResponse({"state": "refused", "reason": reason}, status)


def _script(request: Request) -> Response:
    return Response((TEMPLATES / "label.js").read_bytes(), media_type="text/javascript; charset=utf-8")


def _style(request: Request) -> Response:
    return Response((TEMPLATES / "label.css").read_bytes(), media_type="text/css; charset=utf-8")


def environment() -> Environment:
    """The template engine: escaping always on, unknown names are errors, no access to internals."""
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
