"""The files that the driver writes into the directory of a run."""

import os
import stat
from pathlib import Path

from agent.lab import features
from agent.lab.defaults import STATE_FILE
from agent.lab.files import BadFile, open_plain, remove, write_atomically
from agent.lab.verdicts import Verdict
from agent.running.watchdogs import LogCap

# Removed before the driver writes them: an experiment may have put a link there. Logs are moved in afterwards.
DRIVER_FILES = (
    "experiment.py",
    *(f"{name}.json" for name in ("final_info", "test_info", "sentinels")),
    features.FILE,
)


def log_path(run_dir: Path, stream: str) -> Path:
    """Return where a log is written during training, beside the run's directory, which belongs to the experiment."""
    return run_dir.with_name(f"{run_dir.name}.{stream}.log")


def collect_run_files(run_dir: Path, source: str) -> Verdict | None:
    """Put the experiment as it ran and its logs into the directory of the run, replacing whatever has their names.

    Return the verdict `tampered` if the experiment had put something else in the place of the directory or of a log.
    """
    tampered = ""
    if os.path.lexists(run_dir) and not stat.S_ISDIR(run_dir.lstat().st_mode):
        tampered = f"{run_dir.name} was not a directory"
        run_dir.unlink()
    run_dir.mkdir(exist_ok=True)
    for path in (*(run_dir / name for name in DRIVER_FILES), *run_dir.glob(STATE_FILE.format("*"))):
        remove(path)
    write_atomically(run_dir / "experiment.py", source)
    for stream in ("stdout", "stderr"):
        log = log_path(run_dir, stream)
        if not os.path.lexists(log):
            continue
        try:
            open_plain(log, only_name=True).close()
        except BadFile:
            tampered = tampered or f"{log.name} was not the log that the driver had opened"
            remove(log)
            continue
        LogCap(log)()
        remove(run_dir / f"{stream}.log")
        log.replace(run_dir / f"{stream}.log")
    return Verdict(name="tampered", evidence=tampered) if tampered else None
