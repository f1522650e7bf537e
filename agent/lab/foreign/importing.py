"""An SAE that was trained elsewhere as a run: files read, subject settled, checkpoint saved and verified."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agent.lab import checkpoint, corpus, files, hub, model_files, models, results, verdicts
from agent.lab.checkpoint import Header
from agent.lab.checkpoint.files import HEADER
from agent.lab.defaults import BEGIN_VARIABLE, CONTEXT_VARIABLE, LEAST_CONTEXT, is_world
from agent.lab.errors import UserError
from agent.lab.evaluation import doctor
from agent.lab.evaluation.__main__ import handle_requests
from agent.lab.evaluation.bench.core_text import BATCH_WINDOWS
from agent.lab.evaluation.evaluator import Evaluator, HeldOut
from agent.lab.evaluation.requests import Score
from agent.lab.evaluation.sae_adapter import rows_at_once
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.foreign import dictionary_learning, reading, releases, sae_bench, saelens, sparsify, verify
from agent.lab.foreign.encoders import MatchingPursuit
from agent.lab.foreign.sae import Foreign
from agent.lab.model_shape import shape_of
from agent.lab.progress import notify
from agent.lab.results import FinalInfo, Imported
from agent.lab.verdicts import Verdict

FORMATS = (saelens, dictionary_learning, sparsify, sae_bench)
MOST_ROWS = 2048  # activations that latents and reconstructions are compared on


def make_run(
    source: str, run_dir: Path, model: str | None = None, hook_name: str | None = None, own_windows: bool = False
) -> dict[str, Any]:
    """Write run_dir/checkpoint and a final_info.json without scores; return what the SAE is of, and warnings.

    With `own_windows`, this process cuts text from now on as that of the SAE's training was. Raises UserError; then
    nothing is left of `run_dir`.
    """
    sae = read(source)
    model, of_another = settle_model(sae, model)
    hook_name = settle_hook(sae, hook_name)
    if own_windows and not is_world(model):
        cut_text_as(sae.imported, model)
    evaluator = (WorldEvaluator if is_world(model) else Evaluator)(model, hook_name)
    return write_run(sae, run_dir, evaluator, of_another)


def write_run(sae: Foreign, run_dir: Path, evaluator: Evaluator, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Convert and verify an SAE on the activations of an evaluator's model and hook; as `make_run`."""
    held_out = evaluator.held_out("dev", BATCH_WINDOWS)
    if (width := held_out.activations.shape[1]) != sae.d_in:
        subject = f"{evaluator.hook_name} of {evaluator.model_name} has {width:,}"
        raise UserError(f"{sae.imported.source} reads activations of width {sae.d_in:,}, and {subject}")
    imported = sae.imported.model_copy(update={"warnings": [*warnings, *sae.warnings]})
    doubt = verdicts.l0_warning(l0 := measured_l0(sae, held_out), imported.declared_l0)
    with files.atomic_path(run_dir) as partial:
        partial.mkdir(parents=True)
        header = save(partial / "checkpoint", sae, imported, evaluator)
        loaded = evaluator.load_checkpoint(partial, held_out)
        if sae.original:
            in_turn = isinstance(sae.encoder, MatchingPursuit)
            found = verify.compare(loaded, sae.original, held_out.activations[:MOST_ROWS], in_turn)
            verify.require(found, imported.library)
            imported = imported.model_copy(update={"verified": found})
        header = header.model_copy(update={"imported": imported, "architecture": sae.kind})
        files.write_atomically(partial / "checkpoint" / HEADER, header.model_dump_json(indent=2) + "\n")
        verdict = Verdict(name="ok", evidence="converted, and not scored")
        results.write(partial, FinalInfo(verdict=verdict, imported=imported))
    return {
        "model": evaluator.model_name,
        "hook_name": evaluator.hook_name,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "l0": l0,
        "declared_l0": imported.declared_l0,
        "context": imported.context,
        "prepend_bos": imported.prepend_bos,
        "warnings": [*imported.warnings, *([doubt] if doubt else [])],
    }


def score(run_dir: Path, model: str, hook_name: str, evals: str, text: str) -> None:
    """Score a run that `make_run` left, and write its final_info.json. Raises UserError."""
    text = corpus.pin(text)
    names, left_out = doctor.resolve_families(doctor.eval_target(model, hook_name, text), evals)
    for name, reason in left_out.items():
        notify(f"left out of {evals}: {name}: {reason}")
    if text:
        corpus.train_windows(text, model, lambda: models.load(model), rows=1)  # held-out text is kept beside it
    handle_requests([Score(run_dir=run_dir, evals=names, text=text)])


def cut_text_as(imported: Imported, model: str) -> None:
    """Have windows of text be as long as those that an SAE was trained on, as far as the model has positions, and
    begin as they did. A length that the user gave stays."""
    directory = models.local_directory(model) or hub.config_folder(models.hub_repository(model))
    positions = shape_of(model_files.read_config(directory), model).positions
    if imported.context:
        context = max(LEAST_CONTEXT, min(imported.context, positions or imported.context))
        os.environ.setdefault(CONTEXT_VARIABLE, str(context))
    if not imported.prepend_bos:
        os.environ[BEGIN_VARIABLE] = "0"


def read(source: str) -> Foreign:
    """Read an SAE in whichever format it is. Raises UserError."""
    folder = files.locate(source)
    if not files.exists(folder):
        if not releases.is_named(source):
            raise UserError(f"there is no directory {source}")
        if sae := releases.read_release(source):
            return sae
        folder = releases.repository_folder(source)
    folder = reading.resolved(folder)
    for form in FORMATS:
        if form.is_one(folder):
            return form.read(folder, source)
    raise UserError(f"{source} {_what_is_missing(folder)}: docs/other_saes.md lists the files of each format")


def _what_is_missing(folder: Path) -> str:
    """Return why a folder holds no SAE in a format that is read: the file of a pair that is not there."""
    pairs = [(form.CONFIG, form.WEIGHTS) for form in FORMATS]
    found = next((name for pair in pairs for name in pair if (folder / name).exists()), None)
    if not found:
        return "is not an SAE in a format that is read"
    others = dict.fromkeys(name for pair in pairs if found in pair for name in pair if name != found)
    return f"holds {found}, and beside it no {' or '.join(others)}"


def settle_model(sae: Foreign, asked: str | None) -> tuple[str, list[str]]:
    """Return the model that an SAE is scored on, and warnings. Raises UserError if it is of another than asked for."""
    named, source = sae.model, sae.imported.source
    if not asked:
        if not named:
            raise UserError(f"the files of {source} name no model: give --model")
        return models.canonical_name(named), []
    model = models.canonical_name(asked)
    if not named:
        return model, []
    try:
        own = models.canonical_name(named)
    except UserError:
        return model, [f"its files name the model {named}, which is not known here: it is scored on {asked}"]
    if own.lower() == model.lower() or Path(own).name.lower() == Path(model).name.lower():
        return model, []
    if Path(model).is_absolute() and not models.local_directory(own):  # a copy has no other name to tell it by
        return model, [f"its files name the model {named}: {asked} has to be a copy of it"]
    raise UserError(f"{source} is of the model {named}, not of {asked}")


def settle_hook(sae: Foreign, asked: str | None) -> str:
    """Return the hook whose activations an SAE reads. Raises UserError if it is of another than asked for."""
    if asked and sae.hook_name and asked != sae.hook_name:
        raise UserError(f"{sae.imported.source} is of the hook {sae.hook_name}, not of {asked}")
    if not (hook_name := asked or sae.hook_name):
        raise UserError(f"the files of {sae.imported.source} name no hook: give --hook, as blocks.8.hook_resid_post")
    return hook_name


def save(folder: Path, sae: Foreign, imported: Imported, evaluator: Evaluator) -> Header:
    """Save an SAE as a checkpoint, and return its header, of no architecture: SAELens' files would be a second copy.

    Raises CheckpointError.
    """
    header = Header(
        model=evaluator.model_name,
        hook_name=evaluator.hook_name,
        layer=models.layer_of(evaluator.hook_name),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        scale=1.0,
        imported=imported,
        any_parameter_changed=True,
    )
    named = {name: getattr(sae.encoder, name, None) for name in ("W_enc", "b_enc", "threshold")}
    checkpoint.save(folder, sae.encoder, sae.W_dec, sae.b_dec, header, **named)
    return header


@torch.no_grad()
def measured_l0(sae: Foreign, held_out: HeldOut) -> float:
    """Return the mean number of active latents on held-out activations."""
    encoder, rows = sae.encoder.to(held_out.activations.device), held_out.activations
    fired = sum((encoder(part) != 0).sum().item() for part in rows.split(rows_at_once(sae.d_sae)))
    return fired / len(rows)
