"""A stand-in for the preparation: knows one model, directories, and three evaluations, and can be slow."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from agent.lab import cache, estimates
from agent.lab.errors import UserError
from agent.lab.estimates import Plan
from agent.lab.evaluation import catalogue
from agent.lab.machine import this_machine

D_IN = 64

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--hook_name")
parser.add_argument("--text", default="")
parser.add_argument("--tokens", type=int)
parser.add_argument("--stream", action="store_true")
for option in ("--d_sae", "--batch", "--trainings", "--jobs"):
    parser.add_argument(option, type=int)
parser.add_argument("--evals")
parser.add_argument("--needed")
parser.add_argument("--fingerprint", type=Path)
args = parser.parse_args()
if args.model != "tiny-lm" and not Path(args.model, "config.json").exists():
    print(f"error: unknown model {args.model!r}: did you mean tiny-lm?", file=sys.stderr)
    sys.exit(2)
evals, left_out = catalogue.parse_evals(args.evals, args.needed), {}
for name in set(evals) - {"core", "sparse_probing_sae_probes", "tpp"}:
    left_out[name] = "it has no stand-in: write one"
if refused := left_out.keys() & (catalogue.named_families(args.evals) | {args.needed}):
    print(f"error: {', '.join(refused)} cannot run: it has no stand-in: write one", file=sys.stderr)
    sys.exit(2)
sizes = (D_IN, args.d_sae, args.batch, args.tokens, args.tokens)
plan = Plan(
    *sizes, 0, 4, 0, "cpu", "1", trainings=args.trainings
)  # with one job: those of a stand-in hold next to nothing
if args.trainings:
    here = this_machine(Path.cwd(), gpu=0)
    try:
        estimates.require_fit(plan, here)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for line in estimates.describe(plan, here, estimates.measured_step(cache.root() / "baselines", plan)):
        print(line, flush=True)
print("harvesting", flush=True)
time.sleep(float(os.environ.get("SAE_AGENT_STANDIN_HARVEST", "0")))
dtype = os.environ.get("SAE_AGENT_DTYPE", "float32")
ground = "0123456789abcdef" if dtype == "float32" else "fedcba9876543210"
args.fingerprint.write_text(
    json.dumps(
        {
            "fingerprint": os.environ.get("SAE_AGENT_STANDIN_GROUND", ground),
            "parts": {
                "dtype": dtype,
                "evaluation_data": os.environ.get("SAE_AGENT_EVALUATION_DATA", ""),
                "context": os.environ.get("SAE_AGENT_CONTEXT", ""),
                "threads": os.environ.get("SAE_AGENT_THREADS", "1"),
            },
            "evaluated_on": {},
            "gpus": 0,
            "job_bytes": int(estimates.job_ram(plan)),
            "evals": [name for name in evals if name not in left_out],
            "left_out": left_out,
            "activations": str(cache.root() / "activations" / "stand-in"),
            "sealed": "",
            "text": args.text,
            "trained_on": f"{args.text or 'a stand-in'}, 10 documents, {args.tokens:,} tokens, 1 pass",
            "artefacts": str(cache.root() / "evaluation" / "stand-in"),
        }
    )
)
