"""Forgetting: SAE-Bench's `unlearning` on local text, so that the question can be asked of any model.

The procedure is that of sae_bench.evals.unlearning (Farrell et al. 2024, arXiv 2410.19278): latents that fire on fewer
than a threshold of the retain text's tokens, those most frequent on the forget text first; the first n of them clamped
to a negative value wherever they fire, the SAE's error added back; swept over thresholds, numbers and strengths. Two
things differ. The texts are medicine and, to be retained, news, reviews and people, both held out, in place of WMDP's
papers and wikitext. And what was forgotten is read from the loss, in place of multiple-choice questions that only an
instruction-tuned model answers: with L the mean loss in nats a token,

    forgetting_score = max(0, max over settings with L_retain' <= 1.01 L_retain of L_forget' - L_forget)

where ' is with the latents clamped, as SAE-Bench takes the best of the settings that keep 0.99 of the other accuracy.
Strengths grow until L_retain' exceeds its bound, and the last step is read linearly, so that the score does not jump
with the grid. A latent is clamped to a multiple of its own mean where it fires on the forget text, as activations have
no common scale from model to model. Latents are chosen on other documents than those on which the losses are measured.
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
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.files import waiting_lock
from agent.lab.results import FamilyScores, Number

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator

SUMMARY = "what clamping a topic's latents costs on that topic (medicine), where the rest costs at most 1% more"

FORMAT, SEED = 1, 0  # of what is cached
FORGET = ("98_cancer_cat", "101_disease_class")
RETAIN = ("100_news_fake", "111_yelp_data", "56_wikidatasex_or_gender")
CHOOSING, SCORED = 96, 32  # windows of each text, at most: to choose latents on, and to measure the losses on
CACHE_NAME = f"forgetting-v{FORMAT}-seed{SEED}-{CHOOSING}-{SCORED}"
RETAIN_THRESHOLDS = (0.001, 0.01)  # share of the retain text's tokens; SAE-Bench's
LATENTS = (10, 20)  # SAE-Bench's
MULTIPLES = (1, 4, 16, 64)  # of a latent's mean
TOLERANCE = 0.01  # by which the retain text's loss may rise
REMARK = "on tiny-lm a random untrained SAE scores higher than most trained ones: read beside its score, never decides"


@dataclass(frozen=True)
class Text(Windows):
    """One of the two texts: activations to choose latents on, and windows of other documents to measure losses on."""

    choosing: Tensor  # [tokens, d_in]


@dataclass(frozen=True)
class Sweep:
    """What clamping an SAE's latents did."""

    score: float  # nats a token
    l0: float  # on the retain text
    latents: dict[str, list[int]]  # which were clamped, by what they are called in `added`
    added: dict[str, dict[str, Number]]  # by setting: to the loss on either text


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    positions = 2 * (CHOOSING + 2 * SCORED) * models.MAX_CONTEXT
    return requirements.check_language_model(place, 4 * positions * requirements.residual_width(place.config) / 1e6)


@torch.no_grad()
def score(evaluator: "Evaluator", sae: BenchSAE, out: Path, name: str) -> FamilyScores:
    """The sweep on one SAE, and on a random one as sparse as it is.

    `details` holds what each setting added to both losses, the file in `out` which latents it clamped, too.
    """
    found = sweep(evaluator, sae)
    if found is None:
        return FamilyScores(
            metrics={"forgetting_score": None}, not_applicable={"forgetting_score": "no latent ever fires"}
        )
    k = max(1, min(round(found.l0), sae.cfg.d_sae))
    floor = evaluator.cached_json(
        f"{CACHE_NAME}-random-{sae.cfg.d_sae}-{k}", lambda _: random_sae_score(evaluator, sae.cfg.d_sae, k)
    )
    about = {"latents": found.latents, "added": found.added}
    files.write_atomically(out / f"{name}_forgetting.json", json.dumps(about, indent=2))
    return FamilyScores(
        metrics={"forgetting_score": found.score, "random_forgetting_score": floor["score"]},
        details=found.added,
        remark=REMARK,
    )


def random_sae_score(evaluator: "Evaluator", d_sae: int, k: int) -> dict[str, float]:
    """What a random untrained SAE scores."""
    found = sweep(evaluator, evaluator.random_sae(d_sae, k))
    assert found
    return {"score": found.score}


def sweep(evaluator: "Evaluator", sae: BenchSAE) -> Sweep | None:
    """Every setting on one SAE; None where no latent ever fires."""
    from sae_bench.evals.unlearning.utils.feature_activation import get_top_features

    texts = load_texts(evaluator)
    on_forget, mean = firing_rates(sae, texts["forget"].choosing)
    on_retain, _ = firing_rates(sae, texts["retain"].choosing)
    if not on_forget.any() and not on_retain.any():
        return None
    clamped: dict[tuple[int, ...], str] = {}  # two thresholds may choose the same latents
    for threshold in RETAIN_THRESHOLDS:
        top = get_top_features(on_forget.cpu().numpy(), on_retain.cpu().numpy(), retain_threshold=threshold).tolist()
        for number in LATENTS:
            clamped.setdefault(tuple(top[:number]), f"{min(number, len(top))} latents on under {threshold:.1%}")
    clamped.pop((), None)
    used = sorted({latent for latents in clamped for latent in latents})
    acts = {on: encode_text(evaluator, sae, read, used) for on, read in texts.items()}
    most, best = TOLERANCE * texts["retain"].loss, 0.0
    added: dict[str, dict[str, Number]] = {}
    for latents, called in clamped.items():
        which, chosen = [used.index(latent) for latent in latents], list(latents)
        curve = [(0.0, 0.0)]
        for multiple in MULTIPLES:
            forgot, lost = (
                clamp_loss_added(evaluator, read, acts[on][..., which], -multiple * mean[chosen], sae.W_dec[chosen])
                for on, read in texts.items()
            )
            added[f"{called}, x{multiple}"] = {"forget_loss_added": forgot, "retain_loss_added": lost}
            curve.append((lost, forgot))
            if lost > most:
                break
        best = max(best, best_within_tolerance(curve, most))
    return Sweep(best, on_retain.sum().item(), {called: list(latents) for latents, called in clamped.items()}, added)


def best_within_tolerance(curve: list[tuple[float, float]], most: float) -> float:
    """The most that is added to the forget loss while the retain loss gains at most `most`, by strengths in growing
    order `[(added to retain, added to forget), ...]`, read linearly up to the one that adds more."""
    *allowed, (lost, forgot) = curve
    best = max(added for _, added in allowed)
    if lost <= most:
        return max(best, forgot)
    lost_before, forgot_before = allowed[-1]
    return max(best, forgot_before + (forgot - forgot_before) * (most - lost_before) / (lost - lost_before))


def firing_rates(sae: BenchSAE, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the activations `[tokens, d_in]` on which each latent fires `[d_sae]`, and its mean there."""
    fired, total = (torch.zeros(sae.cfg.d_sae, device=rows.device) for _ in range(2))
    for batch in rows.split(4096):
        latents = sae.encode(batch)
        fired += (latents > 0).sum(0)
        total += latents.clamp(min=0).sum(0)
    return fired / len(rows), total / fired.clamp(min=1)


def encode_text(evaluator: "Evaluator", sae: BenchSAE, read: Text, latents: list[int]) -> Tensor:
    """Some latents `[windows, context, n]` on the ordinary tokens of a text's windows."""
    return torch.cat(
        [
            sae.encode(hooked)[..., latents] * activations.ordinary_mask(evaluator.model, ids)[..., None]
            for ids, hooked in zip(read.ids.split(BATCH_WINDOWS), read.hooked.split(BATCH_WINDOWS), strict=True)
        ]
    )


def clamp_loss_added(evaluator: "Evaluator", read: Text, acts: Tensor, clamp: Tensor, W_dec: Tensor) -> float:
    """Nats a token that a text's loss gains where latents `[windows, context, n]`, wherever they fire, are set to
    `clamp [n]`; `W_dec [n, d_in]` are their directions.

    Only the layers above the hook are run, and only on windows in which one of the latents fires.
    """
    moved = torch.where(acts > 0, clamp - acts, 0.0)
    (here,) = torch.nonzero((acts > 0).any(2).any(1), as_tuple=True)
    total = 0.0
    for rows in here.split(BATCH_WINDOWS):
        hooked = (read.hooked[rows].float() + moved[rows] @ W_dec).to(read.hooked.dtype)
        ids, entering = read.ids[rows.cpu()], read.entering[rows]
        total += (
            (window_losses(evaluator.model, evaluator.hook_name, ids, entering, hooked) - read.losses[rows])
            .sum()
            .item()
        )
    return total / read.count.item()


def load_texts(evaluator: "Evaluator") -> dict[str, Text]:
    """The two texts as the model reads them; made once for a model and hook, and kept in the cache."""
    if CACHE_NAME in evaluator.memory:
        return evaluator.memory[CACHE_NAME]
    path = evaluator.folder / f"{CACHE_NAME}.safetensors"
    with waiting_lock(path.with_suffix(".lock"), "another process reads the same texts"):
        if not path.exists():
            made = {"forget": read_text(evaluator, FORGET), "retain": read_text(evaluator, RETAIN)}
            tensors = {f"{on}.{n}": t.contiguous().cpu() for on, parts in made.items() for n, t in parts.items()}
            with files.atomic_path(path) as partial:
                save_file(tensors, partial)
    stored, device = load_file(path), models.device_config().device
    parts = {n: t if n.endswith("ids") else t.to(device) for n, t in stored.items()}
    evaluator.memory[CACHE_NAME] = {
        on: Text(**{n: parts[f"{on}.{n}"] for n in Text.__dataclass_fields__}) for on in ("forget", "retain")
    }
    return evaluator.memory[CACHE_NAME]


@torch.no_grad()
def read_text(evaluator: "Evaluator", datasets: tuple[str, ...]) -> dict[str, Tensor]:
    """What a Text holds, of the development prompts of these datasets."""
    model, hook_name = evaluator.model, evaluator.hook_name
    folder = text.data_dir()
    found = dict.fromkeys(p for name in datasets for p in text.read_prompts(folder / f"{name}.csv.zst"))
    documents = [p for p in found if text.split_of(p) == "dev" and text.normalise(p) not in text.held_out_prompts()]
    random.Random(SEED).shuffle(documents)
    context = models.context_size(model)
    choosing = tokens.pack(model, documents[::2], context, CHOOSING * context)[:CHOOSING]
    ids = tokens.pack(model, documents[1::2], context, SCORED * context)[:SCORED]
    rows = [
        activations.run_to_hook(model, batch, hook_name)[activations.ordinary_mask(model, batch)]
        for batch in choosing.split(BATCH_WINDOWS)
    ]
    return {"choosing": torch.cat(rows)} | vars(ablation.read_windows(model, hook_name, ids))
