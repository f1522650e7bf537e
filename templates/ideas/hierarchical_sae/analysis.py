"""Measure how a hierarchical SAE uses its tiers, what of a tier the one below composes, and whether ablating a composed
latent changes the model as ablating its parts does.

A pattern is a latent of an upper tier with its parts: up to MOST_PARTS latents of the tier below, found greedily
(orthogonal matching pursuit: Pati, Rezaiifar and Krishnaprasad 1993) on half of the held-out activations, each adding
at least LEAST_GAIN to the latent's R². Patterns are found alike in every SAE with tiers, so one trained without a
composition loss has the same figures. All figures about patterns are measured on the other half.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from measures import COMPOSED, LOWER, MOST_PARTS, TRACED, UPPER
from torch import Tensor

from agent.lab import results
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.sae_adapter import BenchSAE

LEAST_GAIN = 0.02  # in R², of a part
KEPT = 8  # patterns saved for figures.py


def measure(exam: Examination) -> dict[str, float]:
    """Return each of MEASURES on the held-out activations, or nothing for an SAE without two tiers.

    Latents are those of the scaled activations, on which training learned W.
    """
    tiers = [group for name, group in exam.checkpoint.header.groups.items() if name.startswith("tier_")]
    if len(tiers) < 2:
        return {}
    figures = activity(exam, tiers)
    pairs = [Pair(exam, *tiers[i : i + 2], number=i) for i in range(len(tiers) - 1)]
    for batch in exam.latents():
        for pair in pairs:
            pair.count(batch)
    for pair in pairs:
        pair.find_patterns()
    traced = strongest(pairs, TRACED)
    for batch in exam.latents():
        for pair in pairs:
            pair.judge(batch)
    for pair in pairs:
        figures |= pair.figures()
    figures |= of_patterns(pairs) | residuals(pairs)
    results.keep(exam.out, "patterns.json", {"patterns": [pair.summary(latent) for pair, latent in traced[:KEPT]]})
    name_patterns(exam, traced)
    if exam.has_loss:
        figures |= causal_tracing(exam, traced) | forgetting(exam, tiers)
    return figures


def activity(exam: Examination, tiers: list[tuple[int, int]]) -> dict[str, float]:
    """Return each tier's share of the latents and of L0, and its alive fraction."""
    d_sae = exam.checkpoint.header.d_sae
    fired = torch.zeros(d_sae, dtype=torch.float64, device=exam.checkpoint.device)
    for latents in exam.latents():
        fired += (latents != 0).sum(0)
    figures = {}
    for i, (start, end) in enumerate(tiers):
        figures[f"tier_{i}_latents_share"] = (end - start) / d_sae
        figures[f"tier_{i}_l0_share"] = (fired[start:end].sum() / fired.sum()).item()
        figures[f"tier_{i}_alive_fraction"] = (fired[start:end] > 0).double().mean().item()
    return figures


class Sums:
    """Sums over tokens of products of a tier's latents x `[tokens, lower]` and the next tier's y `[tokens, upper]`."""

    def __init__(self) -> None:
        self.tokens = 0
        self.x: Any = 0.0  # [lower]
        self.y: Any = 0.0  # [upper]
        self.xx: Any = 0.0  # [lower, lower]
        self.xy: Any = 0.0  # [lower, upper]
        self.yy: Any = 0.0  # [upper]

    def add(self, x: Tensor, y: Tensor) -> None:
        self.tokens += len(x)
        for name, value in (("x", x.sum(0)), ("y", y.sum(0)), ("xx", x.T @ x), ("xy", x.T @ y), ("yy", (y * y).sum(0))):
            setattr(self, name, getattr(self, name) + value)

    def deviations(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of products about the means: xx, xy and yy."""
        x, y = self.x, self.y
        return (
            self.xx - x[:, None] * x / self.tokens,
            self.xy - x[:, None] * y / self.tokens,
            self.yy - y * y / self.tokens,
        )


def sampled(start: int, end: int, most: int) -> list[int]:
    """Return the latents [start, end), or a seeded sample of `most` of them, in their order."""
    chosen = torch.randperm(end - start, generator=torch.Generator().manual_seed(0))[:most]
    return [start + latent for latent in chosen.sort().values.tolist()]


class Pair:
    """A tier [start, end), the one above it, and the patterns between them.

    Of wide tiers the first LOWER latents of the one and a seeded sample of UPPER of the other are looked at; `lower`
    and `upper` are their indices, and all that is counted here counts along these.
    """

    def __init__(self, exam: Examination, lower: tuple[int, int], upper: tuple[int, int], number: int) -> None:
        self.exam, self.number = exam, number
        self.lower, self.upper = list(range(*lower))[:LOWER], sampled(*upper, UPPER)
        self.columns = [latent - upper[0] for latent in self.upper]  # of the learned map
        self.found_on, self.judged_on = Sums(), Sums()
        self.sums: dict[str, Any] = {}  # over the tokens of judged_on, from which the figures are computed

    @property
    def learned(self) -> Tensor | None:
        """The learned map W_l `[lower, upper]`; None without a composition loss."""
        W = self.exam.checkpoint.extra.get(f"composition_{self.number}")
        return None if W is None else W[: len(self.lower), self.columns].double()

    def halves(self, latents: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return both tiers' latents on the tokens that find patterns, and on those that judge them."""
        x, y = (latents[:, chosen].double() for chosen in (self.lower, self.upper))
        middle = len(latents) // 2
        return [(x[:middle], y[:middle]), (x[middle:], y[middle:])]

    def count(self, latents: Tensor) -> None:
        for sums, (x, y) in zip((self.found_on, self.judged_on), self.halves(latents), strict=True):
            sums.add(x, y)

    def find_patterns(self) -> None:
        """Find the map `W [lower, upper]`, zero except for parts, each latent's R² and the latents that have parts."""
        self.W = pursue(*self.found_on.deviations())
        xx, xy, yy = self.judged_on.deviations()
        errors = yy - 2 * (self.W * xy).sum(0) + (self.W * (xx @ self.W)).sum(0)
        self.live = self.judged_on.yy > 0
        self.r2 = torch.where(self.live, 1 - errors / yy.clamp_min(1e-12), 0.0)
        self.explained = yy * self.r2
        self.patterns = ((self.W != 0).any(0) & self.live).nonzero().flatten()
        self.contribution = self.W.abs() * self.found_on.x[:, None]
        self.strongest = self.contribution.argmax(0)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.patterns), generator=generator).to(self.patterns.device)
        self.shuffled = torch.empty_like(order).scatter_(0, order, order.roll(1))  # another pattern for each pattern

    def judge(self, latents: Tensor) -> None:
        """Add a batch's second half to the sums from which the figures are computed."""
        _, (x, y) = self.halves(latents)
        mean_x, mean_y = self.found_on.x / self.found_on.tokens, self.found_on.y / self.found_on.tokens
        error = y - ((x - mean_x) @ self.W + mean_y)
        elsewhere = y - ((x.roll(len(x) // 2, 0) - mean_x) @ self.W + mean_y)
        squares, fires, parts = y * y, y != 0, x[:, self.strongest[self.patterns]] != 0
        wholes = fires[:, self.patterns]
        W_dec = self.exam.checkpoint.W_dec[self.upper].double()
        contributed, left = (y - mean_y) @ W_dec, error @ W_dec
        for name, value in {
            "activity": squares.sum(),
            "covered": squares[error.abs() <= y.abs() / 2].sum(),
            "covered_elsewhere": squares[elsewhere.abs() <= y.abs() / 2].sum(),
            "errors": error.pow(2).sum(),
            "missed": error[fires].pow(2).sum(),
            "contributed": contributed.T @ contributed,
            "left": left.T @ left,
            "wholes": wholes.sum(0),
            "parts": parts.sum(0),
            "both": (wholes & parts).sum(0),
            "both_shuffled": (wholes & parts[:, self.shuffled]).sum(0),
            "lower_activity": fires[:, self.patterns].double().T @ (x * x),  # of the lower tier where a pattern fires
        }.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def figures(self) -> dict[str, float]:
        figures = {}
        if self.learned is not None:
            figures["r2"] = self.learned_r2(self.learned)
        sums = self.sums
        figures["coverage"] = ((sums["covered"] - sums["covered_elsewhere"]) / sums["activity"]).item()
        if len(self.patterns):
            tokens, wholes, parts = self.judged_on.tokens, sums["wholes"], sums["parts"]
            own = nmi(tokens, wholes, parts, sums["both"])
            shuffled = nmi(tokens, wholes, parts[self.shuffled], sums["both_shuffled"])
            figures["nmi"] = (own - shuffled).mean().item()
        return {f"composition_{self.number}_{name}": value for name, value in figures.items()}

    def learned_r2(self, W: Tensor) -> float:
        """Return the R² of the learned map over all tokens; the means are not subtracted, as W was learned without."""
        both = (self.found_on, self.judged_on)
        errors = sum((s.yy - 2 * (W * s.xy).sum(0) + (W * (s.xx @ W)).sum(0)).sum().item() for s in both)
        (a, b), tokens = both, self.found_on.tokens + self.judged_on.tokens
        return 1 - errors / (a.yy + b.yy - (a.y + b.y).pow(2) / tokens).sum().item()

    def parts(self, latent: int) -> list[int]:
        """Return the SAE's indices of a latent's parts, strongest first; `latent` counts along `upper`."""
        order = self.contribution[:, latent].argsort(descending=True)[: int((self.W[:, latent] != 0).sum())]
        return [self.lower[part] for part in order.tolist()]

    def control(self, latent: int) -> list[int]:
        """Return as many other latents of the parts' tier, about as active as the parts where the whole fires."""
        log_activity = self.sums["lower_activity"][(self.patterns == latent).nonzero().item()].clamp_min(1e-12).log()
        chosen = [self.lower.index(part) for part in self.parts(latent)]
        taken = list(chosen)
        for part in chosen:
            distance = (log_activity - log_activity[part]).abs()
            distance[taken] = math.inf
            taken.append(int(distance.argmin()))
        return [self.lower[other] for other in taken[len(chosen) :]]

    def summary(self, latent: int) -> dict[str, Any]:
        parts = self.parts(latent)
        weights = [self.W[self.lower.index(part), latent].item() for part in parts]
        whole = {"latent": self.upper[latent], "tier": self.number + 1, "r2": self.r2[latent].item()}
        return whole | {"parts": parts, "weights": weights}


def pursue(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Return the map `[lower, upper]` from parts to latents, zero elsewhere, given sums of products about the means.

    Parts are added one at a time: the one with a positive weight that predicts most of what is left. After each, all
    weights are fitted again by least squares.
    """
    W, r2, growing = torch.zeros_like(xy), torch.zeros_like(yy), yy > 0
    chosen = torch.empty(len(yy), 0, dtype=torch.long, device=xy.device)
    size = xx.diagonal()[:, None].clamp_min(1e-9)
    for _ in range(min(MOST_PARTS, len(xx))):
        gain = (xy - xx @ W).clamp_min(0).pow(2) / size
        chosen = torch.cat([chosen, gain.scatter(0, chosen.T, -1.0).argmax(0)[:, None]], dim=1)
        among = xx[chosen[:, :, None], chosen[:, None, :]]
        among = among + 1e-9 * (1 + among.diagonal(dim1=1, dim2=2).amax(1))[:, None, None] * torch.eye(
            chosen.shape[1], dtype=xx.dtype, device=xx.device
        )
        with_y = xy.T.gather(1, chosen)
        weights = torch.linalg.solve(among, with_y)
        better = (weights * with_y).sum(1) / yy.clamp_min(1e-12)
        growing = growing & (better - r2 >= LEAST_GAIN)
        W = torch.where(growing, torch.zeros_like(W).scatter(0, chosen.T, weights.T), W)
        r2 = torch.where(growing, better, r2)
    return W


def nmi(tokens: int, ones: Tensor, others: Tensor, both: Tensor) -> Tensor:
    """Return I(a; b) / sqrt(H(a) H(b)) of firing, given how often a, b and both fire; 0 where one never changes."""

    def entropy(*counts: Tensor) -> Tensor:
        return sum(-torch.xlogy(p, p) for p in (count.double() / tokens for count in counts))  # type: ignore[return-value]

    a, b = entropy(ones, tokens - ones), entropy(others, tokens - others)
    joint = entropy(both, ones - both, others - both, tokens - ones - others + both)
    return torch.where(a * b > 0, (a + b - joint) / (a * b).sqrt().clamp_min(1e-12), 0.0)


def strongest(pairs: list[Pair], most: int) -> list[tuple[Pair, int]]:
    """Return the `most` patterns with the largest explained variance (not its share) of their latent."""
    patterns = [(pair.explained[latent].item(), pair, latent) for pair in pairs for latent in pair.patterns.tolist()]
    return [(pair, latent) for _, pair, latent in sorted(patterns, key=lambda pattern: -pattern[0])[:most]]


def name_patterns(exam: Examination, traced: list[tuple[Pair, int]]) -> None:
    """Name the wholes and parts of patterns, each with its tier."""
    for pair, latent in traced:
        pattern = pair.summary(latent)
        whole, parts = pattern["latent"], pattern["parts"]
        listed = ", ".join(map(str, parts))
        composed = f"tier {pattern['tier']}, composed of {listed} of tier {pair.number} (R² {pattern['r2']:.2f})"
        exam.name_latents({whole: composed}, related={whole: parts})
        exam.name_latents(
            dict.fromkeys(parts, f"tier {pair.number}, part of {whole} of tier {pattern['tier']}"),
            related={part: [whole] for part in parts},
        )


def of_patterns(pairs: list[Pair]) -> dict[str, float]:
    """Return the share of composed latents, how many and how shared their parts are, and whether the maps agree."""
    live = sum(int(pair.live.sum()) for pair in pairs)
    composed = sum(int((pair.r2[pair.patterns] >= COMPOSED).sum()) for pair in pairs)
    figures = {"composed_fraction": composed / live} if live else {}
    if not any(len(pair.patterns) for pair in pairs):
        return figures
    numbers = torch.cat([(pair.W[:, pair.patterns] != 0).sum(0) for pair in pairs]).double()
    uses = torch.cat([(pair.W[:, pair.patterns] != 0).sum(1) for pair in pairs])
    figures["parts_mean"] = numbers.mean().item()
    figures["parts_two_to_five"] = (numbers > 1).double().mean().item()
    figures["parts_shared"] = ((uses > 1).sum() / (uses > 0).sum()).item()
    agree = []
    for pair in pairs:
        if pair.learned is not None:
            largest = (pair.learned.abs() * pair.found_on.x[:, None]).argmax(0)[pair.patterns]
            is_part = pair.W[:, pair.patterns] != 0
            own, shuffled = (
                is_part.gather(0, chosen[None])[0].double() for chosen in (largest, largest[pair.shuffled])
            )
            agree.append(own - shuffled)
    if agree:
        figures["learned_parts_agree"] = torch.cat(agree).mean().item()
    return figures


def residuals(pairs: list[Pair]) -> dict[str, float]:
    """Return how much does not compose, how much of it is on firing latents, and in how many dimensions it lies."""

    def total(name: str) -> float:
        return sum(pair.sums[name].sum().item() for pair in pairs)

    def traces(name: str) -> float:
        return sum(pair.sums[name].trace().item() for pair in pairs)

    def dimensions(products: Tensor) -> float:
        return (products.trace() ** 2 / products.pow(2).sum()).item()  # the eigenvalues' sum and sum of squares

    ratios = [dimensions(pair.sums["left"]) / dimensions(pair.sums["contributed"]) for pair in pairs]
    return {
        "residual_share": traces("left") / traces("contributed"),
        "residual_missed": total("missed") / total("errors"),
        "residual_dimensions": sum(ratios) / len(ratios),
    }


def causal_tracing(exam: Examination, traced: list[tuple[Pair, int]]) -> dict[str, float]:
    """Ablate each whole, its parts and a control, only where the whole fires.

    A part also fires on many other tokens, about which a pattern claims nothing.
    """
    latents, gates, sets = [], [], []
    for pair, latent in traced:
        whole = pair.upper[latent]
        for chosen in ([whole], pair.parts(latent), pair.control(latent)):
            sets.append(range(len(latents), len(latents) + len(chosen)))
            latents += chosen
            gates += [whole] * len(chosen)

    class Gated(BenchSAE):
        """The latents of the SAE listed in `latents`, each only where its gate fires."""

        def encode(self, x: Tensor) -> Tensor:
            activations = exam.sae.encode(x)
            return activations[..., latents] * (activations[..., gates] != 0)

    sae = exam.sae
    gated = Gated(sae.cfg, sae.W_enc[:, latents], sae.b_enc[latents], sae.W_dec[latents], sae.b_dec)
    through: Any = replace(exam, sae=gated)  # type: ignore[arg-type]
    if not sets:
        return {}
    effects = through.ablate(*(sets[i : i + 3] for i in range(0, len(sets), 3)))
    losses = [of_pattern.loss_added for of_pattern in effects]
    cosines = [(of_pattern.cosine[0, 1] - of_pattern.cosine[0, 2]).item() for of_pattern in effects]
    whole, parts, control = (1000 * sum(column) / len(losses) for column in zip(*losses, strict=True))
    return {
        "causal_cosine": sum(cosines) / len(cosines),
        "causal_whole_loss": whole,
        "causal_parts_loss": parts,
        "causal_control_loss": control,
    }


def forgetting(exam: Examination, tiers: list[tuple[int, int]]) -> dict[str, float]:
    """Return the forgetting score of each tier alone, without tiers that never fire."""
    scores = {f"tier_{i}_forgetting": exam.forgetting(exam.part(*tier)) for i, tier in enumerate(tiers)}
    return {name: score for name, score in scores.items() if score is not None}
