"""The latents that runs kept, as compact JSON that the page's script shows, and which of two runs' are the same."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

from agent.lab import features
from agent.lab.features import FEW, SAME, Context, Feature, Features, Neighbour, TrueFeature, Turnover
from agent.lab.files import BadFile
from agent.lab.visible import one_line, visible
from agent.report.page.opened import Opened
from agent.report.plots import MOST_DRAWN
from agent.report.story import most_telling
from agent.study.runs import Run

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 7 * 10**6  # of all features in a page
CONTEXTS = (24, 8, 4, 2, 1)  # at most, of each kind a latent: the first number with which all fit
LONGEST_TOKEN, LONGEST_LABEL, MOST_LABELS, MOST_NEAR = 60, 160, 12, 12


@dataclass(frozen=True)
class Kept:
    """The features of one run."""

    anchor: str  # of the run's section
    name: str
    baseline: str  # anchor of the baseline that it is compared with
    setting: tuple[str, str]  # model and hook: rows of other ones do not compare
    features: Features


@dataclass
class Collection:
    """The features of all runs in a page, and why some are not there."""

    kept: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, anchor: str) -> Features | None:
        return next((each.features for each in self.kept if each.anchor == anchor), None)


def collect(studies: Mapping[str, Opened]) -> Collection:
    """Read the features of the runs that figures show, by the prefix of each study's anchors."""
    collection = Collection()
    for prefix, opened in studies.items():
        shown = most_telling(opened.runs, opened.judged, MOST_DRAWN)
        if len(shown) < len(opened.runs):
            collection.notes.append(f"Features are those of the {len(shown)} runs that the figures show.")
        for run in shown:
            _add(collection, prefix, opened, run)
    return collection


def _add(collection: Collection, prefix: str, opened: Opened, run: Run) -> None:
    name = f"run_{run.number}/{features.FILE}"
    if name in opened.hidden:
        collection.notes.append(f"{name} was changed after it was recorded: not shown.")
        return
    try:
        found = features.read(run.directory)
    except BadFile as error:
        collection.notes.append(f"Run {run.number}: {error}.")
        return
    if found is None:
        if (kept := opened.state.features.get(run.number)) and kept.error:
            collection.notes.append(f"Run {run.number}: its latents were not kept: {kept.error}.")
        return
    fixed = opened.state.started.fixed
    title = f"run {run.number}: {run.state.proposal.title}"
    name = f"{opened.name}, {title}" if prefix else title
    collection.kept.append(
        Kept(f"{prefix}run-{run.number}", name, f"{prefix}run-0", (fixed.model, fixed.hook_name), found)
    )


def as_json(collection: Collection, most_bytes: int = MOST_BYTES) -> str:
    """Return all features as JSON that may stand in a script element whatever the tokens are.

    If they are too many, latents are shown with fewer contexts, and then the last runs without features.
    """
    data, most, text = _data(collection.kept), CONTEXTS[0], ""
    for most in CONTEXTS:
        text = script_json(_with_contexts(data, most))
        if len(text) <= most_bytes:
            break
    if any(most < _most_contexts(each.features) for each in collection.kept):
        collection.notes.append(f"At most {most} contexts of each kind are shown, so that the page stays small.")
    while len(text) > most_bytes and collection.kept:
        dropped = collection.kept.pop()
        collection.notes.append(f"The features of {dropped.name} are left out, so that the page stays small.")
        text = script_json(_with_contexts(_data(collection.kept), most))
    return text


def _with_contexts(data: dict[str, Any], most: int) -> dict[str, Any]:
    """Cut the contexts of every latent to the first ones."""
    for run in data["runs"]:
        for latent in run["latents"]:
            latent |= {name: latent[name][:most] for name in ("top", "spread") if name in latent}
    return data


def script_json(data: Any) -> str:
    """Return JSON in ASCII without characters that could end the element or begin a comment.

    >>> script_json(["</script><!--", "é"])
    '["\\\\u003c/script\\\\u003e\\\\u003c!--","\\\\u00e9"]'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _most_contexts(found: Features) -> int:
    return max((max(len(each.top), len(each.spread)) for each in found.features), default=0)


class _Vocabulary(dict[str, int]):
    """Token -> its number, in the order in which they are first seen."""

    def numbers(self, tokens: Iterable[str]) -> list[int]:
        return [self.setdefault(token, len(self)) for token in tokens]

    def shown(self) -> list[str]:
        return [visible(token)[:LONGEST_TOKEN] for token in self]


def _data(kept: Sequence[Kept]) -> dict[str, Any]:
    vocabulary = _Vocabulary()
    runs = [_run(each, vocabulary) for each in kept]
    return {"few": FEW, "same": SAME, "vocabulary": vocabulary.shown(), "runs": runs, "matches": matches(kept)}


def _run(each: Kept, vocabulary: _Vocabulary) -> dict[str, Any]:
    found, sampled = each.features, set(each.features.sampled)
    return {
        "anchor": each.anchor,
        "name": each.name,
        "baseline": each.baseline,
        "text": one_line(found.text),
        "tokens": found.tokens,
        "d_sae": found.d_sae,
        "alive": found.alive,
        "direct_effect": one_line(found.direct_effect),
        "turnover": turnover_sentences(each),
        "latents": [_latent(feature, feature.latent in sampled, vocabulary) for feature in found.features],
    }


def _latent(feature: Feature, sampled: bool, vocabulary: _Vocabulary) -> dict[str, Any]:
    row = {
        "latent": feature.latent,
        "sampled": sampled,
        "labels": [one_line(label)[:LONGEST_LABEL] for label in feature.labels[:MOST_LABELS]],
        "related": feature.related[:MOST_NEAR],
        "fired": feature.fired,
        "density": _short(feature.density),
        "max": _short(feature.max_activation),
        "histogram": [max(0, count) for count in feature.histogram[:100]],
        "top": [_context(context, vocabulary) for context in feature.top[: CONTEXTS[0]]],
        "spread": [_context(context, vocabulary) for context in feature.spread[: CONTEXTS[0]]],
        "promoted": _tokens(feature.promoted, vocabulary),
        "suppressed": _tokens(feature.suppressed, vocabulary),
        "near": _neighbours(feature.near),
        "fires_with": _neighbours(feature.fires_with),
        "true": _true(feature.true_feature) if feature.true_feature else None,
        "in_baseline": _neighbours([feature.in_baseline])[0] if feature.in_baseline else None,
    }
    return {name: value for name, value in row.items() if value is not None and value is not False and value != []}


def _true(true: TrueFeature) -> dict[str, Any]:
    return {
        "feature": true.feature,
        "cosine": _short(true.cosine),
        "f1": _short(true.f1),
        "parents": true.parents[:MOST_NEAR],
    }


def _context(context: Context, vocabulary: _Vocabulary) -> list[Any]:
    """Return the index of the peak, the tokens, and where the latent is active with its activations."""
    active = [(place, _short(value)) for place, value in enumerate(context.activations) if value and _short(value)]
    return [context.peak, vocabulary.numbers(context.tokens), [p for p, _ in active], [value for _, value in active]]


def _tokens(pairs: Sequence[tuple[str, float]], vocabulary: _Vocabulary) -> list[list[Any]]:
    return [[vocabulary.numbers([token])[0], _short(value)] for token, value in pairs[:MOST_NEAR]]


def _neighbours(neighbours: Sequence[Neighbour]) -> list[list[Any]]:
    return [[neighbour.latent, _short(neighbour.value)] for neighbour in neighbours[:MOST_NEAR]]


def _short(value: float | None) -> float | None:
    """Return a figure with three digits; None if it is not finite."""
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else None


def matches(kept: Sequence[Kept]) -> dict[str, list[list[int]]]:
    """Return, for each ordered pair of runs as "0,1", the closest latent of the second for each of the first.

    A closest latent is its index and the cosine of the two decoder rows in hundredths. Only kept latents are compared,
    but with a run's own baseline: there the closest of all is known, with the index -1 if that was not kept.
    """
    rows = {number: found for number, each in enumerate(kept) if (found := _decoder_rows(each.features)) is not None}
    closest = {}
    for first, second in permutations(rows, 2):
        if kept[first].setting == kept[second].setting and rows[first].shape[1] == rows[second].shape[1]:
            own = kept[first].baseline == kept[second].anchor
            counterparts = _counterparts(kept[first].features, kept[second].features) if own else None
            closest[f"{first},{second}"] = counterparts or _closest(rows[first], rows[second])
    return closest


def _counterparts(found: Features, baseline: Features) -> list[list[int]] | None:
    """Return the closest latent of the baseline for each latent of a run; None if it is not known of one."""
    places = {feature.latent: place for place, feature in enumerate(baseline.features)}
    known = [feature.in_baseline for feature in found.features if feature.in_baseline]
    if len(known) < len(found.features):
        return None
    return [[places.get(each.latent, -1) for each in known], [_hundredths(each.value) for each in known]]


def _hundredths(cosine: float) -> int:
    return round(100 * max(-1.0, min(1.0, cosine))) if math.isfinite(cosine) else 0


def _decoder_rows(found: Features) -> "np.ndarray | None":
    """Return the decoder rows [features, d_in], or None if they were not kept."""
    import numpy as np

    try:
        flat = np.frombuffer(found.rows(), dtype="<f2")
    except ValueError:  # no base64, or half a number
        return None
    if not flat.size or not found.features or flat.size % len(found.features):
        return None
    return np.nan_to_num(flat.reshape(len(found.features), -1).astype(np.float32), posinf=0.0, neginf=0.0)


def _closest(rows: "np.ndarray", others: "np.ndarray") -> list[list[int]]:
    cosines = rows @ others.T
    hundredths = (100 * cosines.max(axis=1)).round().clip(-100, 100).astype(int)
    return [cosines.argmax(axis=1).tolist(), hundredths.tolist()]


def turnover_sentences(each: Kept) -> list[str]:
    """State which latents appeared and were lost against the baseline, and that seeds alone replace many."""
    of_seeds = each.anchor == each.baseline
    own, seeds = ([], each.features.turnover) if of_seeds else (each.features.turnover[:1], each.features.turnover[1:])
    lines = [f"{_turnover(compared)}." for compared in own]
    lines += [f"{_turnover(compared)}, by their seeds alone." for compared in seeds]
    if own and seeds:
        beyond = max(own[0].appeared, own[0].lost) > max(seeds[0].appeared, seeds[0].lost)
        lines.append(
            "Seeds alone replace nearly as many, or more: only what is clearly beyond them may come from the change."
            if beyond
            else "That is no more than seeds alone replace; a run has the seed of its baseline, so it may well be less."
        )
    elif own:
        lines.append("Seeds alone replace many latents. How many was not measured here, so this is no finding.")
    return lines


def _turnover(compared: Turnover) -> str:
    return (
        f"Of {compared.compared:,} latents compared ({one_line(compared.of)}), {compared.appeared:.0%} have no "
        f"counterpart in the other SAE, and {compared.lost:.0%} of the other's have none in the first"
    )
