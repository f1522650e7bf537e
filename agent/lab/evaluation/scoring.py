"""Score one run: load its checkpoint, run the evaluation families, judge the result."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from agent.lab import checkpoint, results, verdicts
from agent.lab.checkpoint import Checkpoint
from agent.lab.defaults import is_world
from agent.lab.evaluation import catalogue, families, idea_analysis
from agent.lab.evaluation.bench import core, probing
from agent.lab.evaluation.evaluator import Evaluator, HeldOut, _emptied
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.requests import Score, Split
from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE
from agent.lab.fingerprint import environment
from agent.lab.results import Core, FinalInfo, Latents, Number, Probe, Probing, Scored
from agent.lab.verdicts import Verdict


def score(evaluator: Evaluator, asked: Score, done: Callable[[str], None] = lambda _: None) -> FinalInfo:
    """Score the checkpoint of a run; what cannot be scored is said in the verdict, not raised.

    `done` is told the name of each stage when it is over.
    """
    started, evaluator.split = time.monotonic(), asked.split
    info = FinalInfo(verdict=Verdict(name="not_evaluated", evidence="evaluation did not finish"), split=asked.split)
    info.environment = environment()
    out = _emptied(asked.run_dir / ("eval" if asked.split == "dev" else f"eval_{asked.split}"))
    held_out = evaluator.held_out(asked.split, core.BATCH_WINDOWS if asked.slice else None)
    try:
        loaded = evaluator.load_checkpoint(asked.run_dir, held_out)
        content = checkpoint.content_hash(asked.run_dir / "checkpoint")
    except checkpoint.CheckpointError as error:
        return bad_checkpoint(error, asked.split)
    done("checkpoint")
    info.training = loaded.header.training
    info.environment |= {"checkpoint": content[:16], "model_identity": evaluator.identity}
    sae = evaluator.checkpoint_sae(loaded, held_out)
    _score_core_and_families(evaluator, info, sae, held_out, asked, out, done)
    if asked.analysis:
        _measure(info, asked.analysis, Examination(evaluator, sae, held_out, _emptied(out / "analysis")))
        done("analysis")
    info.verdict = _verdict(info, loaded, asked)
    info.evaluation_seconds = round(time.monotonic() - started, 2)
    return info


def _score_core_and_families(
    evaluator: Evaluator,
    info: FinalInfo,
    sae: CheckpointSAE,
    held_out: HeldOut,
    asked: Score,
    out: Path,
    done: Callable[[str], None],
) -> None:
    name = f"sae-{info.environment['checkpoint']}"
    evals = [family for family in asked.evals[1:] if catalogue.suits(family, is_world(evaluator.model_name))]
    scored = _attempt(info, "core", lambda: evaluator.score_core(sae, held_out, out, name))
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
    info.floor = _attempt(info, "floor", lambda: evaluator.floor(asked.split, d_sae, k))
    done("floor")
    for family in evals:
        if family != "sparse_probing_sae_probes":
            _score_family(evaluator, info, family, sae, out, name)
        elif info.floor:
            info.probing = _attempt(
                info, family, lambda: _probing(*evaluator.probe(sae, out, name), evaluator.random_auc(d_sae, k))
            )
        done(family)


def _score_family(evaluator: Evaluator, info: FinalInfo, family: str, sae: BenchSAE, out: Path, name: str) -> None:
    """One family more."""
    started, folder = time.monotonic(), out / family
    scored = _attempt(info, family, lambda: families.load(family).score(evaluator, sae, _emptied(folder), name))
    if scored is None:
        shutil.rmtree(folder, ignore_errors=True)  # what it had written is of half an answer
        return
    figures, replaced = results.null_non_finite(scored.model_dump(), f"evaluations.{family}")
    figures["seconds"] = round(time.monotonic() - started, 2)
    info.evaluations[family] = Scored.model_validate(figures)
    info.non_finite += replaced


Result = TypeVar("Result")


DENSE = 0.1  # share of tokens above which a latent counts as dense


def bad_checkpoint(error: checkpoint.CheckpointError, split: Split) -> FinalInfo:
    """The result of a run whose checkpoint is missing, damaged or refused."""
    return FinalInfo(verdict=Verdict(name="bad_checkpoint", evidence=str(error)), split=split)


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
        figures = idea_analysis.measure(path, exam)
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
