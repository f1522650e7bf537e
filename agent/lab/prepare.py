"""python -P -m agent.lab.prepare --model M --hook_name H --tokens N: have the activations ready before a study runs."""

import argparse
import json
from pathlib import Path

from agent.lab import activations, ground, results
from agent.lab.ending import one_line


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.prepare", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--ground", type=Path, metavar="FILE", help="write here, as JSON, what figures depend on")
    args = parser.parse_args()
    with one_line("nothing half-harvested is kept"):
        folder, manifest = activations.ensure(args.model, args.hook_name, args.tokens)
        print(f"activations: {manifest.rows:,} of {manifest.hook_name} in {folder}")
        if args.ground:
            results.write_whole(args.ground, json.dumps(ground.ground(args.model), indent=2) + "\n")


if __name__ == "__main__":
    main()
