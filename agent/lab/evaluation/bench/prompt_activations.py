"""The model's side of SAE-Bench's evaluations on labelled prompts, made once by SAE-Bench's own code.

Its activations are kept without the padding (SAE-Bench encodes that again for every SAE: on short prompts, most of the
work), its probes beside them.
"""

import contextlib
import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.lab import cache, models, text
from agent.lab.evaluation.bench import labelled_datasets, patching
from agent.lab.evaluation.bench.core import BATCH_WINDOWS, EvaluationError
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.files import atomic_path, waiting_lock

if TYPE_CHECKING:
    from sae_bench.evals.sparse_probing.probe_training import Probe

    from agent.lab.evaluation.evaluator import Evaluator

FORMAT = 1  # of the files, and of the datasets in labelled.py
TEXTS = 64  # encoded at once
SEED = 42  # SAE-Bench's own


@dataclass(frozen=True)
class Prompts:
    """The hook's activations on the ordinary tokens of some prompts."""

    rows: Tensor  # [tokens, d_in], float32, prompt after prompt
    lengths: Tensor  # [prompts], tokens of each

    def mean(self) -> Tensor:
        """Mean activation of each prompt `[prompts, d_in]`."""
        return torch.segment_reduce(self.rows, "mean", lengths=self.lengths)

    def mean_latents(self, sae: BenchSAE) -> Tensor:
        """Mean latents of each prompt `[prompts, d_sae]`."""
        lengths = self.lengths.split(TEXTS)
        rows = self.rows.split([int(each.sum()) for each in lengths])
        parts = zip(rows, lengths, strict=True)
        return torch.cat([torch.segment_reduce(sae.encode(x), "mean", lengths=n) for x, n in parts])


@dataclass(frozen=True)
class Made:
    """What is made of a dataset without an SAE."""

    train: dict[str, Prompts]  # by class
    test: dict[str, Prompts]
    scores: dict[str, Any]  # of probes on the model's own activations, as SAE-Bench keeps them
    probes: dict[str, "Probe"]  # by class; sparse probing keeps none


class Nothing(BenchSAE):
    """One latent that never fires, in the dtype of the activations: SAE-Bench mixes an SAE's with its probes'."""

    def __init__(self, cfg: Any, d_in: int, dtype: torch.dtype) -> None:
        device = models.compute().device
        row = torch.ones(1, d_in, device=device, dtype=dtype)
        super().__init__(cfg, row.T, row[0, :1], row, torch.zeros_like(row[0]))

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :1])


def made(
    evaluator: "Evaluator", evaluation: ModuleType, dataset: str, config: Any, kinds: tuple[str, str] | None = None
) -> Made:
    """The model's side of a dataset for an evaluation (its main.py), in memory, on the disk, or made now.

    Everything in `config` but the numbers of latents to ablate is in the file's name, as a hash; the seed is set for
    each dataset, so that nothing depends on what was evaluated before.
    """
    asked = {name: value for name, value in asdict(config).items() if name not in ("n_values", "dataset_names")}
    digest = hashlib.blake2b(json.dumps([text.VERSION, asked], default=str).encode(), digest_size=6).hexdigest()
    kind = evaluation.__name__.split(".")[-2] + ("-spurious" if kinds else "")
    name = f"{kind}-{cache.slug(dataset)}-seed{config.random_seed}-{digest}-v{FORMAT}.safetensors"
    if name not in evaluator.memory:
        path = evaluator.folder / "prompts" / name
        path.parent.mkdir(exist_ok=True)
        with waiting_lock(path.with_suffix(".lock"), "another process reads the same prompts"):
            if not path.exists():
                _make(evaluator, evaluation, dataset, config, kinds, path)
        evaluator.memory[name] = _read(path)
    return evaluator.memory[name]


def _make(
    evaluator: "Evaluator",
    evaluation: ModuleType,
    dataset: str,
    config: Any,
    kinds: tuple[str, str] | None,
    path: Path,
) -> None:
    """By SAE-Bench's own function, given an SAE that does nothing; what it finds of that is thrown away."""
    d_in = len(evaluator.held_out("dev", BATCH_WINDOWS).mean)
    nothing = Nothing(evaluator.config(1, d_in), d_in, evaluator.model.cfg.dtype)
    if hasattr(config, "n_values"):
        config = replace(config, n_values=[1])
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as scratch,
        patching.isolated_sae_bench(evaluation, Path(scratch), SEED),
    ):
        torch.manual_seed(config.random_seed)
        given = (dataset, config, nothing, evaluator.model, nothing.cfg.hook_layer, evaluator.hook_name)
        # sae_probes leaves the tokenizer of the model cutting prompts from the left.
        with labelled_datasets.installed(), patch.object(evaluator.model.tokenizer, "truncation_side", "right"):
            evaluation.run_eval_single_dataset(
                *given, models.compute().device, scratch, True, *([kinds] if kinds else [])
            )
        (activations,) = Path(scratch).glob("*_activations.pt")
        found = torch.load(activations, map_location="cpu")
        probes, scores = {}, found.pop("llm_results", None)
        for kept in Path(scratch).glob("*_probes.pkl"):
            probed = pickle.loads(kept.read_bytes())
            probes, scores = probed["llm_probes"], probed["llm_test_accuracies"]
        _write(path, found, scores, probes)


def _write(path: Path, found: dict[str, dict[str, Tensor]], scores: Any, probes: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for part, classes in found.items():
        for index, padded in enumerate(classes.values()):
            mask = padded.sum(-1) != 0  # SAE-Bench's own mark of what is no ordinary token
            tensors[f"{part}.{index}.rows"] = padded[mask].float()
            tensors[f"{part}.{index}.lengths"] = mask.sum(1)
    for index, probe in enumerate(probes.values()):
        tensors |= {f"probe.{index}.{key}": value.float().cpu() for key, value in probe.net.state_dict().items()}
    said = {"classes": list(found["train"]), "scores": scores, "probes": list(probes)}
    with atomic_path(path) as partial:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, {"json": json.dumps(said)})


def _read(path: Path) -> Made:
    from sae_bench.evals.sparse_probing.probe_training import Probe

    with safe_open(path, "pt", device=models.compute().device) as file:
        said = json.loads(file.metadata()["json"])

        def prompts(part: str) -> dict[str, Prompts]:
            names = enumerate(said["classes"])
            get = file.get_tensor
            return {name: Prompts(get(f"{part}.{i}.rows"), get(f"{part}.{i}.lengths")) for i, name in names}

        probes: dict[str, Probe] = {}
        for index, name in enumerate(said["probes"]):
            state = {key: file.get_tensor(f"probe.{index}.{key}") for key in ("weight", "bias")}
            probes[name] = Probe(state["weight"].shape[1], torch.float32).to(state["weight"].device)
            probes[name].net.load_state_dict(state)
        return Made(prompts("train"), prompts("test"), said["scores"], probes)


@contextlib.contextmanager
def lent(evaluator: "Evaluator", evaluation: ModuleType, single_dataset: Any) -> Iterator[None]:
    """SAE-Bench's run_eval, given our model and our work on a single dataset in the place of its own."""
    parts = {"HookedTransformer": patching.PreloadedModel(evaluator.model), "run_eval_single_dataset": single_dataset}
    with (
        tempfile.TemporaryDirectory() as scratch,
        patching.isolated_sae_bench(evaluation, Path(scratch), SEED, **parts),
    ):
        yield


def figures(answer: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """The figures of an answer, and those that each dataset has.

    Raises EvaluationError where there are none.
    """
    details = {}
    for each in answer.get("eval_result_details", ()):
        name = each.pop("dataset_name").removesuffix("_results")
        details[name] = {metric: value for metric, value in each.items() if value is not None}
    if not details or not all(details.values()):
        raise EvaluationError("SAE-Bench answered without figures")
    return patching.metrics(answer), details
