"""`agent export`: the SAE of a run, in the format of another library, with a card."""

import json
import re
import tempfile
from pathlib import Path

from agent.commands.show import changed_in
from agent.commands.show_study import print_changed
from agent.display.console import make_console
from agent.lab import features, results
from agent.lab.errors import UserError
from agent.lab.files import atomic_path
from agent.lab.results import FinalInfo
from agent.lab.visible import one_line
from agent.report import model_card, neuronpedia
from agent.report.model_card import Origin, Subject
from agent.running import process
from agent.study.workspace import find_study

RUN = re.compile(r"run_(\d+)")
BATCH = "batch-0.json"  # as SAEDashboard names its output


def export(run_dir: Path, form: str, out: Path) -> int:
    """Write the SAE of a run as the folder `out`, in the format `form`.

    Return the exit code: 1 if a file was changed after the study had recorded it, 2 if the format has no place for the
    SAE. Raise UserError if there is no run, or something in `out`.
    """
    console = make_console()
    run_dir, out = run_dir.absolute(), out.absolute()
    _require(run_dir, out)
    if changed := [name for name in changed_in(run_dir) if Path(name).parts[1] in ("final_info.json", "checkpoint")]:
        print_changed(console, changed)
        return 1
    info, origin = _results(run_dir)
    with tempfile.TemporaryDirectory() as scratch, atomic_path(out) as partial:
        described = Path(scratch) / "described.json"
        command = (*process.START, "agent.lab.export", str(run_dir), "--to", form, "--out", str(partial))
        ended = process.run(command, cwd=run_dir, env=process.child_environment({}), stdout=described)
        if ended.exit_code:
            raise SystemExit(2 if ended.exit_code == 2 else 1)  # it has said why
        subject = Subject(**json.loads(described.read_text().splitlines()[-1]))
        if form == "neuronpedia" and (batch := _batch(run_dir, info, subject)):
            (partial / BATCH).write_text(batch)
            subject.files.append(BATCH)
        model_card.write(partial, form, subject, info, origin, out.name)
    console.print(f"{out}: {', '.join(sorted([*subject.files, 'README.md']))}", soft_wrap=True)
    return 0


def _require(run_dir: Path, out: Path) -> None:
    """Raise UserError unless there is a run with a checkpoint, and nothing at `out` but perhaps an empty folder."""
    if not (run_dir / "checkpoint").is_dir():
        raise UserError(f"{run_dir} holds no checkpoint: give the directory of a run that was trained to its end")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty: give a new directory")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a new directory")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} does not exist: make it, or give another directory")


def _results(run_dir: Path) -> tuple[FinalInfo, Origin | None]:
    """Return the results of a run, with its comparison, and the study that it belongs to, if any. Raise UserError."""
    found = find_study(run_dir.resolve().parent)
    if found is None:
        return results.read(run_dir), None
    study, state = found
    origin = Origin(study.name, study.head(), run_dir.name)
    number = RUN.fullmatch(run_dir.name)
    if number is None or int(number[1]) >= len(state.runs):
        return results.read(run_dir), origin
    (run,) = study.load_runs(state, only=int(number[1]))
    origin = Origin(study.name, study.head(), run_dir.name, one_line(run.state.proposal.title))
    return run.info or results.read(run_dir), origin


def _batch(run_dir: Path, info: FinalInfo, subject: Subject) -> str:
    """Return the latents that are kept of a run as a batch of SAEDashboard's, or "" if none are."""
    kept = features.read(run_dir)
    if kept is None or info.training is None:
        return ""
    training = info.training.model_copy(update={"model": subject.model})
    name = f"{run_dir.parent.name}-{run_dir.name}"
    return json.dumps(neuronpedia.batch(kept, training, name, subject.row_lengths)) + "\n"
