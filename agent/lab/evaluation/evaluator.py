"""One evaluator: a model and everything about it that all its SAEs share, and the scoring of a run."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import activations, cache, checkpoint, models, results, text, tokens, verdicts
from agent.lab.checkpoint import Checkpoint
from agent.lab.defaults import is_world
from agent.lab.evaluation import analysis, core, families, probing
from agent.lab.evaluation.core_text import CoreText
from agent.lab.evaluation.examination import Examination
from agent.lab.evaluation.requests import Score, Split
from agent.lab.evaluation.subject import BenchSAE, CheckpointSAE, RandomSAE, Usage, bench_config
from agent.lab.ground import environment
from agent.lab.locks import waiting_lock
from agent.lab.results import Core, FinalInfo, Floor, Latents, Number, Probe, Probing, Scored
from agent.lab.verdicts import Verdict

Result = TypeVar("Result")

EVALUATION_SEED = 0
FORMAT = 1  # of what is cached
JACOBIAN_ROWS = 64  # activations over which a non-affine encoder's slope is averaged
DENSE = 0.1  # share of tokens above which a latent counts as dense


@dataclass(frozen=True)
class HeldOut:
    """Held-out text, as every SAE is scored on it."""

    ids: Tensor  # [windows, context], token ids
    activations: Tensor  # [tokens, d_in], float32: the hook's, on the ordinary tokens
    mean: Tensor  # [d_in], of the activations


class Evaluator:
    """Scores runs on one model and hook. Making one loads the model; the rest is made when it is first needed.

    What is costly is cached on disk.
    """

    def __init__(self, model_name: str, hook_name: str) -> None:
        self.model_name, self.hook_name = model_name, hook_name
        self.split: Split = "dev"  # of the request under way
        self.open()
        self.identity = models.identity(model_name)
        self.folder = artefacts(model_name, self.identity, hook_name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held_out: dict[tuple[Split, int | None], HeldOut] = {}
        self._core_texts: dict[int, CoreText] = {}
        self.memory: dict[str, Any] = {}  # what families make of the model and keep on the disk, by its file's name

    def open(self) -> None:
        """Load the model. Raises UserError for one that is unknown or has no such hook."""
        self.model = models.load(self.model_name)
        models.check_hook(self.model, self.hook_name)

    @property
    def context(self) -> int:
        """Tokens in a window of text."""
        return models.context_size(self.model)

    def held_out(self, split: Split, windows: int | None = None) -> HeldOut:
        """The text of a split, or its first windows, and the model's activations on it."""
        if (split, windows) not in self._held_out:
            self._held_out[split, windows] = self._read(self._evaluation_tokens(split)[:windows])
        return self._held_out[split, windows]

    @cached_property
    def probes(self) -> probing.ModelProbes:
        """The model's own side of probing."""
        with self._preparing():
            return probing.prepare_model(self.model, self.model_name, self.hook_name, self.folder / "probing")

    def score(self, asked: Score, done: Callable[[str], None] = lambda _: None) -> FinalInfo:
        """Score the checkpoint of a run; what cannot be scored is said in the verdict, not raised.

        `done` is told the name of each stage when it is over.
        """
        started, self.split = time.monotonic(), asked.split
        info = FinalInfo(verdict=Verdict(name="not_evaluated", evidence="evaluation did not finish"), split=asked.split)
        info.environment = environment()
        out = _emptied(asked.run_dir / ("eval" if asked.split == "dev" else f"eval_{asked.split}"))
        held_out = self.held_out(asked.split, core.BATCH_WINDOWS if asked.slice else None)
        try:
            loaded = self.load(asked.run_dir, held_out)
            content = checkpoint.content_hash(asked.run_dir / "checkpoint")
        except checkpoint.CheckpointError as error:
            return bad_checkpoint(error, asked.split)
        done("checkpoint")
        info.training = loaded.header.training
        info.environment |= {"checkpoint": content[:16], "model_identity": self.identity}
        sae = self.subject(loaded, held_out)
        self._score(info, sae, held_out, asked, out, done)
        if asked.analysis:
            _measure(info, asked.analysis, Examination(self, sae, held_out, _emptied(out / "analysis")))
            done("analysis")
        info.verdict = _verdict(info, loaded, asked)
        info.evaluation_seconds = round(time.monotonic() - started, 2)
        return info

    def load(self, run_dir: Path, held_out: HeldOut) -> Checkpoint:
        """The checkpoint of a run, checked on held-out text. Raises CheckpointError."""
        loaded = checkpoint.load(run_dir / "checkpoint", models.compute().device)
        if loaded.header.d_in != held_out.activations.shape[1]:
            raise checkpoint.CheckpointError(
                f"d_in is {loaded.header.d_in}, the hook's width {held_out.activations.shape[1]}"
            )
        checkpoint.check_behaviour(loaded, held_out.activations[:2048])
        return loaded

    def subject(self, loaded: Checkpoint, held_out: HeldOut) -> CheckpointSAE:
        """A checkpoint as SAE-Bench is shown it."""
        return CheckpointSAE(self.config(*loaded.W_dec.shape), loaded, held_out.activations[:JACOBIAN_ROWS])

    def config(self, d_sae: int, d_in: int) -> Any:
        """SAE-Bench's description of an SAE of this width on this hook."""
        return bench_config(cache.slug(Path(self.model_name).name), self.hook_name, d_in, d_sae, self.context)

    def core(self, sae: BenchSAE, held_out: HeldOut, out: Path, name: str) -> tuple[Core, Usage]:
        """SAE-Bench core, and how the latents are used. Raises EvaluationError."""
        if (key := id(held_out)) not in self._core_texts:  # kept above, so its id stays its own
            self._core_texts[key] = CoreText(self.model, held_out.ids, self.hook_name, held_out.mean)
        return core.run_core(sae, self._core_texts[key], out, name)

    def beside_core(self, sae: BenchSAE, held_out: HeldOut, out: Path, name: str) -> dict[str, Number]:  # noqa: ARG002
        """What sentinels are scored by beside core, by the metric's name. Raises EvaluationError."""
        scores, _ = self.probe(sae, out, name)
        return {"probing_auc_5": sum(by_k[5]["test_auc"] for by_k in scores.values()) / len(scores)}

    def truth(self, sae: BenchSAE, held_out: HeldOut) -> dict[str, Number]:  # noqa: ARG002
        """How an SAE stands to the true features, by the metric's name; nothing where they are not known."""
        return {}

    def probe(self, sae: BenchSAE, out: Path, name: str) -> tuple[probing.Scores, probing.OwnScores]:
        """Sparse probing: the SAE's scores and the model's own. Raises EvaluationError."""
        return probing.run_probing(sae, self.probes, out / "probing", name)

    def _score(
        self,
        info: FinalInfo,
        sae: CheckpointSAE,
        held_out: HeldOut,
        asked: Score,
        out: Path,
        done: Callable[[str], None],
    ) -> None:
        name = f"sae-{info.environment['checkpoint']}"
        evals = [family for family in asked.evals[1:] if families.suits(family, is_world(self.model_name))]
        scored = _attempt(info, "core", lambda: self.core(sae, held_out, out, name))
        if scored is None:
            return
        done("core")
        info.core, replaced = _finite(scored[0])
        info.latents = _latents(scored[1].fired / scored[1].tokens, sae.checkpoint.W_dec)
        info.non_finite = [f"core.{path}" for path in replaced]
        if asked.slice:
            return
        if info.core.l0 is None or info.core.explained_variance_centered is None:
            info.errors |= dict.fromkeys(evals, "not run: the SAE's outputs are not finite")
            return
        k, d_sae = max(1, min(round(info.core.l0), sae.cfg.d_sae)), sae.cfg.d_sae
        info.floor = _attempt(info, "floor", lambda: self.floor(asked.split, d_sae, k))
        done("floor")
        for family in evals:
            if family != "sparse_probing_sae_probes":
                self._score_family(info, family, sae, out, name)
            elif info.floor:
                info.probing = _attempt(
                    info, family, lambda: _probing(*self.probe(sae, out, name), self.random_auc(d_sae, k))
                )
            done(family)

    def _score_family(self, info: FinalInfo, family: str, sae: BenchSAE, out: Path, name: str) -> None:
        """One family more."""
        started, folder = time.monotonic(), out / family
        scored = _attempt(info, family, lambda: families.load(family).score(self, sae, _emptied(folder), name))
        if scored is None:
            shutil.rmtree(folder, ignore_errors=True)  # what it had written is of half an answer
            return
        figures, replaced = results.null_non_finite(scored.model_dump(), f"evaluations.{family}")
        figures["seconds"] = round(time.monotonic() - started, 2)
        info.evaluations[family] = Scored.model_validate(figures)
        info.non_finite += replaced

    def floor(self, split: Split, d_sae: int, k: int) -> Floor:
        """Scores of a random untrained SAE that keeps the k largest latents, measured once for each width and k."""

        def measure(out: Path) -> dict[str, Any]:
            scores, _ = self.core(self.random(d_sae, k), self.held_out(split), out, "random")
            truth = self.truth(self.random(d_sae, k), self.held_out(split))
            included = scores.model_dump(include={"explained_variance_centered", "ce_loss_score"})
            return included | {"k": k, "truth": truth}

        return Floor.model_validate(self.stored(f"floor-{split}-{d_sae}-{k}", measure))

    def random_auc(self, d_sae: int, k: int) -> dict[str, dict[int, Number]]:
        """Probing test AUC of the same random SAE, by dataset and number of latents probed; measured once too."""

        def measure(out: Path) -> dict[str, Any]:
            probed, _ = self.probe(self.random(d_sae, k), out, "random")
            return {name: {n: by_k[n]["test_auc"] for n in by_k} for name, by_k in probed.items()}

        stored = self.stored(f"random-auc-{d_sae}-{k}", measure)
        return {name: {int(n): auc for n, auc in by_k.items()} for name, by_k in stored.items()}

    def random(self, d_sae: int, k: int) -> RandomSAE:
        """The random untrained SAE, centred on the mean of the development text."""
        mean = self.held_out("dev").mean
        return RandomSAE(self.config(d_sae, len(mean)), k, mean)

    def stored(self, name: str, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gave when it was first asked, by this process or another; it is lent an empty folder."""
        path = self.folder / f"{name}.json"
        with waiting_lock(path.with_suffix(".json.lock"), "another process measures the same random SAE"):
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=self.folder) as out:
                    results.write_whole(path, json.dumps(measure(Path(out))))
            return json.loads(path.read_text())

    def _preparing(self) -> AbstractContextManager[None]:
        return waiting_lock(self.folder / "lock", "another process prepares the evaluation of the same model")

    def _evaluation_tokens(self, split: Split) -> Tensor:
        """Windows of held-out text `[windows, context]`, tokenized once; none is in both splits."""
        taken = {tuple(row) for row in self._evaluation_tokens("dev").tolist()} if split == "test" else set()
        path = self.folder / f"tokens-{split}-{cache.slug(text.VERSION)}.safetensors"
        context = self.context
        count = core.BATCH_WINDOWS * core.VARIANCE_BATCHES
        with self._preparing():
            if not path.exists():
                splits = tokens.text_split_for(self.model_name, split)
                ids = tokens.windows(self.model, splits, context, 2 * count * context, EVALUATION_SEED)
                # Distinct prompts can hold the same long row of asterisks.
                ids = ids[torch.tensor([tuple(row) not in taken for row in ids.tolist()])]
                order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(EVALUATION_SEED))
                temporary = path.with_suffix(".tmp")
                save_file({"ids": ids[order[:count]].contiguous()}, temporary)
                temporary.replace(path)
        return load_file(path)["ids"]

    @torch.no_grad()
    def _read(self, ids: Tensor) -> HeldOut:
        batches = ids.split(core.BATCH_WINDOWS)
        rows = [
            activations.run_to_hook(self.model, ids, self.hook_name)[activations.ordinary(self.model, ids)].float()
            for ids in batches
        ]
        return HeldOut(ids, torch.cat(rows), torch.cat(rows).mean(0))


def artefacts(model_name: str, identity: str, hook_name: str) -> Path:
    """The folder in the cache of what an evaluation makes of a model and hook."""
    key = f"{identity}-{cache.slug(hook_name)}-{models.compute().device[:4]}-v{FORMAT}"
    return cache.root() / "evaluation" / f"{cache.slug(Path(model_name).name)}-{key}"


def bad_checkpoint(error: checkpoint.CheckpointError, split: Split) -> FinalInfo:
    """The result of a run whose checkpoint is missing, damaged or refused."""
    return FinalInfo(verdict=Verdict(name="bad_checkpoint", evidence=str(error)), split=split)


def _emptied(folder: Path) -> Path:
    """A new folder in the place of whatever an experiment may have put there."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _verdict(info: FinalInfo, loaded: Checkpoint, asked: Score) -> Verdict:
    training = loaded.header.training
    if training.steps == 0 or not loaded.header.moved:
        return Verdict(name="zero_steps", evidence=f"{training.steps} steps, and no parameter moved")
    if loaded.non_finite:
        return Verdict(name="nan", evidence="the checkpoint holds parameters that are not finite")
    if info.core is None or info.latents is None:
        return Verdict(name="not_evaluated", evidence=info.errors.get("core", "no scores"))
    if asked.slice:
        return verdicts.judge_slice(l0=info.core.l0, explained_variance=info.core.explained_variance_centered)
    if "floor" in info.errors:
        return Verdict(name="not_evaluated", evidence=f"no random SAE to compare with: {info.errors['floor']}")
    return verdicts.judge_scores(
        l0=info.core.l0,
        d_sae=loaded.header.d_sae,
        explained_variance=info.core.explained_variance_centered,
        ce_loss_score=info.core.ce_loss_score,
        has_loss=not is_world(loaded.header.model),
        alive_fraction=info.latents.alive_fraction,
        floor_explained_variance=info.floor.explained_variance_centered if info.floor else None,
        floor_ce_loss_score=info.floor.ce_loss_score if info.floor else None,
    )


def _attempt(info: FinalInfo, family: str, work: Callable[[], Result]) -> Result | None:
    """One evaluation family: whatever goes wrong in it, its row says why and the others go on."""
    try:
        return work()
    except Exception as error:
        info.errors[family] = _said(error)
        return None


def _measure(info: FinalInfo, path: Path, exam: Examination) -> None:
    """The idea's own measures; whatever its file does wrong, the scores stand."""
    try:
        figures = analysis.measure(path, exam)
    except Exception as error:
        info.errors["analysis"] = _said(error)
    else:
        info.analysis, replaced = results.null_non_finite(figures, "analysis")
        info.non_finite += replaced


def _said(error: Exception) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


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


def _probing(scores: probing.Scores, own: probing.OwnScores, random: dict[str, dict[int, Number]]) -> Probing:
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
