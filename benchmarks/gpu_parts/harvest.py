"""The rate of a harvest from a model in the shape of gemma-2-2b with random weights, which nothing has to fetch."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_parts import timing
from gpu_parts.table import Row

from agent.lab import activations, models
from agent.lab.defaults import CONTEXT

LAYERS, SMALL_LAYERS = (12, 19), (0, 1)
WINDOWS, SMALL_WINDOWS = (16, 64), (16,)  # of 128 tokens in a batch; the first as a harvest has it
ROWS, SMALL_ROWS = (60_000, 360_000), (500, 3000)  # of a short and a long harvest: their difference leaves out loading
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 5000}
ROUNDS = 8


def make_model(directory: Path, rehearse: bool) -> None:
    """Save a random model of gemma-2-2b's shape in bfloat16 (5 GB), with the tokenizer of tiny-lm."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    tokenizer = models.EMBEDDED["tiny-lm"]
    special = {
        name: number
        for name, number in json.loads((tokenizer / "config.json").read_text()).items()
        if name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = Gemma2Config(**(SMALL if rehearse else {}), **special)  # its defaults are those of gemma-2-2b
    torch.manual_seed(0)
    with timing.device():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, directory)


def measure(rehearse: bool) -> Iterator[Row]:
    """Yield the rates of the model alone, and of a whole harvest."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "random-gemma")
        started = time.monotonic()
        make_model(directory, rehearse)
        made = time.monotonic()
        model = models.load(str(directory))
        loaded = f"{time.monotonic() - made:.1f} s, checked against transformers"
        yield Row("a random gemma-2-2b made and saved", f"{made - started:.1f} s", f"loaded in {loaded}")
        yield from model_rates(model, rehearse)
        del model
        yield harvest_rate(directory, rehearse)


def model_rates(model: object, rehearse: bool) -> Iterator[Row]:
    """Yield the rates at which activations come from the model, without writing them."""
    for layer in SMALL_LAYERS if rehearse else LAYERS:
        hook = f"blocks.{layer}.hook_resid_post"
        for windows in SMALL_WINDOWS if rehearse else WINDOWS:
            ids = torch.randint(10, 4000, (windows, CONTEXT))
            work = {"": lambda ids=ids, hook=hook: activations.run_to_hook(model, ids, hook)}  # type: ignore[arg-type]
            peak = timing.peak_of(work[""])
            rate = ids.numel() / timing.medians(work, ROUNDS)[""] * 1000
            note = f"{windows} windows of {CONTEXT} at once, nothing written; peak {peak:.1f} GiB"
            yield Row(f"{hook}, the model alone", f"{rate:,.0f} tokens/s", note)


def harvest_rate(directory: Path, rehearse: bool) -> Row:
    """Return the rate of a harvest, with its checksums: by the difference of a long and a short one."""
    hook = f"blocks.{(SMALL_LAYERS if rehearse else LAYERS)[0]}.hook_resid_post"
    short, long = SMALL_ROWS if rehearse else ROWS
    activations.ensure_harvest(str(directory), hook, short // 2)  # reads the text, once a process
    seconds = []
    for rows in (short, long):
        started = time.monotonic()
        folder, _ = activations.ensure_harvest(str(directory), hook, rows)
        seconds.append(time.monotonic() - started)
        shutil.rmtree(folder)
    rate = (long - short) / max(seconds[1] - seconds[0], 1e-3)
    return Row(
        f"{hook}, a harvest",
        f"{rate:,.0f} tokens/s",
        f"{short:,} rows took {seconds[0]:.1f} s with loading, {long:,} took {seconds[1]:.1f} s",
    )
