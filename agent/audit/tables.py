"""Check the tables of our own notes, and the answer that stands above them, against what is known of the runs."""

import re
from collections.abc import Iterator

from agent.audit import references
from agent.audit.finding import CheckResult, Finding, result
from agent.audit.known_figures import Difference, KnownRun, KnownRuns
from agent.audit.notes_reader import Notes, Table
from agent.audit.rounding import agrees, number
from agent.lab.metrics import METRICS
from agent.report import sentences
from agent.report.sentences import NUMBER, TITLES

EMPTY = "-"
_DIFFERENCE = re.compile(rf"(?P<difference>[+-]{NUMBER}) ± (?P<half_width>{NUMBER})")
_ASKED = re.compile(rf"(?P<way>above|below) (?P<limit>{NUMBER})(?:, refuted (?P<other>above|below) (?P<far>{NUMBER}))?")
_MET = re.compile(
    rf" (?P<figure>[+-]?{NUMBER})(?: ± (?P<half_width>{NUMBER}))?[^()]* \((?P<asked>(?:above|below)[^()]+)\)"
)
FOR_THE_BETTER = ("better", "unconfirmed", "untested", "not upheld", "not confirmed", "not better")


def learn(notes: Notes, known: KnownRuns) -> None:
    """Add what the tables record to what is known of the runs, unless that is known from their results."""
    for table in notes.tables:
        for _, cells in table.rows:
            if table.kind == "metric" and (run := known.run(table.run)) and not run.info:
                _learn_difference(run, cells)
            elif table.kind == "own measure":
                for column, cell in zip(table.columns[1:], cells[1:], strict=True):
                    if (run := known.run(_number_of(column))) and not run.info and cell != EMPTY:
                        run.own_measures[cells[0]] = number(cell)


def _learn_difference(run: KnownRun, cells: list[str]) -> None:
    title, reference, stated = cells
    if title in TITLES and (match := _DIFFERENCE.fullmatch(stated)):
        value = run.figures.get(TITLES[title], number(reference) + number(match["difference"]))
        numbers = number(reference), number(match["difference"]), number(match["half_width"])
        run.differences.setdefault(title, Difference(value, *numbers))


def check(notes: Notes, known: KnownRuns) -> Iterator[Finding]:
    """Check each row of each table, and give it the worst status of its cells."""
    for table in notes.tables:
        for line, cells in table.rows:
            number = int(cells[0]) if table.kind == "run" and cells[0].isdigit() else table.run
            if table.kind == "run" and references.is_row(cells):
                results = list(references.check_row(dict(zip(table.columns, cells, strict=True)), known))
            else:
                results = list(_check_row(table, cells, number, known))
            if results:
                worst, _ = max(results, key=lambda each: ("supported", "unsupported", "contradicted").index(each[0]))
                evidence = dict.fromkeys(why for status, why in results if status == worst and why)
                yield Finding(line, number, "  ".join(cells), worst, "; ".join(evidence))


def _check_row(table: Table, cells: list[str], number: int | None, known: KnownRuns) -> Iterator[CheckResult]:
    if table.kind == "own measure":
        for column, cell in zip(table.columns[1:], cells[1:], strict=True):
            run = known.run(_number_of(column))
            if run and run.info and cell != EMPTY:
                yield _check_measure(cells[0], cell, run)
        return
    if (run := known.run(number)) is None:
        yield "unsupported", f"there is no run {number}"
    elif table.kind == "metric":
        yield from _check_metric(cells, run)
    else:
        yield from _check_story(dict(zip(table.columns, cells, strict=True)), run)


def _check_metric(cells: list[str], run: KnownRun) -> Iterator[CheckResult]:
    """Check a metric that differs from the baseline's: value, baseline and difference agree, beyond the interval."""
    title, reference, stated = cells
    known, match = run.differences.get(title), _DIFFERENCE.fullmatch(stated)
    if known is None or match is None:
        yield "unsupported", f"{title} of run {run.number} was not compared"
        return
    yield result(agrees(reference, known.reference), f"the baseline has {known.reference:.6g}")
    yield from check_difference(stated, known)
    beyond = abs(number(match["difference"])) >= number(match["half_width"])  # as rounded
    yield result(beyond, "" if beyond else f"{stated} is within its interval")
    unit = 10.0 ** -len(reference.partition(".")[2])
    apart = abs(known.value - number(reference) - number(match["difference"]))
    yield result(apart <= 1.01 * unit, f"the run has {known.value:.6g}, the baseline {reference}")


def check_difference(stated: str, known: Difference) -> Iterator[CheckResult]:
    """Check a difference with its interval."""
    match = _DIFFERENCE.fullmatch(stated)
    true = match and agrees(match["difference"], known.difference) and agrees(match["half_width"], known.half_width)
    yield result(bool(true), f"the difference is {known.difference:+.4g} ± {known.half_width:.4g}")


def _check_story(cells: dict[str, str], run: KnownRun) -> Iterator[CheckResult]:
    """Check the row of a run in the table at the top."""
    titles = [title for title in cells if title in TITLES]
    for title in titles:
        if (cell := cells[title]) != EMPTY:
            value = run.info.metric(TITLES[title]) if run.info else run.figures.get(TITLES[title])
            evidence = f"run {run.number} has {title} {value}"
            yield result(value is not None and agrees(cell, value), evidence)
    outcome, stated = cells["outcome"], cells["from the baseline"]
    if not run.counts and run.verdict:
        yield result(outcome == run.verdict, f"the verdict is {run.verdict}")
    primary = next((title for title in titles if title != "L0"), "")
    known = run.differences.get(primary)
    if stated == EMPTY:
        return
    if known is None:
        yield "unsupported", f"{primary} of run {run.number} was not compared"
        return
    yield from check_difference(stated, known)
    gain = -known.difference if METRICS[TITLES[primary]].better == "lower" else known.difference
    if outcome == "worse" or outcome in FOR_THE_BETTER:
        true = not known.within_noise and (gain > 0) == (outcome != "worse")
        yield result(true, f"{primary} is better when {METRICS[TITLES[primary]].better}")


def _check_measure(title: str, cell: str, run: KnownRun) -> CheckResult:
    """Check that a figure is one of the run's own measures: results know them by name, notes by title."""
    found = any(agrees(cell, value) for value in run.own_measures.values())
    return result(found, f"run {run.number} has {'a' if found else 'no'} measure of {cell} ({title})")


def check_answer(text: str, known: KnownRuns) -> list[CheckResult] | None:
    """Check the answer to the hypothesis: each reason's figures, and that they are beyond the limit that was asked for,
    or if nothing is decided are not. Return None if the text is none."""
    for decision, sentence in sentences.ANSWERS.items():
        if match := sentence.read(text):
            reasons = match["reasons"].split("; ")
            met = [reason for reason in reasons if reason.startswith(sentences.MET)]
            results = [
                result
                for reason in reasons
                if reason not in met
                for result in _check_reason(reason, decision != "not decided", known)
            ]
            return results + [result for reason in met for result in _check_met(reason)]
    return None


def _check_reason(reason: str, decisive: bool, known: KnownRuns) -> Iterator[CheckResult]:
    if (match := sentences.REASON_METRIC.read(reason)) and (run := known.run(int(match["run"]))):
        low, high = (number(match["difference"]) + sign * number(match["half_width"]) for sign in (-1, 1))
        if match["from_"] == "the baseline's":
            difference = run.differences.get(match["title"])
            stated = f"{match['difference']} ± {match['half_width']}"
            if difference is None:
                yield "unsupported", f"{match['title']} of run {run.number} was not compared"
            else:
                yield from check_difference(stated, difference)
        yield from _check_limit(match["asked"], low, high, decisive)
    elif (match := sentences.REASON_CONTROL.read(reason)) and (run := known.run(int(match["run"]))):
        other = known.run(_number_of(match["control"])) or run
        for figure, whose in ((match["value"], run), (match["reference"], other)):
            if whose.own_measures:
                yield _check_measure(match["measure"], figure, whose)
        difference = number(match["value"]) - number(match["reference"])
        yield result(agrees(match["change"], difference, 1.5), f"the difference is {difference:+.4g}")
        yield from _check_limit(match["asked"], difference, difference, decisive)
    elif (match := sentences.REASON_VALUE.read(reason)) and (run := known.run(int(match["run"]))):
        if run.own_measures:
            yield _check_measure(match["measure"], match["value"], run)
        yield from _check_limit(match["asked"], number(match["value"]), number(match["value"]), decisive)
    elif match := sentences.REASON_OUTCOME.read(reason):
        met = match["outcome"] in match["asked"].split(" or ")
        yield result(met == decisive, f"{match['outcome']} is {'' if met else 'not '}{match['asked']}")
    elif decisive and not re.fullmatch(r"and \d+ more", reason):
        yield "unsupported", f"no figures decide: {reason}"


def _check_met(reasons: str) -> Iterator[CheckResult]:
    """Check that each figure of the conditions that hold is beyond its limit."""
    for match in _MET.finditer(reasons):
        difference, half_width = number(match["figure"]), number(match["half_width"] or "0")
        yield from _check_limit(match["asked"], difference - half_width, difference + half_width, True)


def _check_limit(asked: str, low: float, high: float, decisive: bool) -> Iterator[CheckResult]:
    if match := _ASKED.fullmatch(asked):
        limit = number(match["limit"])
        met = low > limit if match["way"] == "above" else high < limit
        yield result(met == decisive, f"{low:.4g} to {high:.4g} is {'' if met else 'not '}{asked}")
        if match["other"]:
            far = number(match["far"])
            refuted = low > far if match["other"] == "above" else high < far
            yield result(not refuted, f"{low:.4g} to {high:.4g} is {match['other']} {far:g}")


def _number_of(column: str) -> int | None:
    match = re.search(r"\brun (\d+)", column)
    return int(match[1]) if match else None
