"""What can be evaluated here, and what is missing for the rest; no model is loaded.

python -P -m agent.lab.evaluation.doctor --model M --hook_name H --evals E --out FILE    write a families.Report as JSON
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

from agent.lab import cache, files, fingerprint, models, text
from agent.lab.defaults import is_world
from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue, families
from agent.lab.evaluation.catalogue import CheckedFamily, EvalTarget, Report, UnmetRequirement
from agent.lab.evaluation.evaluator import artefact_folder
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.evaluation.doctor", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--evals", required=True, help="families, or quick, standard, full")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    with one_line_errors("nothing was changed"):
        here = eval_target(args.model, args.hook_name)
        names = requested_families(here, args.evals, required_families(here, args.evals))
        report = Report(
            model=args.model,
            hook_name=args.hook_name,
            machine=machine_summary(),
            families=check_families(here, names),
            unsuited=[name for name in catalogue.parse_evals(args.evals) if name not in names],
            why_unsuited=catalogue.unsuited_requirement(here.world).reason,
        )
        files.write_atomically(args.out, report.model_dump_json())


def eval_target(model: str, hook_name: str) -> EvalTarget:
    """A model and hook, as far as they are known without loading or fetching. Raises UserError for an unknown model."""
    world = is_world(model)
    directory = None if world else models.stored(model)
    named = json.loads((directory / "config.json").read_text()) if directory else {}

    @functools.cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        if directory is None and not world:
            raise UserError(f"the tokenizer of {model} is not stored on this machine")
        return AutoTokenizer.from_pretrained(directory) if directory else None

    folder = artefact_folder(model, models.identity(model) if directory or world else "not-stored", hook_name)
    return EvalTarget(model, hook_name, world, named.get("text_config", named), tokenizer, folder)


def check_families(here: EvalTarget, names: tuple[str, ...]) -> list[CheckedFamily]:
    """What each family lacks. One that cannot even tell lacks that."""
    found = []
    for name in names:
        try:
            family = families.load(name)
            suited = catalogue.suits(name, here.world)
            unmet = family.unmet_requirements(here) if suited else [catalogue.unsuited_requirement(here.world)]
            found.append(CheckedFamily(name=name, summary=family.SUMMARY, unmet_requirements=unmet))
        except Exception as error:  # a package that is broken, a tokenizer that cannot be read
            why = f"it cannot be checked: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            found.append(
                CheckedFamily(name=name, summary="", unmet_requirements=[UnmetRequirement(why, "mend that first")])
            )
    return found


def required_families(here: EvalTarget, evals: str, *needed: str) -> set[str]:
    """The families without which nothing runs: core, on a synthetic world the truth, what is `needed` or named."""
    return {"core", *needed, *catalogue.named_families(evals), *(("synthetic",) if here.world else ())}


def requested_families(here: EvalTarget, evals: str, demanded: set[str]) -> tuple[str, ...]:
    """Those, and of a tier what suits this kind of model."""
    chosen = catalogue.parse_evals(evals, *demanded)
    return tuple(name for name in chosen if name in demanded or catalogue.suits(name, here.world))


def resolve_families(here: EvalTarget, evals: str, *needed: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The families that run where these are asked for, and those of a tier that cannot run, with the reason.

    Raises UserError where one that is demanded cannot run.
    """
    named = required_families(here, evals, *needed)
    found = {
        each.name: each.unmet_requirements for each in check_families(here, requested_families(here, evals, named))
    }
    missing = {name: _in_a_line(lacks) for name, lacks in found.items() if lacks}
    refused: dict[str, list[str]] = {}
    for name in named & missing.keys():
        refused.setdefault(missing[name], []).append(name)
    if refused:
        said = (f"{', '.join(sorted(names))} cannot run: {why}" for why, names in refused.items())
        raise UserError("; ".join(sorted(said)))
    return tuple(name for name in found if name not in missing), missing


def _in_a_line(lacks: list[UnmetRequirement]) -> str:
    first, *others = lacks
    return f"{first.reason}: {first.remedy}" + f" (and {len(others)} more: see agent doctor)" * bool(others)


def machine_summary() -> dict[str, str]:
    """The device, the cache's disk and the text."""
    try:
        datasets = f"{text.check()} datasets, whole"
    except text.TextMissing as error:
        datasets = str(error)
    return {
        "device": f"{fingerprint.environment()['device']}, {os.cpu_count()} cores",
        "cache": f"{cache.root()}, {cache.free_space(cache.root()) / 1e9:,.1f} GB free",
        "text": datasets,
    }


if __name__ == "__main__":
    main()
