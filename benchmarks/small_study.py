"""A small but real study in its own checkout, and everything that it produces.

The lab, the driver and the commands are those of a user; the language model is small, so that a study takes minutes.
Its plan has a step that fails in preflight, one that is better than the baseline and so is trained again with fresh
seeds, and one that is worse.
"""

import ast
import difflib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from git import Repo

from agent.lab import results
from agent.lab.metrics import METRICS
from agent.lab.results import headline
from agent.report import notes
from agent.study import digests, ledger
from agent.study.attempts import ATTEMPTS
from agent.study.events import Event, RunCompared
from agent.study.state import State
from agent.study.workspace import STUDY_VARIABLE, Study, find_study

ROOT = Path(__file__).resolve().parent.parent
IDEA = "hierarchical_sae"
D_MODEL = 64
SECONDS_TO_END = 10.0  # that processes are given, once the driver has ended
FIXED = {"hook_name": "blocks.0.hook_resid_post", "tokens": 150_000, "d_sae": 256, "k": 16}
PRIMARY = "explained_variance_centered"  # the idea's smallest effect is well above its noise here
CHANGES = {  # parameters of the plan's steps
    "broken": {"learning_rate": 1e9},
    "better": {"batch": 512},
    "worse": {"composition_coefficient": 0.03},
}

# Events about how the work was done, and fields of the others that differ between two equal studies.
WORK_EVENTS = {
    *("study_resumed", "attempt_cut_short", "attempt_started", "notes_written", "artefacts_recorded"),
    *("job_submitted", "job_queued", "job_lost"),
}
VARIABLE_FIELDS = {"seq", "time", "elapsed", "seconds", "evaluation_seconds", "attempt", "judging", "digests"}
VARIABLE_FIELDS |= {"cpu_seconds", "work_ratio"}
ONCE = {  # what an event is about, of the kinds that come once
    "proposal_made": ("run", "proposal"),
    "preflight_failed": ("run", "attempt"),
    "attempt_ended": ("run", "attempt"),
    "evaluation_ended": ("run", "attempt"),
    "run_committed": ("run",),
    "sentinels_scored": (),
    "baseline_measured": ("baseline",),
    "replicate_ended": ("run", "seed"),
    "test_scored": ("run", "k", "seed"),
}

# Names in a study's directory that are not compared.
EXPECTED_NAMES = re.compile(
    r"jobs|slot_\d|setup.json|lock|"
    r"run_\d+|run_\d+_leftover_\d+|run_\d+_attempt_\d+|run_\d+_seed_\d+|baseline_k\d+_seed\d+|.+\.log"
)


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout for one study, with a small idea and its own cache."""

    root: Path
    model: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def study(self) -> tuple[Study, State] | None:
        """The study and its state; None until one has started."""
        for directory in sorted(self.root.glob("runs/*/"), reverse=True):
            if match := find_study(directory):
                return match
        return None

    @property
    def events(self) -> list[Event]:
        return ledger.read(self.study[0].ledger) if self.study else []

    def start(self) -> "subprocess.Popen[bytes]":
        """Start `agent resume`, or `agent run` if there is nothing to resume."""
        command = ["run", "--idea", IDEA, "--max-runs", "2", "--jobs", "3", "--model", str(self.model)]
        with (self.root / "agent.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "agent", *(["resume"] if self.study else command)],
                cwd=self.root,
                env=os.environ
                | {"PYTHONPATH": str(self.root), "SAE_AGENT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def make_model(directory: Path) -> Path:
    """Train the small language model of the tests, a little wider, and return its directory."""
    return runpy.run_path(str(ROOT / "tests/small_lab.py"))["make_model"](directory, D_MODEL)


def make_checkout(root: Path, model: Path) -> Checkout:
    """Create a checkout with a small idea and an empty cache."""
    for name in ("agent", "templates"):
        shutil.copytree(ROOT / name, root / name)
    folder = root / "templates/ideas" / IDEA
    idea = yaml.safe_load((folder / "idea.yaml").read_text())
    idea["defaults"] |= {"learning_rate": 2e-3, "batch": 1024}
    idea |= {"fixed": FIXED, "primary_metric": PRIMARY}
    idea["plan"] = [
        {
            "name": name,
            "title": f"A step that is {name}",
            "description": "A change whose outcome is known.\n\n\nWith two lines left empty.",
            "why": "So that a study goes through every stage.",
            "predictions": {PRIMARY: "down" if name == "worse" else "up", "l0": "same"},
            "parameters": parameters,
        }
        for name, parameters in CHANGES.items()
    ]
    del idea["answer"]  # it is about steps that are not in this plan
    (folder / "idea.yaml").write_text(yaml.safe_dump(idea))
    template = folder / "experiment.py.j2"
    constants = "{% block constants %}\n{{ super() }}\n"
    assert constants in template.read_text()
    extended = constants + "BATCH = {{ batch }}\nLEARNING_RATE = {{ learning_rate }}\n"
    template.write_text(template.read_text().replace(constants, extended))
    return Checkout(root, model)


def untrue_notes(checkout: Checkout) -> list[str]:
    """Return what is half-written or untrue in the notes and figures that a kill left."""
    if checkout.study is None:
        return []
    study, state = checkout.study
    wrong = [
        f"{figure.name} is half-written"
        for figure in study.notes.glob("*.png")
        if not figure.read_bytes().endswith(b"IEND\xaeB`\x82")
    ]
    path = study.notes / "notes.txt"
    if not path.exists():
        return wrong
    text = path.read_text()
    if notes.edited(text):
        return [*wrong, "notes.txt is half-written"]
    if "\nThe study ended: " in text and all(event.event != "study_ended" for event in checkout.events):
        wrong.append("the notes say that the study ended")
    for number, printed in re.findall(r"^## Run (\d+): .*\nResults: (\{.*\})$", text, re.MULTILINE):
        info = results.read(study.run_dir(int(number)))
        measured = {name: info.metric(name) for name in headline([info])}
        rounded = {n: None if value is None else round(value, METRICS[n].digits) for n, value in measured.items()}
        if state.runs[int(number)].stage != "done" or ast.literal_eval(printed) != rounded:
            wrong.append(f"the notes' results of run {number} differ from its final_info.json")
    return wrong


def study_events(events: Sequence[Event]) -> list[Event]:
    """Return the events of a study without WORK_EVENTS, provisional comparisons and repeated ends.

    A study that is killed before its last notes ends a second time.
    """
    kept = [
        event
        for event in events
        if event.event not in WORK_EVENTS and not (isinstance(event, RunCompared) and event.provisional)
    ]
    return [event for event in kept[:-1] if event.event != "study_ended"] + kept[-1:]


def story(events: Sequence[Event]) -> list[str]:
    """Return the events of a study as text that is equal in every study with the same results: sorted, as several jobs
    at a time end in any order."""
    return sorted(without_variable_fields(json.loads(event.model_dump_json())) for event in study_events(events))


def without_variable_fields(record: dict[str, Any]) -> str:
    """Return a record as text without VARIABLE_FIELDS, at any depth."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kept(item) for name, item in value.items() if name not in VARIABLE_FIELDS}
        return [kept(item) for item in value] if isinstance(value, list) else value

    return json.dumps(kept(record), sort_keys=True)


def outcome(checkout: Checkout) -> dict[str, list[str]]:
    """Return all that must be the same whether a study was killed or not, as named lists of lines."""
    assert checkout.study
    study, state = checkout.study
    with Repo(study.directory) as repo:
        messages = [str(commit.message) for commit in repo.iter_commits(reverse=True)]
    lines = (study.notes / "notes.txt").read_text().replace("\n  ", " ").splitlines()
    note_lines = [
        re.sub(r"([Aa]ttempt[ _])\d", r"\1", line)
        for line in lines
        if line and not re.match(r"Attempt \d failed: killed |Failed: |Cost: |" + notes.CHECKSUM, line)
    ]
    return {
        "names": [run.proposal.name for run in state.runs],
        "runs": [f"{run.number} {run.proposal} {run.verdict} {run.stage}" for run in state.runs],
        "results": [
            without_variable_fields(json.loads((study.run_dir(run.number) / "final_info.json").read_text()))
            for run in state.runs
        ],
        "ledger": story(checkout.events),
        "budgets": [f"{state.runs_used} runs used", str(state.ended)],
        "baselines in the cache": sorted(path.name for path in checkout.cache.glob("baselines/*/k*[0-9]")),
        "notes": note_lines,
        "figures": sorted(f"{path.name} {digests.of_file(path)}" for path in study.notes.glob("*.png")),
        "other files in notes": sorted(path.name for path in study.notes.iterdir() if path.suffix != ".png"),
        "git log": sorted(re.sub(r", attempt \d", "", message) for message in messages),
        "attempts that failed": sorted(
            f"{path.name.split('_attempt_')[0]} {verdict}"
            for path, verdict in kept_attempts(study)
            if verdict != "killed"
        ),
        "unexpected files": sorted(
            path.name for path in study.directory.iterdir() if not EXPECTED_NAMES.fullmatch(path.name)
        ),
        "processes still running": left_running(checkout),
    }


def kept_attempts(study: Study) -> list[tuple[Path, str]]:
    """Return the attempts that were followed by another, with their verdicts."""
    return [(path, results.read(path).verdict.name) for path in study.directory.glob("run_*_attempt_*")]


def left_running(checkout: Checkout) -> list[str]:
    """Return the command lines of processes that still run for a checkout's study a few seconds after its end."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := processes_of(checkout)) and time.monotonic() < deadline:
        time.sleep(0.2)
    lines = []
    for process in left:
        with suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return lines


def processes_of(checkout: Checkout) -> list[psutil.Process]:
    """Return the processes that run for a checkout's study: by their environment, or the directory of their job."""
    found, root = [], f"{checkout.root}{os.sep}"
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            ours = environment.get("SAE_AGENT_CACHE") == str(checkout.cache)
            ours |= environment.get(STUDY_VARIABLE, "").startswith(root) or process.cwd().startswith(root)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def disorder(checkout: Checkout) -> list[str]:
    """Return what the ledger, the kept attempts and the budget of a study that has ended have too much or too little
    of."""
    if checkout.study is None:
        return ["there is no study"]
    (study, state), wrong = checkout.study, []
    seen: set[str] = set()
    for event in checkout.events:
        if event.event in ONCE:
            record = json.loads(event.model_dump_json())
            baseline = record.get("baseline") or {}
            record["baseline"] = [baseline.get("k"), baseline.get("seed")]
            key = f"{event.event} {json.dumps([record[name] for name in ONCE[event.event]])}"
            wrong += [f"twice in the ledger: {key[:200]}"] * (key in seen)
            seen.add(key)
    cut_short = sum(event.event == "attempt_cut_short" and event.attempt < ATTEMPTS for event in checkout.events)
    kept = sum("driver ended" in evidence or name == "killed" for name, evidence in kept_verdicts(study))
    if kept < cut_short:
        wrong.append(f"{cut_short} attempts were cut short, but {kept} are kept")
    if state.ended is None:
        wrong.append("the study did not end")
    wrong += [f"run {run.number} is {run.stage}" for run in state.open_runs]
    wrong += [f"{name} is open" for name in state.jobs]
    if not state.runs_used == len(state.runs) - 1 <= state.started.max_runs:
        wrong.append(f"{state.runs_used} runs are used of {state.started.max_runs}, and there are {len(state.runs)}")
    return wrong


def kept_verdicts(study: Study) -> list[tuple[str, str]]:
    """Return name and evidence of the verdict of each attempt that another one followed."""
    verdicts = [results.read(path).verdict for path in study.directory.glob("run_*_attempt_*")]
    return [(verdict.name, verdict.evidence) for verdict in verdicts]


def differences(undisturbed: dict[str, list[str]], killed: dict[str, list[str]]) -> list[str]:
    """Return the names of what differs from the undisturbed study, each with its first lines that differ."""
    wrong = []
    for name, expected in undisturbed.items():
        if killed[name] != expected:
            lines = list(difflib.unified_diff(expected, killed[name], lineterm="", n=0))[3:6]
            wrong.append(f"{name}: {' // '.join(line[:300] for line in lines)}")
    return wrong


def last_line(checkout: Checkout) -> str:
    return (checkout.root / "agent.log").read_text(errors="replace").strip().rpartition("\n")[2]
