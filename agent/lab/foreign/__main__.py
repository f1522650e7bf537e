"""python -P -m agent.lab.foreign SAE --out RUN_DIR: make a run of an SAE that was trained elsewhere, to be scored.

SAE is a directory in a format that is read (docs/other_saes.md), a release/id of SAELens, or OWNER/NAME/FOLDER of the
hub. The last line on stdout is a JSON object: what the SAE is of, and warnings.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

from agent.lab.errors import UserError
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.foreign", description=__doc__)
    parser.add_argument("source", metavar="SAE")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="a new directory")
    parser.add_argument("--model", help="the model; by default as the SAE's files name it")
    parser.add_argument("--hook", help="the hook, likewise")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with one_line_errors(f"nothing is left in {args.out}"):
        if args.out.exists():
            raise UserError(f"{args.out} exists and is not overwritten: give a new directory")
        from agent.lab.foreign import importing  # the libraries take seconds

        print(json.dumps(importing.make_run(args.source, args.out, args.model, args.hook)), flush=True)


if __name__ == "__main__":
    main()
