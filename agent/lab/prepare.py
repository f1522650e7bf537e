"""python -P -m agent.lab.prepare --model M --hook_name H --text T --tokens N: harvest before a study runs.

The evaluations in --evals are checked first; nothing is harvested if one that is required cannot run.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from agent.lab import activations, corpus, estimates, files, fingerprint, gpus, models, needs
from agent.lab.defaults import EVALUATION_DATA
from agent.lab.evaluation import doctor, published
from agent.lab.evaluation.evaluator import artefact_folder, keep_what_was_read
from agent.lab.exits import one_line_errors
from agent.lab.rows import Manifest


def main() -> None:
    args = _parser().parse_args()
    with one_line_errors("nothing half-harvested is kept"):
        if line := gpus.unusable():
            print(f"{line}: the study runs on the CPU", flush=True)
        if models.device_config().device == "mps":
            print("--device mps is untried: compare a first study with one on the CPU", flush=True)
        models.identity(args.model)  # fetches a hub model, so that its config can be read
        text = corpus.pin(args.text)
        evaluations = settle_evaluations(args.model, args.hook_name, text, args.evals, args.needed)
        needs.settle_threads()
        plan = needs.plan(
            **{name: getattr(args, name) for name in ("model", "hook_name", "tokens", "d_sae", "batch")},
            text=text,
            stream=args.stream,
            trainings=args.trainings,
            jobs=args.jobs,
        )
        for line in needs.described(plan) if args.trainings else ():
            print(line, flush=True)
        folder, manifest = activations.ensure_harvest(args.model, args.hook_name, args.tokens, text, "", args.stream)
        what = "tokens to stream" if args.stream else "activations"
        print(f"{what}: {manifest.rows:,} of {manifest.hook_name} in {folder}")
        artefacts = artefact_folder(args.model, models.identity(args.model), args.hook_name, text)
        keep_what_was_read(artefacts, args.model, text, manifest)
        trained_on = describe_training(manifest, args.tokens)
        print(f"trained on {trained_on}", flush=True)
        if args.fingerprint:
            content = fingerprint.fingerprint(args.model, text, args.stream) | evaluations
            content |= {
                "gpus": gpu_count(models.device_config().device),
                "job_bytes": int(estimates.job_ram(plan)),
                "activations": str(folder),
                "sealed": activations.kept_seal(folder),
                "artefacts": str(artefacts),
                "text": text,
                "trained_on": trained_on,
            }
            files.write_atomically(args.fingerprint, json.dumps(content, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.prepare", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--text", default="", help="a file, a folder or a hub dataset; it is pinned")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--stream", action="store_true", help="have the model make rows as they are read")
    parser.add_argument("--d_sae", type=int, help="latents; by default the model's own")
    parser.add_argument("--batch", type=int, help="tokens a step, likewise")
    parser.add_argument("--trainings", type=int, default=0, help="of a study that starts; 0: of one that goes on")
    parser.add_argument("--jobs", type=int, default=1, help="at once")
    parser.add_argument("--evals", default="quick", help="families, or quick, standard, full")
    parser.add_argument("--needed", default="core", metavar="FAMILY", help="family that measures the primary metric")
    parser.add_argument("--fingerprint", type=Path, metavar="FILE", help="JSON file for these and the folders")
    return parser


def settle_evaluations(model: str, hook_name: str, text: str, evals: str, needed: str) -> dict[str, Any]:
    """Return the families that a study is scored by, why the others are left out, and on what data; print the latter.

    Raise UserError if one that was asked for by name, or the `needed` one, cannot run.
    """
    published_data = os.environ.pop(EVALUATION_DATA, "")
    families, left_out = doctor.resolve_families(doctor.eval_target(model, hook_name, text), evals, needed)
    for name, reason in left_out.items():
        print(f"left out of {evals}: {name}: {reason}", flush=True)
    evaluated_on = published.use(published_data, families, corpus.source(text)) if published_data else {}
    for family, data in evaluated_on.items():
        print(f"{family} is scored on {data}", flush=True)
    return {"evals": families, "left_out": left_out, "evaluated_on": evaluated_on}


def gpu_count(device: str) -> int:
    """Return how many GPUs a study can use: all that are visible, the one that was chosen, or none."""
    if device == "cuda":
        return torch.cuda.device_count()
    return int(device != "cpu")


def describe_training(manifest: Manifest, tokens: int) -> str:
    """Return what a training reads, in words: the text, its documents, and how often it sees them."""
    passes = round(manifest.passes(tokens), 2)
    times = "1 pass" if passes == 1 else f"{passes:g} passes"
    if manifest.median_norm is None:
        return f"{manifest.rows:,} samples of {manifest.model}, {times}"
    name, streamed = manifest.text or "the text that comes with the installation", ", streamed" * bool(manifest.windows)
    return f"{name}, {manifest.documents:,} documents, {manifest.rows:,} tokens, {times}{streamed}"


if __name__ == "__main__":
    main()
