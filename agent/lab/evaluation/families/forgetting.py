"""Forgetting: SAE-Bench's `unlearning` on local text, for any model.

The procedure is that of sae_bench.evals.unlearning (Farrell et al. 2024, arXiv 2410.19278): take the latents that fire
on less than a threshold of the retain text's tokens, sort them by their frequency on the forget text, and clamp the
first n to a negative value wherever they fire, adding back the SAE's error; sweep over thresholds, n and strengths. Two
things differ. The texts, both held out, are medicine, and to be retained news, reviews and people, in place of WMDP's
papers and wikitext. And the score is read from the loss, in place of multiple-choice questions that only an
instruction-tuned model answers: with L the mean loss in nats a token,

    forgetting_score = max(0, max over settings with L_retain' <= 1.01 L_retain of L_forget' - L_forget)

where ' is with the latents clamped; SAE-Bench takes the best of the settings that keep 0.99 of the other accuracy.
Strengths grow until L_retain' exceeds its bound; the last step is interpolated linearly, so that the score does not
jump with the grid. A latent is clamped to a multiple of its own mean activation on the forget text, because activations
have no common scale across models. Latents are chosen on other documents than those that the losses are measured on.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import activations, files, models, text, tokens
from agent.lab.evaluation import ablation, requirements
from agent.lab.evaluation.ablation import BATCH_WINDOWS, Windows, window_losses
from agent.lab.evaluation.bench.core_text import windows_at_once
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.evaluation.sae_adapter import BenchSAE, rows_at_once
from agent.lab.locks import waiting_lock
from agent.lab.results import FamilyScores, Number

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator

SUMMARY = "what clamping a topic's latents costs on that topic (medicine), where the rest costs at most 1% more"

FORMAT, SEED = 1, 0  # of the cached texts
FORGET = ("98_cancer_cat", "101_disease_class")
RETAIN = ("100_news_fake", "111_yelp_data", "56_wikidatasex_or_gender")
CHOOSING, SCORED = 96, 32  # windows of a text, at most: to choose latents on, and to measure losses on
CACHE_NAME = f"forgetting-v{FORMAT}-seed{SEED}-{CHOOSING}-{SCORED}"
RETAIN_THRESHOLDS = (0.001, 0.01)  # share of the retain text's tokens; SAE-Bench's
LATENTS = (10, 20)  # SAE-Bench's
MULTIPLES = (1, 4, 16, 64)  # of a latent's mean
TOLERANCE = 0.01  # by which the retain text's loss may rise
REMARK = "on tiny-lm a random untrained SAE scores higher than most trained ones: compare with its score; never decides"


@dataclass(frozen=True)
class Text(Windows):
    """One of the two texts: activations to choose latents on, and windows of other documents to measure losses on."""

    choosing: Tensor  # [tokens, d_in]


@dataclass(frozen=True)
class Sweep:
    """The effects of clamping an SAE's latents, over all settings."""

    score: float  # nats a token
    l0: float  # on the retain text
    latents: dict[str, list[int]]  # the clamped latents, by their name in `added`
    added: dict[str, dict[str, Number]]  # by setting: nats a token added to the loss on either text


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    positions = 2 * (CHOOSING + 2 * SCORED) * models.most_context()
    return requirements.check_language_model(target, 4 * positions * requirements.residual_width(target.config) / 1e6)


@torch.no_grad()
def score(evaluator: "Evaluator", sae: BenchSAE, out: Path, name: str) -> FamilyScores:
    """Score one SAE, and a random SAE of its width and L0.

    `details` has what a setting added to both losses; the file in `out` also has the latents that it clamped.
    """
    result = sweep(evaluator, sae)
    if result is None:
        return FamilyScores(
            metrics={"forgetting_score": None}, not_applicable={"forgetting_score": "no latent ever fires"}
        )
    k = max(1, min(round(result.l0), sae.cfg.d_sae))
    floor = evaluator.cached_json(
        f"{CACHE_NAME}-random-{sae.cfg.d_sae}-{k}", lambda _: random_sae_score(evaluator, sae.cfg.d_sae, k)
    )
    record = {"latents": result.latents, "added": result.added}
    files.write_atomically(out / f"{name}_forgetting.json", json.dumps(record, indent=2))
    return FamilyScores(
        metrics={"forgetting_score": result.score, "random_forgetting_score": floor["score"]},
        details=result.added,
        remark=REMARK,
    )


def random_sae_score(evaluator: "Evaluator", d_sae: int, k: int) -> dict[str, float]:
    """Score a random untrained SAE."""
    result = sweep(evaluator, evaluator.random_sae(d_sae, k))
    assert result
    return {"score": result.score}


def sweep(evaluator: "Evaluator", sae: BenchSAE) -> Sweep | None:
    """Clamp an SAE's latents in every setting. Return None if no latent ever fires."""
    from sae_bench.evals.unlearning.utils.feature_activation import get_top_features

    texts = load_texts(evaluator)
    on_forget, mean = firing_rates(sae, texts["forget"].choosing)
    on_retain, _ = firing_rates(sae, texts["retain"].choosing)
    if not on_forget.any() and not on_retain.any():
        return None
    names: dict[tuple[int, ...], str] = {}  # of sets of latents; two thresholds may choose the same set
    for threshold in RETAIN_THRESHOLDS:
        top = get_top_features(on_forget.cpu().numpy(), on_retain.cpu().numpy(), retain_threshold=threshold).tolist()
        for number in LATENTS:
            names.setdefault(tuple(top[:number]), f"{min(number, len(top))} latents on under {threshold:.1%}")
    names.pop((), None)
    used = sorted({latent for latents in names for latent in latents})
    acts = {on: encode_text(evaluator, sae, windows, used) for on, windows in texts.items()}
    tolerance, best = TOLERANCE * texts["retain"].loss, 0.0
    added: dict[str, dict[str, Number]] = {}
    for latents, name in names.items():
        columns, chosen = [used.index(latent) for latent in latents], list(latents)
        curve = [(0.0, 0.0)]
        for multiple in MULTIPLES:
            clamp = -multiple * mean[chosen]
            forget, retain = (
                clamp_loss_added(evaluator, windows, acts[on][..., columns], clamp, sae.W_dec[chosen])
                for on, windows in texts.items()
            )
            added[f"{name}, x{multiple}"] = {"forget_loss_added": forget, "retain_loss_added": retain}
            curve.append((retain, forget))
            if retain > tolerance:
                break
        best = max(best, best_within_tolerance(curve, tolerance))
    return Sweep(best, on_retain.sum().item(), {name: list(latents) for latents, name in names.items()}, added)


def best_within_tolerance(curve: list[tuple[float, float]], tolerance: float) -> float:
    """Return the most that is added to the forget loss while the retain loss gains at most `tolerance`.

    `curve` is `[(added to retain, added to forget), ...]` by growing strength. If the last strength exceeds the
    tolerance, the forget loss is interpolated linearly at it.
    """
    *allowed, (retain, forget) = curve
    best = max(added for _, added in allowed)
    if retain <= tolerance:
        return max(best, forget)
    retain_before, forget_before = allowed[-1]
    margin = tolerance - retain_before
    return max(best, forget_before + (forget - forget_before) * margin / (retain - retain_before))


def firing_rates(sae: BenchSAE, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of activations `[tokens, d_in]` on which a latent fires `[d_sae]`, and its mean there."""
    fired, total = (torch.zeros(sae.cfg.d_sae, device=rows.device) for _ in range(2))
    for batch in rows.split(rows_at_once(sae.cfg.d_sae)):
        latents = sae.encode(batch)
        fired += (latents > 0).sum(0)
        total += latents.clamp_(min=0).sum(0)
    return fired / len(rows), total / fired.clamp(min=1)


def encode_text(evaluator: "Evaluator", sae: BenchSAE, windows: Text, latents: list[int]) -> Tensor:
    """Return some latents `[windows, context, n]` on a text's windows; 0 on tokens that are not ordinary."""
    return torch.cat(
        [
            sae.encode(hooked)[..., latents] * activations.ordinary_mask(evaluator.model, ids)[..., None]
            for ids, hooked in zip(windows.ids.split(BATCH_WINDOWS), windows.hooked.split(BATCH_WINDOWS), strict=True)
        ]
    )


def clamp_loss_added(evaluator: "Evaluator", windows: Text, acts: Tensor, clamp: Tensor, W_dec: Tensor) -> float:
    """Return the nats a token that a text's loss gains when latents are clamped wherever they fire.

    `acts [windows, context, n]` are the latents, `clamp [n]` their new values, `W_dec [n, d_in]` their directions. Only
    the layers above the hook are run, and only on windows in which one of the latents fires.
    """
    change = torch.where(acts > 0, clamp - acts, 0.0)
    (active,) = torch.nonzero((acts > 0).any(2).any(1), as_tuple=True)
    total = 0.0
    for rows in active.split(windows_at_once(windows.ids.shape[1], evaluator.model.cfg.d_vocab)):
        hooked = (windows.hooked[rows].float() + change[rows] @ W_dec).to(windows.hooked.dtype)
        ids, entering = windows.ids[rows.cpu()], windows.entering[rows]
        losses = window_losses(evaluator.model, evaluator.hook_name, ids, entering, hooked)
        total += (losses - windows.losses[rows]).sum().item()
    return total / windows.count.item()


def load_texts(evaluator: "Evaluator") -> dict[str, Text]:
    """Return the forget and the retain text with the model's activations; cached for a model and hook."""
    if CACHE_NAME in evaluator.memory:
        return evaluator.memory[CACHE_NAME]
    path = evaluator.folder / f"{CACHE_NAME}.safetensors"
    with waiting_lock(path.with_suffix(".lock"), "another process reads the same texts"):
        if not path.exists():
            texts = {"forget": read_text(evaluator, FORGET), "retain": read_text(evaluator, RETAIN)}
            tensors = {f"{on}.{n}": t.contiguous().cpu() for on, parts in texts.items() for n, t in parts.items()}
            with files.atomic_path(path) as partial:
                save_file(tensors, partial)
    device = models.device_config().device
    parts = {n: t if n.endswith("ids") else t.to(device) for n, t in load_file(path).items()}
    evaluator.memory[CACHE_NAME] = {
        on: Text(**{n: parts[f"{on}.{n}"] for n in Text.__dataclass_fields__}) for on in ("forget", "retain")
    }
    return evaluator.memory[CACHE_NAME]


@torch.no_grad()
def read_text(evaluator: "Evaluator", datasets: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the fields of a Text, made from the development prompts of these datasets."""
    model, hook_name = evaluator.model, evaluator.hook_name
    folder = text.data_dir()
    prompts = dict.fromkeys(p for name in datasets for p in text.read_prompts(folder / f"{name}.csv.zst"))
    documents = [p for p in prompts if text.split_of(p) == "dev" and text.normalise(p) not in text.held_out_prompts()]
    random.Random(SEED).shuffle(documents)
    context = models.context_size(model)
    choosing = tokens.pack(model, documents[::2], context, CHOOSING * context)[:CHOOSING]
    ids = tokens.pack(model, documents[1::2], context, SCORED * context)[:SCORED]
    rows = [
        activations.run_to_hook(model, batch, hook_name)[activations.ordinary_mask(model, batch)]
        for batch in choosing.split(BATCH_WINDOWS)
    ]
    return {"choosing": torch.cat(rows)} | vars(ablation.read_windows(model, hook_name, ids))
