"""Time one training step, ours and others', in turn on the same activations.

    python benchmarks/step.py

At 192 x 1,024 on tiny-lm's activations (harvested at the first call), at 768 x 16,384 on made ones, each with one
thread and with all. Every step takes a batch of 1,024 through encoder, selection, decoder, gradients, clipping and
Adam; ours with what main() does besides, without the guard. Nothing else should run at the same time.

dictionary_learning is compared if it can be imported. It brings many packages along; what it needs here can be put into
a directory of its own, away from the installation:

    pip install --no-deps --target DIR dictionary-learning 'nnsight<0.4' \
        python-socketio python-engineio bidict simple-websocket wsproto
    PYTHONPATH=DIR python benchmarks/step.py
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from agent.lab.activations import stream

ROOT = Path(__file__).resolve().parent.parent
BATCH, BATCHES = 1024, 4
PRODUCTS = 5  # that a dense step needs: encode, decode, and the gradients for W_enc, latents and W_dec
Step = Callable[[int], object]


@dataclass(frozen=True)
class Size:
    """A size of the comparison; `steps` are those of a round."""

    d_in: int
    d_sae: int
    k: int
    rounds: int
    steps: int
    batch: int = BATCH

    @property
    def product_flops(self) -> int:
        return 2 * self.batch * self.d_in * self.d_sae


SIZES = (Size(192, 1024, 16, rounds=10, steps=10), Size(768, 16_384, 64, rounds=3, steps=1))


def activations(size: Size) -> list[Tensor]:
    """Return batches `[BATCH, d_in]` of mean norm sqrt(d_in)."""
    experiment = load_experiment()
    if size.d_in == 192:
        data = stream(experiment.MODEL, experiment.HOOK_NAME, tokens=experiment.TOKENS, batch=BATCH, seed=0)
        return [x.clone() for x, _ in zip(data, range(BATCHES), strict=False)]
    return made_activations(size)


def made_activations(size: Size, device: torch.device | str = "cpu") -> list[Tensor]:
    """Return batches `[batch, d_in]` of mean norm sqrt(d_in), sums of a few of four times as many features."""
    torch.manual_seed(0)
    features = torch.randn(4 * size.d_in, size.d_in, device=device)
    made = [torch.rand(size.batch, len(features), device=device).pow(64) @ features for _ in range(BATCHES)]
    return [x * size.d_in**0.5 / x.norm(dim=1).mean() for x in made]


def load_experiment() -> ModuleType:
    """Return experiment.py as a new module."""
    spec = importlib.util.spec_from_file_location("experiment", ROOT / "experiment.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def our_step(data: list[Tensor], size: Size, plain: bool, experiment: ModuleType | None = None) -> Step:
    """Return the step of experiment.py's main(), or the same with what agent.lab.sparse stands for."""
    experiment, device = experiment or load_experiment(), data[0].device
    experiment.__dict__["K"] = size.k
    if plain:
        experiment.__dict__.update(
            affine=lambda x, W, b: x @ W + b,
            kth_largest=lambda pre, k: pre.detach().flatten().topk(k, sorted=False).values.min(),
            keep=lambda pre, smallest: torch.where((pre >= smallest) & (pre > 0), pre, 0.0),
        )
    torch.manual_seed(0)
    sae = experiment.SAE(size.d_in, size.d_sae, data[0].mean(0)).to(device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=not plain)
    none_dead = torch.empty(0, dtype=torch.long, device=device)
    silent = torch.zeros(size.d_sae, device=device)

    def step(index: int) -> Tensor:
        nonlocal silent
        x = data[index % len(data)]
        loss, latents, _ = experiment.compute_loss(sae, x, none_dead)
        loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        experiment.constrain(sae)
        active = latents.detach().bool()
        silent = torch.where(latents.detach().amax(0) > 0, 0, silent + len(x))
        return active.count_nonzero() / len(x)

    return step


def sae_lens_step(data: list[Tensor], size: Size, autocast: bool = False) -> Step:
    """Return the step of SAELens' SAETrainer with its BatchTopK, without logging; `autocast` as its option has it."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(0)
    device = data[0].device
    config = BatchTopKTrainingSAEConfig(d_in=size.d_in, d_sae=size.d_sae, k=size.k, device=str(device))
    sae = BatchTopKTrainingSAE(config)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    silent = torch.zeros(size.d_sae, device=device)
    none_dead = torch.zeros(size.d_sae, dtype=torch.bool, device=device)

    def step(index: int) -> None:
        x = data[index % len(data)]
        step_input = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=none_dead, n_training_steps=index, is_logging_step=False
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = sae.training_forward_pass(step_input)
            fired = output.feature_acts.bool().float().sum(-2).bool()
            silent.add_(1)
            silent[fired] = 0
        output.loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def dictionary_learning_step(data: list[Tensor], size: Size) -> Step | None:
    """Return the update of dictionary_learning's BatchTopKTrainer, or None if it cannot be imported."""
    try:
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"dictionary_learning is not compared ({str(error).splitlines()[0]}): see the top of this file")
        return None
    trainer = BatchTopKTrainer(
        steps=10_000,
        activation_dim=size.d_in,
        dict_size=size.d_sae,
        k=size.k,
        layer=0,
        lm_name="",
        threshold_start_step=0,  # later it follows the threshold at every step, as the others do from the start
        seed=0,
        device="cpu",
    )
    trainer.update(0, data[0])  # the geometric median of the first step
    return lambda index: trainer.update(index + 1, data[index % len(data)])


def milliseconds(step: Step, steps: int) -> float:
    """Return the time of a step: by the clock, or with one thread that of the CPU, which other jobs disturb less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for index in range(steps):
        step(index)
    return (clock() - started) / steps * 1000


def compare(size: Size, threads: int, data: list[Tensor]) -> None:
    """Print a row for each step: its time in its fastest round, relative to ours, and its share of the matmul rate."""
    torch.set_num_threads(threads)
    x, W = data[0], torch.randn(size.d_in, size.d_sae)
    steps: dict[str, Step | None] = {
        "ours": our_step(data, size, plain=False),
        "ours, plain": our_step(data, size, plain=True),
        "SAELens' BatchTopK": sae_lens_step(data, size),
        "dictionary_learning's BatchTopK": dictionary_learning_step(data, size),
        "one product": lambda _: x @ W,
    }
    runnable = {name: step for name, step in steps.items() if step}
    for step in runnable.values():
        step(0)
    times: dict[str, list[float]] = {name: [] for name in runnable}
    for _ in range(size.rounds):
        for name, step in runnable.items():
            times[name].append(milliseconds(step, size.steps))
    fastest = {name: min(values) for name, values in times.items()}
    rate = size.product_flops / fastest.pop("one product")
    print(
        f"\n{size.d_in} x {size.d_sae:,}, K {size.k}, threads: {threads}; a matmul runs at {rate / 1e6:.0f} GFLOP/s\n"
    )
    print("| step | milliseconds | times ours | five dense products in that time, share of the matmul rate |")
    print("| --- | --- | --- | --- |")
    for name, each in fastest.items():
        share = PRODUCTS * size.product_flops / each / rate
        print(f"| {name} | {each:.1f} | {each / fastest['ours']:.2f} | {share:.0%} |", flush=True)


def main() -> None:
    all_threads = torch.get_num_threads()
    for size in SIZES:
        data = activations(size)
        for threads in sorted({1, all_threads}):
            compare(size, threads, data)


if __name__ == "__main__":
    main()
