"""python -P -m agent.lab.foreign SAE --out RUN_DIR: make a run of an SAE that was trained elsewhere, and score it.

SAE is a directory in a format that is read (docs/other_saes.md), RELEASE/ID of SAELens, or OWNER/NAME/FOLDER of the
hub. A line on stdout is a JSON object: what the SAE is of, and warnings. Without --evals it is not scored.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.foreign", description=__doc__)
    parser.add_argument("source", metavar="SAE")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="a new directory")
    parser.add_argument("--model", help="the model; by default as the SAE's files name it")
    parser.add_argument("--hook", help="the hook, likewise")
    parser.add_argument("--evals", help="families, or quick, standard, full: score it on text as it was trained on")
    parser.add_argument("--text", default="", help="with --evals: a file, a folder or a hub dataset to score it on")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with one_line_errors(f"{args.out} may hold an SAE that is not scored"):
        if args.evals:
            catalogue.parse_evals(args.evals)  # an unknown name is refused before anything is read
        if args.out.exists():
            raise UserError(f"{args.out} exists and is not overwritten: give a new directory")
        from agent.lab.foreign import importing  # the libraries take seconds

        wanted = {"model": args.model, "hook_name": args.hook, "own_windows": bool(args.evals)}
        made = importing.make_run(args.source, args.out, **wanted)
        print(json.dumps(made), flush=True)
        if args.evals:
            importing.score(args.out, made["model"], made["hook_name"], args.evals, args.text)


if __name__ == "__main__":
    main()
