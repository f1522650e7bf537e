"""What is kept of a run's latents for a person to look at: see agent/lab/features.py for the record."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.lab import checkpoint, features, models
from agent.lab.checkpoint import Checkpoint
from agent.lab.errors import UserError
from agent.lab.evaluation import direct_effect, named_latents
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.feature_collector import SAMPLE_SEED, Collector, count_firings
from agent.lab.evaluation.feature_contexts import Contexts, rounded
from agent.lab.evaluation.feature_text import FeatureText
from agent.lab.evaluation.named_latents import NamedLatent
from agent.lab.evaluation.requests import KeepFeatures
from agent.lab.evaluation.true_features import TrueFeatures
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.features import FEW, SAME, Feature, Features, Neighbour, Turnover

HISTOGRAM_BINS = 20
PROMOTED = 10  # tokens, and as many that are suppressed
NEAREST = 8  # neighbours of a latent, of either kind
COMPARED = 2048  # latents at most, of which it is counted how many have no counterpart
AT_ONCE = 64  # latents whose neighbours are sought at once: [AT_ONCE, d_sae] fits in memory
SHARE_OF_OTHERS = 0.2  # of the time, for the SAE that this one is compared with

Effects = dict[int, list[tuple[str, float]]]


def keep(evaluator: Evaluator, request: KeepFeatures, progress: Callable[[str], None] = lambda _: None) -> Features:
    """Look at a run's latents on dev and training text. Its behaviour was checked when it was scored.

    Raises UserError, CheckpointError, BadFile.
    """
    sae = checkpoint.load(request.run_dir / "checkpoint", models.device_config().device)
    text = FeatureText(evaluator, request.tokens)
    named = named_latents.read(request.run_dir / "eval" / "analysis")
    if beyond := [latent for latent in named if latent >= sae.header.d_sae]:
        raise UserError(f"{request.run_dir.name}: its idea names latent {beyond[0]}, of {sae.header.d_sae}")
    other = _other(request, sae)
    of_baseline = features.read(request.baseline) if request.baseline else None
    counterparts = nearest(_rows(other)[of_baseline.sampled], _rows(sae)) if other and of_baseline else []
    progress("checkpoint")
    collector = Collector(sae, [*named, *(each.latent for each in counterparts)])
    collector.look_at(text, request.seconds * (1 - SHARE_OF_OTHERS))
    turnover = _turnover(request, collector, other, text) if other else []
    if of_baseline and len(of_baseline.turnover) == 1:
        turnover += of_baseline.turnover  # between two seeds of the baseline
    record = _Record(evaluator, text, sae, collector, named, other if request.baseline else None)
    result = record.features(turnover)
    progress("features")
    return result


def _other(request: KeepFeatures, sae: Checkpoint) -> Checkpoint | None:
    """Return the baseline of a run, or the baseline with another seed; None if there is none of the same width."""
    folder = request.baseline or request.reseeded
    if folder is None:
        return None
    other = checkpoint.load(folder / "checkpoint", sae.device)
    return other if other.header.d_in == sae.header.d_in else None


def _turnover(request: KeepFeatures, collector: Collector, other: Checkpoint, text: FeatureText) -> list[Turnover]:
    fired = count_firings(other, text, request.seconds * SHARE_OF_OTHERS)
    mine, theirs = collector.fired_of_counted >= FEW, fired >= FEW
    run = request.run_dir.name.replace("_", " ")
    of = f"{run} and the baseline" if request.baseline else "two seeds of the baseline"
    own, others = _rows(collector.sae), _rows(other)
    compared = min(COMPARED, int(mine.sum()))
    appeared, lost = unmatched(own, mine, others), unmatched(others, theirs, own)
    return [Turnover(of=of, compared=compared, appeared=appeared, lost=lost)]


def unmatched(rows: Tensor, among: Tensor, others: Tensor) -> float:
    """Return the share of the unit rows `[n, d_in]` marked in `among [n]`, or of a seeded sample of COMPARED of them,
    that have a cosine below SAME with each of the `others [m, d_in]`. It is 0 if none is marked."""
    marked = among.nonzero().flatten()
    chosen = marked[torch.randperm(len(marked), generator=torch.Generator().manual_seed(SAMPLE_SEED))[:COMPARED]]
    if not len(chosen):
        return 0.0
    best = torch.cat([(part @ others.T).amax(1) for part in rows[chosen.to(rows.device)].split(AT_ONCE)])
    return rounded((best < SAME).double().mean().item())


def nearest(rows: Tensor, others: Tensor) -> list[Neighbour]:
    """Return for each unit row `[n, d_in]` the closest of the `others [m, d_in]`, with the cosine."""
    found = []
    for part in rows.split(AT_ONCE):
        values, indices = (part @ others.T).max(1)
        found += [_neighbour(*pair) for pair in zip(indices.tolist(), values.tolist(), strict=True)]
    return found


def _rows(sae: Checkpoint) -> Tensor:
    """Return the decoder rows `[d_sae, d_in]`, of norm 1."""
    return F.normalize(sae.W_dec.float(), dim=1)


def _neighbour(latent: int, value: float) -> Neighbour:
    return Neighbour(latent=latent, value=round(value, 4))


@dataclass
class _Record:
    """What is written of one SAE once its latents were looked at."""

    evaluator: Evaluator
    text: FeatureText
    sae: Checkpoint
    seen: Collector
    named: Mapping[int, NamedLatent]
    baseline: Checkpoint | None

    def features(self, turnover: list[Turnover]) -> Features:
        """Return the whole record."""
        kept, fired = self.seen.kept, self.seen.fired
        rows = _rows(self.sae)
        own = rows[kept]
        promoted, suppressed, reason = self.direct_effects(kept, own)
        near, together = self.neighbours(kept, own, rows), self.firing_together(kept)
        true = TrueFeatures(self.evaluator).of(self.sae, kept) if isinstance(self.evaluator, WorldEvaluator) else {}
        in_baseline = nearest(own, _rows(self.baseline)) if self.baseline else [None] * len(kept)
        found = [
            self.feature(latent, int(fired[latent])).model_copy(
                update={
                    "promoted": promoted.get(latent, []),
                    "suppressed": suppressed.get(latent, []),
                    "near": near[latent],
                    "fires_with": together[latent],
                    "true_feature": true.get(latent),
                    "in_baseline": counterpart,
                }
            )
            for latent, counterpart in zip(kept, in_baseline, strict=True)
        ]
        return Features(
            text=self.in_words(),
            tokens=self.seen.tokens,
            d_sae=self.sae.header.d_sae,
            alive=int((fired > 0).sum()),
            direct_effect=reason,
            sampled=self.seen.sampled,
            features=found,
            W_dec=base64.b64encode(own.cpu().numpy().astype("<f2").tobytes()).decode(),
            turnover=turnover,
        )

    def feature(self, latent: int, fired: int) -> Feature:
        """Return what one latent does: how often and how strongly it fires, and where."""
        places = self.seen.places(latent)
        contexts, largest = Contexts(self.text, places), float(places.values.max(initial=0.0))
        heights = np.histogram(places.values, HISTOGRAM_BINS, (0.0, largest or 1.0))[0].tolist() if fired else []
        given = self.named.get(latent)
        return Feature(
            latent=latent,
            labels=given.labels if given else [],
            related=given.related if given else [],
            fired=fired,
            density=rounded(fired / self.seen.tokens),
            max_activation=rounded(largest),
            histogram=heights,
            top=contexts.top(),
            spread=contexts.spread(),
        )

    def direct_effects(self, kept: Sequence[int], rows: Tensor) -> tuple[Effects, Effects, str]:
        """Return the tokens that each latent promotes and suppresses, or why there are none."""
        if isinstance(self.evaluator, WorldEvaluator):
            return {}, {}, "a world has no logits"
        promoted, suppressed = Effects(), Effects()
        try:
            for latents, part in zip(_parts(kept), rows.split(AT_ONCE), strict=True):
                effects = direct_effect.logits(self.evaluator.model, self.evaluator.hook_name, part)
                for found, sign in ((promoted, 1.0), (suppressed, -1.0)):
                    values, ids = (sign * effects).topk(min(PROMOTED, effects.shape[1]))
                    for latent, own_values, own_ids in zip(latents, values.tolist(), ids.tolist(), strict=True):
                        strings = self.text.strings(own_ids)
                        found[latent] = [(s, rounded(sign * v)) for s, v in zip(strings, own_values, strict=True)]
        except direct_effect.NoDirectEffect as reason:
            return {}, {}, str(reason)
        return promoted, suppressed, ""

    def neighbours(self, kept: Sequence[int], own: Tensor, rows: Tensor) -> dict[int, list[Neighbour]]:
        """Return the latents with the closest decoder rows."""
        cosines = (part @ rows.T for part in own.split(AT_ONCE))
        return self._closest(kept, cosines)

    def firing_together(self, kept: Sequence[int]) -> dict[int, list[Neighbour]]:
        """Return the latents whose firing correlates most, on the first tokens."""
        return self._closest(kept, (self.seen.correlations(part) for part in _parts(kept)))

    def _closest(self, kept: Sequence[int], closeness: Iterable[Tensor]) -> dict[int, list[Neighbour]]:
        found: dict[int, list[Neighbour]] = {}
        for latents, values in zip(_parts(kept), closeness, strict=True):
            values[range(len(latents)), list(latents)] = -torch.inf
            best, indices = values.topk(min(NEAREST, values.shape[1] - 1))
            for latent, own, others in zip(latents, best.tolist(), indices.tolist(), strict=True):
                found[latent] = [_neighbour(i, v) for i, v in zip(others, own, strict=True) if v > 0]
        return found

    def in_words(self) -> str:
        """Return what was looked at."""
        unit = "samples" if self.text.is_world else "tokens"
        dev, more = self.seen.tokens_of_dev, self.seen.tokens - self.seen.tokens_of_dev
        return f"{dev:,} {unit} of the dev text" + (f" and {more:,} of the training text" if more else "")


def _parts(latents: Sequence[int]) -> list[Sequence[int]]:
    return [latents[start : start + AT_ONCE] for start in range(0, len(latents), AT_ONCE)]
