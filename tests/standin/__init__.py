"""A checkout whose experiments and evaluator are stand-ins without torch; driver, git and processes are real."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.study.ledger import Event, State, derive, read
from agent.study.workspace import Study

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
WITHOUT_TORCH = (  # the files of the lab that the driver shares
    *("__init__", "architectures", "cache", "chat", "chat_answers", "chat_connection", "chat_errors", "chat_reply"),
    *("code_hash", "defaults", "errors", "features", "files", "lock_files", "locks"),
    *(
        "estimates",
        "machine",
        "metrics",
        "model_files",
        "model_shape",
        "progress",
        "results",
        "start",
        "verdicts",
        "visible",
    ),
    *("evaluation/__init__", "evaluation/requests", "evaluation/catalogue", "evaluation/idea_files"),
)


@dataclass(frozen=True)
class Checkout:
    """A copy of the driver in which stand-ins replace the modules that import torch."""

    root: Path

    def plan(self, *behaviours: str, **fields: Any) -> None:
        """Write the idea stand_in with one step for each behaviour of the stand-in experiment.

        A suffix after a dot only tells two steps with the same behaviour apart.
        """
        steps = [
            {
                "name": f"step_{number}",
                "title": f"Step {number} that is {behaviour}",
                "description": "What changed.",
                "why": "The reason.",
                "predictions": {"ce_loss_score": "up", "l0": "same"},
                "parameters": {"behaviour": behaviour} | ({"more": "import os"} if behaviour == "importing" else {}),
            }
            for number, behaviour in enumerate(behaviours, 1)
        ]
        idea = {
            "title": "A stand-in idea",
            "description": "Nothing is trained.",
            "hypothesis": "None.",
            "smallest_effect": 0.005,
            "defaults": {"behaviour": "sound", "more": ""},
            "plan": steps,
        }
        (self.root / "templates/ideas/stand_in/idea.yaml").write_text(yaml.safe_dump(idea | fields))

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start `agent` with an empty home directory and no terminal. Runs are not confined unless `arguments` say so:
        a stand-in experiment looks at files of the tests, and does what confinement would keep from it."""
        if arguments[:1] == ("run",) and "--sandbox" not in arguments:
            arguments = (*arguments, "--sandbox", "off")
        home = self.root.parent / "home"
        home.mkdir(exist_ok=True)
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(self.root)}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", *arguments],
            cwd=self.root.parent,
            env=env | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def agent(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=300)  # the longest study takes two minutes on a busy machine
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def run(self, max_runs: int, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self.agent("run", "--idea", "stand_in", "--max-runs", str(max_runs), *arguments, **environment)

    def run_by_hand(self, name: str, old: str, new: str) -> None:
        """Edit the study's experiment.py and run it, as a researcher does."""
        study = self.study.directory
        (study / "experiment.py").write_text((study / "experiment.py").read_text().replace(old, new))
        command = [sys.executable, "experiment.py", f"--out_dir={name}"]
        subprocess.run(command, cwd=study, env={"PYTHONPATH": str(self.root)}, check=True)
        shutil.copy(study / "experiment.py", study / name)

    @property
    def study(self) -> Study:
        (directory,) = (self.root / "runs").iterdir()
        return Study(directory, self.root / "notes" / directory.name)

    @property
    def events(self) -> list[Event]:
        return read(self.study.ledger)

    @property
    def state(self) -> State:
        return derive(self.events)

    @property
    def notes(self) -> str:
        """Return the notes with each paragraph on one line."""
        return (self.study.notes / "notes.txt").read_text().replace("\n  ", " ")


def make_checkout(directory: Path) -> Checkout:
    """Make a checkout at a path with a space in it."""
    root = directory / "a checkout"
    ignored = shutil.ignore_patterns("lab", "__pycache__")
    shutil.copytree(REPOSITORY / "agent", root / "agent", ignore=ignored)
    (root / "agent/lab/evaluation").mkdir(parents=True)
    for name in WITHOUT_TORCH:
        shutil.copy(REPOSITORY / f"agent/lab/{name}.py", root / f"agent/lab/{name}.py")
    for name in ("activations", "describe_model", "prepare", "run", "serve", "training"):
        shutil.copy(HERE / f"lab/{name}.py", root / "agent/lab")
    for name in ("sparse.py", "checkpoint/graph.py"):  # of which a language model is told, and nothing is imported
        (root / "agent/lab" / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "agent/lab" / name, root / "agent/lab" / name)
    (root / "agent/lab/tiny_lm").mkdir()
    shutil.copy(REPOSITORY / "agent/lab/tiny_lm/config.json", root / "agent/lab/tiny_lm")
    shutil.copy(HERE / "lab/evaluation.py", root / "agent/lab/evaluation/__main__.py")
    shutil.copytree(HERE / "templates", root / "templates")
    for name in ("notes", "page", "prompts"):
        shutil.copytree(REPOSITORY / "templates" / name, root / "templates" / name)
    return Checkout(root)


def processes() -> list[str]:
    """Return the command lines of all running processes, whole."""
    return subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90  # the machine may be busy
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (ValueError, FileNotFoundError):  # the study does not exist yet
            pass
        time.sleep(0.05)
    raise AssertionError("the condition did not become true within 90 s")
