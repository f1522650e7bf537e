"""One attack, carried out against a copy of this checkout: real driver, git, processes and files, one temporary folder.

Nothing outside the folder is attacked: the home, the cache, the keys and the servers are the trial's own.
"""

import ctypes
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from agent import ideas
from agent.comparison.judgement import Outcome, judgements
from agent.lab import results
from agent.lab.errors import UserError
from agent.study import ledger
from agent.study.state import State, derive
from agent.study.workspace import Study

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
CANARIES = {"OPENAI_API_KEY": "sk-canary-8f3a1c70b2d94e65", "HF_TOKEN": "hf_canaryQ7xLwN2mVtR9"}
SSH_KEY = "canary-of-a-private-key-51c0de"
REAL = {"tokens": 300_000, "d_sae": 512}  # fixed settings of a study with the real lab, on tiny-lm
WORLD = {"model": "synth2k", "tokens": 150_000}  # the same on a world
MEMORY = 6 * 2**30  # bytes that a driver with the stand-in lab may take, so that no attack takes the machine's
MAIN = 'if __name__ == "__main__":'
# What a driver says of an attack, beside its verdicts: lines of its output that no calm study prints.
NOTICE = re.compile(
    r"tamper|changed|damaged|implausible|digest|altered|edited|refus|not comparable|is not a|cannot be read|error:|"
    r"[1-9] contradict|[1-9] unsupported|missing|put back|not confirmed",
    re.IGNORECASE,
)
MORE_WORK = "times the baseline's work"  # in the outcome of a run, in the notes
BREAKS = "it breaks: "  # the driver, or another command: it hangs, or ends with a traceback
ORDINARY = re.compile(r"plan ended|the budget of \d+ runs? is spent")

Lab = Literal["stand-in", "real", "world"]  # the real lab on tiny-lm, or on a world


@dataclass
class Trial:
    """A checkout of its own under `folder`, with a home, a cache and a drop for what an attack carries off."""

    folder: Path
    lab: Lab = "stand-in"
    sandbox: str | None = None  # of --sandbox; None where `agent run` has no such option
    out: str = ""  # all that the driver and other commands have printed
    exit_code: int | None = None  # of the study; None if it did not end by itself
    patience: float = 60.0  # seconds for a command on a study that should be done
    extra: dict[str, Any] = field(default_factory=dict)  # what `prepare` leaves for `effect`

    def __post_init__(self) -> None:
        for path in (self.home, self.drop, self.cache):
            path.mkdir(parents=True, exist_ok=True)
        (self.home / ".ssh").mkdir()
        (self.home / ".ssh/id_rsa").write_text(f"{SSH_KEY}\n")
        for name in (".bashrc", ".profile", ".zshrc"):
            (self.home / name).write_text(f"# {name} of the trial\n")
        if self.lab != "stand-in":
            for name in ("agent", "templates"):
                shutil.copytree(REPOSITORY / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            runpy.run_path(str(REPOSITORY / "tests/standin/__init__.py"))["make_checkout"](self.folder)

    @property
    def root(self) -> Path:
        return self.folder / "a checkout"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def drop(self) -> Path:
        return self.folder / "drop"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def study(self) -> Study:
        """The newest study. Raise FileNotFoundError."""
        directories = sorted(path.parent for path in (self.root / "runs").glob("2*/events.jsonl"))
        if not directories:
            raise FileNotFoundError("no study has started")
        return Study(directories[-1], self.root / "notes" / directories[-1].name)

    @property
    def state(self) -> State:
        return derive(ledger.read(self.study.ledger))

    @property
    def notes(self) -> str:
        path = self.study.notes / "notes.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @cached_property
    def environment(self) -> dict[str, str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(self.root)}
        own = {"SAE_AGENT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
        return env | own | CANARIES | {"NO_PROXY": "127.0.0.1", "HF_ENDPOINT": "http://127.0.0.1:9"}

    def agent(self, *arguments: str, timeout: float = 60.0) -> int | None:
        """Run `agent` in the trial, keep what it prints, and return its exit code; None if it had to be killed."""
        limit = (MEMORY, MEMORY)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", *arguments],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if self.lab == "stand-in":
            resource.prlimit(process.pid, resource.RLIMIT_AS, limit)
        try:
            self.out += process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired as expired:
            self.out += (expired.stdout or b"").decode(errors="replace") if isinstance(expired.stdout, bytes) else ""
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a daemon may hold the pipe
                process.communicate(timeout=5)
            return None
        return process.returncode

    def source(self, change: Callable[[str], str] = lambda source: source, inserted: str = "", name: str = "") -> str:
        """Return the baseline's experiment.py, changed, with code before its last lines."""
        source = ideas.render_baseline(self.fixed, templates=self.root / "templates")
        if self.lab == "stand-in":
            source = source.replace('"sound"', f'"{name}"')
        return change(source).replace(MAIN, f"{inserted}\n\n{MAIN}" if inserted else MAIN)

    @property
    def fixed(self) -> ideas.Fixed:
        return ideas.Fixed.model_validate(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        return {"stand-in": {}, "real": REAL, "world": WORLD}[self.lab]

    def plan(self, *sources: str) -> None:
        """Write the idea `attack`, whose steps have these sources."""
        folder = self.root / "templates/ideas/attack"
        folder.mkdir(exist_ok=True)
        (folder / "experiment.py.j2").write_text("{{ source }}")
        steps = [
            {
                "name": f"step_{number}",
                "title": f"Step {number}",
                "description": "What changed.",
                "why": "The reason.",
                "predictions": {"ce_loss_score": "up"},
                "parameters": {"source": source},
            }
            for number, source in enumerate(sources, 1)
        ]
        idea = {
            "title": "An attack",
            "description": "What it is.",
            "hypothesis": "None.",
            "smallest_effect": 0.005,
            "fixed": self.settings,
            "defaults": {"source": ""},
            "plan": steps,
        }
        (folder / "idea.yaml").write_text(yaml.safe_dump(idea))

    def run(self, *options: str, runs: int = 9, timeout: float = 90.0) -> None:
        """Carry out the study of the plan."""
        sandbox = ["--sandbox", self.sandbox] if self.sandbox else []
        arguments = ["run", "--idea", "attack", "--max-runs", str(runs), *sandbox, *options]
        self.exit_code = self.agent(*arguments, timeout=timeout)

    def files_with(self, text: str) -> list[str]:
        """Return where a text stands in what the study leaves: its directory, its notes, and what was printed."""
        found = ["the driver's output"] if text in self.out else []
        with suppress(FileNotFoundError):
            for path in [*self.study.directory.rglob("*"), *self.study.notes.rglob("*")]:
                if ".git" not in path.parts and path.is_file() and not path.is_symlink():
                    found += [path.name] if text.encode() in path.read_bytes() else []
        return sorted(set(found))

    def dropped(self, name: str) -> str:
        """Return what planted code left in the drop under a name."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.drop.glob(f"{name}-*")))

    def outcomes(self) -> dict[int, Outcome]:
        """Return what the study says of each run's primary metric."""
        state = self.state
        return {run: judged.outcome for run, judged in judgements(self.study.load_runs(state), state).items()}

    def said(self, own_end: str = "") -> list[str]:
        """Return all that speaks of the attack: verdicts, warnings, ends, and lines that no calm study prints."""
        words = []
        with suppress(FileNotFoundError):
            words += self._verdicts(own_end)
            words += [line for line in self.notes.splitlines() if MORE_WORK in line]
        words += [line.strip() for line in self.out.splitlines() if NOTICE.search(line)]
        return list(dict.fromkeys(words))

    def _verdicts(self, own_end: str) -> list[str]:
        try:
            state = self.state
        except (ledger.BadLedger, ValueError) as damage:
            return [f"the ledger: {damage}"]
        ends = [failure.verdict for run in state.runs for failure in run.failed_attempts.values()]
        ends += [run.verdict for run in state.runs if run.verdict]
        words = [f"{end.name}: {end.evidence}" for end in ends if end.name not in ("ok", own_end)]
        for run in state.runs:
            with suppress(UserError, results.BadResults):
                info = results.read(self.study.run_dir(run.number))
                words += [w for w in info.verdict.warnings if "latents are alive" not in w]
        if state.ended and not ORDINARY.search(state.ended):
            words.append(f"the study ended: {state.ended}")
        return words

    def crash(self) -> str:
        """Say how the last command ended, if not as it should."""
        if self.exit_code is None:
            return "hangs"
        if "Traceback (most recent call last)" not in self.out:
            return ""
        errors = [line for line in self.out.splitlines() if re.match(r"[\w.]+(Error|Exception)\b|[\w.]+\.\w+: ", line)]
        return f"ends with a traceback: {errors[-1][:100] if errors else 'cut off'}"

    def began(self) -> bool:
        """Return whether the attack has begun: an experiment that fails before it proves nothing."""
        logs = [path for path in self.root.glob("runs/**/*std*.log") if path.is_file() and not path.is_symlink()]
        return any("attacking" in path.read_text(errors="replace").splitlines() for path in logs)

    def refused(self) -> str:
        """Return what the system refused the attack, as its run printed it."""
        with suppress(FileNotFoundError):
            for log in sorted(self.study.directory.glob("*/stdout.log")):
                if log.is_file() and not log.is_symlink():
                    for line in log.read_text(errors="replace").splitlines():
                        if line.startswith("refused: "):
                            return line
        return ""


@dataclass(frozen=True)
class Calm:
    """A study that nothing happened to: its cache, with the baselines, and what was said in it."""

    cache: Path
    said: frozenset[str]


def calm_study(folder: Path, lab: Lab, sandbox: str | None, cache: Path | None = None) -> Calm:
    """Carry out a study of one honest step, with a copy of a cache. Raise RuntimeError if it fails."""
    trial = Trial(folder, lab, sandbox)
    if cache:
        shutil.copytree(cache, trial.cache, dirs_exist_ok=True)
    trial.plan(trial.source(lambda source: different(source, 1), name="fine"))
    become_subreaper()
    try:
        trial.run(timeout=3600)
    finally:
        end_descendants()
    if trial.exit_code != 0:
        raise RuntimeError(f"the study without an attack failed: {trial.out}")
    return Calm(trial.cache, frozenset(trial.said()))


def different(source: str, number: int) -> str:
    """Return an experiment of the real lab with a change that hardly matters, another for each number."""
    return source.replace("WARMUP = 0.02 ", f"WARMUP = 0.02{number} ")


def driver_failed(trial: Trial) -> str:
    """Say how the driver ended, if not as it should, and whether the study can be resumed then."""
    first = trial.crash()
    if first:
        before, trial.out = trial.out, ""
        trial.exit_code = trial.agent("resume", timeout=trial.patience)
        again = trial.crash()
        trial.out = before + trial.out
        return f"{BREAKS}{first}, and on resume {again}" if again else f"{BREAKS}{first}; resume mends it"
    return ""


def become_subreaper() -> None:
    """Make what an attack leaves behind a child of this process, so that it is found and ended."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def left_alive() -> list[str]:
    """Return the commands of descendants that outlived their driver."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(" ".join(process.cmdline())[:80])
    return alive


def end_descendants() -> None:
    """Kill every descendant of this process."""
    for _ in range(50):
        processes = psutil.Process().children(recursive=True)
        if not processes:
            return
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=2)
