"""The model's part of SAE-Bench's evaluations on labelled prompts, computed once by SAE-Bench's own code.

Activations are kept without the padding, which SAE-Bench encodes again for every SAE: on short prompts, most of the
work. Probes of the model are kept in the same file.
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
from agent.lab.evaluation.bench.hub_prompts import Fetched
from agent.lab.evaluation.sae_adapter import ROWS, BenchSAE, rows_at_once
from agent.lab.files import atomic_path
from agent.lab.locks import waiting_lock
from agent.lab.precision import Float32Model

if TYPE_CHECKING:
    from sae_bench.evals.sparse_probing.probe_training import Probe

    from agent.lab.evaluation.evaluator import Evaluator

FORMAT = 1  # of the files, and of the datasets in labelled_datasets.py
TEXTS = 64  # prompts encoded at once
SEED = 42  # SAE-Bench's own


@dataclass(frozen=True)
class PromptActivations:
    """The hook's activations on the ordinary tokens of prompts."""

    rows: Tensor  # [tokens, d_in], float32, prompt after prompt
    lengths: Tensor  # [prompts], tokens of each

    def mean(self) -> Tensor:
        """Return the mean activation of each prompt `[prompts, d_in]`."""
        return torch.segment_reduce(self.rows, "mean", lengths=self.lengths)

    def mean_latents(self, sae: BenchSAE) -> Tensor:
        """Return the mean latents of each prompt `[prompts, d_sae]`."""
        lengths = self.lengths.split(max(1, TEXTS * rows_at_once(sae.cfg.d_sae) // ROWS))
        rows = self.rows.split([int(part.sum()) for part in lengths])
        parts = zip(rows, lengths, strict=True)
        return torch.cat([torch.segment_reduce(sae.encode(x), "mean", lengths=n) for x, n in parts])


@dataclass(frozen=True)
class DatasetArtifacts:
    """The part of a dataset's evaluation that no SAE changes."""

    train: dict[str, PromptActivations]  # by class
    test: dict[str, PromptActivations]
    scores: dict[str, Any]  # of probes on the model's own activations, in SAE-Bench's form
    probes: dict[str, "Probe"]  # by class; sparse probing keeps none


class SilentSAE(BenchSAE):
    """An SAE of one latent that never fires."""

    def __init__(self, cfg: Any, d_in: int) -> None:
        row = torch.ones(1, d_in, device=models.device_config().device)
        super().__init__(cfg, row.T, row[0, :1], row, torch.zeros_like(row[0]))

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :1])


def with_model(config: Any, model: str, context: int, dtype: torch.dtype) -> Any:
    """Return SAE-Bench's settings with those of the language model and its context."""
    return replace(
        config,
        context_length=min(config.context_length, context),
        llm_batch_size=TEXTS,
        llm_dtype=str(dtype).removeprefix("torch."),
        model_name=model,
    )


def dataset_artifacts(
    evaluator: "Evaluator",
    evaluation: ModuleType,
    dataset: str,
    config: Any,
    kinds: tuple[str, str] | None = None,
    fetched: Fetched | None = None,
) -> DatasetArtifacts:
    """Return the model's part of a dataset for an evaluation (its main.py) from memory, the cache, or computed now.

    The file's name holds a hash of `config` without the numbers of latents to ablate. The seed is set for each dataset,
    so that nothing depends on earlier evaluations. `fetched` are the prompts, if they are SAE-Bench's own: there are so
    many that their activations are not kept in memory.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in ("n_values", "dataset_names")}
    digest = hashlib.blake2b(json.dumps([text.VERSION, settings], default=str).encode(), digest_size=6).hexdigest()
    kind = evaluation.__name__.split(".")[-2] + ("-spurious" if kinds else "")
    which = "".join(f"-{cache.slug(name)}" for name in kinds or ()) if fetched else ""
    name = f"{kind}-{cache.slug(dataset)}{which}-seed{config.random_seed}-{digest}-v{FORMAT}.safetensors"
    if name not in evaluator.memory:
        path = evaluator.folder / "prompts" / name
        path.parent.mkdir(exist_ok=True)
        with waiting_lock(path.with_suffix(".lock"), "another process computes activations on the same prompts"):
            if not path.exists():
                _make(evaluator, evaluation, dataset, config, kinds, fetched, path)
        if fetched:
            return _read(path)
        evaluator.memory[name] = _read(path)
    return evaluator.memory[name]


def _make(
    evaluator: "Evaluator",
    evaluation: ModuleType,
    dataset: str,
    config: Any,
    kinds: tuple[str, str] | None,
    fetched: Fetched | None,
    path: Path,
) -> None:
    """Run SAE-Bench's own function with a silent SAE, and keep the model's part of its results."""
    d_in = len(evaluator.held_out("dev", BATCH_WINDOWS).mean)
    silent, model = SilentSAE(evaluator.config(1, d_in), d_in), Float32Model(evaluator.model)
    if hasattr(config, "n_values"):
        config = replace(config, n_values=[1])
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as scratch,
        patching.isolated_sae_bench(evaluation, Path(scratch), SEED),
    ):
        torch.manual_seed(config.random_seed)
        arguments = (dataset, config, silent, model, silent.cfg.hook_layer, evaluator.hook_name)
        # sae_probes leaves the model's tokenizer cutting prompts from the left.
        with (
            labelled_datasets.datasets_installed(fetched),
            patch.object(evaluator.model.tokenizer, "truncation_side", "right"),
        ):
            evaluation.run_eval_single_dataset(
                *arguments, models.device_config().device, scratch, True, *([kinds] if kinds else [])
            )
        (activations,) = Path(scratch).glob("*_activations.pt")
        parts = torch.load(activations, map_location="cpu")
        probes, scores = {}, parts.pop("llm_results", None)
        for pickled in Path(scratch).glob("*_probes.pkl"):
            results = pickle.loads(pickled.read_bytes())
            probes, scores = results["llm_probes"], results["llm_test_accuracies"]
        _write(path, parts, scores, probes)


def _write(path: Path, parts: dict[str, dict[str, Tensor]], scores: Any, probes: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for part, classes in parts.items():
        for index, padded in enumerate(classes.values()):
            mask = padded.sum(-1) != 0  # SAE-Bench's own mark of what is no ordinary token
            tensors[f"{part}.{index}.rows"] = padded[mask]
            tensors[f"{part}.{index}.lengths"] = mask.sum(1)
    for index, probe in enumerate(probes.values()):
        tensors |= {f"probe.{index}.{key}": value.cpu() for key, value in probe.net.state_dict().items()}
    header = {"classes": list(parts["train"]), "scores": scores, "probes": list(probes)}
    with atomic_path(path) as partial:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, {"json": json.dumps(header)})


def _read(path: Path) -> DatasetArtifacts:
    from sae_bench.evals.sparse_probing.probe_training import Probe

    with safe_open(path, "pt", device=models.device_config().device) as file:
        header = json.loads(file.metadata()["json"])

        def prompts(part: str) -> dict[str, PromptActivations]:
            names = enumerate(header["classes"])
            get = file.get_tensor
            return {name: PromptActivations(get(f"{part}.{i}.rows"), get(f"{part}.{i}.lengths")) for i, name in names}

        probes: dict[str, Probe] = {}
        for index, name in enumerate(header["probes"]):
            state = {key: file.get_tensor(f"probe.{index}.{key}") for key in ("weight", "bias")}
            probes[name] = Probe(state["weight"].shape[1], torch.float32).to(state["weight"].device)
            probes[name].net.load_state_dict(state)
        return DatasetArtifacts(prompts("train"), prompts("test"), header["scores"], probes)


@contextlib.contextmanager
def preloaded_sae_bench(evaluator: "Evaluator", evaluation: ModuleType, single_dataset: Any) -> Iterator[None]:
    """Make SAE-Bench's run_eval use our model and our evaluation of a single dataset."""
    parts = {"HookedTransformer": patching.PreloadedModel(evaluator.model), "run_eval_single_dataset": single_dataset}
    with (
        tempfile.TemporaryDirectory() as scratch,
        patching.isolated_sae_bench(evaluation, Path(scratch), SEED, **parts),
    ):
        yield


def metrics_and_details(answer: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Return the figures of an answer, and those of each dataset. Raise EvaluationError if there are none."""
    details = {}
    for detail in answer.get("eval_result_details", ()):
        name = detail.pop("dataset_name").removesuffix("_results")
        details[name] = {metric: value for metric, value in detail.items() if value is not None}
    if not details or not all(details.values()):
        raise EvaluationError("SAE-Bench answered without figures")
    return patching.metrics(answer), details
