"""The start of an experiment: its one argument, its directory, and errors as one line."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from agent.lab import cache, gpus, results
from agent.lab.defaults import POOLS, SETUP_FILE, SOCKET_VARIABLE, STREAMED_VARIABLE, THREADS
from agent.lab.errors import UserError
from agent.lab.exits import exit_with, one_line_errors
from agent.lab.files import read_plain_text
from agent.lab.progress import notify
from agent.lab.training import TrainingStopped


def run(main: Callable[[Path], None]) -> None:
    """Parse --out_dir, make the directory, keep a copy of the experiment in it, and call `main(out_dir)`.

    Exit codes: 0 done, 1 the guard stopped the training or it failed, 2 the user's mistake, 130 interrupted.
    """
    script = Path(sys.argv[0]).absolute()
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--out_dir", type=Path, required=True, help="a new directory for everything about this run")
    served = SOCKET_VARIABLE in os.environ  # by the driver, which has made the directory and holds the cache
    out_dir: Path = parser.parse_args().out_dir.absolute()
    with one_line_errors(f"{out_dir} is not complete; delete it or choose another --out_dir"):
        if sys.platform == "win32":
            raise UserError("sae-agent runs on Linux and macOS; on Windows use WSL")
        if seed := os.environ.get("SAE_AGENT_SEED"):
            set_seed(main, int(seed))
        if not served and (line := gpus.unusable()):
            notify(f"{line}: the run is on the CPU")
        if not served:
            compute_as_study(script.with_name(SETUP_FILE))
        make_out_dir(out_dir)
        shutil.copyfile(script, out_dir / "experiment.py")
        try:
            with nullcontext() if served else cache.in_use():
                main(out_dir)
        except UserError:
            if not served:
                remove_out_dir_without_steps(out_dir)
            raise
        except TrainingStopped as stopped:
            if not os.environ.get("SAE_AGENT_DRIVEN"):
                results.write(out_dir, results.FinalInfo(verdict=stopped.verdict))
            exit_with(f"stopped: {stopped}", 1)


def compute_as_study(setup: Path) -> None:
    """Train and evaluate as the study in whose directory the experiment is run by hand: with as many threads, and rows
    that are stored, or made as they are read."""
    if setup.is_file():
        fixed = json.loads(read_plain_text(setup))["fixed"]
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
