"""The results of a run, final_info.json, as typed records; how they are written and read. No torch here."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from agent.lab.files import MIB, BadFile, read_plain, write_atomically
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.verdicts import Count, MetricsRow, Verdict
from agent.lab.visible import Line

FORMAT_VERSION = 1
MOST_METRICS, MOST_ROWS = 2 * MIB, 10_000  # of metrics.jsonl, which is read at every poll and has some 100 rows
MOST_BYTES = 16 * MIB  # of a result file; a training history of 100 rows takes 20 KiB
Number = float | None  # null where the measured value was not finite; its path is in FinalInfo.non_finite


class Training(BaseModel):
    """A training: what was trained, and what it cost."""

    model: str
    hook_name: str
    layer: Count
    d_in: Count
    d_sae: Count
    steps: Count
    tokens: Count
    final_loss: Number
    seconds: float
    learning_rate: float
    seed: Annotated[int, Field(ge=-(2**53), le=2**53)]
    settings: dict[str, Any]  # the experiment's own constants: k, coefficients, switches
    text: str = ""  # pinned, see corpus.py; "" for the installation's own
    passes: float | None = None  # over the rows of the harvest
    context: int | None = None  # tokens in the windows of its text; None: a world's, or not recorded
    final_l0: Number = None  # of the last steps


class Agreement(BaseModel):
    """How a converted SAE agrees with the library that it is of, on the model's own activations."""

    rows: Count
    reconstruction: float  # norm of the difference over the norm of the library's reconstruction
    latents: float  # likewise of the latents that fire in both
    flips: float  # share of the library's active latents that fire in one of the two alone


class Imported(BaseModel):
    """Where an SAE that was trained elsewhere comes from, and what its files say of it."""

    source: Line  # as the user named it
    format: Literal["saelens", "dictionary_learning", "sparsify", "sae_bench"]
    architecture: Line  # the original's word
    declared_l0: float | None = None
    declared_tokens: int | None = None  # that it was trained on
    context: int | None = None  # tokens of a window that it was trained on
    prepend_bos: bool = True  # such a window began with the beginning token
    library: Line = ""  # name and version of what it was compared with; "": of nothing
    verified: Agreement | None = None


class Work(BaseModel):
    """What a training read and used, measured from outside it."""

    rows: int  # of activations that it was served
    cpu_seconds: float  # of all its processes, from their start to their end
    machine: str  # processor and threads: figures of another machine do not compare
    smoke_seconds: float = 0.0  # of the few steps before it, from their start until they were scored; 0: not known


class Core(BaseModel):
    """The figures of SAE-Bench core, and those that it gets wrong or leaves out."""

    l0: Number
    l1: Number
    explained_variance_centered: Number  # 1 - squared errors / squares about the mean; used for every decision
    explained_variance: Number  # SAE-Bench 0.6's figure of that name, kept for comparison with published tables
    explained_variance_legacy: Number  # likewise
    mse: Number  # squared error per token and dimension, in the model's units; independent of the batch size
    mse_sae_bench: Number  # SAE-Bench's figure, divided by the tokens of a batch
    cossim: Number
    l2_ratio: Number
    relative_reconstruction_bias: Number
    ce_loss_score: Number
    loss_added: Number  # nats a token that splicing in the SAE adds to the model's loss
    loss_added_standard_error: Number = None  # paired, over windows of text; null in results of 0.1.0
    ce_loss_without_sae: Number
    ce_loss_with_sae: Number
    ce_loss_with_ablation: Number  # the activations set to zero
    ce_loss_with_mean_ablation: Number  # the activations set to their mean
    kl_div_score: Number
    tokens: Count


class Outliers(BaseModel):
    """The tokens of the evaluation text whose activations have a huge norm, and the figures of core on all tokens.

    In the figures that decide such tokens keep their activations, as special tokens do.
    """

    tokens: Count
    of_tokens: Count  # ordinary tokens in all
    median_norm: float  # of the training text; an outlier has more than forward.OUTLIER_RATIO times as much
    share_of_squares: Number  # of the squares about the mean of all ordinary tokens
    core: Core | None = None  # with these tokens scored like any other: as published figures are


class Latents(BaseModel):
    """The use of the latents on the evaluation text."""

    alive_fraction: Number  # fired at least once
    dense_fraction: Number  # fired on more than one token in ten
    W_dec_norm_mean: Number  # decoder rows as trained, on activations scaled to mean norm sqrt(d_in)
    W_dec_norm_min: Number
    W_dec_norm_max: Number


class Probe(BaseModel):
    """Sparse probing on one dataset: test AUC and accuracy by number of latents probed."""

    dataset: Line
    auc: dict[int, Number]
    accuracy: dict[int, Number]
    random_auc: dict[int, Number]  # a random untrained encoder of the same width and sparsity
    llm_auc: Number  # a probe on the model's own activations
    llm_accuracy: Number


class Probing(BaseModel):
    """The figures of sparse_probing_sae_probes: means over the datasets, and each dataset's own."""

    auc: dict[int, Number]
    accuracy: dict[int, Number]
    random_auc: dict[int, Number]
    llm_auc: Number
    llm_accuracy: Number
    datasets: list[Probe]


class FamilyScores(BaseModel):
    """The figures of an evaluation family; core and sparse_probing_sae_probes have records of their own."""

    metrics: dict[str, Number]  # null: the figure was not finite, or see not_applicable
    not_applicable: dict[Line, Line] = {}  # metric -> why it has no value for this SAE
    details: dict[str, dict[str, Number]] = {}  # dataset, class or concept -> its own figures
    remark: Line = ""  # a caveat for whoever reads the figures
    seconds: float = 0.0


class Floor(BaseModel):
    """The scores of a random untrained SAE of the same width and sparsity by the same evaluator."""

    k: Count
    explained_variance_centered: Number
    ce_loss_score: Number  # null on a synthetic world
    truth: dict[str, Number] = {}  # on a synthetic world: f1, mcc and the other metrics of its family


class MetricComparison(BaseModel):
    """A metric of a run compared with the baseline's at the run's own L0."""

    value: float
    reference: float  # interpolated between two baselines, one at or below this L0 and one at or above it
    noise: float  # standard deviation of one training, from the spread of the reseeded baselines
    standard_error: float  # of the difference
    df: Count  # degrees of freedom behind the noise
    half_width: float  # of the difference's 95% interval, not corrected for the number of runs
    p: float  # two-sided, not corrected for the number of runs

    @property
    def difference(self) -> float:
        return self.value - self.reference


class Comparison(BaseModel):
    """A run compared with the baseline at the run's own L0; written by the driver."""

    levels: list[float]  # K of the baselines that were interpolated
    seeds: Count  # baselines behind the noise
    metrics: dict[str, MetricComparison]  # those that run and baselines have
    not_comparable: Line | None = None  # why there is no comparison
    work_ratio: float | None = None  # CPU seconds of a row, in those of the baseline


class Expectation(BaseModel):
    """The score that a sentinel must have if the evaluation works, and the one it has."""

    sentinel: Line  # permuted decoder, identity, random
    metric: Line
    expected: Line  # in words: "below 0"
    found: Number
    held: bool


class Sentinels(BaseModel):
    """A check of the evaluator on SAEs whose scores are known beforehand."""

    expectations: list[Expectation]
    errors: dict[Line, Line] = {}  # evaluation family -> why it gave no result; without core nothing is known


class Measure(BaseModel):
    """A metric that an idea's analysis.py computes of a run, as notes and plots name it."""

    title: Line
    # One sentence, with the source of the formula where there is one. Ideas of before call it `says`.
    definition: Line = Field(validation_alias=AliasChoices("definition", "says"))
    unit: Line = ""
    digits: int = 3
    control: Line = ""  # the measure of the same run that it is read against
    main: bool = False  # shown in the notes, which have no room for all; if none is, the first few are


class FinalInfo(BaseModel):
    """The measurements of one run; written by the evaluator, or by the driver for a run that failed."""

    format_version: Literal[1] = FORMAT_VERSION
    verdict: Verdict
    split: Literal["dev", "test"] = "dev"  # the held-out text of core
    training: Training | None = None
    imported: Imported | None = None  # in place of a training, of an SAE that was trained elsewhere
    work: Work | None = None  # None for a run made by hand; written by the driver
    core: Core | None = None
    latents: Latents | None = None
    outliers: Outliers | None = None  # None: no token of the evaluation text is one
    probing: Probing | None = None
    evaluations: dict[Line, FamilyScores] = {}  # by family
    floor: Floor | None = None
    comparison: Comparison | None = None
    analysis: dict[Line, Number] = {}  # the idea's own measures
    not_measured: dict[Line, Line] = {}  # what the checkpoint lacks of the idea's NEEDS -> what of it is not measured
    environment: dict[str, str] = {}
    evaluation_seconds: float | None = None
    errors: dict[Line, Line] = {}  # evaluation family -> why it gave no result
    non_finite: list[str] = []

    @property
    def families(self) -> set[str]:
        """The evaluation families with figures here."""
        own = {"core": self.core, "sparse_probing_sae_probes": self.probing}
        return {name for name, record in own.items() if record} | set(self.evaluations)

    def metric(self, name: str) -> float | None:
        """Return a metric of METRICS by name, or None if it was not measured or not finite."""
        value: Any = self
        for part in METRICS[name].path.split("."):
            if value is None:
                return None
            if isinstance(value, dict):
                value = value.get(int(part) if part.isdigit() else part)
            else:
                value = getattr(value, part)
        return value


class BadResults(BadFile):
    """The error of a result file that is missing, damaged or of another version."""


def null_non_finite(value: Any, path: str = "") -> tuple[Any, list[str]]:
    """Replace every non-finite number in a value by None. Returns the value and the paths of the replaced ones."""
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
    """Write results to `name` in a run directory, whole or not at all."""
    write_atomically(run_dir / name, as_text(info))


def as_text(info: FinalInfo | Sentinels) -> str:
    """Return results as they are written."""
    return info.model_dump_json(indent=2) + "\n"


def read(run_dir: Path, name: str = "final_info.json") -> FinalInfo:
    """Read the results of a run. Raises BadResults, or BadFile if what lies there is no file to read."""
    path = run_dir / name
    try:
        return FinalInfo.model_validate_json(read_plain(path, MOST_BYTES))
    except FileNotFoundError:
        raise BadResults(
            f"{path} does not exist: the run is not finished; evaluate it with "
            f"python -P -m agent.lab.evaluation {run_dir}"
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadResults(f"{path} is not a version {FORMAT_VERSION} result file: {_first_line(error)}") from None


def read_metrics(run_dir: Path) -> list[MetricsRow]:
    """Read metrics.jsonl, without a last line that was cut short. Raises BadResults if another is damaged."""
    path = run_dir / "metrics.jsonl"
    try:
        lines = read_plain(path, MOST_METRICS).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    if len(lines) > MOST_ROWS:
        raise BadResults(f"{path} has more than {MOST_ROWS:,} lines: a training writes about 100")
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn or empty
        try:
            rows.append(MetricsRow.model_validate(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise BadResults(f"{path} line {number} is damaged: {_first_line(error)}") from None
    return rows


def rows_stepped(run_dir: Path) -> int:
    """Return the rows in the steps of a training, by its own count in metrics.jsonl. Raises BadResults."""
    rows = read_metrics(run_dir)
    return rows[-1].tokens if rows else 0


def keep(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write what an idea's `draw` shows to `name` in an Examination's `out`; non-finite numbers become null."""
    write_atomically(folder / name, json.dumps(null_non_finite(content)[0]))


def read_kept(path: Path) -> dict[str, Any]:
    """Read what `keep` wrote, or {} if there is no file. Raises BadResults if it is damaged."""
    try:
        return json.loads(read_plain(path, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise BadResults(f"{path} is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2])


def headline(infos: Iterable[FinalInfo]) -> list[str]:
    """Return the headline metrics that any of the results has, and L0, in the order in which they are shown."""
    infos = list(infos)
    return [name for name in HEADLINE if name == "l0" or any(info.metric(name) is not None for info in infos)]
