"""What a study needs of memory, disk and time, reckoned from shapes before anything starts. No torch here.

The factors are those of benchmarks/estimates.py, which sets what is reckoned beside what was measured. Reckoned are the
baseline and core; steps of an idea, its own measures and other evaluations may take more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.lab import results
from agent.lab.errors import UserError
from agent.lab.machine import Machine
from agent.lab.results import FinalInfo

GB = 1e9
FLOAT32 = 4  # bytes
HELD_OUT_TOKENS = 65_536  # that core scores: 512 windows of 128
SCORED_AT_ONCE = 2_048  # tokens that core encodes at once: 16 windows
LOGITS = 2**30  # bytes of the model's own logits that are kept at most
TRAINING_BASE, EVALUATOR_BASE, SERVER_BASE, MODEL_BASE = 0.37e9, 0.9e9, 0.3e9, 0.93e9  # libraries, without a GPU
DRIVER_BASE = 0.25e9  # the driver and a slot
PREPARING = 1.85e9  # an evaluator of a small model at its peak, as it reads text and probes (benchmarks/single_run.py)
CUDA_RAM, CUDA_CONTEXT = 2.5e9, 0.6e9  # of each process on a GPU; assumed, not measured
STEP_WEIGHTS = 4.25  # times the weights in a step: themselves, gradients, two moments, and what rescales rows
STEP_LATENTS = 6  # times [batch, d_sae] in a step, with dead latents
SAVE_WEIGHTS = 7.5  # times the weights while a checkpoint is written: 3 of them the training's, the rest copies
SCORE_WEIGHTS = 4  # times the weights in the evaluator, as it loads a checkpoint
SCORE_LATENTS = 5  # times [SCORED_AT_ONCE, d_sae] as core scores it
HARVEST_SHARDS = 3  # times a shard while it is shuffled and written
PLACE = ("device", "threads")  # in the environment of results: times compare where they are equal
STORED_TWICE = 2  # a checkpoint with its copy for sae_lens
BLOCKS = 2 * 2**30  # bytes of the two blocks of rows in memory, at most, of a training whose rows are streamed
TOKEN_ID = 4  # bytes; a text of the user's own has them twice, once in the cache of texts


@dataclass(frozen=True)
class Plan:
    """The numbers that a study's needs follow from."""

    d_in: int
    d_sae: int
    batch: int
    tokens: int
    rows: int  # still to be harvested; 0: they are there
    parameters: int  # of the language model
    itemsize: int  # bytes of one of them
    d_vocab: int
    device: str  # "cpu", or a GPU's name
    threads: str = ""  # of a job
    shard_rows: int = 131_072  # of the harvest
    streamed: bool = False  # rows are made as they are read; what is stored are token ids
    trainings: int = 0  # baselines and runs
    jobs: int = 1  # at once

    @property
    def weights(self) -> int:
        """Bytes of W_enc and W_dec."""
        return 2 * self.d_in * self.d_sae * FLOAT32

    @property
    def model(self) -> int:
        """Bytes of the language model."""
        return self.parameters * self.itemsize

    @property
    def shard(self) -> float:
        """Bytes of a shard of the harvest."""
        return self.shard_rows * self.d_in * 2

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


def step_bytes(plan: Plan) -> float:
    """Return the bytes of a training's tensors at their most, in a step or while it saves, where it trains."""
    step = STEP_WEIGHTS * plan.weights + STEP_LATENTS * plan.batch * plan.d_sae * FLOAT32
    return step if plan.on_gpu else max(step, SAVE_WEIGHTS * plan.weights + plan.batch * plan.d_sae * FLOAT32)


def kept_for_scoring(plan: Plan) -> float:
    """Return the bytes that an evaluator keeps between requests: the model, its activations, its logits."""
    activations = HELD_OUT_TOKENS * plan.d_in * (FLOAT32 + plan.itemsize)
    logits = 8 * SCORED_AT_ONCE * plan.d_vocab * FLOAT32
    return plan.model + activations + (logits if logits <= LOGITS else 0)


def score_bytes(plan: Plan) -> float:
    """Return the bytes of an evaluator's tensors at their most."""
    latents = SCORE_LATENTS * SCORED_AT_ONCE * plan.d_sae * FLOAT32
    return kept_for_scoring(plan) + SCORE_WEIGHTS * plan.weights + latents


def training_ram(plan: Plan) -> float:
    """Return the bytes of RAM of a training at its peak."""
    if plan.on_gpu:
        return TRAINING_BASE + CUDA_RAM + (SAVE_WEIGHTS - 3) * plan.weights
    return TRAINING_BASE + step_bytes(plan)


def evaluator_ram(plan: Plan, scoring: bool = True) -> float:
    """Return the bytes of RAM of an evaluator at its peak, or between requests."""
    if plan.on_gpu:
        return EVALUATOR_BASE + CUDA_RAM + plan.model + SCORE_WEIGHTS * plan.weights * scoring
    if not scoring:
        return EVALUATOR_BASE + kept_for_scoring(plan)
    return max(PREPARING + plan.model, EVALUATOR_BASE + score_bytes(plan))


def server_ram(plan: Plan) -> float:
    """Return the bytes of RAM of the process that serves activations, as it goes from one shard to the next, or makes
    them."""
    if plan.streamed:
        return MODEL_BASE + BLOCKS + (CUDA_RAM if plan.on_gpu else plan.model)
    return SERVER_BASE + 2 * plan.shard


def job_ram(plan: Plan) -> float:
    """Return the bytes of RAM of a job at its peak: a training beside an idle evaluator, or that as it scores."""
    training = training_ram(plan) + evaluator_ram(plan, scoring=False)
    return server_ram(plan) + DRIVER_BASE + max(training, evaluator_ram(plan))


def harvest_ram(plan: Plan) -> float:
    """Return the bytes of RAM while activations are harvested."""
    return MODEL_BASE + plan.model + HARVEST_SHARDS * plan.shard


def job_gpu(plan: Plan) -> float:
    """Return the bytes of GPU memory of a job at its peak; 0 on a CPU."""
    if not plan.on_gpu:
        return 0.0
    idle = CUDA_CONTEXT + kept_for_scoring(plan) + (CUDA_CONTEXT + plan.model + BLOCKS) * plan.streamed
    return max(CUDA_CONTEXT + step_bytes(plan) + idle, CUDA_CONTEXT + score_bytes(plan))


def harvest_disk(plan: Plan) -> float:
    """Return the bytes of disk that the cache still needs for activations, in float16, while they are made."""
    if plan.streamed:
        return 2 * TOKEN_ID * plan.rows
    return plan.rows * plan.d_in * 2 + plan.shard * bool(plan.rows)


def runs_disk(plan: Plan) -> float:
    """Return the bytes of disk that the checkpoints of a study take at most: those of baselines lie once in its
    directory and the cache together, unless these are on two disks, and a run's have a copy for sae_lens."""
    return plan.trainings * STORED_TWICE * plan.weights


def require_fit(plan: Plan, machine: Machine) -> None:
    """Raise UserError, with the setting to change, for a study that cannot fit."""
    job = f"{plan.d_in:,} x {plan.d_sae:,} latents in batches of {plan.batch:,}"
    width = "lower --d-sae" if plan.weights > plan.batch * plan.d_sae * FLOAT32 else "lower --d-sae or --batch"
    if plan.on_gpu:
        _require(job_gpu(plan), machine.gpu, "GPU memory", f"a job ({job})", width)
    _require(job_ram(plan), machine.ram, "RAM", f"a job ({job})", width)
    _require(plan.jobs * job_ram(plan), machine.ram, "RAM", f"{plan.jobs} jobs at once ({job})", "lower --jobs")
    if plan.rows:
        _require(harvest_ram(plan), machine.ram, "RAM", "harvesting activations", "use a smaller model")
    harvest, checkpoints = harvest_disk(plan), runs_disk(plan)
    room = "free some space, or point SAE_AGENT_CACHE at another disk"
    _require(harvest, machine.cache, "disk", f"the activations of {plan.rows:,} tokens", f"lower --tokens, {room}")
    trainings = f"{plan.trainings} trainings ({job})"
    _require(checkpoints, machine.runs, "disk", trainings, "lower --d-sae or --max-runs, or free some space")
    if machine.one_disk:
        both = f"activations of {plan.rows:,} tokens and {trainings}"
        _require(harvest + checkpoints, machine.cache, "disk", both, f"lower --tokens, --d-sae or --max-runs, {room}")


def _require(needed: float, there: float, kind: str, what: str, remedy: str) -> None:
    if needed > there:
        raise UserError(f"{what}: about {_gb(needed)} GB of {kind} needed, and there are {_gb(there)}: {remedy}")


def describe(plan: Plan, machine: Machine, measured: "Measured | None") -> list[str]:
    """Return what a study needs beside what there is, in lines of words."""
    gpu = f"{_gb(job_gpu(plan))} GB of GPU memory ({_gb(machine.gpu)} are free) and " if plan.on_gpu else ""
    memory = f"a job needs about {gpu}{_gb(job_ram(plan))} GB of RAM ({_gb(machine.ram)} may be used)"
    memory += f", {plan.jobs} at once {_gb(plan.jobs * job_ram(plan))}" if plan.jobs > 1 else ""
    disk = f"{_gb(harvest_disk(plan))} GB of disk for activations ({_gb(machine.cache)} are free)"
    if not plan.trainings:
        return [f"reckoned from shapes: {memory}; {disk}"]
    disk += f", {_gb(runs_disk(plan))} for {plan.trainings} trainings ({_gb(machine.runs)} are free)"
    return [f"reckoned from shapes: {memory}; {disk}", hours(plan, measured)]


@dataclass(frozen=True)
class Measured:
    """The times of a baseline of the same width, batch and device."""

    step_seconds: float
    evaluation_seconds: float


def hours(plan: Plan, measured: Measured | None) -> str:
    """Return how long a study takes, in words."""
    if measured is None:
        return "hours: not known before run 0, as no baseline of this width, batch and device is cached"
    training = measured.step_seconds * math.ceil(plan.tokens / plan.batch)
    total = plan.trainings * (training + measured.evaluation_seconds) / plan.jobs / 3600
    return (
        f"hours: about {total:.2g} for {plan.trainings} trainings, {plan.jobs} at once, by a cached baseline's step of "
        f"{1000 * measured.step_seconds:.3g} ms and evaluation of {measured.evaluation_seconds:.0f} s; "
        "what confirms a better run comes on top"
    )


def measured_step(baselines: Path, plan: Plan) -> Measured | None:
    """Return the times of the newest cached baseline of the plan's width, batch and device, or None."""
    files = sorted(baselines.glob("*/k*_seed*/final_info.json"), key=lambda file: file.lstat().st_mtime, reverse=True)
    return next((times for file in files for times in _times(file, plan)), None)


def _times(file: Path, plan: Plan) -> Iterator[Measured]:
    try:
        info: FinalInfo = results.read(file.parent)
    except (UserError, OSError):
        return
    training = info.training
    if training is None or not training.steps or not info.evaluation_seconds:
        return
    found = (training.d_in, training.d_sae, training.settings.get("BATCH"), *map(info.environment.get, PLACE))
    if found == (plan.d_in, plan.d_sae, plan.batch, plan.device, plan.threads):
        yield Measured(training.seconds / training.steps, info.evaluation_seconds)


def _gb(size: float) -> str:
    return f"{size / GB:,.1f}" if size < 100 * GB else f"{size / GB:,.0f}"
