"""Compare each kind of baseline with SAELens' own trainer of that kind, on the same activations in the same order.

    python benchmarks/baselines.py WORK_DIR [--kinds relu,gated] [--models tiny-lm] [--out FILE]

Both train at the same width, batch, tokens, learning rate and schedule, with five seeds, and are scored on the same
held-out activations, in the form in which they are used (thresholds for what was a choice within a batch). By default
SAELens trains with every difference taken away (sae_lens_alike.py), and as it is from our start (b_dec is the mean of
the data, the decoder's rows have norm 1); `--sides sae_lens` has it start from its own, and `--sides sae_lens_but_rows`
has one difference left, here the decoder's rows. Our figures are read at SAELens' L0, linearly in log L0, with
trainings at a knob a little lower and a little higher.

Each training leaves a file in WORK_DIR, and one that is there is not repeated: a benchmark that was stopped goes on.
With `--rates` or `--knobs` there is no comparison but a line for each training of `--sides`, which is how the settings
below and the defaults of the baselines were found.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent import constants, ideas
from agent.ideas import Fixed
from agent.lab import checkpoint, defaults, files
from agent.lab.activations import stream
from agent.lab.architectures import BASELINES, BaselineName
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.world_evaluator import WorldEvaluator

# isort: split
import parity_table
import sae_lens_trainer
from sae_lens_alike import DIFFERENCES
from sae_lens_trainer import LEFT

SIDES = ("ours", "sae_lens_alike", "sae_lens_as_ours")
NEIGHBOURS = (0.85, 1.18)  # times the knob: ours with the first seed, for the slope over log L0
SCORED = 16_384  # held-out activations
BATCH = 128  # tokens a step: 800 steps of the usual 102,400 tokens
D_SAE = 512
KNOBS: dict[str, dict[BaselineName, float]] = {  # near L0 16 on tiny-lm and 8 on synth2k
    "tiny-lm": {"batchtopk": 16, "topk": 16, "jumprelu": 16, "gated": 2.2, "relu": 1.36, "matryoshka": 16},
    "synth2k": {"batchtopk": 8, "topk": 8, "jumprelu": 8, "gated": 3.2, "relu": 2.3, "matryoshka": 8},
}
KNOBS_OF_SAE_LENS: dict[tuple[str, BaselineName], float] = {  # where the same L0 needs another
    ("tiny-lm", "jumprelu"): 0.4,
    ("synth2k", "jumprelu"): 0.95,
    ("tiny-lm", "gated"): 1.64,
    ("synth2k", "gated"): 2.7,
}
RATE = 4e-3


@dataclass(frozen=True)
class Trial:
    """One training; `knob` is K or a coefficient."""

    model: str
    kind: BaselineName
    side: str
    knob: float
    rate: float
    tokens: int
    seed: int
    changed: tuple[tuple[str, float], ...] = ()  # constants of ours

    @property
    def name(self) -> str:
        """The name of its file."""
        of = Path(self.model).name
        changed = "".join(f"{name}{value:g}_" for name, value in self.changed)
        return f"{of}_{self.kind}_{self.side}_{self.knob:g}_lr{self.rate:g}_{self.tokens}_{changed}seed{self.seed}.json"

    @property
    def source(self) -> str:
        """The experiment.py of the baseline."""
        sizes = {"tokens": self.tokens, "d_sae": D_SAE, "batch": BATCH, "seed": self.seed}
        every_step = {"DEAD_EVERY": 1, **dict(self.changed)}  # as SAELens; by default more than synth2k's window
        fixed = Fixed.model_validate(sizes | {"model": self.model, "baseline": self.kind, "constants": every_step})
        return ideas.render_baseline(fixed, self.knob, rate=self.rate)


def load_module(path: Path) -> ModuleType:
    """Return an experiment as a module; its main is not run."""
    spec = importlib.util.spec_from_file_location("experiment", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and summaries from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@dataclass(frozen=True)
class Held:
    """Held-out activations `[rows, d_in]`, in the model's own units."""

    rows: Tensor

    @classmethod
    def of(cls, model: str, hook_name: str, folder: Path) -> "Held":
        """Return those that the evaluator scores, SCORED of them, kept in a file of the folder."""
        path = folder / f"held_out_{Path(model).name}.safetensors"
        if not path.exists():
            evaluator = (WorldEvaluator if defaults.is_world(model) else Evaluator)(model, hook_name)
            rows = evaluator.held_out("dev").activations
            save_file({"rows": rows[:: max(len(rows) // SCORED, 1)][:SCORED].contiguous()}, path)
        return cls(load_file(path)["rows"])

    @torch.no_grad()
    def score(self, sae: Any, scale: float) -> dict[str, float]:
        """Return the figures of what encodes and decodes these activations times `scale`."""
        x = self.rows * scale
        latents = sae.encode(x)
        error = (x - sae.decode(latents)).pow(2).mean()
        return {
            "explained_variance_centered": 1 - (error / (x - x.mean(0)).pow(2).mean()).item(),
            "mse": error.item(),
            "l0": latents.count_nonzero().item() / len(x),
            "alive_fraction": latents.bool().any(0).float().mean().item(),
        }


class Scaled:
    """A checkpoint, which undoes the scaling, as an SAE of scaled activations."""

    def __init__(self, loaded: checkpoint.Checkpoint) -> None:
        self.loaded, self.scale = loaded, loaded.header.scale

    def encode(self, x: Tensor) -> Tensor:
        return self.loaded.encode(x / self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        return self.loaded.decode(latents) * self.scale


def train(trial: Trial) -> tuple[Any, float]:
    """Return the trained SAE of a trial, of scaled activations, and the scale."""
    known = constants.values(trial.source)
    if trial.side != "ours":
        hook, batch = known["HOOK_NAME"], known["BATCH"]
        data = stream(trial.model, hook, tokens=trial.tokens, batch=batch, seed=trial.seed)
        sae = sae_lens_trainer.train(trial.kind, trial.knob, known, data, data.mean, LEFT[trial.side])
        return sae, data.manifest.scale
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "experiment.py")
        path.write_text(trial.source)
        load_module(path).main(Path(folder))
        sae = Scaled(checkpoint.load(Path(folder, "checkpoint")))
    return sae, sae.scale


def carry_out(trial: Trial, folder: Path) -> dict[str, Any]:
    """Return the figures of a trial, from its file if it is there."""
    path = folder / trial.name
    if not path.exists():
        with quiet():
            hook = constants.values(trial.source)["HOOK_NAME"]
            held = Held.of(trial.model, hook, folder)
            started = time.monotonic()
            sae, scale = train(trial)
            seconds = time.monotonic() - started
        figures = asdict(trial) | held.score(sae, scale) | {"seconds": round(seconds, 2)}
        files.write_atomically(path, json.dumps(figures))
        print(f"{seconds:.1f} s: {path.name}", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


def knob_of(model: str, kind: BaselineName, side: str) -> float:
    theirs = KNOBS_OF_SAE_LENS.get((model, kind)) if LEFT.get(side, frozenset()) & {"l0", "gate"} else None
    return theirs or KNOBS[model][kind]


def trials_of(model: str, kind: BaselineName, side: str, args: argparse.Namespace) -> list[Trial]:
    """Return the trainings of one side that a line of the table is made of."""
    knob, changed = knob_of(model, kind, side), tuple(args.set) if side == "ours" else ()
    return [Trial(model, kind, side, knob, RATE, args.tokens, seed, changed) for seed in range(args.seeds)]


def concerns(side: str, kind: BaselineName) -> bool:
    """Return True if a side is another training than sae_lens_alike for a kind, or is that."""
    left = LEFT.get(side)
    return not left or any(kind in DIFFERENCES[name] for name in left)


def near(trial: Trial) -> list[Trial]:
    """Return a trial with a lower and a higher knob."""
    knobs = (float(f"{trial.knob * factor:.3g}") for factor in NEIGHBOURS)
    return [replace(trial, knob=float(round(k)) if BASELINES[trial.kind].whole else k) for k in knobs]


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what the table needs, print it, and return its figures."""
    pairs = list(itertools.product(args.models, args.kinds))
    trained: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    others = [side for side in args.sides if side != "ours"]
    for side in ("ours", *others):
        for model, kind in pairs:
            if not concerns(side, kind):
                continue
            trials = trials_of(model, kind, side, args)
            trained[model, kind, side] = [carry_out(trial, args.folder) for trial in trials]
            if side == "ours":
                trained[model, kind, "near"] = [carry_out(trial, args.folder) for trial in near(trials[0])]
    print(parity_table.head(others))
    rows = []
    for model, kind in pairs:
        ours, neighbours = trained[model, kind, "ours"], trained[model, kind, "near"]
        text, figures = parity_table.line(ours, neighbours, {side: trained.get((model, kind, side)) for side in others})
        print(text)
        rows.append(figures)
    return rows


def list_trainings(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train each kind and side with every rate and knob that was asked for, and print and return the figures."""
    names = ("model", "kind", "side", "rate", "knob", "l0", "explained_variance_centered", "alive_fraction")
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    rows = []
    for model, side, kind, rate in itertools.product(args.models, args.sides, args.kinds, args.rates or [RATE]):
        for knob in args.knobs or [knob_of(model, kind, side)]:
            rows.append(carry_out(Trial(model, kind, side, knob, rate, args.tokens, 0), args.folder))
            values = (rows[-1][name] for name in names)
            print(f"| {' | '.join(v if isinstance(v, str) else f'{v:.4g}' for v in values)} |", flush=True)
    return rows


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def constant(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="WORK_DIR", type=Path)
    parser.add_argument("--kinds", type=words, default=list(BASELINES))
    parser.add_argument("--models", type=words, default=list(KNOBS))
    parser.add_argument("--tokens", type=int, default=102_400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=numbers)
    parser.add_argument("--knobs", type=numbers)
    parser.add_argument("--sides", type=words, default=list(SIDES))
    parser.add_argument("--set", type=constant, action="append", default=[], metavar="NAME=VALUE", help="of ours")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, all trainings among them")
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = list_trainings(args) if args.rates or args.knobs else compare(args)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
