"""The start of an experiment: its one argument, its directory, and errors as one line."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from agent.lab import cache, gpus, memory, results, state
from agent.lab.defaults import CONTEXT_VARIABLE, POOLS, SETUP_FILE, SOCKET_VARIABLE, STREAMED_VARIABLE, THREADS
from agent.lab.errors import UserError
from agent.lab.exits import exit_with, one_line_errors
from agent.lab.files import read_plain_text
from agent.lab.progress import notify
from agent.lab.training import TrainingStopped

INTERRUPTED = (
    "{} is not complete; the same command goes on from its saved state, if it holds one; else delete it or choose "
    "another --out_dir"
)


def run(main: Callable[[Path], None]) -> None:
    """Parse --out_dir, make the directory, keep a copy of the experiment in it, and call `main(out_dir)`.

    In a directory with the saved state of this same experiment the training goes on (see `TrainingGuard.resumes`).
    Exit codes: 0 done, 1 the guard stopped the training or it failed, 2 the user's mistake, 130 interrupted.
    """
    script = Path(sys.argv[0]).absolute()
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    about = "a directory for everything about this run: a new one, or that of a run that was cut short and goes on"
    parser.add_argument("--out_dir", type=Path, required=True, help=about)
    served = SOCKET_VARIABLE in os.environ  # by the driver, which has made the directory and holds the cache
    out_dir: Path = parser.parse_args().out_dir.absolute()
    with one_line_errors(INTERRUPTED.format(out_dir)):
        if sys.platform == "win32":
            raise UserError("sae-agent runs on Linux and macOS; on Windows use WSL")
        if seed := os.environ.get("SAE_AGENT_SEED"):
            set_seed(main, int(seed))
        if not served and (line := gpus.unusable()):
            notify(f"{line}: the run is on the CPU")
        if not served:
            use_settings_of_study(script.with_name(SETUP_FILE))
        if saved := state.files(out_dir):
            state.require_same_source(saved[-1], script)
        else:
            make_out_dir(out_dir)
        shutil.copyfile(script, out_dir / "experiment.py")
        try:
            with nullcontext() if served else cache.in_use():
                main(out_dir)
                if not os.environ.get("SAE_AGENT_DRIVEN") and not os.environ.get("SAE_AGENT_SMOKE"):
                    memory.give_back()  # nothing holds the SAE, its optimizer and its activations any more
                    evaluate(out_dir)
        except UserError:
            if not served and not saved:
                remove_out_dir_without_steps(out_dir)
            raise
        except TrainingStopped as stopped:
            state.discard(out_dir)
            if not os.environ.get("SAE_AGENT_DRIVEN"):
                results.write(out_dir, results.FinalInfo(verdict=stopped.verdict))
            exit_with(f"stopped: {stopped}", 1)


def evaluate(run_dir: Path) -> None:
    """Evaluate a run in a process of its own, if it has a checkpoint. Exits with that process's code if it fails."""
    if not (run_dir / "checkpoint").is_dir():  # an experiment that did without finish()
        return
    command = [sys.executable, "-P", "-m", "agent.lab.evaluation", str(run_dir)]
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:  # the evaluator got it too, and has printed how to go on
        code = 130
    if code != 0:
        raise SystemExit(code if code > 0 else 1)


def use_settings_of_study(setup: Path) -> None:
    """Train and evaluate with threads, windows and rows of the study in whose directory a run is made by hand."""
    if setup.is_file():
        fixed = json.loads(read_plain_text(setup))["fixed"]
        if context := fixed.get("context"):
            os.environ[CONTEXT_VARIABLE] = str(context)
        if fixed.get("stream"):
            os.environ[STREAMED_VARIABLE] = "1"
        if threads := fixed.get("threads"):
            os.environ |= dict.fromkeys((*POOLS, THREADS), str(threads))
            torch.set_num_threads(threads)


def set_seed(main: Callable[[Path], None], seed: int) -> None:
    """Set the experiment's SEED, which fixes initialisation and order of the tokens. Raises UserError without one."""
    names: dict[str, Any] = getattr(main, "__globals__", {})
    if "SEED" not in names:
        raise UserError("the experiment has no constant SEED, so it cannot be run again with another seed: restore it")
    names["SEED"] = seed


def make_out_dir(out_dir: Path) -> None:
    """Create the directory. Raises UserError if it is in use or cannot be written."""
    if out_dir.is_file():
        raise UserError(f"--out_dir {out_dir} is a file: choose {next_free_name(out_dir)}")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise UserError(f"--out_dir {out_dir} exists and is not empty: choose {next_free_name(out_dir)}")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "metrics.jsonl").touch()
    except OSError as error:
        raise UserError(f"--out_dir {out_dir} cannot be written ({error.strerror}): choose another place") from None


def remove_out_dir_without_steps(out_dir: Path) -> None:
    """Remove the directory of a run that failed before its first step, so that --out_dir can be given again."""
    if (out_dir / "metrics.jsonl").stat().st_size == 0:
        for name in ("metrics.jsonl", "experiment.py"):
            (out_dir / name).unlink(missing_ok=True)
        out_dir.rmdir()


def next_free_name(out_dir: Path) -> Path:
    """Return the next name in the sequence that is not taken: run_3 -> run_4, results -> results_1."""
    stem, _, number = out_dir.name.rpartition("_")
    stem, first = (stem, int(number) + 1) if stem and number.isdigit() else (out_dir.name, 1)
    return next(p for i in range(first, first + 100_000) if not (p := out_dir.with_name(f"{stem}_{i}")).exists())
