"""The idea's own measures of the runs, beside the baseline's and those of their controls, and what they mean."""

import re
from collections.abc import Mapping, Sequence

from agent.lab.results import Measure
from agent.report import sentences
from agent.report.layout import aligned
from agent.report.story import clip
from agent.study.events import StudyStarted
from agent.study.runs import Run

LONGEST_TITLE = 60  # characters
MOST_SHOWN = 6  # measures, if the idea names none as main


def measures_of(started: StudyStarted, runs: Sequence[Run]) -> dict[str, Measure]:
    """Return the own measures of a study; in one from before they were recorded, those of its runs by their names."""
    names = dict.fromkeys(name for run in runs if run.info for name in run.info.analysis)
    return started.measures or {name: Measure(title=name.replace("_", " "), definition="") for name in names}


def shown(measures: Mapping[str, Measure], runs: Sequence[Run], every: bool = False) -> dict[str, Measure]:
    """Return the measures that the notes show, each followed by its control: those that the idea names as main, or the
    first, as far as a run has them. With `every` they are all that a run has."""
    measured = {name for run in runs if run.info and run.counts for name in run.info.analysis}
    names = [name for name in measures if name in measured]
    if not every:
        names = [name for name in names if measures[name].main] or names[:MOST_SHOWN]
    with_controls = [each for name in names for each in (name, measures[name].control) if each in measured]
    return {name: measures[name] for name in dict.fromkeys(with_controls)}


def table(measures: Mapping[str, Measure], runs: Sequence[Run], every: bool = False) -> list[str]:
    """Return the lines of a table with a row for each measure and a column for each run that has any."""
    rows = shown(measures, runs, every)
    columns = [run for run in runs if run.counts and run.info and rows.keys() & run.info.analysis.keys()]
    if not rows:
        return []
    cells = [
        [clip(measure.title, LONGEST_TITLE), *(_figure(run, name, measure) for run in columns)]
        for name, measure in rows.items()
    ]
    return aligned([sentences.OWN_MEASURE_COLUMN, *(f"run {run.number}" for run in columns)], cells)


def definitions(measures: Mapping[str, Measure], runs: Sequence[Run]) -> list[str]:
    """Define the measures that the notes show, those that differ in a number alone once."""
    lines, kinds = [], set()
    for measure in shown(measures, runs).values():
        if (kind := re.sub(r"\d+", "", measure.title)) not in kinds:
            kinds.add(kind)
            unit = f" ({measure.unit})" if measure.unit else ""
            lines.append(f"{measure.title}{unit}: {measure.definition}.")
    return lines


def _figure(run: Run, name: str, measure: Measure) -> str:
    value = run.info.analysis.get(name) if run.info else None
    return "" if value is None else f"{value:.{measure.digits}f}"
