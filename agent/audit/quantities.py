"""The quantities that notes speak of: their names in prose, their keys in results, and which direction is better."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agent.report.sentences import TITLES

NOT_MEASURED = (  # after these it is a part of the objective, or a setting
    r"(?!\s*[-_]?(?:coeff|penalt|regulari|weight|target|term|function|constraint|schedul|warm|budget|limit|scale|ing\b))"
)


@dataclass(frozen=True)
class Quantity:
    """A quantity, with patterns for its names in prose and its keys in results."""

    name: str
    names: re.Pattern[str]
    key: re.Pattern[str]  # of the last key of a path, or the last two joined by _
    better: Literal["higher", "lower", "none"]
    follows_l0: bool = True  # it depends on L0, so it compares only at the same L0
    designed: bool = False  # set rather than measured: no claim if the run has no such figure
    inverse: bool = False  # more of it is less of the figure: sparsity and L0
    complement: str = ""  # a key whose figure is 1 less this quantity: the alive fraction of dead latents

    def paths(self, figures: Mapping[str, float], wording: str = "") -> list[str]:
        """Return the paths of its figures. A wording with a number of latents (top 5) narrows them to keys with it."""
        paths = [path for path in figures if self.is_figure(path)]
        if number := re.search(r"top[- ]?(\d+)|(\d+)$", wording, re.IGNORECASE):
            narrowed = [p for p in paths if re.search(rf"(?<!\d){number[1] or number[2]}(?!\d)", p.rsplit("/", 1)[-1])]
            paths = narrowed or paths
        return paths

    def stated_as(self, wording: str) -> str:
        """Return the name of a figure that only a text states: the quantity and what narrows it (probing, top 5)."""
        narrowed = re.findall(r"top[- ]?\d+|AUC|accuracy", wording, re.IGNORECASE)
        return ", ".join([self.name, *narrowed, "as stated"])

    def is_titled(self, title: str) -> bool:
        """Return True if a metric with this title is a figure of this quantity, or 1 less it."""
        name = TITLES.get(title, title)
        return bool(self.names.fullmatch(title)) or self.is_figure(name) or self.complement == name

    def is_figure(self, path: str) -> bool:
        """Return True if a path of keys leads to a figure of this quantity."""
        parts = [re.sub(r"[\s.-]+", "_", part.lower()) for part in path.split("/")]
        if any(part.startswith(("llm", "random", "floor", "std")) for part in parts) or parts[-1] in ("std", "stderr"):
            return False
        parts = [part for part in parts if part not in ("mean", "means", "value")] or parts
        return any(self.key.fullmatch("_".join(parts[-n:])) for n in (1, 2))


def _quantity(name: str, names: str, key: str, better: Literal["higher", "lower", "none"], **more: Any) -> Quantity:
    return Quantity(name, re.compile(rf"(?<![\w-])(?:{names})(?![\w])", re.IGNORECASE), re.compile(key), better, **more)


# A stretch of prose is of the first that matches it.
QUANTITIES = (
    _quantity(
        "CE-loss score",
        r"(?:CE|cross[- ]entropy)[- ](?:loss[- ])?score|ce_loss_score|(?:CE )?loss recovered",
        r"ce_loss_score|(?:frac_|ce_)?loss_recovered",
        "higher",
    ),
    _quantity("loss added", r"loss[ _]added|added loss", r"loss_added", "lower"),
    _quantity(
        "CE loss without the SAE",
        r"ce_loss_without_sae|(?:CE|cross[- ]entropy) loss without (?:the |an )?SAE",
        r"ce_loss_without_sae",
        "none",
        follows_l0=False,
    ),
    _quantity(
        "CE loss",
        r"ce_loss_with_sae|(?:CE|cross[- ]entropy)(?:[- ]loss)?(?: with (?:the )?SAE)?",
        r"ce_loss(?:_with_sae)?|cross_entropy(?:_loss)?",
        "lower",
    ),
    _quantity("KL score", r"KL(?:[- ]div(?:ergence)?)? score|kl_div_score", r"kl_(?:div_)?score", "higher"),
    _quantity(
        "KL divergence",
        r"KL(?:[- ]div(?:ergence)?)?(?: with (?:the )?SAE)?|kl_div(?:_with_sae)?",
        r"kl(?:_div(?:ergence)?)?(?:_with_sae)?",
        "lower",
    ),
    _quantity(
        "unexplained variance",
        r"FVU|(?:fraction of )?(?:variance unexplained|unexplained variance)",
        r"fvu|frac\w*_(?:of_)?variance_unexplained",
        "lower",
    ),
    _quantity(
        "explained variance",
        r"explained[ _]variance(?:_\w+)?|variance explained|EV|(?<=loss of )variance|(?<=no )variance",
        r"(?:frac\w*_)?(?:of_)?(?:variance_explained|explained_variance\w*)|ev",
        "higher",
    ),
    _quantity(
        "MSE",
        r"MSE(?: loss| per dimension)?|mean[- ]squared[- ]error|(?:L2 )?reconstruction (?:errors?|loss|MSE)",
        r"mse(?:_loss)?|recon(?:struction)?_(?:error|loss|mse)|l2_loss",
        "lower",
    ),
    _quantity(
        "cosine",
        r"cos(?:ine)?[- _]?sim(?:ilarity)?|cossim|cosine(?= (?:of|is|was) [\d.])",
        r"cos(?:sim|ine\w*|_sim)",
        "higher",
    ),
    _quantity("L2 ratio", r"L2[ _]ratio", r"l2_ratio", "none"),
    _quantity(
        "L0",
        r"(?:mean |average )?L[_ ]?0(?:[- ]norm)?(?: sparsity)?"
        + NOT_MEASURED
        + r"|(?:number of )?active (?:latents|features)(?: per token)?",
        r"(?:mean_|avg_)?l0(?:_norm|_sparsity)?",
        "lower",
        follows_l0=False,
    ),
    _quantity(
        "L1",
        r"(?:mean |average )?L[_ ]?1(?:[- ]norm)?(?: sparsity)?(?! loss)" + NOT_MEASURED,
        r"(?:mean_)?l1(?:_norm|_sparsity)?",
        "lower",
        follows_l0=False,
    ),
    _quantity(
        "dead latents",
        r"(?:fraction of |number of |share of )?dead (?:latents?|features?|neurons?|fraction)"
        r"|of (?:the |all )?latents (?:are |were |stay |end up )?(?:dead|die[sd]?)\b",
        r"(?:frac\w*_|num_|n_)?dead(?:_\w+)?",
        "lower",
        follows_l0=False,
        complement="alive_fraction",
    ),
    _quantity(
        "alive fraction",
        r"(?:frac(?:tion)?[ _](?:of )?)?(?:alive|live) (?:latents|features|fraction)|frac_alive"
        r"|alive_fraction|fraction alive|of (?:the |all )?latents (?:are|were|stay|remain|stayed|remained) alive",
        r"alive_fraction|frac\w*_alive",
        "higher",
        follows_l0=False,
    ),
    _quantity(
        "dense fraction", r"dense fraction|(?:fraction of )?dense (?:latents|features)", r"dense_fraction", "lower"
    ),
    _quantity(
        "absorption",
        r"(?:(?:mean|full|feature|true) )*absorption(?: (?:score|fraction|rate))?",
        r".*absorption\w*",
        "lower",
    ),
    _quantity(
        "F1",
        r"F1(?:[- ]score)?|(?:match|follow|track|find|recover)\w*(?: with)? (?:the |its )?(?:world's )?true features",
        r"f1(?:_score)?",
        "higher",
    ),
    _quantity("MCC", r"MCC", r"mcc", "higher"),
    _quantity("uniqueness", r"uniqueness(?: score)?", r"uniqueness", "higher"),
    _quantity("SCR", r"SCR(?: metric| score)?|spurious correlation removal", r"scr\w*", "higher"),
    _quantity("TPP", r"TPP(?: metric| score)?|targeted probe perturbation", r"tpp\w*", "higher"),
    _quantity("unlearning", r"unlearning(?: score)?", r"unlearning\w*", "higher"),
    _quantity(
        "interpretability",
        r"auto[- ]?interp(?:retability)?(?: score)?|interpretability(?: score)?|monosemanticity",
        r"auto_?interp\w*|interp\w*",
        "higher",
    ),
    _quantity("disentanglement", r"RAVEL|(?:feature )?disentanglement(?: score)?", r"ravel\w*|disentangl\w*", "higher"),
    _quantity(
        "probing",
        r"(?:sparse[- ])?(?:probing|probe (?=accuracy|scores?|AUC))(?: ?(?:accuracy|scores?|AUC|performance|results?))?"
        r"|(?<=easier )to (?:probe|read off)|(?<=harder )to (?:probe|read off)"
        r"|(?:AUC|accuracy), top \d+ latents?|(?:top[- ]\d+ )?(?:test |probing )?(?:accuracy|AUC)(?: at top[- ]\d+)?",
        r"\w*(?:probing|auc|accuracy)(?:_\w*)?|sae_top_\d+\w*",
        "higher",
    ),
    _quantity(
        "steps",
        r"(?:training |optimi[sz]er |gradient )?steps",
        r"(?:training_|n_|num_|total_)?steps",
        "none",
        follows_l0=False,
        designed=True,
    ),
    _quantity(
        "training time",
        r"training time|run ?time|wall[- ]clock(?: time)?",
        r"(?:training_)?(?:seconds|time)|\w*runtime\w*",
        "lower",
        follows_l0=False,
        designed=True,
    ),
    _quantity(
        "sparsity",
        r"(?<!L0 )(?<!L1 )(?:sparsity|sparseness)(?! (?:loss|level|mechanism|pattern|control|of the w))" + NOT_MEASURED,
        r"(?:mean_|avg_)?l0(?:_norm|_sparsity)?|(?:mean_)?l1(?:_norm|_sparsity)?",
        "higher",
        follows_l0=False,
        inverse=True,
    ),
    _quantity(
        "reconstruction",
        r"(?<!feature )fidelity|reconstruction(?: quality| fidelity| accuracy| performance)?(?! (?:terms?|objective))",
        r"explained_variance\w*|frac_variance_explained|cossim",
        "higher",
    ),
    _quantity(
        "loss",
        r"(?:(?:final|training|total|overall|train|validation|eval) )*loss(?:es)?(?! (?:of (?:the )?tier))"
        + NOT_MEASURED,
        r"(?:(?:training|train|final|total|val|validation|eval|mean)_)*loss",
        "lower",
    ),
)
L0 = next(quantity for quantity in QUANTITIES if quantity.name == "L0")
STEPS = next(quantity for quantity in QUANTITIES if quantity.name == "steps")
_LOSS_OF = re.compile(r"loss (?:of|in) (?:the )?", re.IGNORECASE)
_BEFORE_LOSS = """
    the a an its this that lower higher final training total overall reduced increased improved our smaller larger
    better worse best lowest highest in of on and with achieved achieves reports reported had has while similar
    comparable same identical though but baseline baseline's further decreasing decreased increasing rising falling
    reducing no less more reduces cut cuts lowered lowers drives drove brought significantly stable steady variant's
    at by between to for test
"""


@dataclass(frozen=True)
class Mention:
    """A quantity and the stretch of a sentence that names it."""

    quantity: Quantity
    start: int
    end: int
    text: str


def mentions(sentence: str, keys: Iterable[str] = ()) -> list[Mention]:
    """Return the quantities a sentence names, in order. `keys`: further names that results use."""
    taken: list[Mention] = []
    for quantity in (*QUANTITIES, *(quantity_of_key(key) for key in keys)):
        for match in quantity.names.finditer(sentence):
            if any(match.start() < other.end and other.start < match.end() for other in taken):
                continue
            if quantity.name == "loss" and _another_loss(sentence[: match.start()]):
                continue
            taken.append(Mention(quantity, match.start(), match.end(), match.group()))
    starts = {mention.start for mention in taken}

    def _of_another(mention: Mention) -> bool:  # the loss of explained variance
        of = _LOSS_OF.match(sentence, mention.start)
        return of is not None and of.end() in starts

    return sorted((each for each in taken if not _of_another(each)), key=lambda mention: mention.start)


def _another_loss(before: str) -> bool:
    """Return True if the word before `loss` makes it a part of the objective: the composition loss."""
    word = re.search(r"([\w'’-]+)\s+$", before)
    return bool(word) and word[1].lower() not in _BEFORE_LOSS.split() and not re.search(r"run \d+('s)?\s+$", before)


def quantity_of_key(key: str) -> Quantity:
    """Return the quantity of a key that QUANTITIES lacks: a score is better when higher, a loss or error when lower."""
    words = [re.escape(word) for word in re.split(r"[\s_]+", key.lower()) if word]
    better = "higher" if "score" in words else "lower" if {"loss", "error"} & set(words) else "none"
    return _quantity(key, r"[\s_-]".join(words), re.escape("_".join(re.split(r"[\s_.-]+", key.lower()))), better)


def unknown_keys(figures: Iterable[str]) -> list[str]:
    """Return the last keys of paths that are in none of QUANTITIES and that prose could name."""
    leaves = {path.rsplit("/", 1)[-1] for path in figures}
    return sorted(
        leaf
        for leaf in leaves
        if re.fullmatch(r"[A-Za-z]{3,}(?:[ _]\w+)+", leaf)
        and not any(q.key.fullmatch(leaf.lower()) for q in QUANTITIES)
    )
