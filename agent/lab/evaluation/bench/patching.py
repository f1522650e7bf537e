"""Calls of SAE-Bench's own entry points with our model, our folders and an SAE in the form they expect."""

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
    """The same SAE with decoder rows of length 1, and their lengths in the latents (SAELens: fold_W_dec_norm).

    SAE-Bench multiplies latents by the cosine of their rows (absorption) and learns from the rows as they are
    (meta_structure), and only warns if they are not of length 1.
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
    """A stand-in for HookedTransformer that returns our model, whatever model an evaluation loads."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained_no_processing(self, *_: object, **__: object) -> Any:
        return self.model


@contextlib.contextmanager
def isolated_sae_bench(evaluation: ModuleType, folder: Path, seed: int, **parts: Any) -> Iterator[None]:
    """Replace names of `evaluation` (a main.py of SAE-Bench) by `parts` for the time of a `with`.

    The working directory is `folder`, since some evaluations write to it. The seed is set, and torch's gradients are
    as before afterwards: each evaluation switches them for the whole process. Output is not shown. One BLAS thread is
    used, as the fits are too small for more.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    with (
        patch.multiple(evaluation, **parts) if parts else contextlib.nullcontext(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        threadpool_limits(1, user_api="blas"),
        torch.serialization.safe_globals(probe_classes()),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield


def probe_classes() -> list[Any]:
    """Return the classes in the probes that SAE-Bench's absorption saves; agent.lab lets torch load no others."""
    from sae_bench.evals.absorption.probing import LinearProbe

    return [LinearProbe, torch.nn.Linear, set]


def read_answer(out: Path, name: str) -> dict[str, Any]:
    """Return the JSON that an evaluation left in `out` for the SAE of this name. Raise EvaluationError without one.

    Some evaluations log an error and return; the missing file is the only sign of it.
    """
    path = out / f"{name}_custom_sae_eval_results.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise EvaluationError(f"SAE-Bench wrote no {path.name}: it failed without an exception") from None


def metrics(answer: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures of all categories under SAE-Bench's own names. Raise EvaluationError if there are none."""
    figures = {name: value for category in answer["eval_result_metrics"].values() for name, value in category.items()}
    if not figures:
        raise EvaluationError("SAE-Bench answered without figures")
    return figures
