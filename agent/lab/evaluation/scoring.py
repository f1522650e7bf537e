"""Score one run: load its checkpoint, run the evaluation families, judge the result."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.lab import checkpoint, files, results, verdicts
from agent.lab.checkpoint import constants
from agent.lab.defaults import is_world
from agent.lab.errors import describe
from agent.lab.evaluation import catalogue, families, idea_analysis
from agent.lab.evaluation.bench import core, probing
from agent.lab.evaluation.evaluator import Evaluator, HeldOut
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.requests import Score, Split
from agent.lab.evaluation.sae_adapter import CheckpointSAE, Usage
from agent.lab.fingerprint import environment
from agent.lab.metrics import METRICS
from agent.lab.results import Core, FamilyScores, FinalInfo, Latents, Number, Outliers, Probe, Probing
from agent.lab.verdicts import Verdict

SAME_ROWS = 0.5  # mean cosine of the decoder rows of two seeds, beyond which one comes from the other
COMPARED_ROWS = 4096  # at once
CONCENTRATION = 0.1  # of the squares in outlier tokens, that is warned of
DENSE = 0.1  # share of tokens above which a latent counts as dense

Result = TypeVar("Result")


def score(evaluator: Evaluator, request: Score, progress: Callable[[str], None] = lambda _: None) -> FinalInfo:
    """Score a run's checkpoint. What goes wrong is in the result's verdict and errors, not raised.

    `progress` is called with the name of each stage that is done.
    """
    started, evaluator.split = time.monotonic(), request.split
    out = files.empty_folder(request.run_dir / ("eval" if request.split == "dev" else f"eval_{request.split}"))
    held_out = evaluator.held_out(request.split, core.BATCH_WINDOWS if request.slice else None)
    try:
        loaded = evaluator.load_checkpoint(request.run_dir, held_out)
        content = checkpoint.content_hash(request.run_dir / "checkpoint")
    except checkpoint.CheckpointError as error:
        return bad_checkpoint(error, request.split)
    progress("checkpoint")
    info = FinalInfo(
        verdict=Verdict(name="not_evaluated", evidence="evaluation did not finish"),
        split=request.split,
        training=loaded.header.training,
        imported=loaded.header.imported,
        environment=environment(evaluator.text) | {"checkpoint": content[:16], "model_identity": evaluator.identity},
    )
    sae = evaluator.checkpoint_sae(loaded, held_out)
    Scoring(evaluator, request, info, sae, held_out, out, progress).run()
    info.evaluation_seconds = round(time.monotonic() - started, 2)
    return info


def bad_checkpoint(error: checkpoint.CheckpointError, split: Split) -> FinalInfo:
    """Return the result of a run whose checkpoint is missing, damaged or refused."""
    return FinalInfo(verdict=Verdict(name="bad_checkpoint", evidence=str(error)), split=split)


@dataclass
class Scoring:
    """The scoring of one loaded checkpoint. Each step adds its figures, or why there are none, to `info`."""

    evaluator: Evaluator
    request: Score
    info: FinalInfo
    sae: CheckpointSAE
    held_out: HeldOut
    out: Path  # a folder of the run's, where SAE-Bench's own files are kept
    progress: Callable[[str], None]

    def run(self) -> None:
        names = [name for name in self.request.evals[1:] if catalogue.suits(name, self.world)]
        self.score_core()
        if self.info.core and not self.request.slice:
            if self.info.core.l0 is None or self.info.core.explained_variance_centered is None:
                self.info.errors |= dict.fromkeys(names, "not run: the SAE's outputs are not finite")
            else:
                self.score_families(names, self.info.core.l0)
        if self.request.analysis:
            self.run_analysis(self.request.analysis)
        self.info.verdict = self.judge()
        if self.info.verdict.ok and (ancestor := self.ancestor()):
            self.info.verdict = Verdict(name="not_comparable", evidence=ancestor)

    @property
    def world(self) -> bool:
        return is_world(self.evaluator.model_name)

    @property
    def name(self) -> str:
        """The SAE's name in SAE-Bench's files: by its content, so that no two SAEs share a cached result."""
        return f"sae-{self.info.environment['checkpoint']}"

    def score_core(self) -> None:
        scored = self.attempt("core", lambda: self.evaluator.score_core(self.sae, self.held_out, self.out, self.name))
        if scored is None:
            return
        self.progress("core")
        figures, replaced = results.null_non_finite(scored[0].model_dump())
        self.info.core = Core.model_validate(figures)
        self.info.latents = _latents(scored[1], self.sae.checkpoint.W_dec)
        self.info.non_finite = [f"core.{path}" for path in replaced]
        if whole := self.held_out.unmasked:
            self.info.outliers = outliers(self.held_out, whole, self.evaluator.median_norm)
            self.score_core_unmasked(whole)

    def score_core_unmasked(self, whole: HeldOut) -> None:
        """Score core on all ordinary tokens too, the outliers among them, for comparison with published figures."""
        out = self.out / "all_tokens"
        scored = self.attempt("core_on_all_tokens", lambda: self.evaluator.score_core(self.sae, whole, out, self.name))
        if scored and self.info.outliers:
            figures, replaced = results.null_non_finite(scored[0].model_dump(), "outliers.core")
            self.info.outliers.core = Core.model_validate(figures)
            self.info.non_finite += replaced

    def score_families(self, names: list[str], l0: float) -> None:
        """Score the random floor at the SAE's own width and sparsity, then the families."""
        d_sae = self.sae.cfg.d_sae
        k = max(1, min(round(l0), d_sae))
        self.info.floor = self.attempt("floor", lambda: self.evaluator.floor(self.request.split, d_sae, k))
        self.progress("floor")
        for family in names:
            if family != "sparse_probing_sae_probes":
                self.score_family(family)
            elif self.info.floor:
                self.info.probing = self.attempt(family, lambda: self.probe(d_sae, k))
            self.progress(family)

    def score_family(self, family: str) -> None:
        started, folder = time.monotonic(), self.out / family
        scored = self.attempt(
            family,
            lambda: families.load(family).score(self.evaluator, self.sae, files.empty_folder(folder), self.name),
        )
        if scored is None:
            shutil.rmtree(folder, ignore_errors=True)  # it may hold half a result
            return
        figures, replaced = results.null_non_finite(scored.model_dump(), f"evaluations.{family}")
        figures["seconds"] = round(time.monotonic() - started, 2)
        self.info.evaluations[family] = FamilyScores.model_validate(figures)
        self.info.non_finite += replaced

    def probe(self, d_sae: int, k: int) -> Probing:
        """Return sparse_probing_sae_probes, with the same random SAE as the floor's."""
        scores, llm_scores = self.evaluator.probe(self.sae, self.out, self.name)
        return _probing(scores, llm_scores, self.evaluator.random_auc(d_sae, k))

    def run_analysis(self, path: Path) -> None:
        """Compute the figures of the idea's analysis.py."""
        exam = Examination(self.evaluator, self.sae, self.held_out, files.empty_folder(self.out / "analysis"))
        figures = self.attempt("analysis", lambda: idea_analysis.measure(path, exam))
        if figures is not None:
            self.info.analysis, replaced = results.null_non_finite(figures, "analysis")
            self.info.non_finite += replaced
            self.info.not_measured = idea_analysis.not_measured(path, exam.checkpoint)
        self.progress("analysis")

    def attempt(self, name: str, work: Callable[[], Result]) -> Result | None:
        """Return the result of one part, or None if it raises: the reason is kept and the other parts go on."""
        try:
            return work()
        except Exception as error:
            self.info.errors[name] = describe(error)
            return None

    def ancestor(self) -> str:
        """Return which run of another seed this one's decoder comes from, in a sentence, or an empty string.

        Row i of a decoder has nothing to do with row i of another seed's (mean cosine 0.01 on the tests' model), but
        much with the row that its training went on from (0.86; 0.78 after a second training).
        """
        for run_dir in self.request.strangers:
            with suppress(checkpoint.CheckpointError):
                other = checkpoint.load(run_dir / "checkpoint", self.sae.device).W_dec
                mine = self.sae.checkpoint.W_dec
                cosine = mean_cosine(mine, other) if mine.shape == other.shape else 0.0
                if cosine > SAME_ROWS:
                    return (
                        f"its decoder has the rows of {run_dir.name}'s (mean cosine {cosine:.2f}), though its seed is "
                        "another: its training went on from that one's weights, or does not depend on the seed"
                    )
        return ""

    def judge(self) -> Verdict:
        info, header = self.info, self.sae.checkpoint.header
        if (training := header.training) and (training.steps == 0 or not header.any_parameter_changed):
            return Verdict(name="zero_steps", evidence=f"{training.steps} steps, and no parameter moved")
        if self.sae.checkpoint.non_finite:
            return Verdict(name="nan", evidence="the checkpoint holds parameters that are not finite")
        if info.core is None or info.latents is None:
            return Verdict(name="not_evaluated", evidence=info.errors.get("core", "no scores"))
        if self.request.slice:
            return verdicts.judge_smoke_test(l0=info.core.l0, explained_variance=info.core.explained_variance_centered)
        if "floor" in info.errors:
            return Verdict(name="not_evaluated", evidence=f"no random SAE to compare with: {info.errors['floor']}")
        verdict = verdicts.judge_scores(
            l0=info.core.l0,
            d_sae=header.d_sae,
            explained_variance=info.core.explained_variance_centered,
            ce_loss_score=info.core.ce_loss_score,
            loss_added=info.core.loss_added,
            loss_added_standard_error=info.core.loss_added_standard_error,
            has_loss=not self.world,
            alive_fraction=info.latents.alive_fraction,
            floor_explained_variance=info.floor.explained_variance_centered if info.floor else None,
            floor_ce_loss_score=info.floor.ce_loss_score if info.floor else None,
        )
        if warning := constants.warning(self.sae.checkpoint, info.core.tokens):
            verdict.warnings.append(warning)
        if info.outliers and (warning := outlier_warning(info.outliers)):
            verdict.warnings.append(warning)
        return verdict


def mean_cosine(rows: Tensor, others: Tensor) -> float:
    """Return the mean cosine of rows `[n, d_in]` with the others of the same number."""
    parts = zip(rows.split(COMPARED_ROWS), others.split(COMPARED_ROWS), strict=True)
    return torch.cat([F.cosine_similarity(*part) for part in parts]).mean().item()


def outliers(usual: HeldOut, whole: HeldOut, median_norm: float) -> Outliers:
    """Return how many of the ordinary tokens are outliers, and their share of the squares."""
    assert usual.scored is not None
    assert whole.scored is not None
    squares = (whole.activations - whole.mean).double().pow(2).sum(1)
    dropped = ~usual.scored[whole.scored]
    return Outliers(
        tokens=int(dropped.sum()),
        of_tokens=len(dropped),
        median_norm=median_norm,
        share_of_squares=(squares[dropped].sum() / squares.sum()).item(),
    )


def outlier_warning(found: Outliers) -> str:
    """Return a sentence if the outlier tokens hold a large part of the squares, with the figures that they distort."""
    if found.share_of_squares is None or found.share_of_squares < CONCENTRATION:
        return ""
    names = ("explained_variance_centered", "ce_loss_score")
    figures = [
        f"{METRICS[name].title} {value:.3f}" for name in names if (value := getattr(found.core, name, None)) is not None
    ]
    scored_too = f"; scored like any other they give {', '.join(figures)}" if figures else ""
    return (
        f"{found.tokens:,} of {found.of_tokens:,} tokens are outliers, with {found.share_of_squares:.1%} of the "
        f"squares: they are passed through unchanged{scored_too}"
    )


def _latents(usage: Usage, W_dec: Tensor) -> Latents:
    frequency = usage.fired / usage.tokens
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


def _probing(
    scores: probing.Scores, llm_scores: probing.OwnScores, random_auc: dict[str, dict[int, Number]]
) -> Probing:
    datasets = [
        Probe(
            dataset=name,
            auc={k: s["test_auc"] for k, s in by_k.items()},
            accuracy={k: s["test_accuracy"] for k, s in by_k.items()},
            random_auc=random_auc[name],
            llm_auc=llm_scores[name]["auc"],
            llm_accuracy=llm_scores[name]["accuracy"],
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
