"""python benchmarks/estimates.py [--training] [D_IN:D_SAE:BATCH ...]: what estimates.py reckons, and what is measured.

Each part of a job runs in a process of its own on the CPU, on a model of two layers with random weights: a training of
four steps in which most latents are dead, core on its checkpoint, the server of activations, and a harvest. Measured
are the peaks of their memory, and the bytes of the checkpoint. With --training the training and its checkpoint alone.
"""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("256:2048:1024", "512:8192:512", "768:16384:1024", "1536:16384:1024")
HOOK = "blocks.0.hook_resid_post"
STEPS, ROWS = 4, 140_000  # of a harvest: two shards
LAYERS, VOCABULARY = 2, 4096


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        measure_part(*sys.argv[2:])
        return
    print("| d_in x d_sae, batch | part | reckoned, GB | measured, GB | ratio |\n| --- | --- | --- | --- | --- |")
    sizes = [word for word in sys.argv[1:] if word != "--training"]
    for size in sizes or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for part in ("training", "checkpoint") if "--training" in sys.argv else PARTS:
                measured, reckoned = run_part(part, size, folder)
                name, ratio = size.replace(":", " x ", 1).replace(":", ", "), reckoned / measured
                print(f"| {name} | {part} | {reckoned / 1e9:.2f} | {measured / 1e9:.2f} | {ratio:.2f} |", flush=True)


def run_part(part: str, size: str, folder: str) -> tuple[float, float]:
    """Return the bytes that a part took, measured and reckoned."""
    env = {**os.environ, "SAE_AGENT_CACHE": f"{folder}/cache", "SAE_AGENT_DRIVEN": "1", "SAE_AGENT_DEVICE": "cpu"}
    command = [sys.executable, __file__, "--part", part, size, folder]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["measured"], found["reckoned"]


def measure_part(part: str, size: str, folder: str) -> None:
    """Carry out a part, and print what it took and what is reckoned."""
    from agent.lab import estimates

    d_in, d_sae, batch = map(int, size.split(":"))
    parameters = LAYERS * 12 * d_in**2 + 2 * VOCABULARY * d_in
    plan = estimates.Plan(d_in, d_sae, batch, ROWS, ROWS, parameters, 4, VOCABULARY, "cpu", shard_rows=ROWS // 2)
    measured = PARTS[part](plan, Path(folder))
    reckoned = {
        "training": lambda: estimates.training_ram(plan),
        "checkpoint": lambda: estimates.STORED_TWICE * plan.weights,
        "core": lambda: estimates.evaluator_ram(plan),
        "evaluator, idle": lambda: estimates.evaluator_ram(plan, scoring=False),
        "server": lambda: estimates.server_ram(plan),
        "harvest": lambda: estimates.harvest_ram(plan),
    }[part]()
    print(json.dumps({"measured": measured, "reckoned": reckoned}))


def peak() -> float:
    """Return the most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def now() -> float:
    """Return the bytes of memory that this process has."""
    import psutil

    return psutil.Process().memory_info().rss


def harvest(plan: Any, folder: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

    from agent.lab import activations

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=plan.d_in,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * plan.d_in,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(ROOT / "agent/lab/tiny_lm").save_pretrained(folder / "model")
    activations.ensure_harvest(str(folder / "model"), HOOK, ROWS)
    return peak()


def server(plan: Any, folder: Path) -> float:  # noqa: ARG001
    import torch

    from agent.lab import serve  # noqa: F401
    from agent.lab.rows import Manifest, StoredRows

    (path,) = (folder / "cache/activations").glob("*/manifest.json")
    rows = StoredRows(path.parent, Manifest.model_validate_json(path.read_bytes()), torch.device("cpu"))
    rows.start(0)
    for _ in range(2 * ROWS // 1024):
        rows.take(1024)
    return peak()


class Drawn:
    """Rows that are drawn here: under the driver another process holds the shards."""

    def __init__(self, d_in: int) -> None:
        self.d_in = d_in

    def start(self, seed: int, skip: int = 0) -> None:  # noqa: ARG002
        import torch

        torch.manual_seed(seed)

    def take(self, count: int) -> Any:
        import torch

        return torch.randn(count, self.d_in).half()


def training(plan: Any, folder: Path) -> float:
    from agent.lab.activations import Stream
    from agent.lab.rows import Manifest

    scales: dict[str, Any] = {"scale": 1, "stored_scale": 1, "mean": [0.0] * plan.d_in}
    about: dict[str, Any] = {"format": 2, "model": "", "hook_name": HOOK, "d_in": plan.d_in, "rows": ROWS, "shards": []}
    manifest, total = Manifest(**about, **scales), STEPS * plan.batch
    spec = importlib.util.spec_from_file_location("experiment", ROOT / "experiment.py")
    assert spec
    assert spec.loader
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    experiment.__dict__.update(
        MODEL=str(folder / "model"),
        HOOK_NAME=HOOK,
        D_SAE=plan.d_sae,
        BATCH=plan.batch,
        TOKENS=total,
        DEAD_AFTER=0,
        DEAD_EVERY=1,
        stream=lambda *_, **__: Stream(Drawn(plan.d_in), manifest, total, plan.batch, 0),
    )
    (folder / "run").mkdir()
    experiment.main(folder / "run")
    return peak()


def checkpoint(plan: Any, folder: Path) -> float:  # noqa: ARG001
    kept = [folder / "run/checkpoint", folder / "run/sae_lens"]
    return sum(file.stat().st_size for part in kept for file in part.rglob("*") if file.is_file())


def core(plan: Any, folder: Path) -> float:  # noqa: ARG001
    from agent.lab import memory
    from agent.lab.evaluation.__main__ import handle_request
    from agent.lab.evaluation.requests import Score

    handle_request(Score(run_dir=folder / "run", evals=("core",)), evaluators := {})
    assert evaluators
    most = peak()
    memory.give_back()
    (folder / "idle").write_text(str(now()))
    return most


def idle(plan: Any, folder: Path) -> float:  # noqa: ARG001
    return float((folder / "idle").read_text())


PARTS: dict[str, Callable[[Any, Path], float]] = {
    "harvest": harvest,
    "server": server,
    "training": training,
    "checkpoint": checkpoint,
    "core": core,
    "evaluator, idle": idle,
}


if __name__ == "__main__":
    main()
