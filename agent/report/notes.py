"""notes.txt and its figures, rendered from the ledger and the results and from nothing else."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from agent import TEMPLATES
from agent.comparison.curves import own_curve
from agent.comparison.judgement import Judgement, judgements
from agent.display.formatting import rate_line, remarks
from agent.lab.files import MIB, read_plain, remove_unless_plain, write_atomically
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Measure
from agent.rendering import strict_templates
from agent.report import (
    changed_settings,
    figure_style,
    front_over_k,
    glossary,
    model_words,
    own_measures,
    plots,
    references,
    sentences,
)
from agent.report.idea_analysis import Analysis
from agent.report.layout import LONGEST, aligned, paragraph
from agent.report.model_words import Check
from agent.report.outcome import held_out
from agent.report.run_section import clip_sentences, figure, run_texts, section
from agent.report.story import Story, clip, most_telling, spent, tell
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

NO_ANALYSIS = Analysis()
MOST_BYTES = 16 * MIB  # of notes that were edited by hand
MOST_LINES, LEAST_ROWS = 15, 3  # of the answer, and of its table, however long the question is
LONGEST_TITLE = 120  # characters of a run's heading
LONGEST_WORDS, MOST_PLANS = 600, 3  # characters of a language model's conclusion, and plans whose reasons are shown
MOST_COLUMNS = 10  # runs in the table of own measures
CHECKSUM = "Checksum of these notes, by which a change by hand is noticed: "


def write(
    study: Study,
    state: State,
    skipped: Sequence[tuple[str, str]] = (),
    analysis: Analysis = NO_ANALYSIS,
    drawn: Sequence[plots.Figure] | None = None,
    check: Check = model_words.unchecked,
) -> Sequence[plots.Figure]:
    """Write the notes and the figures as things stand now, each file whole or not at all; return the figures.

    Figures that were `drawn` before are left as they are. `check` looks for what results contradict in a model's words.
    Notes that were edited by hand since they were written are
    kept as notes_edited_<hash>.txt.
    """
    study.notes.mkdir(parents=True, exist_ok=True)  # a study may have been moved without them
    runs = study.load_runs(state)
    judged = judgements(runs, state)
    goal = (state.started.primary_metric, state.started.smallest_effect)
    figures = drawn
    if figures is None:
        front = front_over_k.of(state, runs, judged)
        figures = plots.write(
            study.notes, runs, own_curve(state), judged, *goal, analysis.draw, front, references.shown(state)
        )
    path = study.notes / "notes.txt"
    remove_unless_plain(path)
    if path.exists() and edited((before := read_plain(path, MOST_BYTES)).decode(errors="replace")):
        name = f"notes_edited_{hashlib.sha256(before).hexdigest()[:8]}.txt"
        write_atomically(study.notes / name, before)
    body = render(state, runs, judged, figures, skipped, analysis.measures, spent(study), check=check)
    write_atomically(path, body + CHECKSUM + _checksum(body) + "\n")
    return figures


def edited(notes: str) -> bool:
    """Return True if notes were changed since they were written."""
    body, mark, checksum = notes.rpartition(CHECKSUM)
    return not mark or checksum != _checksum(body) + "\n"


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def render(
    state: State,
    runs: list[Run],
    judged: dict[int, Judgement],
    figures: Sequence[plots.Figure],
    skipped: Sequence[tuple[str, str]] = (),
    measures: dict[str, Measure] | None = None,
    cost: str = "",
    templates: Path = TEMPLATES,
    check: Check = model_words.unchecked,
) -> str:
    """Return the text of the notes; `cost` is what the language model cost, in words."""
    environment = strict_templates(templates / "notes")
    environment.filters["paragraph"] = paragraph
    environment.filters["clip"] = clip_sentences
    environment.globals["sentences"] = sentences
    measures = measures or state.started.measures
    story = tell(state, runs, judged, measures, cost)
    return environment.get_template("notes.txt.j2").render(
        state=state,
        started=state.started,
        story=story,
        answer=opening(story, runs, judged),
        primary=METRICS[state.started.primary_metric],
        models=changed_settings.models(state),
        conduct=_conduct(state),
        evidence=glossary.describe_evidence(state),
        remarks=[
            *glossary.unreliable(runs),
            *(f"About {each}" for each in remarks(run.info for run in runs if run.info)),
        ],
        own_measures=own_measures.table(measures, most_telling(runs, judged, MOST_COLUMNS)),
        definitions=own_measures.definitions(measures, runs),
        model_words=_model_words(state, runs, judged, check),
        model_words_heading=model_words.HEADING,
        runs=[(run.number, _title(run, state, runs, judged), section(run, state, runs, judged, check)) for run in runs],
        rate=rate_line(state.rate) if state.rate else "",
        references=references.lines(state),
        front=front_over_k.lines(state, runs, judged),
        tested=[describe_test(run, state) for run in runs if run.number in state.tested],
        held_out=held_out(state),
        test_uses=describe_test_uses(state),
        figures=figures,
        skipped=skipped,
        last_time=_utc(state.last_time),
        interrupted=_utc(state.interrupted),
    )


def opening(story: Story, runs: Sequence[Run], judged: Mapping[int, Judgement]) -> list[str]:
    """Return the lines of the answer: question, what became of it, a table of runs as far as there is room, what
    failed, and what it cost."""
    above = [paragraph(story.question, "Question"), paragraph(story.answer.sentence)]
    cost = story.cost if story.status.startswith("ended") else f"{story.cost}; {story.status}"
    below = [paragraph(story.failed or "no run", "Failed"), paragraph(cost, "Cost")]
    room = MOST_LINES - sum(text.count("\n") + 1 for text in (*above, *below)) - 1  # below the head
    room = max(LEAST_ROWS, room - len(story.references))
    shown = [run.number for run in most_telling(runs, judged, room if len(runs) <= room else room - 1)]
    of_runs = [row for row in story.rows if row.run in shown]
    rows = [*of_runs[:1], *story.references, *of_runs[1:]]
    lines = aligned(story.columns, [row.cells for row in rows])
    if (too_long := max(map(len, lines)) - LONGEST) > 0:
        widest = max(len(row.change) for row in rows) - too_long
        lines = aligned(story.columns, [replace(row, change=clip(row.change, widest)).cells for row in rows])
    more = len(story.rows) - len(of_runs)
    table = [*lines, *([sentences.MORE_RUNS.render(count=more)] if more else [])]
    return [line for text in (*above, *table, *below) for line in text.split("\n")]


def _conduct(state: State) -> list[str]:
    """Say what was changed while the study ran, and how its runs were confined."""
    confined, *later = [confinement.sentence for confinement in state.confinements] or [""]
    return [*changed_settings.sentences(state), confined, *(f"After it was resumed: {sentence}" for sentence in later)]


def _model_words(state: State, runs: list[Run], judged: dict[int, Judgement], check: Check) -> list[str]:
    """Return the lines of what a language model concluded, and of its newest plans; the page has the others."""
    words = model_words.concluded(state, runs, judged, check)
    old = [each for each in words if each[0].startswith("Plan")][:-MOST_PLANS]
    return [
        line
        for label, text, found in words
        if (label, text, found) not in old
        for line in model_words.paragraphs(clip_sentences(text, LONGEST_WORDS), label, found)
    ]


def _title(run: Run, state: State, runs: list[Run], judged: dict[int, Judgement]) -> str:
    return clip(run_texts(run, state, runs, judged)["title"], LONGEST_TITLE)


def _utc(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC") if time else ""


def describe_test(run: Run, state: State) -> str:
    """List a run's figures on the held-out text or samples."""
    tested = state.tested[run.number]
    measured = [figure(name, tested.figures[name]) for name in HEADLINE if tested.figures.get(name) is not None]
    return f"run {run.number} ({run.state.proposal.title}): {', '.join(measured) or f'not scored ({tested.why_not})'}"


def describe_test_uses(state: State) -> str:
    """State how often the test split was used, and for which SAEs."""
    runs = [f"run {run}" for run in sorted(state.tested)]
    seeds = [
        f"run {run} with fresh seed{'s' * (len(scored) > 1)} {figure_style.listed(list(map(str, sorted(scored))))}"
        for run, scored in sorted(state.tested_seeds.items())
    ]
    knob = state.started.fixed.architecture.knob_in_words
    baselines = [
        f"the baseline with {knob} {k:g}, seed{'s' * (len(own) > 1)} {figure_style.listed(list(map(str, own)))}"
        for k in sorted({k for k, _ in state.tested_baselines})
        if (own := sorted(seed for other, seed in state.tested_baselines if other == k))
    ]
    times = f"{state.test_uses} time{'s' * (state.test_uses > 1)}"
    used_for = "; ".join([*runs, *seeds, *baselines])
    material = held_out(state)
    used = "were used" if material == "samples" else "was used"
    return sentences.TEST_USES.render(held_out=material, used=used, times=times, used_for=used_for)
