"""The statements that our own notes render from results, held against the figures they speak of.

They are read as agent.notes and agent.plots write them. A first statement of a figure that stands nowhere else in the
notes (the floor, an idea's own measures, the levels of the baseline, the test text) is a record and no claim; with a
study's run directories at hand, floor and measures are claims too.
"""

import re
from collections.abc import Iterator

from agent.audit.finding import Judged
from agent.audit.known_figures import Difference, Facts, Run
from agent.audit.notes_reader import Notes, Statement
from agent.audit.rounding import close
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo

OWN = "The idea's own measures: "
TITLES = {metric.title: name for name, metric in METRICS.items()}
_TITLE = "|".join(re.escape(title) for title in sorted(TITLES, key=len, reverse=True))
_N = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_BULLET = re.compile(
    rf"(?P<title>{_TITLE}): (?P<value>{_N})(?: [a-z/]+)?, baseline(?: as it was trained)? (?P<reference>{_N}), "
    rf"difference (?P<difference>[+-]{_N}) ± (?P<half>{_N})(?P<noise> \(within noise\))?"
    r"(?:; predicted (?P<predicted>up|down|same): (?P<outcome>[a-z ]+))?"
)
_JUDGED = re.compile(
    r"(?P<verdict>Better \(confirmed\)|Seems better, and is not confirmed by fresh seeds yet|Not confirmed|Not better"
    r"|Worse|Too small to matter|Within noise): "
    rf"(?P<title>{_TITLE}) differs by (?P<difference>[+-]{_N}) ± (?P<half>{_N})"
    rf"(?: [a-z/]+)?(?: \((?P<beside>[^)]*)\))? from the baseline at L0 (?P<l0>{_N}) .*?"
    rf"(?:the smallest difference worth having, (?P<worth>{_N}).*)?"
)
_DIFFERS = re.compile(
    rf"(?P<title>{_TITLE}) (?:of (?:run (?P<run>\d+)|the baseline) )?"
    rf"(?:differs by (?P<difference>[+-]{_N}) ± (?P<half>{_N})"
    rf"|is within noise of the baseline[\w ]* \(difference (?P<noise>[+-]{_N}) ± (?P<noise_half>{_N})\))"
    r"(?: from the baseline (?:at the same L0|as it was trained))?(?: \((?P<verdict>better|worse)[\w ,]*\))?",
    re.IGNORECASE,
)
_RUN_LIST = re.compile(r"run (?P<run>\d+)(?: \((?P<verdict>[a-z ]+) on [^)]*\))?: (?P<items>.*)", re.DOTALL)
_ITEM = re.compile(rf"(?P<title>{_TITLE}) (?P<value>[+-]?{_N})(?: ± (?P<half>{_N}))?(?!\d|\.\d| /)")
_SHARES = re.compile(rf"(?P<title>[^,;:]+?) (?P<values>{_N}(?: / {_N})+)")
_FLOOR = re.compile(r"A random untrained SAE at L0 \d+ scores: (?P<items>.*)\.")
_RECORDS = re.compile(
    r"(?:Beside the baseline at the same L0, and what was predicted|Predicted before the run:"
    r"|Run by hand, outside|Attempt \d+ failed:"
    r"|Warning: |.* gave no result: |Verdict: |The line is the baseline, read linearly in log L0|The lower row enlarges"
    r"|The baseline was measured at L0|The baseline's curve was not measured"
    r"|each run's difference from the baseline at the run's"
    r"|The verdicts are on |explained variance and CE-loss score against L0, one point|training loss \(logarithmic\)"
    r"|The loss is each experiment's own|Not shown: |Not comparable: |.*: not measured on both sides|No plots: )"
)


def learn(notes: Notes, facts: Facts) -> None:
    """Take the differences and own measures that notes record into what is known of the runs."""
    for statement in notes.statements:
        run = facts.runs.get(statement.run) if statement.run is not None else None
        if run is None or run.info:
            continue
        if bullet := _BULLET.fullmatch(statement.text):
            numbers = [_number(bullet[part]) for part in ("value", "reference", "difference", "half")]
            run.differences.setdefault(bullet["title"], Difference(*numbers))
        elif statement.text.startswith(OWN):
            run.own = _own(statement.text)


def check(statement: Statement, facts: Facts) -> list[Judged] | None:
    """What a rendered statement comes to; nothing for a record, None for a sentence that notes do not render."""
    text, run = statement.text, facts.runs.get(statement.run) if statement.run is not None else None
    if run and (bullet := _BULLET.fullmatch(text)):
        return list(_bullet(bullet, run))
    if run and (judged := _JUDGED.fullmatch(text)):
        return list(_judged(judged, run))
    if floor := _FLOOR.fullmatch(text):
        return list(_floor(floor["items"], run.info)) if run and run.info else []
    if text.startswith(OWN):
        return list(_measures(text, run)) if run and run.info else []
    if run and run.verdict and text.startswith("Verdict: "):
        return [_is(text.startswith(f"Verdict: {run.verdict} "), f"the verdict is {run.verdict}")]
    if statement.label.endswith(".png") and _RUN_LIST.match(text):
        return [judged for part in re.split(r"; (?=run \d)", text) for judged in _listed(part, facts)]
    return [] if _RECORDS.match(text) else None


def differs(text: str, own: int | None, facts: Facts) -> Iterator[tuple[str, Judged]]:
    """The differences with intervals that a description gives, each with the stretch of text it is."""
    for match in _DIFFERS.finditer(text):
        number = int(match["run"]) if match["run"] else own
        run = facts.runs.get(number) if number is not None else None
        title = next(title for title in TITLES if title.lower() == match["title"].lower())
        known = run.differences.get(title) if run else None
        if known is None:
            yield match.group(), ("unsupported", f"there is no difference of {title} to hold it against")
        else:
            yield (
                match.group(),
                _difference(match["difference"] or match["noise"], match["half"] or match["noise_half"], known),
            )
            if match["noise"]:
                true = known.within_noise or _corrected(title)
                yield match.group(), _unless(true, f"{title} differs by more than its interval")
            if match["verdict"]:
                better = METRICS[TITLES[title]].better
                gain = -known.difference if better == "lower" else known.difference
                true = not known.within_noise and (gain > 0) == (match["verdict"].lower() == "better")
                yield match.group(), _is(true, f"{title} is better when {better}")


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _is(true: bool, evidence: str) -> Judged:
    return ("supported" if true else "contradicted", evidence)


def _unless(true: bool, otherwise: str) -> Judged:
    return _is(true, "" if true else otherwise)


def _difference(said: str, half: str | None, known: Difference) -> Judged:
    true = close(said, known.difference) and (half is None or close(half, known.half_width))
    return _is(true, f"the difference is {known.difference:+.4g} ± {known.half_width:.4g}")


def _figure(title: str, said: str, run: Run) -> Judged:
    value = run.info.metric(TITLES[title]) if run.info else run.figures.get(TITLES[title])
    if value is None:
        return "unsupported", f"{title} was not measured in run {run.number}"
    return _is(close(said, value), f"run {run.number} has {title} {value:.6g}")


def _bullet(match: re.Match[str], run: Run) -> Iterator[Judged]:
    title = match["title"]
    yield _figure(title, match["value"], run)
    value, reference, difference, half = (_number(match[part]) for part in ("value", "reference", "difference", "half"))
    known = run.differences.get(title) if run.info else Difference(value, reference, difference, half)
    if known is None:
        yield _not_compared(title, run)
        return
    if run.info:
        yield _is(close(match["reference"], known.reference), f"the baseline has {known.reference:.6g}")
        yield _difference(match["difference"], match["half"], known)
    else:  # of three rounded figures
        unit = 10.0 ** -len(match["value"].partition(".")[2])
        apart = abs(value - reference - difference)
        yield _is(apart <= 1.01 * unit, f"{value:g} - {reference:g} is {value - reference:+.4g}")
    true = not match["noise"] or known.within_noise or _corrected(title)
    yield _unless(true, "the difference is larger than its interval")
    if match["outcome"] in ("held", "failed") and match["predicted"] != "same":
        went = "same" if known.within_noise else "up" if known.difference > 0 else "down"
        yield _is((went == match["predicted"]) == (match["outcome"] == "held"), f"it went {went}")
        yield _unless(went != "same" or match["outcome"] == "held", "a difference within the noise fails no prediction")


def _corrected(title: str) -> bool:
    """Whether it may be a primary metric, whose verdict is corrected for the number of runs."""
    return TITLES[title] not in ("l0", "alive_fraction")


def _judged(match: re.Match[str], run: Run) -> Iterator[Judged]:
    metric, difference = METRICS[TITLES[match["title"]]], _number(match["difference"])
    yield _figure("L0", match["l0"], run)
    known = run.differences.get(match["title"])
    if known is None:
        yield _not_compared(match["title"], run)
        return
    yield _difference(match["difference"], match["half"], known)
    yield from _items(match["beside"] or "", run)
    gain = -difference if metric.better == "lower" else difference
    verdict = match["verdict"]
    if verdict.startswith(("Better", "Seems better")):
        yield _is(gain > 0 and not known.within_noise, f"{match['title']} is better when {metric.better}")
    if verdict == "Worse":
        yield _is(gain < 0 and not known.within_noise, f"{match['title']} is better when {metric.better}")
    if verdict == "Too small to matter" and match["worth"]:
        yield _is(abs(difference) <= _number(match["worth"].rstrip(".")), f"{match['worth']} is worth having")


def _not_compared(title: str, run: Run) -> Judged:
    return "unsupported", f"{title} of run {run.number} was not compared"


def _floor(items: str, info: FinalInfo) -> Iterator[Judged]:
    floor, probing = info.floor, info.probing
    known = {
        "explained variance": floor.explained_variance_centered if floor else None,
        "CE-loss score": floor.ce_loss_score if floor else None,
        "AUC, top 5 latents": probing.random_auc.get(5) if probing else None,
    }
    for item in _ITEM.finditer(items):
        value = known.get(item["title"])
        yield _is(value is not None and close(item["value"], value), f"the floor of {item['title']} is {value}")


def _own(text: str) -> dict[str, float]:
    items = text.removeprefix(OWN).rstrip(".").split("; ")
    found = [match for item in items if (match := re.fullmatch(rf"(.*?) ({_N})(?: [a-zA-Z/]+)?", item))]
    return {match[1]: _number(match[2]) for match in found}


def _measures(text: str, run: Run) -> Iterator[Judged]:
    """Results know measures by name, notes by title: a figure must be one of the run's."""
    said = re.findall(rf" ({_N})(?: [a-zA-Z/]+)?(?=; |\.$)", text)
    yield _is(len(said) == len(run.own), f"run {run.number} has {len(run.own)} measures of its own")
    yield from (_one_of(each, list(run.own.values()), run) for each in said)


def _one_of(said: str, values: list[float], run: Run) -> Judged:
    shown = ", ".join(f"{value:.4g}" for value in values)
    return _is(any(close(said, value) for value in values), f"run {run.number} has {shown}")


def _items(text: str, run: Run) -> Iterator[Judged]:
    """Figures of a run, or with intervals its differences."""
    for item in _ITEM.finditer(text):
        known = run.differences.get(item["title"])
        if not item["half"]:
            yield _figure(item["title"], item["value"], run)
        elif known is None:
            yield _not_compared(item["title"], run)
        else:
            yield _difference(item["value"], item["half"], known)


def _listed(part: str, facts: Facts) -> Iterator[Judged]:
    """A run with its figures, as the description of a plot lists it."""
    match = _RUN_LIST.match(part)
    if match is None:
        return
    run = facts.runs.get(int(match["run"]))
    if run is None:
        yield "unsupported", f"there is no run {match['run']}"
        return
    yield from _items(match["items"], run)
    for item in _SHARES.finditer(match["items"]) if run.own else ():
        words = re.findall(r"[a-z0-9²]+", item["title"].lower())
        named = [value for title, value in run.own.items() if all(word in title.lower() for word in words)]
        yield from (_one_of(said, named or list(run.own.values()), run) for said in item["values"].split(" / "))
