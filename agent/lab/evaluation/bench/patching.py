"""SAE-Bench's own entry points, called with our model, our folders and an SAE in the form that they expect."""

import contextlib
import io
import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.sae_adapter import BenchSAE


class UnitNorm(BenchSAE):
    """The same SAE with decoder rows of length 1 and latents that carry their lengths, as SAE-Bench asks of an SAE.

    It multiplies latents by the cosine of their rows (absorption) and learns from the rows as they are
    (meta_structure), and only warns where they are not of length 1. SAELens calls this fold_W_dec_norm.
    """

    def __init__(self, sae: BenchSAE) -> None:
        self.sae, norms = sae, sae.W_dec.norm(dim=1)
        self.norms = torch.where(norms > 0, norms, 1.0)
        super().__init__(
            sae.cfg, sae.W_enc * self.norms, sae.b_enc * self.norms, sae.W_dec / self.norms[:, None], sae.b_dec
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode(x) * self.norms


class PreloadedModel:
    """In the place of HookedTransformer in an evaluation: whatever model it asks for, it is given ours."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained_no_processing(self, *_: object, **__: object) -> Any:
        return self.model


@contextlib.contextmanager
def isolated_sae_bench(evaluation: ModuleType, folder: Path, seed: int, **parts: Any) -> Iterator[None]:
    """For the time of a call, `evaluation` (a main.py of SAE-Bench) sees `parts` in place of its own names.

    It works in `folder`, since some write to where they stand. It starts from `seed`, and leaves torch's gradients
    as they were: each switches them for the whole process. What it prints is not shown; its fits are too small for
    more than one BLAS thread.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    with (
        patch.multiple(evaluation, **parts) if parts else contextlib.nullcontext(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        threadpool_limits(1, user_api="blas"),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield


def answer(out: Path, name: str) -> dict[str, Any]:
    """The JSON that an evaluation left in `out` for the SAE of this name. Raises EvaluationError where there is none.

    Some log what went wrong and return; then the missing file is all there is to see.
    """
    path = out / f"{name}_custom_sae_eval_results.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise EvaluationError(f"SAE-Bench left no {path.name}: it gave up without an exception") from None


def metrics(found: dict[str, Any]) -> dict[str, float | None]:
    """The figures of every category of an answer, under SAE-Bench's own names. Raises EvaluationError where there are
    none."""
    figures = {name: value for category in found["eval_result_metrics"].values() for name, value in category.items()}
    if not figures:
        raise EvaluationError("SAE-Bench answered without figures")
    return figures
