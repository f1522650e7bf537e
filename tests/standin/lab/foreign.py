"""A stand-in for the import of SAEs from elsewhere: reads sae.json of a directory, and refuses another width."""

import argparse
import json
import sys
from pathlib import Path

D_IN = 64

parser = argparse.ArgumentParser()
parser.add_argument("source")
parser.add_argument("--out", type=Path)
parser.add_argument("--model")
parser.add_argument("--hook")
args = parser.parse_args()
try:
    sae = json.loads(Path(args.source, "sae.json").read_text())
except (OSError, ValueError):
    print(f"error: {args.source} is not an SAE that can be read", file=sys.stderr)
    sys.exit(2)
if sae["d_in"] != D_IN:
    print(f"error: {args.source} has d_in {sae['d_in']}, and {args.hook} of {args.model} {D_IN}", file=sys.stderr)
    sys.exit(2)
imported = {"source": args.source, "format": "saelens", "architecture": sae["architecture"], "library": "sae-lens 6"}
imported |= {"declared_l0": sae.get("declared_l0"), "declared_tokens": sae.get("tokens")}
header = {"model": args.model, "hook_name": args.hook, "d_in": D_IN, "d_sae": sae["d_sae"], "imported": imported}
scores = {"tokens": 0, "seed": 0, "l0": sae["l0"], "score": sae["score"], "only_on_dev": 0.0}
scores |= {"slow": bool(sae.get("slow")), "deadly": bool(sae.get("deadly"))}
(args.out / "checkpoint").mkdir(parents=True)
(args.out / "checkpoint/header.json").write_text(json.dumps(header | scores))
(args.out / "final_info.json").write_text('{"verdict": {"name": "ok", "evidence": "imported"}}')
print(json.dumps({"d_in": D_IN, "d_sae": sae["d_sae"], "declared_l0": sae.get("declared_l0"), "warnings": []}))
