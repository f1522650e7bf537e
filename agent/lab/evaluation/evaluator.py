"""One evaluator: a model and everything about it that all its SAEs share, and the scoring of a run."""

import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import activations, cache, checkpoint, models, results, text, tokens, verdicts
from agent.lab.checkpoint import Checkpoint
from agent.lab.evaluation import core, probing
from agent.lab.evaluation.core import EvaluationError
from agent.lab.evaluation.subject import CheckpointSAE, RandomSAE, bench_config, measure_usage
from agent.lab.results import Core, FinalInfo, Floor, Latents, Number, Probe, Probing
from agent.lab.verdicts import Verdict

Result = TypeVar("Result")

EVALUATION_SEED = 0
FORMAT = 1  # of what is cached
JACOBIAN_ROWS = 64  # activations over which a non-affine encoder's slope is averaged
DENSE = 0.1  # share of tokens above which a latent counts as dense


@dataclass(frozen=True)
class FloorScores:
    """A random untrained SAE's scores, the same for every run of its width and sparsity."""

    floor: Floor
    random_auc: dict[str, dict[int, Number]]  # dataset -> k -> test AUC


class Evaluator:
    """Scores runs on one model and hook. Making one loads the model; what is costly is cached on disk."""

    def __init__(self, model_name: str, hook_name: str) -> None:
        self.model_name, self.hook_name = model_name, hook_name
        self.model = models.load(model_name)
        models.check_hook(self.model, hook_name)
        key = f"{models.identity(model_name)}-{cache.slug(hook_name)}-{models.compute().device[:4]}-v{FORMAT}"
        self.folder = cache.root() / "evaluation" / f"{cache.slug(Path(model_name).name)}-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            self.ids = self._evaluation_tokens("dev")
            self.probes = probing.prepare_model(self.model, model_name, hook_name, self.folder / "probing")
        self.activations = self._activations()
        self.mean = self.activations.mean(0)

    def evaluate(self, run_dir: Path, done: Callable[[str], None] = lambda _: None) -> FinalInfo:
        """Score the checkpoint of a run; what cannot be scored is said in the verdict, not raised.

        `done` is told the name of each stage when it is over.
        """
        started = time.monotonic()
        info = FinalInfo(verdict=Verdict(name="not_evaluated", evidence="evaluation did not finish"))
        info.environment = environment()
        out = run_dir / "eval"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            loaded = self._load(run_dir)
        except checkpoint.CheckpointError as error:
            return bad_checkpoint(error)
        done("checkpoint")
        info.training = loaded.header.training
        content = checkpoint.content_hash(run_dir / "checkpoint")
        info.environment |= {"checkpoint": content[:16], "model_identity": models.identity(self.model_name)}
        name = f"sae-{content[:16]}"
        sae = CheckpointSAE(self._config(loaded.header.d_sae), loaded, self.activations[:JACOBIAN_ROWS])
        self._score(info, sae, out, name, done)
        info.verdict = self._verdict(info, loaded)
        info.evaluation_seconds = round(time.monotonic() - started, 2)
        return info

    def _score(self, info: FinalInfo, sae: CheckpointSAE, out: Path, name: str, done: Callable[[str], None]) -> None:
        usage = measure_usage(sae, self.activations, self.mean)
        info.latents = _latents(usage.fired / usage.tokens, sae.checkpoint.W_dec)
        scored = _attempt(info, "core", lambda: core.run_core(sae, self.model, self.ids, usage, self.mean, out, name))
        if scored is None:
            return
        done("core")
        info.core, replaced = _finite(scored)
        info.non_finite = [f"core.{path}" for path in replaced]
        if info.core.l0 is None or info.core.explained_variance_centered is None:
            info.errors["sparse_probing_sae_probes"] = "not run: the SAE's outputs are not finite"
            return
        k = max(1, min(round(info.core.l0), sae.cfg.d_sae))
        floor = _attempt(info, "floor", lambda: self.floor(sae.cfg.d_sae, k))
        if floor is None:
            return
        info.floor = floor.floor
        done("floor")
        answers = _attempt(
            info, "sparse_probing_sae_probes", lambda: probing.run_probing(sae, self.probes, out / "probing", name)
        )
        if answers:
            info.probing = _probing(*answers, floor.random_auc)
        done("probing")

    def floor(self, d_sae: int, k: int) -> FloorScores:
        """Scores of a random untrained SAE that keeps the k largest latents, made once for each width and k."""
        path = self.folder / f"floor-{d_sae}-{k}.json"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                temporary = path.with_suffix(".tmp")
                temporary.write_text(json.dumps(self._measure_floor(d_sae, k)))
                temporary.replace(path)
            stored = json.loads(path.read_text())
        random_auc = {name: {int(n): auc for n, auc in by_k.items()} for name, by_k in stored["random_auc"].items()}
        return FloorScores(Floor.model_validate(stored["floor"]), random_auc)

    def _measure_floor(self, d_sae: int, k: int) -> dict[str, Any]:
        sae = RandomSAE(self._config(d_sae), k, self.mean)
        out = self.folder / f"floor-{d_sae}-{k}"
        shutil.rmtree(out, ignore_errors=True)
        usage = measure_usage(sae, self.activations, self.mean)
        scores = core.run_core(sae, self.model, self.ids, usage, self.mean, out, "random")
        probed, _ = probing.run_probing(sae, self.probes, out / "probing", "random")
        shutil.rmtree(out)
        floor = Floor(
            k=k,
            explained_variance_centered=scores.explained_variance_centered,
            ce_loss_score=scores.ce_loss_score,
        )
        auc = {name: {n: by_k[n]["test_auc"] for n in by_k} for name, by_k in probed.items()}
        return {"floor": floor.model_dump(), "random_auc": auc}

    def _load(self, run_dir: Path) -> Checkpoint:
        loaded = checkpoint.load(run_dir / "checkpoint", models.compute().device)
        header = loaded.header
        if header.d_in != self.activations.shape[1]:
            raise checkpoint.CheckpointError(f"d_in is {header.d_in}, the hook's width {self.activations.shape[1]}")
        checkpoint.check_behaviour(loaded, self.activations[:2048])
        return loaded

    def _verdict(self, info: FinalInfo, loaded: Checkpoint) -> Verdict:
        training = loaded.header.training
        if training.steps == 0 or not loaded.header.moved:
            return Verdict(name="zero_steps", evidence=f"{training.steps} steps, and no parameter moved")
        if loaded.non_finite:
            return Verdict(name="nan", evidence="the checkpoint holds parameters that are not finite")
        if info.core is None or info.latents is None:
            return Verdict(name="not_evaluated", evidence=info.errors.get("core", "no scores"))
        if "floor" in info.errors:
            return Verdict(name="not_evaluated", evidence=f"no random SAE to compare with: {info.errors['floor']}")
        return verdicts.judge_scores(
            l0=info.core.l0,
            d_sae=loaded.header.d_sae,
            explained_variance=info.core.explained_variance_centered,
            ce_loss_score=info.core.ce_loss_score,
            alive_fraction=info.latents.alive_fraction,
            floor_explained_variance=info.floor.explained_variance_centered if info.floor else None,
            floor_ce_loss_score=info.floor.ce_loss_score if info.floor else None,
        )

    def _config(self, d_sae: int) -> Any:
        return bench_config(
            self.probes.name, self.hook_name, self.activations.shape[1], d_sae, models.context_size(self.model)
        )

    def _evaluation_tokens(self, split: text.Split) -> Tensor:
        """Windows of held-out text `[windows, context]`, tokenized once."""
        path = self.folder / f"tokens-{split}-{cache.slug(text.VERSION)}.safetensors"
        context = models.context_size(self.model)
        count = core.BATCH_WINDOWS * core.VARIANCE_BATCHES
        if not path.exists():
            ids = tokens.windows(self.model, [split], context, 2 * count * context, EVALUATION_SEED)
            order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(EVALUATION_SEED))
            temporary = path.with_suffix(".tmp")
            save_file({"ids": ids[order[:count]].contiguous()}, temporary)
            temporary.replace(path)
        return load_file(path)["ids"]

    @torch.no_grad()
    def _activations(self) -> Tensor:
        """The evaluation text's ordinary activations `[tokens, d_in]`, float32."""
        batches = self.ids.split(core.BATCH_WINDOWS)
        rows = [
            activations.run_to_hook(self.model, ids, self.hook_name)[activations.ordinary(self.model, ids)].float()
            for ids in batches
        ]
        return torch.cat(rows)


def bad_checkpoint(error: checkpoint.CheckpointError) -> FinalInfo:
    """The result of a run whose checkpoint is missing, damaged or refused."""
    return FinalInfo(verdict=Verdict(name="bad_checkpoint", evidence=str(error)))


def environment() -> dict[str, str]:
    """What the figures depend on."""
    packages = ("torch", "transformer-lens", "sae-lens", "sae-bench", "sae-probes", "scikit-learn", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    chosen = models.compute()
    return {
        "python": platform.python_version(),
        **versions,
        "device": torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else chosen.device,
        "dtype": str(chosen.dtype).removeprefix("torch."),
        "text": text.VERSION,
    }


def _attempt(info: FinalInfo, family: str, work: Callable[[], Result]) -> Result | None:
    """One evaluation family: its failure is recorded with the reason, and the others go on."""
    try:
        return work()
    except (EvaluationError, ValueError, RuntimeError, OSError) as error:
        info.errors[family] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None


def _finite(scores: Core) -> tuple[Core, list[str]]:
    values, replaced = results.null_non_finite(scores.model_dump())
    return Core.model_validate(values), replaced


def _latents(frequency: Tensor, W_dec: Tensor) -> Latents:
    norms = W_dec.float().norm(dim=1)
    values, _ = results.null_non_finite(
        {
            "alive_fraction": (frequency > 0).double().mean().item(),
            "dense_fraction": (frequency > DENSE).double().mean().item(),
            "W_dec_norm_mean": norms.mean().item(),
            "W_dec_norm_min": norms.min().item(),
            "W_dec_norm_max": norms.max().item(),
        }
    )
    return Latents.model_validate(values)


def _probing(scores: probing.Scores, own: dict[str, dict[str, float]], random: dict[str, dict[int, Number]]) -> Probing:
    datasets = [
        Probe(
            dataset=name,
            auc={k: s["test_auc"] for k, s in by_k.items()},
            accuracy={k: s["test_accuracy"] for k, s in by_k.items()},
            random_auc=random[name],
            llm_auc=own[name]["auc"],
            llm_accuracy=own[name]["accuracy"],
        )
        for name, by_k in scores.items()
    ]

    def mean(values: list[Any]) -> float:
        return sum(values) / len(values)

    return Probing(
        auc={k: mean([d.auc[k] for d in datasets]) for k in probing.KS},
        accuracy={k: mean([d.accuracy[k] for d in datasets]) for k in probing.KS},
        random_auc={k: mean([d.random_auc[k] for d in datasets]) for k in probing.KS},
        llm_auc=mean([d.llm_auc for d in datasets]),
        llm_accuracy=mean([d.llm_accuracy for d in datasets]),
        datasets=datasets,
    )
