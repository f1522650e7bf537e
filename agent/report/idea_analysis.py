"""An idea's own measures and figures, as the driver uses them. Its code runs in processes of its own, confined."""

import ast
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent import idea_folder
from agent.ideas import BadIdea, Idea
from agent.lab.errors import did_you_mean
from agent.lab.files import MIB, BadFile, read_plain, write_atomically
from agent.lab.machine import memory_limit
from agent.lab.results import Measure
from agent.report.figure_style import Figure
from agent.report.idea_program import ANSWER, NO_FIGURES, REQUEST, Answer, Request
from agent.report.plots import STUDY_FIGURES, Draw
from agent.running import process, views
from agent.running.sandbox import UNCONFINED, Sandbox
from agent.running.watchdogs import LogCap, Memory
from agent.study.runs import Run

PROGRAM = (*process.START, "agent.report.idea_program")
SECONDS = 120.0  # for all figures of an idea
MOST = 32 * MIB  # of a figure


@dataclass(frozen=True)
class Analysis:
    """An idea's own measures and figures. `path` is its analysis.py, which only the evaluator runs; `needs` is what the
    measures need from a checkpoint, each with what it is for."""

    path: Path | None = None
    measures: dict[str, Measure] | None = None
    draw: Draw | None = None
    needs: Mapping[str, str] = field(default_factory=dict)

    def of_copy(self, idea: Idea, sandbox: Sandbox) -> "Analysis":
        """Return the same with the files of a copy of the idea."""
        return replace(self, path=idea.analysis, draw=Drawing(idea, sandbox) if self.draw else None)


def load(idea: Idea, sandbox: Sandbox = UNCONFINED) -> Analysis:
    """Return MEASURES, NEEDS and `draw` of an idea, as far as it has them. Raise BadIdea if a file is broken.

    An analysis.py beside a measures.py is parsed and not run, as it may import torch. In an older idea MEASURES are in
    analysis.py, which then imports no torch at its top.
    """
    if not idea.measures and not idea.figures:
        _check_rules(idea, {})
        return Analysis(idea.analysis)
    required = ["MEASURES", "measure"] if idea.measures == idea.analysis else ["MEASURES"]
    request = Request(measures=idea.measures, required=required, figures=idea.figures)
    with tempfile.TemporaryDirectory(prefix="sae-agent-") as folder:
        answer = _ask(request, Path(folder), idea_folder.files(idea.folder), sandbox)
    if answer.error:
        raise BadIdea(answer.error)
    if idea.measures:
        _check_analysis(idea.folder / "analysis.py")
    _check_rules(idea, answer.measures or {})
    draw = Drawing(idea, sandbox) if idea.figures else None
    return Analysis(idea.analysis, answer.measures, draw, answer.needs)


@dataclass(frozen=True)
class Drawing:
    """The `draw` of an idea's figures.py, in a process that sees the study, and writes a folder of its own."""

    idea: Idea
    sandbox: Sandbox

    def __call__(self, directory: Path, runs: Sequence[Run]) -> list[Figure]:
        """Put the idea's figures into `directory` and return them, or one that says why there are none."""
        with tempfile.TemporaryDirectory(prefix="sae-agent-") as folder:
            try:
                seen = [*idea_folder.files(self.idea.folder), *(run.directory for run in runs)]
                answer = _ask(Request(figures=self.idea.figures, runs=list(runs)), Path(folder), seen, self.sandbox)
                if answer.error:
                    raise BadIdea(answer.error)
                for drawn in sorted(Path(folder, "out").glob("*.png")):
                    if drawn.name in STUDY_FIGURES:
                        raise BadIdea(f"{drawn.name} is a figure of every study: use another name")
                    write_atomically(directory / drawn.name, read_plain(drawn, MOST))
            except (BadIdea, BadFile) as error:
                reason = str(error).replace(f"{folder}/out/", "")
                return [Figure(NO_FIGURES, f"they could not be drawn: {reason}.")]
        return [Figure(name, description) for name, description in answer.figures]


def _ask(request: Request, folder: Path, seen: Sequence[Path], sandbox: Sandbox) -> Answer:
    """Have the program answer a request in `folder`. Raise BadIdea if it does not."""
    out, log, env = folder / "out", folder / "log", process.child_environment({})
    out.mkdir()
    (out / REQUEST).write_text(request.model_dump_json())
    ended = process.run(
        [*PROGRAM, str(out)],
        cwd=out,
        env=env,
        stdout=log,
        stderr=log,
        timeout=SECONDS,
        watchdogs=[LogCap(log), Memory(memory_limit())],
        sandbox=sandbox,
        view=views.for_idea(out, seen, env),
    )
    if failure := process.exit_verdict(ended, log):
        raise BadIdea(f"{request.figures or request.measures} {failure.name}: {failure.evidence}")
    try:
        return Answer.model_validate_json(read_plain(out / ANSWER, MOST))
    except (FileNotFoundError, ValueError) as error:
        raise BadIdea(f"{request.figures or request.measures} gave no answer: {str(error).splitlines()[0]}") from None


def _check_rules(idea: Idea, measures: Mapping[str, Measure]) -> None:
    """Raise BadIdea if a rule for the hypothesis is about a measure that the idea does not have."""
    names, steps = measures.keys(), {step.name for step in idea.plan}
    for condition in idea.answer.conditions if idea.answer else ():
        for name, known in ((condition.measure, names), (condition.than, names | steps)):
            if condition.measure and name and name not in known:
                raise BadIdea(f"{idea.folder / 'idea.yaml'} answer: {name!r} is none: {did_you_mean(name, known)}")


def _check_analysis(path: Path) -> None:
    """Raise BadIdea if this analysis.py is missing, cannot be parsed or defines no function `measure`."""
    try:
        body = ast.parse(read_plain(path, MIB)).body
    except FileNotFoundError:
        raise BadIdea(f"{path} is missing: it computes the figures that measures.py names") from None
    except (SyntaxError, ValueError) as error:
        raise BadIdea(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in body):
        raise BadIdea(f"{path} defines no measure")
