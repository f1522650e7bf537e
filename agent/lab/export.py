"""python -P -m agent.lab.export RUN --to FORMAT --out DIR: write the SAE of a run in the format of another library.

DIR is a new directory, to which `agent export` adds a card. The line on stdout is a JSON object: what the SAE is.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from agent.lab import checkpoint, results
from agent.lab.checkpoint import Header, dictionary_learning, files, sae_lens
from agent.lab.checkpoint.graph import GraphError
from agent.lab.defaults import WORLD_HOOK
from agent.lab.errors import UserError
from agent.lab.exits import one_line_errors

IN_DASHBOARDS = ("standard", "jumprelu", "gated", "topk")  # the kinds of SAELens that SAEDashboard 0.8 knows


def for_dashboards(header: Header, parts: sae_lens.Parts) -> files.Contents:
    """Return the files of SAELens as SAEDashboard needs them. Raises GraphError for a kind that it does not know."""
    if parts.kind.name not in IN_DASHBOARDS:
        known = ", ".join(IN_DASHBOARDS)
        raise GraphError(
            f"SAEDashboard, which makes its dashboards, has no place for {parts.kind.name}: it has {known}"
        )
    return sae_lens.files(header, parts, unit_rows=True)


WRITERS = {
    "saelens": sae_lens.files,
    "neuronpedia": for_dashboards,
    "dictionary_learning": dictionary_learning.files,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.export", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument("--to", choices=WRITERS, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    with one_line_errors("nothing was written"):
        print(json.dumps(export(args.run_dir, args.to, args.out)), flush=True)


@torch.no_grad()
def export(run_dir: Path, form: str, out: Path) -> dict[str, Any]:
    """Write the SAE of a run as the new folder `out`, and return what it is.

    Raises CheckpointError for a bad checkpoint, UserError for an SAE that the format has no place for.
    """
    loaded = checkpoint.load(run_dir / "checkpoint")
    header = published(loaded.header, results.read(run_dir).metric("l0"))
    rows = checkpoint.sample_rows(loaded.tensors)
    try:
        if loaded.non_finite:
            raise GraphError("it holds numbers that are not finite: its training broke")
        if form != "saelens" and loaded.header.hook_name == WORLD_HOOK:
            raise GraphError("it is for SAEs of language models, and this one is of a synthetic world")
        parts = sae_lens.parts(loaded.header, loaded.tensors, rows, loaded.graph(rows, loaded.tensors))
        content = WRITERS[form](header, parts)
    except GraphError as error:
        raise UserError(f"{run_dir} cannot be exported to {form}: {error}") from None
    files.write(out, content)
    lengths = sae_lens.row_lengths(loaded.W_dec) / header.scale
    return {
        "model": header.model,
        "hook_name": header.hook_name,
        "d_in": header.d_in,
        "d_sae": header.d_sae,
        "kind": sae_lens.trained_as(header, loaded.threshold),
        "files": sorted(content),
        "row_lengths": lengths.tolist() if form == "neuronpedia" else [],  # by which its latents are larger
    }


def published(header: Header, l0: float | None) -> Header:
    """Return a header as it is shown to others: L0 as it was measured, a local model by its directory's name alone."""
    model = Path(header.model).name if Path(header.model).is_absolute() else header.model
    training = header.training
    if training and l0 is not None:
        training = training.model_copy(update={"final_l0": l0})
    return header.model_copy(update={"model": model, "training": training})


if __name__ == "__main__":
    main()
