"""The verdicts on a run, by the same rules for the guard inside a training process and the driver outside."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from agent.lab.visible import Line

Count = Annotated[int, Field(ge=0, le=2**53)]  # larger ones, of which a file may hold any, have no exact float

LOSS_CEILING = 1e6  # on activations scaled to mean norm sqrt(d_in), on which a useless SAE has a loss near d_in
L0_RATIO = 1.5  # of a measured to a declared L0, above which something is wrong

IMPLAUSIBLE_GAIN = 0.005  # nats a token; an honest reconstruction may lower the loss by chance, hardly by more
IMPLAUSIBLE_STANDARD_ERRORS = 3.0

VerdictName = Literal[
    "ok",
    "nan",
    "loss_ceiling",
    "zero_steps",
    "degenerate",
    "implausible",
    "bad_checkpoint",
    "preflight",
    "no_effect",
    "crashed",
    "timed_out",
    "stalled",
    "out_of_memory",
    "disk_full",
    "killed",
    "tampered",
    "not_comparable",
    "not_evaluated",
]

# Verdicts that no edit of experiment.py can mend.
NOT_RETRYABLE = frozenset({"ok", "killed", "disk_full", "not_comparable"})


class Verdict(BaseModel):
    """The judgement of the guards on a run, with the fact that it follows from."""

    name: VerdictName
    evidence: Line
    warnings: list[Line] = []

    @property
    def ok(self) -> bool:
        return self.name == "ok"


class MetricsRow(BaseModel):
    """A line of metrics.jsonl: means over the steps since the line before."""

    step: Count
    tokens: Count
    loss: float | None  # null where it was not finite
    l0: float | None
    mse: float | None  # squared error per dimension of the scaled activations
    alive_fraction: float | None  # latents that fired within the last window
    learning_rate: float
    grad_norm: float | None
    seconds: float
    own: dict[str, float | None] = {}  # further metrics of the experiment, by names of its own


def judge_metrics(rows: Sequence[MetricsRow]) -> Verdict | None:
    """Return the verdict on rows that no sound training writes, or None if a sound one may have written them."""
    for row in rows:
        for name in ("loss", "grad_norm"):
            value = getattr(row, name)
            if value is None or not math.isfinite(value):
                return Verdict(name="nan", evidence=f"{name} was not finite at step {row.step}")
        if row.loss is not None and row.loss > LOSS_CEILING:
            return Verdict(
                name="loss_ceiling",
                evidence=f"loss {row.loss:.3g} at step {row.step} is above the ceiling {LOSS_CEILING:.0g}",
            )
    return None


def judge_training(rows: Sequence[MetricsRow], steps: int, any_parameter_changed: bool) -> Verdict | None:
    """Return the verdict on a training that has ended without a result, or None if nothing is wrong with it."""
    if steps == 0 or not rows:
        return Verdict(name="zero_steps", evidence="training ended without a step")
    if verdict := judge_metrics(rows):
        return verdict
    if not any_parameter_changed:
        return Verdict(name="zero_steps", evidence=f"no parameter moved in {steps} steps")
    return None


def judge_scores(
    *,
    l0: float | None,
    d_sae: int,
    explained_variance: float | None,
    ce_loss_score: float | None,
    loss_added: float | None = None,
    loss_added_standard_error: float | None = None,
    has_loss: bool = True,
    alive_fraction: float | None,
    floor_explained_variance: float | None,
    floor_ce_loss_score: float | None,
) -> Verdict:
    """Judge the scores of a checkpoint against those of a random untrained SAE of the same sparsity (the floor).

    `loss_added` and its paired standard error are in nats a token. `has_loss` is False for a synthetic world, which is
    judged by explained variance alone.
    """
    if l0 is None or l0 < 1:
        return Verdict(name="degenerate", evidence=f"L0 is {_format(l0)}: the SAE is dead")
    if l0 > d_sae / 4:
        return Verdict(name="degenerate", evidence=f"L0 {l0:.1f} is more than a quarter of d_sae {d_sae}: dense")
    scores = [("explained variance", explained_variance, floor_explained_variance)]
    if has_loss:
        scores.append(("CE-loss score", ce_loss_score, floor_ce_loss_score))
    for name, value, floor in scores:
        if value is None:
            return Verdict(name="degenerate", evidence=f"{name} is not finite")
        if floor is not None and value <= floor:
            return Verdict(
                name="degenerate",
                evidence=f"{name} {value:.3f} is not above the {floor:.3f} of a random untrained SAE",
            )
    if is_implausible(loss_added, loss_added_standard_error):
        return Verdict(
            name="implausible",
            evidence=f"loss added is {loss_added:.4f} nats a token (standard error {loss_added_standard_error:.4f}): "
            "the model predicts better from the reconstruction than from its own activations, so the SAE knows more "
            "of the text than the activations it is given",
        )
    warnings = []
    if alive_fraction is not None and alive_fraction < 0.5:
        warnings.append(f"only {alive_fraction:.0%} of the latents are alive")
    return Verdict(name="ok", evidence="trained, loaded, evaluated, above the random floor", warnings=warnings)


def is_implausible(loss_added: float | None, standard_error: float | None) -> bool:
    """Return True if an SAE lowers the model's loss by more than chance can, given the standard error over windows."""
    if loss_added is None or standard_error is None:  # not measured
        return False
    return loss_added < -max(IMPLAUSIBLE_GAIN, IMPLAUSIBLE_STANDARD_ERRORS * standard_error)


def judge_smoke_test(*, l0: float | None, explained_variance: float | None) -> Verdict:
    """Judge a checkpoint of a few steps on a little text: it may be dense or bad, but not broken."""
    if l0 is None or l0 == 0:
        return Verdict(name="degenerate", evidence=f"L0 is {_format(l0)} on the smoke-test batch: no latent fires")
    if explained_variance is None:
        return Verdict(name="degenerate", evidence="the reconstruction of the smoke-test batch is not finite")
    return Verdict(name="ok", evidence="smoke test: loaded, encoded, decoded")


def l0_warning(l0: float | None, declared: float | None) -> str:
    """Return a sentence if an SAE's measured L0 is far from the one that its files declare, or ""."""
    if not l0 or not declared or 1 / L0_RATIO <= l0 / declared <= L0_RATIO:
        return ""
    return (
        f"its L0 is {l0:.1f} here and {declared:.1f} by its files: it was trained on activations of another scale or "
        "layer, on text with or without a beginning token, or on another model"
    )


def windows_warning(context: int | None, prepend_bos: bool, own: tuple[int, bool]) -> str:
    """Return a sentence if an SAE was trained on other windows of text than it is scored on, or "".

    `own` are the tokens of a window here, and whether it begins with the beginning token.
    """
    if (context or own[0], prepend_bos) == own:
        return ""
    tokens, begins = f"{context:,} tokens" if context else "text", {True: "with", False: "without"}
    return (
        f"it was trained on windows of {tokens} {begins[prepend_bos]} a beginning token, and is scored on windows of "
        f"{own[0]:,} {begins[own[1]]} one"
    )


def _format(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
