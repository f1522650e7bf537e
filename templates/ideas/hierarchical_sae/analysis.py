"""What the tiers of a hierarchical SAE do: how they are used, what of a tier the one below it composes, and whether a
composed latent does in the model what its parts do.

A pattern is a latent of an upper tier with its parts: up to MOST_PARTS latents of the tier below, found greedily
(orthogonal matching pursuit: Pati, Rezaiifar and Krishnaprasad 1993) on half of the held-out activations, each adding
at least LEAST_GAIN to the latent's R². They are found alike in every SAE with tiers, so that one trained without a
composition loss has the same figures. All that is said of patterns is measured on the other half.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.lab import results
from agent.lab.results import Measure

if TYPE_CHECKING:
    from torch import Tensor

    from agent.lab.evaluation.idea_analysis import Examination

TIERS = range(3)
MOST_PARTS, LEAST_GAIN = 5, 0.02
COMPOSED = 0.5  # R² from which a latent counts as composed
TRACED = 8  # patterns of which the model is asked
KEPT = 8  # patterns that are kept for the notes

MEASURES = {
    **{
        f"tier_{i}_latents_share": Measure(
            title=f"tier {i}: share of the latents", says=f"the share of all latents that belong to tier {i}"
        )
        for i in TIERS
    },
    **{
        f"tier_{i}_l0_share": Measure(
            title=f"tier {i}: share of L0", says=f"the share of the active latents that belong to tier {i}"
        )
        for i in TIERS
    },
    **{
        f"tier_{i}_alive_fraction": Measure(
            title=f"tier {i}: alive fraction", says=f"the share of tier {i}'s latents that fire on the evaluation text"
        )
        for i in TIERS
    },
    **{
        f"tier_{i}_forgetting": Measure(
            title=f"tier {i}: forgetting",
            unit="nats/token",
            says=f"the forgetting score of tier {i}'s latents as if there were no others: what clamping a topic's "
            "latents costs on that topic, where the rest costs at most 1% more",
        )
        for i in TIERS
    },
    **{
        f"composition_{i}_r2": Measure(
            title=f"composition R², tier {i} to {i + 1}",
            says=f"1 - sum ||h_{i} W - h_{i + 1}||^2 / sum ||h_{i + 1} - mean||^2: how much of the latents h_{i + 1} "
            f"of tier {i + 1} the learned map W predicts from those of tier {i}; 0 is what their mean would predict",
        )
        for i in TIERS[:-1]
    },
    **{
        f"composition_{i}_coverage": Measure(
            title=f"composition coverage, tier {i} to {i + 1}",
            says=f"the share of tier {i + 1}'s activity, the sum of h^2 where it fires, that parts predict to "
            f"within half of h, minus the same with the parts' activations from other tokens; parts are up to "
            f"{MOST_PARTS} latents of tier {i}, found for each latent of tier {i + 1} on other text by orthogonal "
            "matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993), and together with it a pattern",
        )
        for i in TIERS[:-1]
    },
    **{
        f"composition_{i}_nmi": Measure(
            title=f"NMI, tier {i} to {i + 1}",
            says=f"mutual information of whether a latent of tier {i + 1} and its strongest part in tier {i} fire, "
            "I / sqrt(H H) (Strehl and Ghosh 2002), mean over the patterns, minus its value with the parts of "
            "other patterns, at random",
        )
        for i in TIERS[:-1]
    },
    "composed_fraction": Measure(
        title="composed latents",
        says=f"the share of the upper tiers' live latents that their parts predict with an R² of {COMPOSED} or more; "
        "by chance it is 0, as R² is taken on other text than the parts were found on",
    ),
    "parts_mean": Measure(title="parts of a pattern", says="the mean number of parts of a pattern", digits=2),
    "parts_two_to_five": Measure(
        title="patterns of 2 to 5 parts", says="the share of the patterns that have more than one part"
    ),
    "parts_shared": Measure(
        title="patterns that share a part", says="the share of the parts that belong to more than one pattern"
    ),
    "learned_parts_agree": Measure(
        title="patterns in the learned maps",
        says="the share of the patterns whose largest entry in the learned map, |w| times the part's mean activation, "
        "is one of their parts, minus the same with the entries of other patterns, at random",
    ),
    "residual_share": Measure(
        title="what does not compose",
        says="the share of the variance of the upper tiers' contributions to the reconstruction that is left when each "
        "latent is replaced by what its parts predict",
    ),
    "residual_missed": Measure(
        title="what does not compose: latents that fire",
        says="the share of the squared errors of prediction on tokens where the latent fires; the rest are tokens "
        "where its parts predict it and it is silent",
    ),
    "residual_dimensions": Measure(
        title="what does not compose: dimensions",
        says="the effective dimensions, (sum e)^2 / sum e^2 of the covariance's eigenvalues e, of what is left of a "
        "tier's contribution, over those of the whole contribution, mean over the upper tiers",
        digits=2,
    ),
    "causal_cosine": Measure(
        title="causal tracing: cosine",
        says="where a latent with parts fires: the cosine of the changes of the model's log-probabilities "
        "by ablating it and by ablating its parts, minus the cosine with as many other latents of the parts' tier "
        f"that are about as active there; mean over the {TRACED} patterns that explain most",
    ),
    **{
        f"causal_{name}_loss": Measure(
            title=f"causal tracing: loss of {said}",
            unit="nats/1000 tokens",
            says=f"what ablating {said}, where the latent fires, adds to the model's loss; mean over the same patterns",
        )
        for name, said in (
            ("whole", "a latent with parts"),
            ("parts", "its parts"),
            ("control", "other latents as active"),
        )
    },
}


def measure(exam: "Examination") -> "dict[str, float]":
    """Each of MEASURES on the held-out activations; nothing for an SAE without tiers.

    Latents are those of the scaled activations, as in training, where W was learned on them.
    """
    tiers = list(exam.checkpoint.header.groups.values())
    if not tiers:
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
    results.keep(exam.out, "patterns.json", {"patterns": [pair.told(latent) for pair, latent in traced[:KEPT]]})
    if exam.has_loss:
        figures |= causal_tracing(exam, traced) | forgetting(exam, tiers)
    return figures


def activity(exam: "Examination", tiers: list[tuple[int, int]]) -> dict[str, float]:
    """How the latents, the firings and the live latents spread over the tiers."""
    import torch

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
    """Over some tokens, of a tier's latents x `[tokens, lower]` and the next tier's y `[tokens, upper]`."""

    def __init__(self) -> None:
        self.tokens = 0
        self.x: Any = 0.0  # [lower]
        self.y: Any = 0.0  # [upper]
        self.xx: Any = 0.0  # [lower, lower]
        self.xy: Any = 0.0  # [lower, upper]
        self.yy: Any = 0.0  # [upper]

    def add(self, x: "Tensor", y: "Tensor") -> None:
        self.tokens += len(x)
        for name, value in (("x", x.sum(0)), ("y", y.sum(0)), ("xx", x.T @ x), ("xy", x.T @ y), ("yy", (y * y).sum(0))):
            setattr(self, name, getattr(self, name) + value)

    def deviations(self) -> "tuple[Tensor, Tensor, Tensor]":
        """Sums of products about the means: xx, xy and yy."""
        x, y = self.x, self.y
        return (
            self.xx - x[:, None] * x / self.tokens,
            self.xy - x[:, None] * y / self.tokens,
            self.yy - y * y / self.tokens,
        )


class Pair:
    """A tier [start, end), the one above it, and the patterns between them."""

    def __init__(self, exam: "Examination", lower: tuple[int, int], upper: tuple[int, int], number: int) -> None:
        self.exam, self.lower, self.upper, self.number = exam, lower, upper, number
        self.found_on, self.judged_on = Sums(), Sums()
        self.judged: dict[str, Any] = {}  # sums over the tokens that judge

    @property
    def learned(self) -> "Tensor | None":
        """W_l `[lower, upper]` as training left it; None without a composition loss."""
        W = self.exam.checkpoint.extra.get(f"composition_{self.number}")
        return None if W is None else W.double()

    def halves(self, latents: "Tensor") -> "list[tuple[Tensor, Tensor]]":
        """Both tiers on the tokens on which patterns are found, and on those on which they are judged."""
        x, y = (latents[:, slice(*tier)].double() for tier in (self.lower, self.upper))
        middle = len(latents) // 2
        return [(x[:middle], y[:middle]), (x[middle:], y[middle:])]

    def count(self, latents: "Tensor") -> None:
        for sums, (x, y) in zip((self.found_on, self.judged_on), self.halves(latents), strict=True):
            sums.add(x, y)

    def find_patterns(self) -> None:
        """The map `W [lower, upper]`, zero but for the parts; each latent's R²; which have parts, and the strongest."""
        import torch

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
        self.dealt = torch.empty_like(order).scatter_(0, order, order.roll(1))  # to each pattern another's part

    def judge(self, latents: "Tensor") -> None:
        """Add up over the second half of the tokens what the figures are made of."""
        _, (x, y) = self.halves(latents)
        mean_x, mean_y = self.found_on.x / self.found_on.tokens, self.found_on.y / self.found_on.tokens
        error = y - ((x - mean_x) @ self.W + mean_y)
        elsewhere = y - ((x.roll(len(x) // 2, 0) - mean_x) @ self.W + mean_y)
        squares, fires, parts = y * y, y != 0, x[:, self.strongest[self.patterns]] != 0
        wholes = fires[:, self.patterns]
        W_dec = self.exam.checkpoint.W_dec[slice(*self.upper)].double()
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
            "both_dealt": (wholes & parts[:, self.dealt]).sum(0),
            "beside": fires[:, self.patterns].double().T @ (x * x),  # the lower tier's activity where a pattern fires
        }.items():
            self.judged[name] = self.judged.get(name, 0.0) + value

    def figures(self) -> dict[str, float]:
        figures = {}
        if self.learned is not None:
            figures["r2"] = self.learned_r2(self.learned)
        found = self.judged
        figures["coverage"] = ((found["covered"] - found["covered_elsewhere"]) / found["activity"]).item()
        if len(self.patterns):
            tokens, wholes, parts = self.judged_on.tokens, found["wholes"], found["parts"]
            own = nmi(tokens, wholes, parts, found["both"])
            dealt = nmi(tokens, wholes, parts[self.dealt], found["both_dealt"])
            figures["nmi"] = (own - dealt).mean().item()
        return {f"composition_{self.number}_{name}": value for name, value in figures.items()}

    def learned_r2(self, W: "Tensor") -> float:
        """Over all tokens, without the means: W was learned without them."""
        both = (self.found_on, self.judged_on)
        errors = sum((s.yy - 2 * (W * s.xy).sum(0) + (W * (s.xx @ W)).sum(0)).sum().item() for s in both)
        (a, b), tokens = both, self.found_on.tokens + self.judged_on.tokens
        return 1 - errors / (a.yy + b.yy - (a.y + b.y).pow(2) / tokens).sum().item()

    def parts(self, latent: int) -> list[int]:
        """Of a latent of the upper tier, counted from its start, the parts, strongest first, in the SAE's numbers."""
        order = self.contribution[:, latent].argsort(descending=True)[: int((self.W[:, latent] != 0).sum())]
        return [self.lower[0] + part for part in order.tolist()]

    def control(self, latent: int) -> list[int]:
        """As many other latents of the parts' tier, about as active as they where the whole fires."""
        beside = self.judged["beside"][(self.patterns == latent).nonzero().item()].clamp_min(1e-12).log()
        start, chosen = self.lower[0], self.parts(latent)
        taken = [part - start for part in chosen]
        for part in chosen:
            distance = (beside - beside[part - start]).abs()
            distance[taken] = math.inf
            taken.append(int(distance.argmin()))
        return [start + other for other in taken[len(chosen) :]]

    def told(self, latent: int) -> dict[str, Any]:
        parts = self.parts(latent)
        weights = [self.W[part - self.lower[0], latent].item() for part in parts]
        whole = {"latent": self.upper[0] + latent, "tier": self.number + 1, "r2": self.r2[latent].item()}
        return whole | {"parts": parts, "weights": weights}


def pursue(xx: "Tensor", xy: "Tensor", yy: "Tensor") -> "Tensor":
    """The map `[lower, upper]` of each latent from its parts, zero elsewhere, by sums of products about the means.

    Parts are added one at a time, that which predicts most of what is left, with a positive weight; then all weights
    are fitted again by least squares.
    """
    import torch

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


def nmi(tokens: int, ones: "Tensor", others: "Tensor", both: "Tensor") -> "Tensor":
    """I(a; b) / sqrt(H(a) H(b)) of on and off, from how often a, b and both are on; 0 where one never changes."""
    import torch

    def entropy(*counts: "Tensor") -> "Tensor":
        return sum(-torch.xlogy(p, p) for p in (count.double() / tokens for count in counts))  # type: ignore[return-value]

    a, b = entropy(ones, tokens - ones), entropy(others, tokens - others)
    joint = entropy(both, ones - both, others - both, tokens - ones - others + both)
    return torch.where(a * b > 0, (a + b - joint) / (a * b).sqrt().clamp_min(1e-12), 0.0)


def strongest(pairs: list[Pair], most: int) -> list[tuple[Pair, int]]:
    """The patterns that explain most of their latent's variance, in its own units."""
    found = [(pair.explained[latent].item(), pair, latent) for pair in pairs for latent in pair.patterns.tolist()]
    return [(pair, latent) for _, pair, latent in sorted(found, key=lambda each: -each[0])[:most]]


def of_patterns(pairs: list[Pair]) -> dict[str, float]:
    """How many latents are composed, of how many parts, how parts are shared, and whether training found them too."""
    import torch

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
            own, dealt = (is_part.gather(0, chosen[None])[0].double() for chosen in (largest, largest[pair.dealt]))
            agree.append(own - dealt)
    if agree:
        figures["learned_parts_agree"] = torch.cat(agree).mean().item()
    return figures


def residuals(pairs: list[Pair]) -> dict[str, float]:
    """What does not compose: how much it is, where it lies, and in how many directions."""

    def total(name: str) -> float:
        return sum(pair.judged[name].sum().item() for pair in pairs)

    def traces(name: str) -> float:
        return sum(pair.judged[name].trace().item() for pair in pairs)

    def dimensions(products: "Tensor") -> float:
        return (products.trace() ** 2 / products.pow(2).sum()).item()  # the eigenvalues' sum and sum of squares

    ratios = [dimensions(pair.judged["left"]) / dimensions(pair.judged["contributed"]) for pair in pairs]
    return {
        "residual_share": traces("left") / traces("contributed"),
        "residual_missed": total("missed") / total("errors"),
        "residual_dimensions": sum(ratios) / len(ratios),
    }


def causal_tracing(exam: "Examination", traced: list[tuple[Pair, int]]) -> dict[str, float]:
    """Ablate each whole, its parts, and a control, all of them only where the whole fires: a part fires on many other
    tokens, on which nothing is claimed of it."""
    from agent.lab.evaluation.sae_adapter import BenchSAE

    latents, gates, sets = [], [], []
    for pair, latent in traced:
        whole = pair.upper[0] + latent
        for chosen in ([whole], pair.parts(latent), pair.control(latent)):
            sets.append(range(len(latents), len(latents) + len(chosen)))
            latents += chosen
            gates += [whole] * len(chosen)

    class Gated(BenchSAE):
        """`latents` of the SAE, each only where its gate fires."""

        def encode(self, x: "Tensor") -> "Tensor":
            found = exam.sae.encode(x)
            return found[..., latents] * (found[..., gates] != 0)

    sae = exam.sae
    gated = Gated(sae.cfg, sae.W_enc[:, latents], sae.b_enc[latents], sae.W_dec[latents], sae.b_dec)
    through: Any = replace(exam, sae=gated)  # type: ignore[arg-type]
    losses, cosines = [], []
    for i in range(0, len(sets), 3):
        effects = through.ablate(*sets[i : i + 3])
        losses.append(effects.loss_added)
        cosines.append((effects.cosine[0, 1] - effects.cosine[0, 2]).item())
    if not losses:
        return {}
    whole, parts, control = (1000 * sum(column) / len(losses) for column in zip(*losses, strict=True))
    return {
        "causal_cosine": sum(cosines) / len(cosines),
        "causal_whole_loss": whole,
        "causal_parts_loss": parts,
        "causal_control_loss": control,
    }


def forgetting(exam: "Examination", tiers: list[tuple[int, int]]) -> dict[str, float]:
    """Of each tier alone; nothing of a tier that never fires."""
    found = {f"tier_{i}_forgetting": exam.forgetting(exam.part(*tier)) for i, tier in enumerate(tiers)}
    return {name: score for name, score in found.items() if score is not None}
