"""`agent score`: an SAE that was trained elsewhere, scored as a run is."""

import os
from pathlib import Path

from agent import ROOT
from agent.commands import show
from agent.commands.study_settings import model_path, text_path
from agent.lab import cache, files, results
from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue
from agent.running import process

IMPORT = (*process.START, "agent.lab.foreign")
SCORED = ROOT / "runs" / "scored"  # where a run is left that was given no other place


def score(source: str, out: Path | None, device: str | None, dtype: str | None, **options: str | None) -> int:
    """Convert and verify an SAE, score it, and show it; leave it as a run in `out`. Return the exit code.

    `options` are of agent.lab.foreign: model, hook, evals, text. Raise UserError.
    """
    catalogue.parse_evals(options["evals"] or "")  # an unknown name is refused at once
    source = files.absolute_if_there(source)
    run_dir = (out or SCORED / cache.slug(source.strip("/"))[-80:].strip("-.")).absolute()
    if os.path.lexists(run_dir):
        raise UserError(f"{run_dir} is there already: look at it with agent show, or give another with --out")
    for name, settle in (("model", model_path), ("text", text_path)):
        options[name] = settle(given) if (given := options[name]) is not None else None
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run_dir} cannot be made ({error.strerror}): give another with --out") from None
    command = [*IMPORT, source, "--out", str(run_dir)]
    command += [word for name, value in options.items() if value for word in (f"--{name}", value)]
    settings = {name: value for name, value in (("SAE_AGENT_DEVICE", device), ("SAE_AGENT_DTYPE", dtype)) if value}
    env, runs = process.child_environment(settings, process.ALL_VARIABLES), ROOT / "runs"
    runs.mkdir(exist_ok=True)  # not where the user stands: a directory there must not pass for a model of its name
    ended = process.run(command, cwd=runs, env=env, stdout=Path(os.devnull), max_file_bytes=0)
    if ended.exit_code:
        return 2 if ended.exit_code == 2 else 1
    show.show(run_dir)
    return 0 if results.read(run_dir).core else 1
