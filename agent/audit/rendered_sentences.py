"""Check the sentences that our own notes render from results against the figures they state.

agent.report.sentences reads them. The first statement of a figure that stands nowhere else in the notes (of the random
SAE, an idea's own measures, the levels of the baseline, the test text) is a record and no claim. Given a study's run
directories, the random SAE's figures and the measures are claims too.
"""

import re
from collections.abc import Iterator

from agent.audit.finding import CheckResult, result
from agent.audit.known_figures import Difference, KnownRun, KnownRuns
from agent.audit.notes_reader import Notes, Statement
from agent.audit.rounding import agrees, number
from agent.comparison.arbiter import LEAST_SHARE
from agent.comparison.judgement import Outcome
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo
from agent.report import sentences
from agent.report.sentences import NUMBER, TITLE, TITLES

_SHARES = re.compile(rf"(?P<title>[^,;:]+?) (?P<values>{NUMBER}(?: / {NUMBER})+)")  # one per part, in an idea's figures
_SUBJECT = rf"(?P<subject>(?P<title>{TITLE}) (?:of (?:run (?P<run>\d+)|the baseline) )?)"
_RECORDS = (
    sentences.COMPARED_HEADING,
    sentences.NOT_MEASURED,
    sentences.NOT_COMPARABLE,
    sentences.PREDICTED,
    sentences.BY_HAND,
    sentences.PROVISIONAL,
    sentences.ATTEMPT_FAILED,
    sentences.WARNING,
    sentences.NO_RESULT,
    sentences.NEED_LACKS,
    sentences.NO_RESULT_ON,
    sentences.NO_RULES,
    sentences.MORE_RUNS,
    sentences.MORE_METRICS,
    sentences.TRAINING,
    sentences.NOT_APPLICABLE,
    sentences.DOES_NOT_COUNT,
    sentences.TRAINING_CURVES,
    sentences.OWN_LOSS,
    sentences.L0_FRONT,
    sentences.NO_CURVE,
    sentences.NO_LINE,
    sentences.BASELINE_LINE,
    sentences.LOWER_ROW,
    sentences.DIFFERENCES,
    sentences.ON_PRIMARY,
    sentences.NO_PRIMARY,
    sentences.NOT_SHOWN,
    sentences.NO_PLOTS,
)


def learn(notes: Notes, known: KnownRuns) -> None:
    """Add the differences and own measures that notes record to what is known of the runs."""
    for statement in notes.statements:
        run = known.run(statement.run)
        if run is None or run.info:
            continue
        if line := sentences.COMPARED.read(statement.text):
            numbers = [number(line[part]) for part in ("value", "reference", "difference", "half_width")]
            run.differences.setdefault(line["title"], Difference(*numbers))
        elif own := sentences.OWN_MEASURES.read(statement.text):
            run.own_measures = {measure["measure"]: number(measure["value"]) for measure in _own_measures(own)}


def learn_outcomes(notes: Notes, known: KnownRuns) -> None:
    """Add outcomes to what is known of their runs, and the differences they state if nothing else records them."""
    for statement in notes.statements:
        run = known.run(statement.run)
        if run is None or run.info:
            continue
        for outcome, sentence in sentences.OUTCOMES.items():
            if stated := sentence.read(statement.text):
                run.outcome = outcome
                difference, half_width = number(stated["difference"]), number(stated["half_width"])
                value = run.figures.get(TITLES[stated["title"]], 0.0)
                numbers = value - difference, difference, half_width
                run.differences.setdefault(stated["title"], Difference(value, *numbers))


def check(statement: Statement, known: KnownRuns) -> list[CheckResult] | None:
    """Check a rendered sentence. Return an empty list for a record, None if our notes do not render such a sentence."""
    text, run = statement.text, known.run(statement.run)
    if run and (line := sentences.COMPARED.read(text)):
        return list(_check_metric_line(line, run))
    for outcome, sentence in sentences.OUTCOMES.items():
        if run and (match := sentence.read(text)):
            return list(_check_outcome(outcome, match, run))
    if floor := sentences.RANDOM_SAE.read(text):
        return list(_check_random_sae(floor["figures"], run.info)) if run and run.info else []
    if own := sentences.OWN_MEASURES.read(text):
        return list(_check_own_measures(own, run)) if run and run.info else []
    if run and (counted := sentences.PREDICTIONS_HELD.opens(text)):
        return list(_check_predictions(counted, text, run))
    if run and run.verdict and (verdict := sentences.DOES_NOT_COUNT.opens(text)):
        return [result(verdict["verdict"] == run.verdict, f"the verdict is {run.verdict}")]
    if statement.label.endswith(".png") and sentences.LISTED_RUN.read(text):
        return [result for part in re.split(r"; (?=run \d)", text) for result in _check_listed_run(part, known)]
    return [] if any(record.opens(text) for record in _RECORDS) else None


def check_differences(text: str, own_run: int | None, known: KnownRuns) -> Iterator[tuple[str, CheckResult]]:
    """Check the differences with intervals in a description; yield each with the predicate that states it."""
    for sentence in (sentences.DIFFERS_FROM_RUN, sentences.WITHIN_NOISE_OF_RUN):
        for match in sentence.within(text, before=_SUBJECT):
            yield _predicate(match), _check_between_runs(match, own_run, known)
            text = text.replace(match.group(), "")
    for match in sentences.DIFFERS_FROM.within(text, before=_SUBJECT):
        title, difference = _stated_difference(match, own_run, known)
        if difference is None:
            yield _predicate(match), ("unsupported", f"no difference of {title} is known")
            continue
        yield _predicate(match), _check_difference(match, difference)
        if match["in_words"] and (word := re.match("better|worse", match["in_words"], re.IGNORECASE)):
            better = METRICS[TITLES[title]].better
            gain = -difference.difference if better == "lower" else difference.difference
            true = not difference.within_noise and (gain > 0) == (word.group().lower() == "better")
            yield _predicate(match), result(true, f"{title} is better when {better}")
    for match in sentences.WITHIN_NOISE_OF.within(text, before=_SUBJECT):
        title, difference = _stated_difference(match, own_run, known)
        if difference is None:
            yield _predicate(match), ("unsupported", f"no difference of {title} is known")
            continue
        yield _predicate(match), _check_difference(match, difference)
        true = difference.within_noise or _may_be_corrected(title)
        yield _predicate(match), result(true, "" if true else f"{title} differs by more than its interval")


def _predicate(match: re.Match[str]) -> str:
    return match.group()[match.end("subject") - match.start() :]


def _stated_difference(match: re.Match[str], own_run: int | None, known: KnownRuns) -> tuple[str, Difference | None]:
    """Return the metric's title and the difference that is known of it; if no run is named, of any run it agrees with.

    A description may name a run by what it changed.
    """
    title = next(title for title in TITLES if title.lower() == match["title"].lower())
    number = int(match["run"]) if match["run"] else own_run
    numbers = [number] if match["run"] else [number, *sorted(known.runs)]
    differences = [run.differences[title] for each in numbers if (run := known.run(each)) and title in run.differences]
    agreeing = (each for each in differences if _check_difference(match, each)[0] == "supported")
    own = known.run(number)
    return title, next(agreeing, own.differences.get(title) if own else None)


def _check_between_runs(stated: re.Match[str], own_run: int | None, known: KnownRuns) -> CheckResult:
    """Check the difference between two runs, each taken relative to the baseline at its own L0."""
    title = next(title for title in TITLES if title.lower() == stated["title"].lower())
    runs = [known.run(int(stated["run"]) if stated["run"] else own_run), known.run(int(stated["other"]))]
    differences = [run.differences[title].difference for run in runs if run and title in run.differences]
    if len(differences) < 2:
        return "unsupported", f"no difference of {title} is known"
    between = differences[0] - differences[1]
    return result(agrees(stated["difference"], between, 1.5), f"the difference is {between:+.4g}")


def _check_difference(stated: re.Match[str], known: Difference) -> CheckResult:
    true = agrees(stated["difference"], known.difference) and agrees(stated["half_width"], known.half_width)
    return result(true, f"the difference is {known.difference:+.4g} ± {known.half_width:.4g}")


def _check_figure(title: str, stated: str, run: KnownRun) -> CheckResult:
    value = run.info.metric(TITLES[title]) if run.info else run.figures.get(TITLES[title])
    if value is None:
        return "unsupported", f"{title} was not measured in run {run.number}"
    return result(agrees(stated, value), f"run {run.number} has {title} {value:.6g}")


def _check_metric_line(line: re.Match[str], run: KnownRun) -> Iterator[CheckResult]:
    title = line["title"]
    yield _check_figure(title, line["value"], run)
    numbers = [number(line[part]) for part in ("value", "reference", "difference", "half_width")]
    known = run.differences.get(title) if run.info else Difference(*numbers)
    if known is None:
        yield _not_compared(title, run)
        return
    if run.info:
        yield result(agrees(line["reference"], known.reference), f"the baseline has {known.reference:.6g}")
        yield _check_difference(line, known)
    else:  # of three rounded figures
        unit = 10.0 ** -len(line["value"].partition(".")[2])
        apart = abs(known.value - known.reference - known.difference)
        evidence = f"{known.value:g} - {known.reference:g} is {known.value - known.reference:+.4g}"
        yield result(apart <= 1.01 * unit, evidence)
    true = not line["within_noise"] or known.within_noise or _may_be_corrected(title)
    yield result(true, "" if true else "the difference is larger than its interval")
    if line["prediction_outcome"] in ("held", "failed") and line["predicted"] != "same":
        held, direction = line["prediction_outcome"] == "held", known.direction
        yield result((direction == line["predicted"]) == held, f"it went {direction}")
        true = direction != "same" or held
        yield result(true, "" if true else "a difference within the noise fails no prediction")


def _may_be_corrected(title: str) -> bool:
    """Return True if a metric may be primary, whose outcome is corrected for the number of runs."""
    return TITLES[title] not in ("l0", "alive_fraction")


def _check_outcome(outcome: Outcome, stated: re.Match[str], run: KnownRun) -> Iterator[CheckResult]:
    title = stated["title"]
    metric, difference = METRICS[TITLES[title]], number(stated["difference"])
    yield _check_figure("L0", stated["l0"], run)
    known = run.differences.get(title)
    if known is None:
        yield _not_compared(title, run)
        return
    yield _check_difference(stated, known)
    yield from _check_items(stated["companion"] or "", run)
    yield from _check_companion(stated, run)
    gain = -difference if metric.better == "lower" else difference
    if outcome in ("better", "unconfirmed", "untested", "not upheld"):
        yield result(gain > 0 and not known.within_noise, f"{title} is better when {metric.better}")
    if outcome == "worse":
        yield result(gain < 0 and not known.within_noise, f"{title} is better when {metric.better}")
    if outcome == "negligible":
        smallest = stated["smallest"]
        yield result(abs(difference) <= number(smallest), f"the smallest effect worth having is {smallest}")
    yield from _check_on_test(outcome, stated)


def _check_predictions(counted: re.Match[str], text: str, run: KnownRun) -> Iterator[CheckResult]:
    """Check how many predictions held, and what became of those that are named."""
    groups = [group for part in text.rstrip(".").split("; ")[1:] if (group := sentences.NOT_HELD.read(part))]
    named = [(group["outcome"], match) for group in groups for match in sentences.PREDICTED_METRIC.within(group[0])]
    more = int(counted["count"]) - int(counted["held"])
    yield result(more == len(named), f"{len(named)} predictions are named that did not hold")
    for outcome, match in named:
        known = run.differences.get(match["title"])
        if known and outcome == sentences.UNTRUE["failed"] and match["predicted"] != "same":
            yield result(known.direction != match["predicted"], f"{match['title']} went {known.direction}")


def _check_companion(stated: re.Match[str], run: KnownRun) -> Iterator[CheckResult]:
    """Check what an outcome says of the loss of the metric that the primary one is read with."""
    parts = stated.groupdict()
    if title := parts.get("lost_title"):
        known = run.differences.get(title)
        lost = f"the difference of {title} is {known.difference:+.4g}" if known else ""
        yield result(agrees(parts["lost"], -known.difference), lost) if known else _not_compared(title, run)
    if parts.get("beyond") and not parts["in_fresh_seed"]:
        known = run.differences.get(title := parts["companion_title"])
        more = known is not None and -known.difference > number(parts["beyond"])
        yield (
            result(more, f"the difference of {title} is {known.difference:+.4g}")
            if known
            else _not_compared(title, run)
        )


def _check_on_test(outcome: Outcome, stated: re.Match[str]) -> Iterator[CheckResult]:
    """Check that the difference on the test split, beside that of the fresh seeds, allows what is said of it."""
    parts = stated.groupdict()
    on_test = parts.get("on_test") or parts.get("test_difference")
    seeds = sentences.FRESH_SEEDS.read(parts.get("fresh_seeds") or "")
    if not on_test or seeds is None:
        return
    on_dev, rounding = number(seeds["difference"]), 1.5 * 10.0 ** -len(on_test.partition(".")[2])
    share = number(on_test) / on_dev if on_dev else 0.0
    slack = rounding / abs(on_dev) if on_dev else 0.0
    true = share + slack >= LEAST_SHARE if outcome == "better" else share - slack < LEAST_SHARE
    yield result(true, f"{on_test} on the test split is {share:.0%} of {seeds['difference']}")


def _not_compared(title: str, run: KnownRun) -> CheckResult:
    return "unsupported", f"{title} of run {run.number} was not compared"


def _check_random_sae(figures: str, info: FinalInfo) -> Iterator[CheckResult]:
    floor, probing = info.floor, info.probing
    known = {
        "explained variance": floor.explained_variance_centered if floor else None,
        "CE-loss score": floor.ce_loss_score if floor else None,
        "AUC, top 5 latents": probing.random_auc.get(5) if probing else None,
    }
    for figure in _figures(figures):
        value = known.get(figure["title"])
        evidence = f"a random SAE has {figure['title']} {value}"
        yield result(value is not None and agrees(figure["value"], value), evidence)


def _own_measures(own: re.Match[str]) -> list[re.Match[str]]:
    return [match for part in own["measures"].split("; ") if (match := sentences.OWN_MEASURE.read(part))]


def _check_own_measures(own: re.Match[str], run: KnownRun) -> Iterator[CheckResult]:
    """Check that each figure is one of the run's measures: results know them by name, notes by title."""
    stated = [measure["value"] for measure in _own_measures(own)]
    evidence = f"run {run.number} has {len(run.own_measures)} measures of its own"
    yield result(len(stated) == len(run.own_measures), evidence)
    yield from (_check_one_of(figure, list(run.own_measures.values()), run) for figure in stated)


def _check_one_of(stated: str, values: list[float], run: KnownRun) -> CheckResult:
    shown = ", ".join(f"{value:.4g}" for value in values)
    return result(any(agrees(stated, value) for value in values), f"run {run.number} has {shown}")


def _figures(text: str) -> Iterator[re.Match[str]]:
    return sentences.FIGURE.within(text, after=r"(?!\d|\.\d| /| ±)")


def _check_items(text: str, run: KnownRun) -> Iterator[CheckResult]:
    """Check figures of a run, and its differences with intervals."""
    for figure in _figures(text):
        yield _check_figure(figure["title"], figure["value"], run)
    for difference in sentences.DIFFERENCE.within(text):
        known = run.differences.get(difference["title"])
        yield _check_difference(difference, known) if known else _not_compared(difference["title"], run)


def _check_listed_run(part: str, known: KnownRuns) -> Iterator[CheckResult]:
    """Check a run and its figures as the description of a plot lists them."""
    match = sentences.LISTED_RUN.read(part)
    if match is None:
        return
    run = known.runs.get(int(match["run"]))
    if run is None:
        yield "unsupported", f"there is no run {match['run']}"
        return
    yield from _check_items(match["figures"], run)
    for share in _SHARES.finditer(match["figures"]) if run.own_measures else ():
        words = re.findall(r"[a-z0-9²]+", share["title"].lower())
        named = [value for title, value in run.own_measures.items() if all(word in title.lower() for word in words)]
        values = named or list(run.own_measures.values())
        yield from (_check_one_of(stated, values, run) for stated in share["values"].split(" / "))
