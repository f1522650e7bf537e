"""An SAE that was trained elsewhere as a run: files read, subject settled, checkpoint saved and verified."""

from pathlib import Path
from typing import Any

import torch

from agent.lab import checkpoint, files, models, results, verdicts
from agent.lab.checkpoint import Header
from agent.lab.checkpoint.files import HEADER
from agent.lab.defaults import is_world
from agent.lab.errors import UserError
from agent.lab.evaluation.bench.core_text import BATCH_WINDOWS
from agent.lab.evaluation.evaluator import Evaluator, HeldOut
from agent.lab.evaluation.sae_adapter import rows_at_once
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.foreign import reading, saelens, verify
from agent.lab.foreign.sae import Foreign
from agent.lab.results import FinalInfo, Imported
from agent.lab.verdicts import Verdict

FORMATS = (saelens,)
MOST_ROWS = 2048  # activations that latents and reconstructions are compared on


def make_run(source: str, run_dir: Path, model: str | None = None, hook_name: str | None = None) -> dict[str, Any]:
    """Write run_dir/checkpoint and a final_info.json without scores; return what the SAE is of, and warnings.

    Raises UserError; then nothing is left of `run_dir`.
    """
    sae = read(source)
    model, of_another = settle_model(sae, model)
    hook_name = settle_hook(sae, hook_name)
    evaluator = (WorldEvaluator if is_world(model) else Evaluator)(model, hook_name)
    held_out = evaluator.held_out("dev", BATCH_WINDOWS)
    if (width := held_out.activations.shape[1]) != sae.d_in:
        raise UserError(f"{source} reads activations of width {sae.d_in:,}, and {hook_name} of {model} has {width:,}")
    warnings = [*of_another, *sae.warnings]
    if doubt := verdicts.l0_warning(l0 := measured_l0(sae, held_out), sae.imported.declared_l0):
        warnings.append(doubt)
    with files.atomic_path(run_dir) as partial:
        partial.mkdir(parents=True)
        imported = sae.imported.model_copy(update={"warnings": [*of_another, *sae.warnings]})
        header = save(partial / "checkpoint", sae, imported, model, hook_name)
        if sae.original:
            loaded = evaluator.load_checkpoint(partial, held_out)
            found = verify.compare(loaded, sae.original, held_out.activations[:MOST_ROWS])
            verify.require(found, imported.library)
            header.imported = imported.model_copy(update={"verified": found})
            files.write_atomically(partial / "checkpoint" / HEADER, header.model_dump_json(indent=2) + "\n")
        verdict = Verdict(name="ok", evidence="converted, and not scored")
        results.write(partial, FinalInfo(verdict=verdict, imported=header.imported))
    return {
        "model": model,
        "hook_name": hook_name,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "l0": l0,
        "declared_l0": imported.declared_l0,
        "context": imported.context,
        "prepend_bos": imported.prepend_bos,
        "warnings": warnings,
    }


def read(source: str) -> Foreign:
    """Read an SAE in whichever format it is. Raises UserError."""
    folder = files.locate(source)
    if not files.exists(folder):
        raise UserError(f"there is no {source}")
    folder = reading.resolved(folder)
    for form in FORMATS:
        if form.is_one(folder):
            return form.read(folder, source)
    raise UserError(f"{source} is not an SAE in a format that is read: docs/other_saes.md lists the files of each")


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
    if models.local_directory(model) and not models.local_directory(own):  # a copy has no other name to tell it by
        return model, [f"its files name the model {named}: {asked} has to be a copy of it"]
    raise UserError(f"{source} is of the model {named}, not of {asked}")


def settle_hook(sae: Foreign, asked: str | None) -> str:
    """Return the hook whose activations an SAE reads. Raises UserError if it is of another than asked for."""
    if asked and sae.hook_name and asked != sae.hook_name:
        raise UserError(f"{sae.imported.source} is of the hook {sae.hook_name}, not of {asked}")
    if not (hook_name := asked or sae.hook_name):
        raise UserError(f"the files of {sae.imported.source} name no hook: give --hook, as blocks.8.hook_resid_post")
    return hook_name


def save(folder: Path, sae: Foreign, imported: Imported, model: str, hook_name: str) -> Header:
    """Save an SAE as a checkpoint, and return its header. Raises CheckpointError."""
    header = Header(
        model=model,
        hook_name=hook_name,
        layer=models.layer_of(hook_name),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        scale=1.0,
        imported=imported,
        any_parameter_changed=True,
        architecture=sae.encoder.standard,
    )
    encoder = sae.encoder
    named = {"W_enc": encoder.W_enc, "b_enc": encoder.b_enc, "threshold": getattr(encoder, "threshold", None)}
    checkpoint.save(folder, encoder, sae.W_dec, sae.b_dec, header, **named)
    return header


@torch.no_grad()
def measured_l0(sae: Foreign, held_out: HeldOut) -> float:
    """Return the mean number of active latents on held-out activations."""
    encoder, rows = sae.encoder.to(held_out.activations.device), held_out.activations
    fired = sum((encoder(part) != 0).sum().item() for part in rows.split(rows_at_once(sae.d_sae)))
    return fired / len(rows)
