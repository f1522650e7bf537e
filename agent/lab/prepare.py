"""python -P -m agent.lab.prepare --model M --hook_name H --tokens N: harvest the activations before a study runs.

The evaluations in --evals are checked first; nothing is harvested if one that is required cannot run.
"""

import argparse
import json
from pathlib import Path

from agent.lab import activations, files, fingerprint, gpus, models
from agent.lab.evaluation import doctor
from agent.lab.evaluation.evaluator import artefact_folder
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.prepare", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--evals", default="quick", help="families, or quick, standard, full")
    parser.add_argument("--needed", default="core", metavar="FAMILY", help="family that measures the primary metric")
    parser.add_argument("--fingerprint", type=Path, metavar="FILE", help="JSON file for these and the folders")
    args = parser.parse_args()
    with one_line_errors("nothing half-harvested is kept"):
        if line := gpus.unusable():
            print(f"{line}: the study runs on the CPU", flush=True)
        models.identity(args.model)  # fetches a hub model, so that its config can be read
        evals, left_out = doctor.resolve_families(
            doctor.eval_target(args.model, args.hook_name), args.evals, args.needed
        )
        for name, reason in left_out.items():
            print(f"left out of {args.evals}: {name}: {reason}", flush=True)
        folder, manifest = activations.ensure_harvest(args.model, args.hook_name, args.tokens)
        print(f"activations: {manifest.rows:,} of {manifest.hook_name} in {folder}")
        if args.fingerprint:
            identity = models.identity(args.model)
            content = fingerprint.fingerprint(args.model) | {
                "evals": evals,
                "left_out": left_out,
                "activations": str(folder),
                "artefacts": str(artefact_folder(args.model, identity, args.hook_name)),
            }
            files.write_atomically(args.fingerprint, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
