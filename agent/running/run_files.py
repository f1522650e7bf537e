"""What is kept of a run's directory."""

from pathlib import Path

from agent.lab.files import remove
from agent.lab.verdicts import Verdict
from agent.running.watchdogs import LogCap

# In a run's directory, where an experiment may have put a link of that name. Logs are moved in: see `keep`.
WRITTEN_BY_DRIVER = (
    "experiment.py",
    *(f"{name}.{kind}" for name in ("final_info", "test_info", "sentinels") for kind in ("json", "tmp")),
)


def log(run_dir: Path, stream: str) -> Path:
    """Where a log is written while a training goes on: its directory belongs to the experiment until then."""
    return run_dir.with_name(f"{run_dir.name}.{stream}.log")


def keep(run_dir: Path, source: str) -> Verdict | None:
    """Put the experiment as it ran, and its logs, with the rest of the run, in the place of whatever has their names;
    a verdict where the run's directory is none."""
    replaced = run_dir.is_symlink() or run_dir.is_file()
    if replaced:
        run_dir.unlink()
    run_dir.mkdir(exist_ok=True)
    for name in WRITTEN_BY_DRIVER:
        remove(run_dir / name)
    (run_dir / "experiment.py").write_text(source)
    for stream in ("stdout", "stderr"):
        written = log(run_dir, stream)
        if written.exists():
            LogCap(written)()
            remove(run_dir / f"{stream}.log")
            written.replace(run_dir / f"{stream}.log")
    return Verdict(name="tampered", evidence=f"{run_dir.name} was not a directory") if replaced else None
