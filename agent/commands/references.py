"""`agent run --reference`: SAEs that were trained elsewhere are imported before activations are harvested."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from agent import ROOT
from agent.ideas import Fixed
from agent.lab import cache, files
from agent.lab.errors import UserError
from agent.lab.visible import one_line
from agent.running.places import Place, Unprepared
from agent.study import imported as imports
from agent.study.records import Reference
from agent.study.workspace import Study

LONGEST_NAME = 40  # characters


@contextmanager
def imported(sources: Sequence[str], place: Place, fixed: Fixed, device: str | None) -> Iterator[Mapping[str, Path]]:
    """Import SAEs from elsewhere into a folder that is removed in the end, and yield their directories by their names.

    Raise UserError for one that is given twice, typer.Exit if the lab refuses one, which it says in a line.
    """
    named = names(sources)
    if not named:
        yield {}
        return
    runs = ROOT / "runs"  # where the study's directory will be, so that what is large is moved there and not copied
    runs.mkdir(exist_ok=True)
    folder, found = Path(tempfile.mkdtemp(prefix=".import-", dir=runs)), {}
    try:
        for name, source in named.items():
            found[name] = folder / name / "run"
            found[name].parent.mkdir()
            try:
                place.import_sae(ROOT, source, found[name], fixed, device)
            except Unprepared as failed:
                raise typer.Exit(2 if failed.exit_code == 2 else 1) from None
            _say(imports.read(found[name], name), imports.warnings(found[name]), fixed)
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_in(found: Mapping[str, Path], study: Study) -> None:
    """Move what was imported into the directory of a study."""
    for name, run_dir in found.items():
        run_dir.rename(study.reference_dir(name))


def names(sources: Sequence[str]) -> dict[str, str]:
    """Return the sources by short names, directories as absolute paths.

    Raise UserError for one that is given twice, and for a path that is not there.
    """
    named: dict[str, str] = {}
    for given in sources:
        source = files.absolute_if_there(given)
        if source in named.values():
            raise UserError(f"--reference {given} is given twice: leave one of them out")
        short = (
            cache.slug(Path(source).name if Path(source).is_absolute() else source)[-LONGEST_NAME:].strip("-.") or "sae"
        )
        taken = sum(name.startswith(short) for name in named)
        named[f"{short}-{taken + 1}" if taken else short] = source
    return named


def _say(reference: Reference, warnings: Sequence[str], fixed: Fixed) -> None:
    """Say what was imported, and what the study's SAEs have otherwise."""
    width = "" if reference.d_sae == fixed.d_sae else f", where the study's SAEs have {fixed.d_sae:,}"
    said = f"{reference.imported.architecture}, read as {reference.imported.format}, d_sae {reference.d_sae:,}{width}"
    print(one_line(f"reference {reference.name}: {said}"), flush=True)
    for warning in warnings:
        print(one_line(f"reference {reference.name}: {warning}"), flush=True)
