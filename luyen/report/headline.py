"""The run in a few plain sentences, made of measured figures only, also when they are bad."""

from __future__ import annotations

from dataclasses import dataclass, field

from luyen.report.answers import WITH_PAGES, Result, forgetting, results, trained_models
from luyen.report.model_sections import final_loss, tokens_of, weights_of
from luyen.report.reading import Run, Stage, documents, pick, text
from luyen.report.ways_to_tune import Way, best_learned
from luyen.report.wording import clip, counted, decimal, duration, joined, share, size, whole


@dataclass(frozen=True)
class Headline:
    """Title, sentences below it, and the figures that stand out: (figure, what it is)."""

    title: str
    sentences: list[str] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)


def headline(run: Run) -> Headline:
    """What came out of a run; for an unfinished one, where it stands."""
    unfinished = [stage for stage in run.stages if stage.state != "done"]
    found = [(stage, results(run, stage)) for stage in run.finished("evaluation")]
    judged = next(((stage, rows) for stage, rows in found if rows), None)
    sentences: list[str] = []
    title = _heldout(run)
    compared = best_learned(run)
    if compared:
        title, sentences = _comparison(*compared)
    elif judged:
        title, sentences = _verdict(run, *judged)
    if unfinished or not title:
        title, more = _standing(run, unfinished)
        sentences = more + sentences
    return Headline(title, sentences + _story(run, compared), _figures(run, judged, compared))


def _comparison(best: Way, start: str, count: int) -> tuple[str, list[str]]:
    """Of a run that tuned one model in several ways no way is the result: which learned most, and what that cost."""
    name, exact = best.stage.name, share(best.learned, 0)
    title = f"Of {count} ways to tune {start}, {name} learned most: {exact} of its task's taught questions exactly."
    if (best.learned or 0.0) < 0.2:
        title = f"None of {count} ways to tune {start} learned much; {name} learned most: {exact} exactly."
    costs = []
    if best.other is not None:
        costs.append(f"{best.other * 100:+.0f} points on other tasks' questions")
    if best.forgot is not None:
        costs.append(f"{best.forgot:+.3f} bits per byte of held-out text (above zero is forgotten)")
    return title, [f"Against {start} it has {joined(costs)}."] if costs else []


def _standing(run: Run, unfinished: list[Stage]) -> tuple[str, list[str]]:
    done, everything = len(run.stages) - len(unfinished), len(run.stages)
    failed = [stage for stage in unfinished if stage.state == "failed"]
    sentences = [f"Stage {stage.name} failed{': ' + clip(stage.error, 300) if stage.error else ''}." for stage in failed]
    sentences += [
        f"Stage {stage.name} was begun and is not finished; the same command continues it."
        for stage in unfinished
        if stage.state == "stopped"
    ]
    waiting = [stage.name for stage in unfinished if stage.state == "waiting"]
    if waiting:
        sentences.append(f"Not begun: {joined(waiting)}.")
    if not unfinished:
        done_all = "Its only stage is done" if everything == 1 else f"All {counted(everything, 'stage')} done"
        return f"{done_all}; nothing was evaluated.", sentences
    return f"Not finished: {done} of {counted(everything, 'stage')} done.", sentences


def _heldout(run: Run) -> str:
    """What held-out text costs each model, for a run that asked no questions; "" where that was not measured."""
    for stage in run.finished("evaluation"):
        costs = [
            f"{clip(text(row.get('model')), 80)} {decimal(cost)}"
            for row in forgetting(run, stage)
            if (cost := pick(row, "heldout_bits_per_byte", "bits_per_byte")) is not None
        ]
        if costs:
            return f"Held-out text costs {joined(costs)} bits per byte."
    return ""


def _row(rows: list[Result], model: str, name: str) -> Result | None:
    return next((row for row in rows if row.model == model and row.set == name), None)


def _asked(row: Result, measure: str) -> str:
    """ "64 % (123 of 192)"."""
    value, examples = row.number(measure), row.number("examples")
    if value is None or not examples:
        return share(value, 0)
    return f"{share(value, 0)} ({whole(round(value * examples))} of {whole(examples)})"


def _verdict(run: Run, stage: Stage, rows: list[Result]) -> tuple[str, list[str]]:
    learned = trained_models(run, stage, rows)
    last = learned[-1] if learned else rows[-1].model
    taught = _row(rows, last, "taught")
    if taught is None or taught.number("exact_match") is None:
        taught = next((row for row in rows if row.model == last and row.number("exact_match") is not None), None)
        if taught is None:
            return "", []
    exact = taught.number("exact_match") or 0.0
    what = "the taught questions" if taught.set == "taught" else f"the questions of the set “{taught.set}”"
    words = ", though asked in words it had not seen" if taught.set == "taught" else ""
    title = f"It answered {share(exact, 0)} of {what} exactly{words}."
    if exact < 0.2:
        title = f"It learned little: it answered {share(exact, 0)} of {what} exactly."
    sentences = _mode(rows, last, taught.set)
    same = [row for row in rows if row.set == taught.set and row.number("exact_match") is not None]
    compared = [f"{row.model} {_asked(row, 'exact_match')}" for row in same]
    if len(compared) > 1:
        sentences.append(f"Exactly right on those questions: {joined(compared)}.")
    better = [row.model for row in same if row.model not in learned and (row.number("exact_match") or 0) > exact]
    if better:
        sentences.append(f"{joined(better)} {'does' if len(better) == 1 else 'do'} better than the model alone.")
    sentences += _honesty(rows, last, learned)
    return title, sentences


def _mode(rows: list[Result], last: str, asked: str) -> list[str]:
    """Which way of asking the first figure is of, and the figure of the other; nothing where only one was measured."""
    helped = _row(rows, f"{last} {WITH_PAGES}", asked)
    if helped is None or helped.number("exact_match") is None:
        return []
    return [
        f"That is the model alone, from its weights (luyen chat --no-retrieval). With the best passage before each question, as luyen chat "
        f"asks unless told otherwise, it is {_asked(helped, 'exact_match')}."
    ]


def _honesty(rows: list[Result], last: str, learned: list[str]) -> list[str]:
    sentences = []
    made_up = _row(rows, last, "invented")
    if made_up is not None and made_up.number("invented") is not None:
        rate = made_up.number("invented") or 0.0
        verdict = "do not trust its answers about things it does not know" if rate > 0.2 else "it mostly says so when it does not know"
        cases = _asked(made_up, "invented")
        sentences.append(f"Asked about names that do not exist, it invented an answer in {cases} of the cases: {verdict}.")
    untaught = _row(rows, last, "untaught")
    if untaught is not None and untaught.number("exact_match") is not None:
        exact = untaught.number("exact_match") or 0.0
        better = [row for row in rows if row.set == "untaught" and row.model not in learned and (row.number("exact_match") or 0) > exact]
        besides = joined([f"{row.model} in {_asked(row, 'exact_match')}" for row in better])
        sentences.append(
            f"On entries it was never taught it was exactly right in {_asked(untaught, 'exact_match')}{'; ' if besides else ''}{besides}."
        )
    return sentences


def _story(run: Run, compared: tuple[Way, str, int] | None) -> list[str]:
    """From how much text, into what, in which time."""
    parts = []
    pages = next((pages for stage in run.finished("pages") if (pages := stage.number("pages", "fetched")) is not None), None)
    if pages is not None:
        parts.append(f"read {counted(pages, 'page')}")
    for stage in run.finished("corpus"):
        kept = documents(run, stage)[1]
        if kept is not None:
            parts.append(f"kept {counted(kept, 'document')}")
    trained = run.finished("model")
    weights = weights_of(trained[-1]) if trained else None
    tokens = sum(tokens_of(stage) or 0 for stage in trained)
    if compared and weights is not None:
        parts.append(f"tuned a model of {counted(weights, 'parameter')} in {compared[2]} ways")
    elif weights is not None:
        parts.append(f"trained a model of {counted(weights, 'parameter')}" + (f" on {counted(tokens, 'token')}" if tokens else ""))
    seconds = [value for stage in run.stages if (value := pick(stage.manifest, "seconds")) is not None]
    if not parts:
        return []
    return [f"The run {joined(parts)}" + (f", in {duration(sum(seconds))} altogether." if seconds else ".")]


def _figures(run: Run, judged: tuple[Stage, list[Result]] | None, compared: tuple[Way, str, int] | None) -> list[tuple[str, str]]:
    figures: list[tuple[str, str]] = []
    if compared:
        best, _, count = compared
        figures.append((share(best.learned, 0), f"of taught questions exactly right by {best.stage.name}, the best of {count} ways"))
    elif judged:
        learned = trained_models(run, *judged)
        row = _row(judged[1], learned[-1], "taught") if learned else None
        if row is not None and row.number("exact_match") is not None:
            alone = ", by the model alone" if _mode(judged[1], learned[-1], "taught") else ""
            figures.append((share(row.number("exact_match"), 0), f"of taught questions exactly right{alone}"))
        row = _row(judged[1], learned[-1], "invented") if learned else None
        if row is not None and row.number("invented") is not None:
            figures.append((share(row.number("invented"), 0), "of made-up names got an invented answer"))
    seconds = [value for stage in run.stages if (value := pick(stage.manifest, "seconds")) is not None]
    if seconds:
        figures.append((duration(sum(seconds)), "of work, all stages"))
    trained = run.finished("model")
    if trained:
        weights = weights_of(trained[-1])
        if weights is not None:
            figures.append((whole(weights), "parameters"))
        tokens = sum(tokens_of(stage) or 0 for stage in trained)
        if tokens:
            figures.append((whole(tokens), "tokens read in training"))
        loss = final_loss(run, trained[-1])
        if loss is not None and not judged:
            figures.append((decimal(loss), f"training loss of {trained[-1].name}"))
    for stage in run.finished("pages")[:1]:
        if not trained and stage.number("bytes") is not None:
            figures.append((size(stage.number("bytes")), f"fetched from {text(stage.config.get('start')) or 'the web'}"[:60]))
    return figures[:5]
