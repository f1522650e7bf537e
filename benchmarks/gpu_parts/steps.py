"""A training step of the baseline at the width of gemma-2-2b, beside SAELens' and a floor from measured rates."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import step
import torch
from gpu_parts import machine, timing
from gpu_parts.table import Row
from step import Size
from torch import Tensor, nn

from agent.lab import precision

SIZES = (
    Size(2304, 16_384, 80, rounds=12, steps=1, batch=4096),
    Size(2304, 65_536, 320, rounds=8, steps=1, batch=4096),
)
SMALL_SIZES = (Size(48, 512, 8, rounds=3, steps=1, batch=64),)
SMALLEST_BATCH = 512

# The fewest float32 values that a step reads and writes, in matrices of the size of W_enc, two of which there are:
# both products read them (2), their gradients are written (2) and read for their norm (2), Adam reads parameter,
# gradient and two moments and writes three of them (14), and the decoder is normalised (2); W_dec is read once more,
# for the gradient of the latents (1).
MATRIX_PASSES = 23
# And in matrices [batch, d_sae]: pre-activations are written and read, latents written and read twice, their gradient
# written and read.
LATENT_PASSES = 7

Timed = Callable[..., Any]


def measure(rehearse: bool) -> Iterator[Row]:
    """Yield the rows of each size, with half the batch as long as the GPU is too small."""
    found = machine.rates(rehearse)
    for size in SMALL_SIZES if rehearse else SIZES:
        fitting: Size | None = size
        while fitting:
            try:
                yield from of_size(fitting, found)
                break
            except torch.OutOfMemoryError as error:
                yield Row(_name(fitting), "out of memory", str(error).splitlines()[0])
            torch.cuda.empty_cache()  # only here, as the error above holds the tensors of its frames until it is left
            half = fitting.batch // 2
            fitting = replace(fitting, batch=half) if half >= SMALLEST_BATCH else None


def of_size(size: Size, rates: machine.Rates) -> Iterator[Row]:
    """Yield the times of the steps, ours part by part, and the floor."""
    data = step.made_activations(size, timing.device())
    makers: dict[str, tuple[bool, Callable[[], step.Step]]] = {
        "ours (TF32)": (True, lambda: step.our_step(data, size, plain=False)),
        "SAELens' BatchTopK, as it is (float32)": (False, lambda: step.sae_lens_step(data, size)),
        "SAELens', TF32 allowed": (True, lambda: step.sae_lens_step(data, size)),
        "SAELens', autocast to bfloat16": (True, lambda: step.sae_lens_step(data, size, autocast=True)),
    }
    works, peaks = {}, {}
    for name, (tf32, make) in makers.items():
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        works[name] = _in_precision(make(), tf32)
        peaks[name] = max(timing.peak_of(works[name]) for _ in range(2)) - before / 2**30
    times = timing.medians(works, size.rounds)
    floor, reckoned = floor_of(size, rates)
    for name, each in times.items():
        against = f"{each / times['ours (TF32)']:.2f} times ours, {each / floor:.2f} times the floor"
        rate = f"{size.batch / each:,.1f} thousand tokens/s"
        yield Row(f"{_name(size)}, {name}", f"{each:.2f} ms", f"{rate}; {against}; peak {peaks[name]:.1f} GiB")
    yield Row(f"{_name(size)}, the floor", f"{floor:.2f} ms", reckoned)
    works.clear()
    yield from parts_of(size, data)


def floor_of(size: Size, rates: machine.Rates) -> tuple[float, str]:
    """Return the least milliseconds of a step, and how they are reckoned: of its five products at the TF32 rate, or of
    its reads and writes, if these are more.

    The baseline's sixth product, of which only the gradient of b_dec comes, is not counted: it could do without.
    """
    flops = step.PRODUCTS * size.product_flops
    values = MATRIX_PASSES * size.d_in * size.d_sae + LATENT_PASSES * size.batch * size.d_sae
    products, moving = flops / rates.tf32 * 1000, 4 * values / rates.memory * 1000
    note = (
        f"{flops / 1e12:.3g} TFLOP: {products:.2f} ms at the TF32 rate; {4 * values / 1e9:.3g} GB: {moving:.2f} ms "
        f"at the rate of a copy; {products + moving:.2f} ms one after the other"
    )
    return max(products, moving), note


def parts_of(size: Size, data: list[Tensor]) -> Iterator[Row]:
    """Yield the median times of the parts of our step, and of what none of them is."""
    experiment = step.load_experiment()
    whole = _in_precision(step.our_step(data, size, plain=False, experiment=experiment), tf32=True)
    places: dict[str, tuple[Any, str]] = {
        "encode": (experiment.SAE, "pre_activations"),
        "cut-off (kth_largest)": (experiment, "kth_largest"),
        "keep": (experiment, "keep"),
        "decode": (experiment.SAE, "decode"),
        "backward": (Tensor, "backward"),
        "clip": (nn.utils, "clip_grad_norm_"),
        "Adam": (torch.optim.Adam, "step"),
        "constrain": (experiment, "constrain"),
    }
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in places}

    def timed(name: str, function: Timed) -> Timed:
        def call(*arguments: Any, **options: Any) -> Any:
            start = timing.mark()
            result = function(*arguments, **options)
            marks[name].append((start, timing.mark()))
            return result

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        total = timing.medians({"step": whole}, size.rounds)["step"]
    medians = {name: _median([timing.between(*pair) for pair in each]) for name, each in marks.items()}
    medians["the rest"] = total - sum(medians.values())
    for name, each in medians.items():
        yield Row(f"{_name(size)}, ours: {name}", f"{each:.2f} ms", f"{each / total:.0%} of {total:.2f} ms")


def _median(times: list[float]) -> float:
    return sorted(times[timing.WARM_UP :])[(len(times) - timing.WARM_UP) // 2]


def _in_precision(work: step.Step, tf32: bool) -> timing.Work:
    turn = iter(range(10**9))

    def call() -> object:
        precision.allow_tf32(tf32)
        return work(next(turn))

    return call


def _name(size: Size) -> str:
    return f"{size.d_in:,} x {size.d_sae:,}, k {size.k}, batch {size.batch:,}"
