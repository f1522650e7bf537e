"""`agent show STUDY`: the story of a study, or one of its runs, in the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.audit import contradicted
from agent.comparison.judgement import Judgement, judgements
from agent.display.console import make_console, print_diff
from agent.display.formatting import remarks
from agent.lab.errors import UserError
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo
from agent.lab.visible import visible
from agent.report import glossary, model_words, own_measures, sentences
from agent.report.outcome import outcome_sentence
from agent.report.prose import Facts
from agent.report.run_section import compared_lines, results, run_texts
from agent.report.story import Story, spent, tell
from agent.study.custody import changed_records
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

UNCHECKED = ", in the model's words (not checked)"
DECISIONS = {"supported": "green", "refuted": "red", "not decided": "yellow"}


def print_study(study: Study, state: State) -> bool:
    """Print the question, its answer, a row for each run, what failed and what it cost.

    Return False if a file was changed after it was recorded.
    """
    console = make_console()
    changed = changed_records(study, state)
    runs = study.load_runs(state, hidden=changed)
    judged = judgements(runs, state)
    story, fixed = tell(state, runs, judged, spent=spent(study)), state.started.fixed
    console.print(story.title, style="bold")
    _print_paragraph(console, f"question: {story.question}")
    _print_paragraph(console, story.answer.sentence, style=DECISIONS[story.answer.decision])
    console.print(_table(story))
    print_changed(console, changed)
    for run in runs:
        if run.info:
            _print_verdict(console, f"run {run.number}", run.info)
    console.print(f"failed: {story.failed or 'no run'}")
    console.print(f"cost: {story.cost}")
    console.print(
        f"{fixed.model_in_words}, {fixed.hook_name}, {fixed.tokens:,} tokens, d_sae {fixed.d_sae:,}, "
        f"{fixed.baseline_in_words}, seed {fixed.seed}{fixed.held_in_words}; primary metric: "
        f"{METRICS[state.started.primary_metric].title}"
    )
    if state.started.trained_on:
        console.print(f"trained on {state.started.trained_on}")
    console.print(f"evaluated by {', '.join(state.started.evals)}")
    for family, data in state.started.evaluated_on.items():
        console.print(f"{family} on {data}")
    for line in [*glossary.describe_evidence(state).alarms, *remarks(run.info for run in runs if run.info)]:
        _print_paragraph(console, line)
    console.print(story.status if state.ended else "not ended: continue it with `agent resume`")
    console.print(f"notes: {study.notes / 'notes.txt'}; a page: agent review {study.name}", soft_wrap=True)
    return not changed


def _table(story: Story) -> Table:
    """Return the table of runs; titles of columns are wrapped, and what changed has the room that is left."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    for place, column in enumerate(story.columns):
        if column == "change":
            table.add_column(column, no_wrap=True, ratio=1, min_width=20)
            continue
        words, cells = column.split(), [row.cells[place] for row in story.rows]
        justify = "left" if column in ("outcome", "from the baseline") else "right"
        table.add_column(column, justify=justify, width=max(map(len, [*words, *cells])))
    for row in story.rows:
        table.add_row(*(Text(cell) for cell in row.cells))  # as Text, since brackets in a string would be markup
    return table


def print_run(study: Study, state: State, number: int) -> bool:
    """Print a run as the notes tell it, with all that they leave out. Raise UserError if there is no such run.

    Return False if one of its files was changed after it was recorded.
    """
    if not 0 <= number < len(state.runs):
        raise UserError(f"{study.name} has no run {number}: it has runs 0 to {len(state.runs) - 1}")
    console = make_console()
    changed = changed_records(study, state)
    runs = study.load_runs(state, hidden=changed)
    judged, run = judgements(runs, state), runs[number]
    texts = run_texts(run, state, runs, judged)
    console.print(f"run {number}: {run.state.proposal.title}", style="bold")
    print_changed(console, own := [name for name in changed if Path(name).parts[0] == f"run_{number}"])
    if run.info is None:
        console.print(f"no results: {run.state.stage}")
    else:
        _print_verdict(console, f"run {number}", run.info)
    by_model = bool(state.started.language_model) and number > 0 and not run.state.by_hand
    for label, text in (
        ("what changed", texts["description"]),
        ("why", texts["why"]),
        ("came out", texts["described"]),
    ):
        if text:
            _print_paragraph(console, f"{label}{UNCHECKED if by_model else ''}: {text}")
    for mark in model_words.marks(texts["described"], number, Facts.of(runs, judged, state.started), contradicted):
        _print_paragraph(console, mark)
    if run.counts and run.info:
        _print_results(console, run, state, judged.get(number))
    for attempt, failure in run.state.failed_attempts.items():
        kept = study.attempt_dir(number, attempt)
        console.print(f"attempt {attempt} failed: {failure.verdict.name} ({failure.verdict.evidence}); kept in {kept}")
    _print_diff(console, run, runs)
    return not own


def _print_results(console: Console, run: Run, state: State, judged: Judgement | None) -> None:
    assert run.info
    console.print()
    for name, value in results(run.info).items():
        console.print(f"{METRICS[name].title if name in METRICS else name}: {value}")
    if run.number > 0:
        console.print()
        _print_paragraph(console, outcome_sentence(run, state, judged))
        for line in compared_lines(run, state.started.primary_metric, judged):
            _print_paragraph(console, f"- {line}", indent=2)
    console.print()
    for line in own_measures.table(own_measures.measures_of(state.started, [run]), [run], every=True):
        console.print(line, soft_wrap=True)
    for family, reason in run.info.errors.items():
        console.print(f"{family} gave no result: {reason}", style="red")
    for need, what in run.info.not_measured.items():
        _print_paragraph(console, sentences.NEED_LACKS.render(need=need, what=what))


def _print_diff(console: Console, run: Run, runs: Sequence[Run]) -> None:
    """Print how the code differs from that of the run that it starts from."""
    start = run.state.proposal.start
    if run.number == 0 or start >= len(runs):
        return
    before, after = runs[start].state.proposal.source, run.state.proposal.source
    same = before.splitlines() == after.splitlines()
    console.print(f"\nthe code is that of run {start}" if same else f"\nthe code, from that of run {start}:")
    print_diff(console, before, after)


def _print_verdict(console: Console, name: str, info: FinalInfo) -> None:
    if not info.verdict.ok:
        console.print(f"{name} does not count: {info.verdict.name} ({info.verdict.evidence})", style="red")
    for warning in info.verdict.warnings:
        console.print(f"{name}: {warning}", style="yellow")


def print_changed(console: Console, names: Iterable[str]) -> None:
    """Print which recorded files were changed, so that nothing of them is shown."""
    for name in names:
        console.print(f"{name} was changed after it was recorded: not shown", style="red")


def _print_paragraph(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    console.print(Padding(Text(visible(" ".join(text.split())), style=style), (0, 0, 0, indent)))
