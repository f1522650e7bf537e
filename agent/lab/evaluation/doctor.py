"""What can be evaluated here, and what is missing for the rest; no model is loaded.

python -P -m agent.lab.evaluation.doctor --model M --hook_name H --evals E --out FILE    write a families.Report as JSON
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

from agent.lab import cache, ground, models, results, text
from agent.lab.ending import one_line
from agent.lab.errors import UserError
from agent.lab.evaluation import families
from agent.lab.evaluation.evaluator import artefacts
from agent.lab.evaluation.families import Checked, Lack, Place, Report

WORLD_FILE = "synthetic_model_config.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.evaluation.doctor", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--evals", required=True, help="families, or quick, standard, full")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    with one_line("nothing was changed"):
        here = place(args.model, args.hook_name)
        found = check(here, families.chosen(args.evals))
        report = Report(model=args.model, hook_name=args.hook_name, machine=machine(), families=found)
        results.write_whole(args.out, report.model_dump_json())


def place(model: str, hook_name: str) -> Place:
    """A model and hook, as far as they are known without loading or fetching. Raises UserError for an unknown model."""
    directory = models.stored(model)
    world = directory is not None and (directory / WORLD_FILE).exists()
    named = {} if world or directory is None else json.loads((directory / "config.json").read_text())

    @functools.cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        if directory is None:
            raise UserError(f"the tokenizer of {model} is not stored on this machine")
        return None if world else AutoTokenizer.from_pretrained(directory)

    folder = artefacts(model, models.identity(model) if directory else "not-stored", hook_name)
    return Place(model, hook_name, world, named.get("text_config", named), tokenizer, folder)


def check(here: Place, names: tuple[str, ...]) -> list[Checked]:
    """What each family lacks. One that cannot even tell lacks that."""
    found = []
    for name in names:
        try:
            family = families.load(name)
            found.append(Checked(name=name, says=family.SAYS, lacks=family.lacks(here)))
        except Exception as error:  # a package that is broken, a tokenizer that cannot be read
            why = f"it cannot be checked: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            found.append(Checked(name=name, says="", lacks=[Lack(why, "mend that first")]))
    return found


def settle(here: Place, evals: str, needed: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The families that a study is evaluated by, and those of its tier that cannot run, with the reason.

    `needed` measures the study's primary metric. Raises UserError where that one, or one that was asked for by name,
    cannot run.
    """
    first = "synthetic" if here.world else "core"
    found = {each.name: each.lacks for each in check(here, families.chosen(evals, first, needed))}
    missing = {name: "; ".join(f"{lack.why}: {lack.do}" for lack in lacks) for name, lacks in found.items() if lacks}
    refused: dict[str, list[str]] = {}
    for name in families.named(evals) | {first, needed}:
        if name in missing:
            refused.setdefault(missing[name], []).append(name)
    if refused:
        said = (f"{', '.join(sorted(names))} cannot run: {why}" for why, names in refused.items())
        raise UserError("; ".join(sorted(said)))
    return tuple(name for name in found if name not in missing), missing


def machine() -> dict[str, str]:
    """The device, the cache's disk and the text."""
    try:
        datasets = f"{text.check()} datasets, whole"
    except text.TextMissing as error:
        datasets = str(error)
    return {
        "device": f"{ground.environment()['device']}, {os.cpu_count()} cores",
        "cache": f"{cache.root()}, {cache.free_space(cache.root()) / 1e9:,.1f} GB free",
        "text": datasets,
    }


if __name__ == "__main__":
    main()
