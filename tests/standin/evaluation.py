"""In the place of the evaluator: turns the header that a stand-in experiment left into results."""

import json
import sys
import time
from pathlib import Path

from agent.lab.results import Core, FinalInfo, Latents, Probe, Probing, Training, write
from agent.lab.verdicts import Verdict

run_dir = Path(sys.argv[1])
print("evaluating", flush=True)
if not (run_dir / "checkpoint" / "header.json").exists():
    sys.exit("error: the evaluator broke")
header = json.loads((run_dir / "checkpoint" / "header.json").read_text())
if header["slow"]:
    time.sleep(60)
auc = {1: 0.61, 5: 0.671}
probe = {
    "auc": auc,
    "accuracy": {1: 0.6, 5: 0.65},
    "random_auc": {1: 0.6, 5: 0.672},
    "llm_auc": 0.8,
    "llm_accuracy": 0.7,
}
core = dict.fromkeys(Core.model_fields, 0.9) | {"l0": header["l0"], "ce_loss_score": header["score"], "tokens": 1000}
write(
    run_dir,
    FinalInfo(
        verdict=Verdict(name="ok", evidence="above the floor", warnings=["only 40% of the latents are alive"]),
        training=Training(
            model=header["model"],
            hook_name=header["hook_name"],
            layer=1,
            d_in=64,
            d_sae=header["d_sae"],
            steps=10,
            tokens=header["tokens"],
            final_loss=0.2,
            seconds=1.0,
            learning_rate=1e-3,
            seed=0,
            settings={},
        ),
        core=Core.model_validate(core),
        latents=Latents.model_validate(dict.fromkeys(Latents.model_fields, 0.4)),
        probing=Probing.model_validate(probe | {"datasets": [Probe.model_validate(probe | {"dataset": "news"})]}),
    ),
)
