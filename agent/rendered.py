"""The statements that our own notes render from results, held against the figures they speak of.

They are read as agent.notes and agent.plots write them. A first statement of a figure that stands nowhere else in the
notes (the floor, an idea's own measures, the levels of the baseline, the test text) is a record and no claim; with a
study's run directories at hand, floor and measures are claims too.
"""

import re
from collections.abc import Iterator

from agent.facts import Difference, Facts, Run
from agent.figures import close
from agent.lab.results import METRICS
from agent.noted import Notes, Statement

TITLES = {metric.title: name for name, metric in METRICS.items()}
_TITLE = "|".join(re.escape(title) for title in sorted(TITLES, key=len, reverse=True))
_N = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_BULLET = re.compile(
    rf"(?P<title>{_TITLE}): (?P<value>{_N})(?: [a-z/]+)?, baseline(?: as it was trained)? (?P<reference>{_N}), "
    rf"difference (?P<difference>[+-]{_N}) ± (?P<half>{_N})(?P<noise> \(within noise\))?"
    r"(?:; predicted (?P<predicted>up|down|same): (?P<outcome>[a-z ]+))?"
)
_JUDGED = re.compile(
    r"(?P<verdict>Better \(confirmed\)|Seems better, and is not confirmed by fresh seeds yet|Not confirmed|Worse"
    rf"|Too small to matter|Within noise): (?P<title>{_TITLE}) differs by (?P<difference>[+-]{_N}) ± (?P<half>{_N})"
    rf"(?: [a-z/]+)? from the baseline at L0 (?P<l0>{_N}) .*?(?:the smallest difference worth having, (?P<worth>{_N}).*)?"
)
_DIFFERS = re.compile(
    rf"(?P<title>{_TITLE}) (?:of (?:run (?P<run>\d+)|the baseline) )?(?:of it |here )?(?:differs by (?P<difference>[+-]{_N}) ± (?P<half>{_N})"
    rf"|is within noise of the baseline[\w ]* \(difference (?P<noise>[+-]{_N}) ± (?P<noise_half>{_N})\))",
    re.IGNORECASE,
)
_RUN_LIST = re.compile(r"run (?P<run>\d+)(?: \((?P<verdict>[a-z ]+) on [^)]*\))?: (?P<items>.*)", re.DOTALL)
_ITEM = re.compile(rf"(?P<title>{_TITLE}) (?P<value>[+-]?{_N})(?: ± (?P<half>{_N}))?(?!\d|\.\d| /)")
_SHARES = re.compile(rf"(?P<title>[^,;:]+?) (?P<values>{_N}(?: / {_N})+)")
_FLOOR = re.compile(r"A random untrained SAE at L0 \d+ scores: (?P<items>.*)\.")
_RECORDS = re.compile(
    r"(?:Beside the baseline at the same L0, and what was predicted|Predicted before the run:|Run by hand, outside|Attempt \d+ failed:"
    r"|Warning: |.* gave no result: |Verdict: |The line is the baseline, read linearly in log L0|The lower row enlarges"
    r"|The baseline was measured at L0|The baseline's curve was not measured|each run's difference from the baseline at the run's"
    r"|The verdicts are on |explained variance and CE-loss score against L0, one point|training loss \(logarithmic\)"
    r"|The loss is each experiment's own|Not shown: |Not comparable: |.*: not measured on both sides|No plots: )"
)
Found = tuple[str, str]  # supported or contradicted, and the evidence


def learn(notes: Notes, facts: Facts) -> None:
    """Take the differences and own measures that notes record into what is known of the runs."""
    for statement in notes.statements:
        run = facts.runs.get(statement.run) if statement.run is not None else None
        if run is None or run.info:
            continue
        if bullet := _BULLET.fullmatch(statement.text):
            numbers = [_number(bullet[part]) for part in ("value", "reference", "difference", "half")]
            run.differences.setdefault(bullet["title"], Difference(*numbers))
        elif statement.text.startswith("The idea's own measures: "):
            run.own = dict(_own(statement.text))


def check(statement: Statement, facts: Facts) -> Found | None | bool:
    """What a rendered statement comes to; False for a record, None for a sentence that notes do not render."""
    text, run = statement.text, facts.runs.get(statement.run) if statement.run is not None else None
    if run and (bullet := _BULLET.fullmatch(text)):
        return _sum_up(_bullet(bullet, run))
    if run and (judged := _JUDGED.fullmatch(text)):
        return _sum_up(_judged(judged, run))
    if floor := _FLOOR.fullmatch(text):
        return _sum_up(_floor(floor["items"], run)) if run and run.info else False
    if text.startswith("The idea's own measures: "):
        return _sum_up(_measures(text, run)) if run and run.info else False
    if _RECORDS.match(text) and not _RUN_LIST.match(text):
        if run and run.verdict and text.startswith("Verdict: "):
            return _sum_up([_is(text.startswith(f"Verdict: {run.verdict} "), f"the verdict is {run.verdict}")])
        listed = text.rpartition(".")[0] and re.search(r"\. (run \d+.*)", text)
        return False if not listed else None
    if statement.label.endswith(".png") and _RUN_LIST.match(text):
        return _sum_up(each for part in re.split(r"; (?=run \d)", text) for each in _listed(part, facts))
    return None


def differs(text: str, own: int | None, facts: Facts) -> Iterator[tuple[str, Found]]:
    """The differences with intervals that a description gives, each with its place in the text."""
    for match in _DIFFERS.finditer(text):
        number = int(match["run"]) if match["run"] else own
        run = facts.runs.get(number) if number is not None else None
        title = next(title for title in TITLES if title.lower() == match["title"].lower())
        known = run.differences.get(title) if run else None
        if known is None:
            yield match.group(), ("unsupported", f"there is no difference of {title} to hold it against")
        else:
            said, half = match["difference"] or match["noise"], match["half"] or match["noise_half"]
            found = [
                *_difference(said, half, known),
                _is(not match["noise"] or known.within_noise, f"{title} differs by more than its interval"),
            ]
            yield match.group(), _sum_up(found)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _is(true: bool, evidence: str) -> Found:
    return ("supported" if true else "contradicted", evidence)


def _sum_up(found: Iterator[Found] | list[Found]) -> Found:
    found = list(found)
    wrong = [each for each in found if each[0] != "supported"]
    return (wrong or found)[0][0], "; ".join(dict.fromkeys(evidence for _, evidence in wrong or found if evidence))


def _difference(said: str, half: str | None, known: Difference) -> list[Found]:
    shown = f"{known.difference:+.4g} ± {known.half_width:.4g}"
    found = [_is(close(said, known.difference), f"the difference is {shown}")]
    return [*found, _is(close(half, known.half_width), f"the difference is {shown}")] if half else found


def _figure(title: str, said: str, run: Run) -> Found:
    if run.info:
        value = run.info.metric(TITLES[title])
    else:
        value = run.figures.get(TITLES[title])
    if value is None:
        return "unsupported", f"run {run.number} has no {title}"
    return _is(close(said, value), f"run {run.number} has {title} {value:.6g}")


def _bullet(match: re.Match[str], run: Run) -> Iterator[Found]:
    value, reference, difference = (_number(match[part]) for part in ("value", "reference", "difference"))
    known = run.differences[match["title"]] if run.info and match["title"] in run.differences else None
    yield _figure(match["title"], match["value"], run)
    if run.info:
        if known is None:
            yield "unsupported", f"run {run.number} has no comparison of {match['title']}"
            return
        yield _is(close(match["reference"], known.reference), f"the baseline has {known.reference:.6g}")
        yield from _difference(match["difference"], match["half"], known)
    else:
        half = _number(match["half"])
        known = Difference(value, reference, difference, half)
        unit = 10.0 ** -len(match["value"].partition(".")[2])
        yield _is(
            abs(value - reference - difference) <= 1.01 * unit, f"{value:g} - {reference:g} is {value - reference:+.4g}"
        )
    noise = known.within_noise
    if match["noise"]:
        judged = TITLES[match["title"]] not in (
            "l0",
            "alive_fraction",
        )  # a verdict corrected for the number of runs may say so
        yield _is(noise or judged, "" if noise else "the difference is larger than its interval")
    if match["outcome"] in ("held", "failed") and match["predicted"] != "same":
        went = "same" if noise else "up" if known.difference > 0 else "down"
        yield _is((went == match["predicted"]) == (match["outcome"] == "held"), f"it went {went}")
    if match["outcome"] == "failed" and noise:
        yield "contradicted", "a difference within the noise fails no prediction"


def _judged(match: re.Match[str], run: Run) -> Iterator[Found]:
    metric, difference = METRICS[TITLES[match["title"]]], _number(match["difference"])
    yield _figure("L0", match["l0"], run)
    known = run.differences.get(match["title"])
    if known is None:
        yield "unsupported", f"run {run.number} has no comparison of {match['title']}"
        return
    yield from _difference(match["difference"], match["half"], known)
    gain = -difference if metric.better == "lower" else difference
    verdict = match["verdict"]
    if verdict.startswith(("Better", "Seems better")):
        yield _is(gain > 0 and not known.within_noise, f"{match['title']} is better when {metric.better}")
    if verdict == "Worse":
        yield _is(gain < 0 and not known.within_noise, f"{match['title']} is better when {metric.better}")
    if verdict == "Too small to matter" and match["worth"]:
        yield _is(abs(difference) <= _number(match["worth"].rstrip(".")), f"{match['worth']} is worth having")


def _floor(items: str, run: Run) -> Iterator[Found]:
    assert run.info
    floor, probing = run.info.floor, run.info.probing
    known = {
        "explained variance": floor.explained_variance_centered if floor else None,
        "CE-loss score": floor.ce_loss_score if floor else None,
        "AUC, top 5 latents": probing.random_auc.get(5) if probing else None,
    }
    for item in _ITEM.finditer(items):
        value = known.get(item["title"])
        yield _is(value is not None and close(item["value"], value), f"the floor of {item['title']} is {value}")


def _own(text: str) -> Iterator[tuple[str, float]]:
    for item in text.removeprefix("The idea's own measures: ").rstrip(".").split("; "):
        if match := re.fullmatch(rf"(.*?) ({_N})(?: [a-zA-Z/]+)?", item):
            yield match[1], _number(match[2])


def _measures(text: str, run: Run) -> Iterator[Found]:
    """Measures are known by name in a run's results and by title in notes: the figures are held together in order."""
    said = re.findall(rf"({_N})(?: [a-zA-Z/]+)?(?:; |\.$)", text)
    values = list(run.own.values())
    yield _is(len(said) == len(values), f"run {run.number} has {len(values)} measures of its own")
    for each in said:
        yield _is(
            any(close(each, value) for value in values), f"run {run.number} has {', '.join(f'{v:.4g}' for v in values)}"
        )


def _listed(part: str, facts: Facts) -> Iterator[Found]:
    """A run with its figures, as the description of a plot lists it."""
    match = _RUN_LIST.match(part)
    run = facts.runs.get(int(match["run"])) if match else None
    if match is None or run is None:
        yield ("supported", "") if match is None else ("unsupported", f"there is no run {match['run']}")
        return
    for item in _ITEM.finditer(match["items"]):
        if item["half"]:
            known = run.differences.get(item["title"])
            yield from (
                _difference(item["value"], item["half"], known)
                if known
                else [("unsupported", f"run {run.number} has no comparison of {item['title']}")]
            )
        else:
            yield _figure(item["title"], item["value"], run)
    for item in _SHARES.finditer(match["items"]):
        values = [value for title, value in run.own.items() if _same_measure(item["title"].strip(), title)]
        for said in item["values"].split(" / "):
            if run.own:
                pool = values or list(run.own.values())
                yield _is(
                    any(close(said, value) for value in pool),
                    f"run {run.number} has {', '.join(f'{v:.4g}' for v in pool)}",
                )


def _same_measure(said: str, title: str) -> bool:
    words = re.findall(r"[a-z0-9²]+", said.lower())
    return all(word in title.lower().replace("_", " ") for word in words)
