"""What a language model's answer holds: a plan, an experiment, what came out of a run, a conclusion.

Any form that a colleague would understand is taken (see sections.py). What cannot be understood is an error whose
message goes back to the model with one filled example; nothing is guessed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.ideas import Direction
from agent.lab.metrics import METRICS
from agent.proposers import edits, sections
from agent.proposers.edits import Edit, EditError
from agent.report.story import clip
from agent.study.records import PlannedRun

ALL_COMPLETED = "ALL_COMPLETED"
LONGEST_TITLE = 80  # characters

TITLE, REASONING, DESCRIPTION = "Title", "Reasoning", "Description"
PLAN, PREDICTIONS, EDITS = "Plan", "Predictions", "Edits"
FINDINGS, CONCLUSION, NEXT = "Findings", "Conclusion", "Next"
OTHER_NAMES = {
    TITLE: ("new title",),
    REASONING: ("reasons", "rationale", "reason", "why", "motivation"),
    DESCRIPTION: ("change", "summary of the change", "what changes"),
    PLAN: ("the plan", "revised plan", "updated plan", "new plan", "planned runs", "next runs"),
    PREDICTIONS: ("prediction", "predicted", "expected results", "expectations", "predicted effects"),
    EDITS: ("edit", "changes", "code", "code edits", "code changes", "patch"),
    FINDINGS: ("finding", "results", "description", "summary", "interpretation"),
    CONCLUSION: ("conclusions", "overall conclusion", "final conclusion"),
    NEXT: ("next steps", "next step", "what next", "what to try next", "future work"),
}

_MARK = re.compile(
    r"\s*(?:#{1,6}\s*)?(?:[-*•+]\s+)?(?:\*\*|__)?(?:(?:run|item|step|experiment)\s+#?(?P<run>\d+)(?:\*\*|__)?\s*[.):–—-]*"
    r"|#?(?P<number>\d{1,2})(?:\s*[.):]|\s+[–—-]\s))(?!\d)",
    re.I,
)
_BULLET = re.compile(r"\s*[-*•+]\s+")
_FROM_LINE = re.compile(r"\s*(?:\*\*|__)?[\[(]\s*from\b", re.I)
_RUN = (  # {0} tells apart the groups of several patterns in one: b baseline, n number, a above, i item
    r"(?:the\s+)?(?:(?P<b{0}>baseline)|run[\s_#]*(?P<n{0}>\d+)|item\s+(?P<i{0}>\d+)"
    r"|(?P<a{0}>(?:\w+\s+)?above|previous \w+))(?:'s)?(?:\s+file)?(?:\s*\([^)]*\))?"
)
_FROM_WORD = r"(?:start\w*\s+)?from:?\s+"
_FROM = re.compile(
    rf"[*_`]*[\[(]\s*{_FROM_WORD}{_RUN.format(1)}\s*[\])][*_`]*\s*[:,–—-]*\s*"
    rf"|[*_`]*\[\s*{_RUN.format(2)}\s*\][*_`]*\s*[:,–—-]*\s*"
    rf"|^[*_`\s]*{_FROM_WORD}{_RUN.format(3)}[*_`]*\s*[:,–—-]\s*",
    re.I,
)
_ANOTHER_RUN = re.compile(r"\bruns?[ _#]*[1-9]|\babove\b|\bprevious\b|\bon top of\b|\bearlier\b", re.I)
_OPTION = re.compile(r"\n\s*(?:\*\*|#|option\b|plan [b-z2-9]\b|alternative)", re.I)
_BOLD_TITLE = re.compile(r"\s*(?:\*\*|__)(?P<title>.+?)(?:\*\*|__)\s*[:.–—-]*\s*(?P<what>.*)", re.DOTALL)
_KIND = re.compile(r"\w+(?:[ -]\w+)?", re.ASCII)  # `Ablation` in `Ablation: no sorting: all parts but one`
_REFUSAL = re.compile(
    r"\W*(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:can(?:no|')?t|won't)|Sorry\b"
    r"|.*\bplease (?:share|provide|send)\b)",
    re.I,
)
_ECHO = re.compile(r"Title of (?:the next|a) run\b|What came out (?:of run \d+ )?and what it means\b", re.I)
_LABEL = re.compile(r"(?m)^\W*(start\w*|from|title|name|change\w*|what|description|why)\b\W*:\W*(.*)$", re.I)
_ITEM_FORM = "`1. [from baseline] Title: what is changed and why`, or [from run 2] to go on from that run's file"

_WAY = re.compile(
    r"(?P<same>\b(?:same|unchanged|no (?:\w+ )?(?:change|difference|effect)|not change|stable|flat|constant|equal"
    r"|neutral|unaffected|steady|within noise|stays?)\b|[≈~↔➡]|±\s*0)"
    r"|(?P<up>\b(?:up|increas\w+|higher|ris(?:es?|ing)|grows?|gains?|larger|more)\b|[↑⬆▲↗])"
    r"|(?P<down>\b(?:down|decreas\w+|lower|fall(?:s|ing)?|drops?|reduc\w+|declin\w+|smaller|less)\b|[↓⬇▼↘])"
    r"|(?P<better>\b(?:better|improv\w+)\b)|(?P<worse>\b(?:worse|degrad\w+)\b)",
    re.I,
)
_BEHIND = re.compile(r"[(;,]|\s[–—-]\s|\b(?:because|since|as|but|though|due)\b|\.\s|\|")  # where reasons begin
_METRIC_WORDS = {
    "ce_loss_score": ("CE score", "CE loss"),
    "probing_auc_5": ("probing AUC", "AUC"),
    "explained_variance_centered": ("explained variance centred", "explained variance (centered)", "EV"),
    "absorption_true": ("absorption",),
}


class BadAnswer(ValueError):
    """An answer that cannot be understood. The message is for the model: what is wrong, what to do."""


@dataclass(frozen=True)
class Plan:
    """The parsed answer to a request for a plan; no runs: the model has ended it."""

    reasoning: str
    runs: list[PlannedRun]


@dataclass(frozen=True)
class Experiment:
    """The parsed answer to a request for a proposal."""

    title: str  # empty: as planned
    reasoning: str
    description: str
    predictions: dict[str, Direction]
    edits: list[Edit]


@dataclass(frozen=True)
class Conclusion:
    """The parsed answer at the end of a study."""

    conclusion: str
    next: str  # what to try, empty if nothing was said


def parse_experiment(answer: str, headline: Sequence[str]) -> Experiment:
    """Parse an answer that predicts every metric of `headline`. Raise BadAnswer."""
    text, parts = _parts(answer, TITLE, REASONING, DESCRIPTION, PREDICTIONS, EDITS)
    try:
        blocks = edits.parse(text)
    except EditError as error:
        raise BadAnswer(str(error)) from None
    if not blocks:
        raise BadAnswer("the answer has no SEARCH/REPLACE block under `## Edits`: " + edits.FORM)
    predicted = parts.get(PREDICTIONS) or "\n".join(sections.outside_blocks(text))
    return Experiment(
        title=_title(parts.get(TITLE, "").partition("\n")[0]),
        reasoning=_one_line(parts.get(REASONING, "")),
        description=_one_line(parts.get(DESCRIPTION, "")),
        predictions=_predictions(predicted, headline),
        edits=blocks,
    )


def parse_plan(answer: str, first: int, max_runs: int, may_start: Callable[[int, int], bool]) -> Plan:
    """Parse a plan of at most `max_runs` runs from number `first` on.

    `may_start(run, other)` tells if a run may start from the file of another. Raise BadAnswer.
    """
    text, parts = _parts(answer, REASONING, PLAN)
    lines = sections.outside_blocks(text)
    planned = parts.get(PLAN) or "\n".join(lines[next((i for i, line in enumerate(lines) if _MARK.match(line)), 0) :])
    items = [_relabelled(item) for item in _items(planned)]
    items = [item for item in items if PLAN in parts or _FROM.search(item)]
    if ended := re.search(rf"(?mi)^\W*(?:\d+\W+)?{ALL_COMPLETED.replace('_', '[_ ]')}\b", planned):
        if any(_FROM.search(item) for item in items):
            raise BadAnswer(f"it plans runs and says {ended.group().strip()}: write one or the other")
        return Plan(_one_line(parts.get(REASONING, "")), [])
    runs = [_planned_run(item, number, first, may_start) for number, item in enumerate(items, first)]
    if not runs:
        raise BadAnswer(f"no run is planned: the form is {_ITEM_FORM}; write {ALL_COMPLETED} if nothing is left to try")
    if len(runs) > max_runs:
        raise BadAnswer(f"the plan has {len(runs)} runs, but only {max_runs} are left: keep the most informative ones")
    return Plan(_one_line(parts.get(REASONING, "")), runs)


def parse_findings(answer: str) -> str:
    """Return what a model says of a run's results. Raise BadAnswer if that is nothing."""
    text, parts = _parts(answer, FINDINGS)
    return _said(parts[FINDINGS] if FINDINGS in parts else "\n".join(sections.outside_blocks(text)), FINDINGS)


def parse_conclusion(answer: str) -> Conclusion:
    """Return what a model concludes. Raise BadAnswer if that is nothing."""
    text, parts = _parts(answer, CONCLUSION, NEXT)
    whole = parts.get(sections.BEFORE, "") if NEXT in parts else "\n".join(sections.outside_blocks(text))
    return Conclusion(_said(parts.get(CONCLUSION, whole), CONCLUSION), _one_line(parts.get(NEXT, "")))


def _parts(answer: str, *names: str) -> tuple[str, dict[str, str]]:
    """Return an answer without its thinking, and its sections. Raise BadAnswer if one is there twice."""
    text = sections.without_thinking(answer)
    if not text.strip():
        raise BadAnswer("the answer is empty, or nothing but thinking: write the sections asked for")
    try:
        return text, sections.split(text, {name: OTHER_NAMES[name] for name in names})
    except sections.TwoSections as error:
        raise BadAnswer(f"there are two sections `## {error}` that differ: write one") from None


def _said(text: str, name: str) -> str:
    words = _one_line(text)
    if not words or (_REFUSAL.match(words) and len(words) < 300) or words.startswith("{") or _ECHO.match(words):
        raise BadAnswer(f"the section `## {name}` is missing or empty: write it in plain sentences")
    return words


def _items(text: str) -> list[str]:
    """Return the items of a plan: numbered, or else bullets, lines that begin with where the run starts, or rows.

    Raise BadAnswer if there are two lists.
    """
    lines = text.split("\n")
    for mark in (_MARK, _FROM_LINE, _BULLET):
        marked = [line for line in lines if mark.match(line)]
        if not marked:
            continue
        margin = min(len(line) - len(line.lstrip()) for line in marked)
        items: list[list[str]] = []
        for line in lines:
            match = mark.match(line)
            if match and len(line) - len(line.lstrip()) <= margin + 1:
                if items and (match.groupdict().get("number") == "1") and _OPTION.search("\n".join(items[-1])):
                    raise BadAnswer("there are two plans: write the one that is meant")
                bold = "**" if match.group().count("**") == 1 else ""
                items.append([line if mark is _FROM_LINE else bold + line[match.end() :].lstrip()])
            elif items:
                items[-1].append(line)
        return ["\n".join(item).strip() for item in items]
    return [item for line in lines if (item := _row(line))]


def _row(line: str) -> str:
    """Return a row of a table as an item, or an empty string: the start stands in a cell of its own."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.strip().startswith("|") else []
    texts = [cell for cell in cells if not re.fullmatch(r"\W*\d*\W*", cell)]
    starts = [cell for cell in texts if re.fullmatch(rf"(?:{_FROM_WORD})?{_RUN.format(1)}", cell, re.I)]
    rest = [cell for cell in texts if cell not in starts]
    return f"[from {starts[0].removeprefix('from ')}] {': '.join(rest[:2])}" if starts and rest else ""


def _relabelled(item: str) -> str:
    """Write an item whose parts stand in lines of their own (Start: ..., Title: ...) in the form that was asked for."""
    labelled = {match[1].lower()[:5]: match[2].strip(" *_") for match in _LABEL.finditer(item)}
    start, title = labelled.get("start", labelled.get("from")), labelled.get("title", labelled.get("name"))
    if not (start and title):
        return item
    what = " ".join(text for label, text in labelled.items() if label not in ("start", "from", "title", "name"))
    return f"[from {start.strip('[]')}] **{title}**: {what}"


def _planned_run(item: str, number: int, first: int, may_start: Callable[[int, int], bool]) -> PlannedRun:
    """Parse an item of a plan, where a run starts from the baseline unless it names another. Raise BadAnswer."""
    line = " ".join(item.split("\n")[0].split())
    match = _FROM.search(item)
    start, rest = 0, item
    if match:
        named = {key[0]: value for key, value in match.groupdict().items() if value}
        start = number - 1 if "a" in named else first + int(named["i"]) - 1 if "i" in named else int(named.get("n", 0))
        rest = item[: match.start()] + item[match.end() :]
    elif _ANOTHER_RUN.search(item):
        raise BadAnswer(f"`{line}` does not say from which file it starts: the form is {_ITEM_FORM}")
    title, what = _title_and_text(rest)
    if not title or _ECHO.match(title):
        raise BadAnswer(f"`{line}` has no title: the form is {_ITEM_FORM}")
    if not may_start(number, start):
        raise BadAnswer(f"`{title}` starts from run {start}, which has no result then: start from a run that has one")
    return PlannedRun(title=title, what=what or title, start=start)


def _title_and_text(item: str) -> tuple[str, str]:
    """Return the title of an item and what follows it; a title ends with bold type, a line, a colon or a dash."""
    item = re.sub(r"^[^\w*\"“'`(\[{]+", "", item.strip())
    if bold := _BOLD_TITLE.fullmatch(item):
        return _title(bold["title"]), _one_line(bold["what"])
    first, _, rest = item.partition("\n")
    if rest.strip() and (first.rstrip().endswith(":") or not re.search(r":\s|\s[–—-]\s", first)):
        return _title(first), _one_line(rest)
    pieces = re.split(r"(?::\s+|\s[–—]\s|\s-{1,2}\s)", item, maxsplit=2)
    if len(pieces) == 3 and _KIND.fullmatch(pieces[0]) and len(pieces[0]) + len(pieces[1]) < LONGEST_TITLE - 2:
        kinds = ("ablation", "control", "variant", "follow-up", "sweep", "check", "test", "replication", "baseline")
        if pieces[0].lower() in kinds:
            return _title(f"{pieces[0]}: {pieces[1]}"), _one_line(pieces[2])
    if len(pieces) == 1:
        sentence = re.match(r"([^.]{4,80})\.\s+(\S.*)", item, re.DOTALL)
        return (_title(sentence[1]), _one_line(sentence[2])) if sentence else (_title(item), "")
    return _title(pieces[0]), _one_line(item[len(pieces[0]) :].lstrip(": –—-\n"))


def _title(text: str) -> str:
    """Return a title in one line, shortened at the end of a word. Raise BadAnswer if it holds a placeholder."""
    title = _one_line(text).strip("*_`\"“”' .:#")
    if "{{" in title:
        raise BadAnswer(f"`{title}` contains a placeholder: a title says what is changed, without figures")
    return clip(title, LONGEST_TITLE)


def _one_line(text: str) -> str:
    """Join lines and the items of lists."""
    return " ".join(re.sub(r"(?m)^\s*[-*•]\s+", "", text).split())


def _predictions(text: str, headline: Sequence[str]) -> dict[str, Direction]:
    """Read a prediction for each metric, in lines or one after another. Raise BadAnswer."""
    keys = {
        re.sub(r"[\W_]+", " ", key.lower()).strip(): name
        for name in headline
        for key in (name, METRICS[name].title, *_METRIC_WORDS.get(name, ()))
    }
    named = "|".join(r"[\W_]*".join(key.split()) for key in sorted(keys, key=len, reverse=True))
    by_letters = {key.replace(" ", ""): name for key, name in keys.items()}
    metric = re.compile(rf"(?<![\w.])(?:the\s+)?(?P<metric>{named})(?![\w])[\s\"'`*_)]*", re.I)
    for line in text.split("\n"):  # `Up: l0, loss_added`
        if (grouped := re.match(r"\W*(up|down|same)\b\W*:(.*)", line, re.I)) and metric.search(grouped[2]):
            text = text.replace(line, "\n".join(f"{m['metric']}: {grouped[1]}" for m in metric.finditer(grouped[2])))
    separated = re.compile(rf"(?<=[^\n]){metric.pattern}(?=[:=|→])", re.I)
    lines = separated.sub(lambda match: "\n" + match.group(), text).split("\n")
    predictions: dict[str, Direction] = {}
    for line in lines:
        match = re.match(rf"[\W_]*(?:\d+[.)]\s*)?{metric.pattern}(?P<rest>.*)", line, re.I)
        if not match:
            continue
        name = by_letters[re.sub(r"[\W_]+", "", match["metric"].lower())]
        way = _way(name, match["rest"])
        if way and predictions.setdefault(name, way) != way:
            raise BadAnswer(f"two predictions for {name}: write one, up, down or same")
    if missing := [name for name in headline if name not in predictions]:
        raise BadAnswer(f"no prediction for {', '.join(missing)}: each headline metric needs one, up, down or same")
    return predictions


def _way(name: str, rest: str) -> Direction | None:
    """Return the direction that is predicted in what follows a metric's name. Raise BadAnswer if there are two."""
    head = _BEHIND.split(re.sub(r"^[\s:=|>*_`\"'-]+", "", rest), maxsplit=1)[0]
    said = [match.lastgroup for match in _WAY.finditer(head)] or [
        match.lastgroup for match in list(_WAY.finditer(rest))[:1]
    ]
    better = METRICS[name].better
    meant: dict[str, Direction] = {"same": "same", "up": "up", "down": "down"}
    if better != "none":
        meant["better"], meant["worse"] = ("up", "down") if better == "higher" else ("down", "up")
    ways: set[Direction] = {meant[word] for word in said if word in meant}
    if not ways and (
        symbol := re.match(r"[\s:|=>]*?(?P<up>\+)|[\s:|]*(?:(?P<down>[-−])|(?P<same>[→=]+))\s*[|]?\s*$", rest)
    ):
        ways = {meant[symbol.lastgroup or ""]}
    if len(ways) > 1:
        raise BadAnswer(f"`{name}{rest}` predicts more than one direction: write up, down or same")
    return next(iter(ways), None)
