"""Measure the memory of the baseline and of every idea at the width of the field: 65,536 latents of 2,304 dimensions.

    python benchmarks/width.py [IDEA ...]

The activations are samples of a small world of that many dimensions. Of each idea it is the step with most mechanisms.
One process trains 8 steps of 64 samples with K 320 and exports the SAE: in so few steps tiers, trees and groups change
as often as in a whole training, and most latents count as dead from the third step on. Another one loads it, checks and
scores it on a slice of 256 samples, as the smoke test does, and runs the idea's analysis.

A row is the largest resident memory of either process beside the tensors that training cannot do without, in float32:
parameters, gradients and both of Adam's moments, 16 bytes a parameter, and one batch of latents, 4 batch d_sae bytes.
Both contain the libraries, some 0.4 GB. It takes 9 GB of memory, some 10 GB of disk, and some minutes a row.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import TEMPLATES, ideas

D_IN, D_SAE, K, BATCH, STEPS = 2304, 65_536, 320, 64, 8
SLICE = 256  # samples that are scored
MOST_RATIO = 1.5
FULLEST = {  # idea -> its step with most mechanisms
    "": "baseline",
    "hierarchical_sae": "curriculum",
    "tree_sae": "full",
    "adaptive_orthogonal_sae": "adaptive",
    "absorption_prevention_sae": "full",
    "matryoshka_sae": "eighths",
    "use_sorted_matryoshka_sae": "six_prefixes",
}


def render(idea: str, world: Path) -> str:
    """Return the experiment.py of a row, with the sizes of this measurement."""
    fixed = ideas.Fixed(model=str(world), hook_name="activations", tokens=BATCH * STEPS, d_sae=D_SAE)
    if not idea:
        text = ideas.render_baseline(fixed)
    else:
        loaded = ideas.load(idea)
        step = next(step for step in loaded.plan if step.name == FULLEST[idea])
        text = ideas.render_step(loaded, step, fixed)
    for name, value in (("K", K), ("BATCH", BATCH), ("DEAD_EVERY", 2)):
        text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
        assert count == 1, f"{name} stands {count} times in the experiment of {idea or 'the baseline'}"
    return text


def train(run_dir: Path) -> dict[str, int]:
    """Train and export; return the parameters, and the peak of this process in bytes."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("experiment", run_dir / "experiment.py")
    assert spec
    assert spec.loader
    experiment: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    guards = []

    class Guard(experiment.TrainingGuard):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            guards.append(self)

    experiment.TrainingGuard = Guard
    experiment.main(run_dir)
    parameters = sum(parameter.numel() for parameter in guards[0].sae.parameters())
    return {"parameters": parameters, "peak": peak()}


def evaluate(run_dir: Path, world: str, idea: str) -> dict[str, int]:
    """Load, check and score a slice, and run the idea's analysis; return the peak of this process in bytes."""
    from agent.lab.defaults import CONTEXT
    from agent.lab.evaluation.bench import core
    from agent.lab.evaluation.requests import Score
    from agent.lab.evaluation.sae_adapter import CheckpointSAE
    from agent.lab.evaluation.scoring import score
    from agent.lab.evaluation.world_evaluator import WorldEvaluator

    class Slice(WorldEvaluator):
        """An evaluator on few samples; the slope of an encoder that is not affine takes as much memory at one of them
        as at 64."""

        def held_out(self, split: Any, windows: int | None = None) -> Any:  # noqa: ARG002
            few = super().held_out(split, SLICE // CONTEXT)
            return replace(few, ids=few.ids.view(core.BATCH_WINDOWS, -1))

        def checkpoint_sae(self, loaded: Any, held_out: Any) -> CheckpointSAE:
            return CheckpointSAE(self.config(*loaded.W_dec.shape), loaded, held_out.activations[:1])

    analysis = TEMPLATES / "ideas" / idea / "analysis.py" if idea else None
    info = score(Slice(world, "activations"), Score(run_dir=run_dir, slice=True, analysis=analysis))
    assert info.core, info.errors
    assert not info.errors, info.errors
    return {"peak": peak()}


def peak() -> int:
    """Return the largest resident memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(environment: dict[str, str], *arguments: str) -> dict[str, int]:
    """Run `train` or `evaluate` in a process of its own and return its answer."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(idea: str, folder: Path, world: Path, environment: dict[str, str]) -> str:
    """Return the row of the baseline ("") or an idea."""
    run_dir = folder / (idea or "baseline")
    run_dir.mkdir()
    (run_dir / "experiment.py").write_text(render(idea, world))
    trained = in_a_process(environment, "train", str(run_dir))
    evaluated = in_a_process(environment, "evaluate", str(run_dir), str(world), idea)
    needed = 16 * trained["parameters"] + 4 * BATCH * D_SAE
    cells = [f"{idea}, {FULLEST[idea]}" if idea else "baseline", f"{needed / 1e9:.2f} GB"]
    for process in (trained, evaluated):
        ratio = process["peak"] / needed
        cells.append(f"{process['peak'] / 1e9:.2f} GB ({ratio:.2f}{'' if ratio <= MOST_RATIO else ', too much'})")
    return f"| {' | '.join(cells)} |"


def build_world(folder: str) -> None:
    """Build a world of few features in D_IN dimensions."""
    from agent.lab import worlds

    worlds.build(worlds.world_config(256, D_IN, 4)).save(folder)


def main(chosen: list[str]) -> None:
    print("| | tensors that training needs | training and export | loading, a slice, analysis |")
    print("| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder, "world")
        environment = os.environ | {"SAE_AGENT_CACHE": str(Path(folder, "cache")), "SAE_AGENT_DRIVEN": "1"}
        in_a_process(environment, "world", str(world))
        for idea in chosen or FULLEST:
            print(measure(idea.replace("baseline", ""), Path(folder), world, environment), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(train(Path(sys.argv[2]))))
    elif sys.argv[1:2] == ["evaluate"]:
        print(json.dumps(evaluate(Path(sys.argv[2]), *sys.argv[3:])))
    elif sys.argv[1:2] == ["world"]:
        print(json.dumps(build_world(sys.argv[2])))
    else:
        main(sys.argv[1:])
