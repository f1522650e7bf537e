"""Checks of what the evaluation families need, without loading a model.

python -P -m agent.lab.evaluation.doctor --model M --hook_name H --evals E --out FILE    write a catalogue.Report
"""

import argparse
import functools
import os
from pathlib import Path
from typing import Any

from agent.lab import cache, files, fingerprint, gpus, model_files, models, needs, text
from agent.lab.defaults import is_world
from agent.lab.errors import UserError, describe
from agent.lab.evaluation import catalogue, families
from agent.lab.evaluation.catalogue import CheckedFamily, EvalTarget, Report, UnmetRequirement
from agent.lab.evaluation.evaluator import artefact_folder
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.evaluation.doctor", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--evals", required=True, help="families, or quick, standard, full")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--d_sae", type=int, help="latents; by default the model's own")
    parser.add_argument("--batch", type=int, help="tokens a step, likewise")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    with one_line_errors("nothing was changed"):
        target = eval_target(args.model, args.hook_name)
        names = requested_families(target, args.evals, required_families(target, args.evals))
        report = Report(
            model=args.model,
            hook_name=args.hook_name,
            machine=machine_summary(),
            needs=study_needs(args),
            families=check_families(target, names),
            unsuited=[name for name in catalogue.parse_evals(args.evals) if name not in names],
            why_unsuited=catalogue.unsuited_requirement(target.world).reason,
        )
        files.write_atomically(args.out, report.model_dump_json())


def eval_target(model: str, hook_name: str, text: str = "") -> EvalTarget:
    """Describe a model, hook and pinned text without loading or fetching anything. Raises UserError for an unknown
    model."""
    world = is_world(model)
    directory = None if world else models.find_directory(model)
    config = model_files.read_config(directory) if directory else {}

    @functools.cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        if directory is None and not world:
            raise UserError(f"the tokenizer of {model} is not stored on this machine")
        return AutoTokenizer.from_pretrained(directory) if directory else None

    folder = artefact_folder(model, models.identity(model) if directory or world else "not-stored", hook_name, text)
    return EvalTarget(model, hook_name, world, config.get("text_config", config), tokenizer, folder, text=text)


def check_families(target: EvalTarget, names: tuple[str, ...]) -> list[CheckedFamily]:
    """Return the families with their unmet requirements; a check that fails counts as an unmet requirement."""
    checked = []
    for name in names:
        summary = ""
        try:
            family = families.load(name)
            if catalogue.suits(name, target.world):
                unmet = family.unmet_requirements(target)
            else:
                unmet = [catalogue.unsuited_requirement(target.world)]
            summary = family.SUMMARY
        except Exception as error:  # a broken package, a tokenizer that cannot be read
            unmet = [UnmetRequirement(f"its requirements cannot be checked: {describe(error)}", "mend that first")]
        checked.append(CheckedFamily(name=name, summary=summary, unmet_requirements=unmet))
    return checked


def required_families(target: EvalTarget, evals: str, *needed: str) -> set[str]:
    """Return the families that must run: core, `needed`, those named in `evals`, and on a world synthetic."""
    return {"core", *needed, *catalogue.named_families(evals), *(("synthetic",) if target.world else ())}


def requested_families(target: EvalTarget, evals: str, required: set[str]) -> tuple[str, ...]:
    """Return the required families, and those of a tier that suit this kind of model, in catalogue order."""
    names = catalogue.parse_evals(evals, *required)
    return tuple(name for name in names if name in required or catalogue.suits(name, target.world))


def resolve_families(target: EvalTarget, evals: str, *needed: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the families to run, and those of a tier that cannot run here, each with the reason.

    Raises UserError if a required family cannot run.
    """
    required = required_families(target, evals, *needed)
    checked = check_families(target, requested_families(target, evals, required))
    left_out = {
        family.name: _first_reason(family.unmet_requirements) for family in checked if family.unmet_requirements
    }
    refused: dict[str, list[str]] = {}  # reason -> families
    for name in required & left_out.keys():
        refused.setdefault(left_out[name], []).append(name)
    if refused:
        lines = (f"{', '.join(sorted(names))} cannot run: {reason}" for reason, names in refused.items())
        raise UserError("; ".join(sorted(lines)))
    return tuple(family.name for family in checked if family.name not in left_out), left_out


def _first_reason(unmet: list[UnmetRequirement]) -> str:
    first, *others = unmet
    return f"{first.reason}: {first.remedy}" + f" (and {len(others)} more: see agent doctor)" * bool(others)


def study_needs(args: argparse.Namespace) -> list[str]:
    """Return what a study would need, in lines. Raises UserError if it cannot fit."""
    needs.settle_threads()
    try:
        plan = needs.plan(args.model, args.hook_name, tokens=args.tokens, d_sae=args.d_sae, batch=args.batch)
    except UserError as unknown:  # the model is not stored here; the families say so too
        return [str(unknown)]
    return needs.described(plan)


def machine_summary() -> dict[str, str]:
    """Return the device, the cache with its free space, and the state of the text datasets, in words."""
    try:
        datasets = f"{text.check_datasets()} datasets, whole"
    except text.TextMissing as error:
        datasets = str(error)
    environment = fingerprint.environment()
    unusable = f"; {line}" if (line := gpus.unusable()) else ""
    return {
        "device": f"{environment['device']}, models in {environment['dtype']}, {os.cpu_count()} cores{unusable}",
        "cache": f"{cache.root()}, {cache.free_space(cache.root()) / 1e9:,.1f} GB free",
        "text": datasets,
    }


if __name__ == "__main__":
    main()
