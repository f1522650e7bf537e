"""The numbers of a study that starts on this machine: what it needs, as estimates.py reckons it, and what there is."""

import json
import math
import os
from pathlib import Path

import torch

from agent.lab import cache, estimates, fingerprint, model_files, model_shape, models, worlds
from agent.lab.activations import SHARD_ROWS, harvest_key
from agent.lab.defaults import THREADS, WORLD_FILE, for_model, is_world
from agent.lab.errors import UserError
from agent.lab.estimates import Plan
from agent.lab.machine import Machine, this_machine


def settle_threads() -> None:
    """Choose the threads of each process of a study, unless somebody has."""
    on_gpu = models.device_config().device.startswith("cuda")
    os.environ.setdefault(THREADS, "4" if on_gpu else "1")


def plan(
    model: str,
    hook_name: str,
    text: str = "",
    stream: bool = False,
    *,
    tokens: int,
    d_sae: int | None = None,
    batch: int | None = None,
    trainings: int = 0,
    jobs: int = 1,
) -> Plan:
    """Return the numbers of a study; `text` is pinned, d_sae and batch are the model's own by default.

    Raises UserError for a model that is not stored here.
    """
    own = for_model(model)
    environment = fingerprint.environment(text)
    if is_world(model):
        features, d_in = _world_size(model)
        parameters, d_vocab, itemsize = features * d_in, 0, 4
    else:
        directory = models.find_directory(model)
        if directory is None:
            raise UserError(f"{model} is not stored here, so what it needs is not known: agent run fetches it")
        config = model_files.read_config(directory)
        d_in = model_shape.shape_of(config, model).width_at(hook_name)
        d_vocab = config.get("text_config", config).get("vocab_size", 0)
        parameters, itemsize = model_files.parameters(directory), models.device_config().dtype.itemsize
    key = harvest_key(model, hook_name, tokens, text, stream)
    return Plan(
        d_in=d_in,
        d_sae=d_sae or own.d_sae,
        batch=batch or own.batch,
        tokens=tokens,
        rows=0 if key.folder().exists() else key.rows,
        parameters=parameters,
        itemsize=itemsize,
        d_vocab=d_vocab,
        device=environment["device"],
        threads=environment["threads"],
        streamed=stream,
        shard_rows=key.rows // math.ceil(key.rows / SHARD_ROWS),
        trainings=trainings,
        jobs=jobs,
    )


def _world_size(name: str) -> tuple[int, int]:
    """Return features and dimensions of a world."""
    if name in worlds.SIZES:
        return worlds.SIZES[name][:2]
    config = json.loads((Path(name).expanduser() / WORLD_FILE).read_text())
    return config["num_features"], config["hidden_dim"]


def here() -> Machine:
    """Return what there is here, for studies in the working directory."""
    device = models.device_config().device
    gpu = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 0
    return this_machine(Path.cwd(), gpu)


def described(plan: Plan) -> list[str]:
    """Return what a study needs beside what there is, in lines. Raises UserError if it cannot fit."""
    machine = here()
    estimates.require_fit(plan, machine)
    return estimates.describe(plan, machine, estimates.measured_step(cache.root() / "baselines", plan))
