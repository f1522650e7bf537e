"""python -P -m agent.lab.prepare --model M --hook_name H --tokens N: have the activations ready before a study runs.

With --evals, what the study is to be evaluated by is checked first; nothing is harvested where it cannot be.
"""

import argparse
import json
from pathlib import Path

from agent.lab import activations, files, fingerprint, models
from agent.lab.evaluation import doctor
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.prepare", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--evals", default="quick", help="families, or quick, standard, full")
    parser.add_argument("--needed", default="core", metavar="FAMILY", help="what measures the primary metric")
    parser.add_argument("--ground", type=Path, metavar="FILE", help="write here, as JSON, what was found")
    args = parser.parse_args()
    with one_line_errors("nothing half-harvested is kept"):
        models.identity(args.model)  # fetches a hub model, so that it can be looked at
        evals, left_out = doctor.resolve_families(
            doctor.eval_target(args.model, args.hook_name), args.evals, args.needed
        )
        for name, why in left_out.items():
            print(f"left out of {args.evals}: {name}: {why}", flush=True)
        folder, manifest = activations.ensure_harvest(args.model, args.hook_name, args.tokens)
        print(f"activations: {manifest.rows:,} of {manifest.hook_name} in {folder}")
        if args.ground:
            found = fingerprint.fingerprint(args.model) | {"evals": evals, "left_out": left_out}
            files.write_atomically(args.ground, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
