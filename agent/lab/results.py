"""final_info.json, typed, and the table of metrics that every reader of it shares. No torch here."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from agent.lab.errors import UserError
from agent.lab.verdicts import MetricsRow, Verdict

FORMAT_VERSION = 1
MOST_BYTES = 16 * 2**20  # of a result file; a training history of 100 rows takes 20 KiB
Number = float | None  # null where the measured value was not finite; its path is in FinalInfo.non_finite


class Training(BaseModel):
    """What was trained, and what it cost."""

    model: str
    hook_name: str
    layer: int
    d_in: int
    d_sae: int
    steps: int
    tokens: int
    final_loss: Number
    seconds: float
    learning_rate: float
    seed: int
    settings: dict[str, Any]  # the experiment's own constants: k, coefficients, switches


class Core(BaseModel):
    """SAE-Bench core, and beside it the figures it gets wrong or leaves out."""

    l0: Number
    l1: Number
    explained_variance_centered: Number  # 1 - squared errors / squares about the mean: the one that decides
    explained_variance: Number  # SAE-Bench 0.6's figure of that name, kept for comparison with published tables
    explained_variance_legacy: Number  # likewise
    mse: Number  # squared error per token and dimension, in the model's units; independent of the batch size
    mse_sae_bench: Number  # SAE-Bench's figure, which is divided by the tokens of a batch
    cossim: Number
    l2_ratio: Number
    relative_reconstruction_bias: Number
    ce_loss_score: Number
    loss_added: Number  # nats a token that splicing in the SAE adds to the model's loss
    ce_loss_without_sae: Number
    ce_loss_with_sae: Number
    ce_loss_with_ablation: Number  # the activations set to zero
    ce_loss_with_mean_ablation: Number  # the activations set to their mean
    kl_div_score: Number
    tokens: int


class Latents(BaseModel):
    """How the latents are used on the evaluation text."""

    alive_fraction: Number  # fired at least once
    dense_fraction: Number  # fired on more than one token in ten
    W_dec_norm_mean: Number  # decoder rows as trained, on activations scaled to mean norm sqrt(d_in)
    W_dec_norm_min: Number
    W_dec_norm_max: Number


class Probe(BaseModel):
    """Sparse probing of one dataset: test AUC and accuracy by number of latents probed."""

    dataset: str
    auc: dict[int, Number]
    accuracy: dict[int, Number]
    random_auc: dict[int, Number]  # a random untrained encoder of the same width and sparsity
    llm_auc: Number  # a probe on the model's own activations
    llm_accuracy: Number


class Probing(BaseModel):
    """sparse_probing_sae_probes: the means over the datasets, and each dataset."""

    auc: dict[int, Number]
    accuracy: dict[int, Number]
    random_auc: dict[int, Number]
    llm_auc: Number
    llm_accuracy: Number
    datasets: list[Probe]


class Scored(BaseModel):
    """What an evaluation family found of one SAE; core and sparse_probing_sae_probes have records of their own."""

    metrics: dict[str, Number]  # null: the figure was not finite, or see not_applicable
    not_applicable: dict[str, str] = {}  # metric -> why it has no value for this SAE
    details: dict[str, dict[str, Number]] = {}  # dataset, class or concept -> its own figures
    remark: str = ""  # what to bear in mind when reading it
    seconds: float = 0.0


class Floor(BaseModel):
    """A random untrained SAE of the same width and sparsity through the same evaluator."""

    k: int
    explained_variance_centered: Number
    ce_loss_score: Number  # null on a synthetic world
    truth: dict[str, Number] = {}  # on a synthetic world: f1, mcc and what else its family scores


class Compared(BaseModel):
    """One metric of a run beside what the baseline has at the run's own L0."""

    value: float
    reference: float  # read between two baselines, one at or below this L0 and one at or above it
    noise: float  # standard deviation of one training, from the spread of the reseeded baselines
    standard_error: float  # of the difference
    df: int  # degrees of freedom behind the noise
    half_width: float  # of the difference's 95% interval, not corrected for the number of runs
    p: float  # two-sided, not corrected either

    @property
    def difference(self) -> float:
        return self.value - self.reference


class Comparison(BaseModel):
    """A run beside the baseline at the run's own L0. Written by the driver."""

    levels: list[float]  # K of the baselines it was read between
    seeds: int  # baselines behind the noise
    metrics: dict[str, Compared]  # those that were measured on both sides
    not_comparable: str | None = None  # why there is none of it


class Expectation(BaseModel):
    """What a sentinel must score if the evaluation works, and what it scored."""

    sentinel: str  # permuted decoder, identity, random
    metric: str
    expected: str  # in words: "below 0"
    found: Number
    held: bool


class Sentinels(BaseModel):
    """The evaluator, tried on SAEs whose scores are known beforehand."""

    expectations: list[Expectation]


class Measure(BaseModel):
    """A figure that an idea's analysis.py computes of a run, as notes and plots name it."""

    title: str
    says: str  # what it is, in one sentence, with the source of the formula where there is one
    unit: str = ""
    digits: int = 3


class FinalInfo(BaseModel):
    """Everything measured of one run. Written by the evaluator, or by the driver for a run that failed."""

    format_version: Literal[1] = FORMAT_VERSION
    verdict: Verdict
    split: Literal["dev", "test"] = "dev"  # the held-out text of core
    training: Training | None = None
    core: Core | None = None
    latents: Latents | None = None
    probing: Probing | None = None
    evaluations: dict[str, Scored] = {}  # by family
    floor: Floor | None = None
    comparison: Comparison | None = None
    analysis: dict[str, Number] = {}  # the idea's own measures
    environment: dict[str, str] = {}
    evaluation_seconds: float | None = None
    errors: dict[str, str] = {}  # evaluation family -> why it gave no result
    non_finite: list[str] = []

    @property
    def families(self) -> set[str]:
        """The evaluation families that it holds figures of."""
        own = {"core": self.core, "sparse_probing_sae_probes": self.probing}
        return {name for name, record in own.items() if record} | set(self.evaluations)

    def metric(self, name: str) -> float | None:
        """A metric of METRICS by name; None where it was not measured or not finite."""
        value: Any = self
        for part in METRICS[name].path.split("."):
            if value is None:
                return None
            if isinstance(value, dict):
                value = value.get(int(part) if part.isdigit() else part)
            else:
                value = getattr(value, part)
        return value


class Metric(BaseModel):
    """How a figure is named, found, shown and read."""

    path: str
    title: str
    unit: str = ""
    healthy: tuple[float, float] | None = None
    better: Literal["higher", "lower", "none"] = "none"
    group: Literal[
        "training",
        "sparsity",
        "reconstruction",
        "model preservation",
        "probing",
        "concepts",
        "interpretability",
        "ground truth",
    ]
    digits: int = 4
    worth: float = 0.0  # the smallest difference worth noticing
    beside: str = ""  # a metric without which this one would mislead, shown wherever this is
    decides: bool = True  # False: known to be unreliable; shown, and never a primary metric


# Healthy ranges: SAE-Bench's published baselines at L0 20 to 320; `none` in `better` means no direction is better.
METRICS: dict[str, Metric] = {
    "steps": Metric(path="training.steps", title="steps", group="training", digits=0),
    "tokens": Metric(path="training.tokens", title="tokens", group="training", digits=0),
    "final_loss": Metric(path="training.final_loss", title="final loss", group="training"),
    "seconds": Metric(path="training.seconds", title="training time", unit="s", group="training", digits=1),
    "l0": Metric(path="core.l0", title="L0", unit="latents/token", group="sparsity", digits=2),
    "alive_fraction": Metric(
        path="latents.alive_fraction",
        title="alive fraction",
        group="sparsity",
        healthy=(0.9, 1),
        better="higher",
        worth=0.01,
    ),
    "dense_fraction": Metric(
        path="latents.dense_fraction", title="dense fraction", group="sparsity", healthy=(0, 0.05), better="lower"
    ),
    "explained_variance_centered": Metric(
        path="core.explained_variance_centered",
        title="explained variance",
        group="reconstruction",
        healthy=(0.7, 1),
        better="higher",
        worth=0.005,
    ),
    "mse": Metric(path="core.mse", title="MSE per dimension", group="reconstruction", better="lower"),
    "cossim": Metric(path="core.cossim", title="cosine", group="reconstruction", healthy=(0.85, 1), better="higher"),
    "l2_ratio": Metric(path="core.l2_ratio", title="L2 ratio", group="reconstruction", healthy=(0.75, 1.02)),
    "relative_reconstruction_bias": Metric(
        path="core.relative_reconstruction_bias",
        title="relative reconstruction bias",
        group="reconstruction",
        healthy=(0.95, 1.02),
    ),
    "ce_loss_score": Metric(
        path="core.ce_loss_score",
        title="CE-loss score",
        group="model preservation",
        healthy=(0.8, 1),
        better="higher",
        worth=0.005,
    ),
    "loss_added": Metric(
        path="core.loss_added",
        title="loss added",
        unit="nats/token",
        group="model preservation",
        better="lower",
        worth=0.03,
    ),
    "kl_div_score": Metric(
        path="core.kl_div_score", title="KL score", group="model preservation", healthy=(0.8, 1), better="higher"
    ),
    "probing_auc_1": Metric(path="probing.auc.1", title="AUC, top 1 latent", group="probing", better="higher"),
    "probing_auc_5": Metric(
        path="probing.auc.5", title="AUC, top 5 latents", group="probing", better="higher", worth=0.02
    ),
    "probing_accuracy_5": Metric(
        path="probing.accuracy.5", title="accuracy, top 5 latents", group="probing", better="higher"
    ),
    "sparse_probing_5": Metric(
        path="evaluations.sparse_probing.metrics.sae_top_5_test_accuracy",
        title="sparse probing, top 5",
        group="probing",
        better="higher",
        worth=0.02,
    ),
    "absorption": Metric(
        path="evaluations.absorption.metrics.mean_absorption_fraction_score",
        title="absorption",
        group="concepts",
        better="lower",
        worth=0.01,
    ),
    "full_absorption": Metric(
        path="evaluations.absorption.metrics.mean_full_absorption_score",
        title="full absorption",
        group="concepts",
        better="lower",
    ),
    "scr": Metric(
        path="evaluations.scr.metrics.scr_metric_threshold_20",
        title="SCR, top 20",
        group="concepts",
        better="higher",
        decides=False,
    ),
    "tpp": Metric(
        path="evaluations.tpp.metrics.tpp_threshold_20_total_metric",
        title="TPP, top 20",
        group="concepts",
        better="higher",
        decides=False,
    ),
    "unlearning": Metric(
        path="evaluations.unlearning.metrics.unlearning_score", title="unlearning", group="concepts", better="higher"
    ),
    "forgetting": Metric(
        path="evaluations.forgetting.metrics.forgetting_score",
        title="forgetting",
        unit="nats/token",
        group="concepts",
        better="higher",
        worth=0.05,
    ),
    "forgetting_random": Metric(
        path="evaluations.forgetting.metrics.random_forgetting_score",
        title="forgetting, random SAE",
        unit="nats/token",
        group="concepts",
    ),
    "ravel": Metric(
        path="evaluations.ravel.metrics.disentanglement_score", title="RAVEL", group="concepts", better="higher"
    ),
    "autointerp": Metric(
        path="evaluations.autointerp.metrics.autointerp_score",
        title="autointerp",
        group="interpretability",
        better="higher",
    ),
    "meta_structure": Metric(
        path="evaluations.meta_structure.metrics.decoder_fraction_variance_explained",
        title="decoder's own structure",
        group="interpretability",
    ),
    "f1": Metric(
        path="evaluations.synthetic.metrics.f1",
        title="F1",
        group="ground truth",
        better="higher",
        worth=0.01,
        beside="uniqueness",  # copies of one feature have a high F1
    ),
    "uniqueness": Metric(
        path="evaluations.synthetic.metrics.uniqueness",
        title="uniqueness",
        group="ground truth",
        better="higher",
        worth=0.01,
    ),
    "mcc": Metric(
        path="evaluations.synthetic.metrics.mcc", title="MCC", group="ground truth", better="higher", worth=0.01
    ),
    "absorption_true": Metric(
        path="evaluations.synthetic.metrics.absorption",
        title="true absorption",
        group="ground truth",
        better="lower",
        worth=0.01,
    ),
}

# In the order in which they are shown; of each study only what was measured in it.
HEADLINE = (
    "l0",
    "explained_variance_centered",
    "ce_loss_score",
    "loss_added",
    "f1",
    "uniqueness",
    "mcc",
    "absorption_true",
    "alive_fraction",
    "probing_auc_5",
    "sparse_probing_5",
    "absorption",
    "scr",
    "tpp",
    "unlearning",
    "forgetting",
    "ravel",
    "autointerp",
    "meta_structure",
)


def headline(infos: Iterable[FinalInfo]) -> list[str]:
    """The headline metrics that any of these results measured, in the order in which they are shown."""
    known = list(infos)
    return [name for name in HEADLINE if name == "l0" or any(info.metric(name) is not None for info in known)]


def family_of(name: str) -> str:
    """The evaluation family that measures a metric."""
    first, second, *_ = METRICS[name].path.split(".")
    return {"evaluations": second, "probing": "sparse_probing_sae_probes"}.get(first, "core")


def measurable(name: str, world: bool) -> bool:
    """Whether a metric can have a value on a synthetic world, or on a language model."""
    group = METRICS[name].group
    if world:
        return group in ("training", "sparsity", "reconstruction", "ground truth")
    return group != "ground truth"


class BadResults(UserError):
    """final_info.json is missing, damaged or of another version."""


def null_non_finite(value: Any, path: str = "") -> tuple[Any, list[str]]:
    """The value with every non-finite number replaced by None, and the paths where that was done."""
    if isinstance(value, dict):
        parts = {k: null_non_finite(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
        return {k: v for k, (v, _) in parts.items()}, [p for _, ps in parts.values() for p in ps]
    if isinstance(value, list):
        items = [null_non_finite(v, f"{path}.{i}") for i, v in enumerate(value)]
        return [v for v, _ in items], [p for _, ps in items for p in ps]
    if isinstance(value, float) and not math.isfinite(value):
        return None, [path]
    return value, []


def write(run_dir: Path, info: FinalInfo | Sentinels, name: str = "final_info.json") -> None:
    """Write results, whole or not at all."""
    write_whole(run_dir / name, info.model_dump_json(indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears when all of it is on the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(run_dir: Path, name: str = "final_info.json") -> FinalInfo:
    """The results of a run. Raises BadResults."""
    path = run_dir / name
    try:
        return FinalInfo.model_validate_json(_read_plain(path))
    except FileNotFoundError:
        raise BadResults(
            f"{path} does not exist: the run is not finished; evaluate it with "
            f"python -P -m agent.lab.evaluation {run_dir}"
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadResults(f"{path} is not a version {FORMAT_VERSION} result file: {_first_line(error)}") from None


def read_metrics(run_dir: Path) -> list[MetricsRow]:
    """The rows of metrics.jsonl; a last line cut short by a crash is dropped, other damage raises BadResults."""
    path = run_dir / "metrics.jsonl"
    try:
        lines = _read_plain(path).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn or empty
        try:
            rows.append(MetricsRow.model_validate(json.loads(line)))
        except (ValueError, ValidationError) as error:
            raise BadResults(f"{path} line {number} is damaged: {_first_line(error)}") from None
    return rows


def _read_plain(path: Path) -> bytes:
    """The content of a file that an experiment may have put there: no link is followed, no pipe waited for."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadResults(f"{path} is no regular file")
            if status.st_size > MOST_BYTES:
                raise BadResults(f"{path} is larger than {MOST_BYTES / 2**20:.0f} MiB")
            return file.read(MOST_BYTES)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise BadResults(f"{path} is no regular file") from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2])
