"""python -P -m agent.lab.checkpoint RUN: write RUN/sae_lens, for `sae_lens.SAE.load_from_disk`, from RUN/checkpoint.

The baselines of a study are kept without it.
"""

import argparse
import os
from pathlib import Path

import torch

from agent.lab import checkpoint
from agent.lab.checkpoint import files, sae_lens
from agent.lab.checkpoint.graph import GraphError
from agent.lab.errors import UserError
from agent.lab.exits import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.checkpoint", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the directory of a run")
    with one_line_errors("nothing was written"):
        print(export(parser.parse_args().run_dir))


@torch.no_grad()
def export(run_dir: Path) -> Path:
    """Write the folder sae_lens of a run, and return it. Raises CheckpointError; UserError if it is there."""
    folder = run_dir / "sae_lens"
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: remove it, or use it")
    loaded = checkpoint.load(run_dir / "checkpoint")
    rows = checkpoint.sample_rows(loaded.tensors)
    try:
        parts = sae_lens.parts(loaded.header, loaded.tensors, rows, loaded.graph(rows, loaded.tensors))
    except GraphError as error:
        raise checkpoint.CheckpointError(f"{run_dir} cannot be written for sae_lens: {error}") from None
    files.write(folder, sae_lens.files(loaded.header, parts))
    return folder


if __name__ == "__main__":
    main()
