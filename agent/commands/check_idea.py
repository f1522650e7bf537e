"""`agent ideas check`: render each step of an idea, check it, train it for a few steps, compute the own measures."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from agent import idea_folder, ideas
from agent.commands import study_settings
from agent.commands.run import pinned, prepare_lab
from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.ideas import BadIdea, Fixed, Idea
from agent.lab import cache
from agent.lab.architectures import BaselineName
from agent.lab.defaults import SMOKE_TOKENS
from agent.lab.progress import notify
from agent.lab.results import FinalInfo
from agent.report import idea_analysis
from agent.report.idea_analysis import Analysis
from agent.running import preflight
from agent.running.jobs import Setup, Training
from agent.running.kept_state import StateKeeper
from agent.running.places import Place
from agent.running.sandbox import Sandbox, settle
from agent.running.slot import Slot
from agent.running.training_process import TrainingProcess
from agent.study.outcomes import RunFailed
from agent.study.records import SandboxWish

SECONDS = 600.0  # for the first steps of one experiment, and as long for their scores
MAX_ERRORS = 10  # of an idea.yaml, that are shown
BASELINE = "the baseline"


@dataclass(frozen=True)
class Trial:
    """A step on a kind of baseline, and what came of it: why it failed, or what was scored after its first steps."""

    step: str
    baseline: BaselineName
    failed: str = ""
    info: FinalInfo | None = None

    @property
    def is_sound(self) -> bool:
        return not self.failed and not (self.info and "analysis" in self.info.errors)

    def found(self, measures: int) -> str:
        """Return what came of it; `measures` is how many the idea has."""
        if self.info is None:
            return self.failed
        if why := self.info.errors.get("analysis"):
            return f"analysis.py: {why}"
        lacking = "".join(f", without {need}" for need in self.info.not_measured)
        return f"ok, {len(self.info.analysis)} of {measures} measures{lacking}" if measures else "ok"


def check(name: str, model: str | None, device: str | None, wish: SandboxWish) -> bool:
    """Check an idea and show what was found; return False if something failed.

    Raise UserError for an idea that cannot be read, or settings that do not fit it.
    """
    idea = ideas.load(name, max_errors=MAX_ERRORS)
    settings: dict[BaselineName, Fixed] = {kind: _settings(idea, kind, model) for kind in idea.baselines}
    with cache.in_use():
        sandbox = settle(wish)
        notify(f"runs are {sandbox.description}")
        analysis = idea_analysis.load(idea, sandbox)
        with _first_steps(idea, settings, sandbox, device) as bench:
            trials = [trial for kind in settings for trial in bench.try_all(kind)]
    _show(idea, analysis, trials)
    return all(trial.is_sound for trial in trials)


def _settings(idea: Idea, kind: BaselineName, model: str | None) -> Fixed:
    """Return the settings of a study on a kind of baseline, by the steps that can be rendered. Raise UserError."""
    given = {"model": model, "baseline": kind}
    bare = idea.model_copy(update={"plan": [], "fixed": idea.fixed.with_changes(constants={})})
    fixed, steps = study_settings.settle(bare, given, ()).fixed, []
    for step in idea.plan if idea.template else ():
        with suppress(BadIdea):
            ideas.render_step(idea, step, fixed)
            steps.append(step)
    return study_settings.settle(idea.model_copy(update={"plan": steps}), given, ()).fixed


@dataclass(frozen=True)
class Bench:
    """Where the steps of an idea are tried: a slot that serves few activations, and the settings by baseline."""

    idea: Idea
    settings: Mapping[BaselineName, Fixed]
    slot: Slot

    def try_all(self, kind: BaselineName) -> Iterator[Trial]:
        """Try the baseline of a kind, then each step on it, as a study would that has tried those before."""
        fixed, earlier = self.settings[kind], {}
        plan = self.idea.plan if self.idea.template else ()
        for step in (None, *plan):
            trial = Trial(step.name if step else BASELINE, kind)
            notify(f"{trial.step} on {kind}")
            try:
                source = ideas.render_step(self.idea, step, fixed) if step else ideas.render_baseline(fixed)
                preflight.check(source, fixed, earlier)
                earlier[trial.step] = source
                yield replace(trial, info=self._train(source, fixed, trial.step))
            except BadIdea as error:
                yield replace(trial, failed=str(error))
            except RunFailed as failure:
                yield replace(trial, failed=f"{failure.verdict.name}: {failure.verdict.evidence}")

    def _train(self, source: str, fixed: Fixed, label: str) -> FinalInfo:
        """Return the scores after a few steps. Raise RunFailed."""
        training = Training(
            source=source,
            directory="run",
            seed=fixed.seed,
            timeout=SECONDS,
            smoke_timeout=SECONDS,
            tokens=fixed.tokens,
        )
        with tempfile.TemporaryDirectory(dir=self.slot.setup.study, prefix="run_") as folder:
            keeper = StateKeeper(Path(folder), training)
            steps = TrainingProcess(training, Path(folder, "smoke"), label, keeper, [], smoke=True)
            return self.slot.first_steps(steps, self.idea.analysis)


@contextmanager
def _first_steps(
    idea: Idea, settings: Mapping[BaselineName, Fixed], sandbox: Sandbox, device: str | None
) -> Iterator[Bench]:
    """Harvest activations for a few steps, and open a slot for them in a folder that is removed afterwards."""
    first = next(iter(settings.values())).with_changes(tokens=SMOKE_TOKENS, evals="core")
    lab = prepare_lab(Place(), first, "l0", device)
    with tempfile.TemporaryDirectory(prefix="sae-agent-") as folder:
        study = Path(folder, "study")
        study.mkdir()
        if idea.is_outside():
            idea_folder.keep(idea.folder, study)
            idea = ideas.load_folder(study / idea_folder.KEPT / idea.name)
        setup = Setup(
            study=study,
            fixed=pinned(first, lab),
            evals=("core",),
            device=device,
            kind=sandbox.kind,
            artefacts=Path(lab["artefacts"]),
            exact=not lab["gpus"],
            sealed=lab["sealed"],
        )
        with Slot(setup, sandbox, study) as slot:
            yield Bench(idea, {kind: pinned(fixed, lab) for kind, fixed in settings.items()}, slot)


def _show(idea: Idea, analysis: Analysis, trials: Sequence[Trial]) -> None:
    console = make_console(LONGEST_LINE)
    measures = len(analysis.measures or {})
    rows = [(trial.step, trial.baseline, trial.found(measures)) for trial in trials]
    print_table(console, ("step", "baseline", "first steps and own measures"), rows)
    if idea.template is None:
        console.print("no template: the plan is in words, run it with --proposer llm", soft_wrap=True)
    for need, what in analysis.needs.items():
        console.print(f"its measures need {need} of finish(): {what}", soft_wrap=True)
    failed = sum(not trial.is_sound for trial in trials)
    console.print(f"{failed} of {len(trials)} failed" if failed else f"{idea.name} is sound")
