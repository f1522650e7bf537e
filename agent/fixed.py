"""The settings of a study that all of its runs share."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator, model_validator

from agent.lab import defaults
from agent.lab.architectures import BASELINES, Architecture, BaselineName
from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue

BASELINE_SEEDS = 5  # behind the noise, the study's own seed among them

Text = Annotated[str, Field(min_length=1)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Context = Annotated[int, Field(ge=defaults.LEAST_CONTEXT)]
ConstantName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
EvaluationData = Annotated[str, Field(pattern=rf"^({defaults.SAE_BENCH}(@[0-9a-f]{{16}})?)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# Settings with a default of its own; of the last two there is one for each kind of baseline.
OF_THE_MODEL = ("hook_name", "tokens", "d_sae", "k", "batch", "l1_coefficient", "learning_rate")


class Fixed(Strict):
    """The settings of a study, those OF_THE_MODEL by default the model's own.

    All runs share them but for k, l1_coefficient, batch and learning_rate, which are the baseline's; a run may have
    others unless they are among `constants`, which hold for every run that has a constant of the name.
    """

    model: Text = "tiny-lm"
    dtype: Literal["float32", "bfloat16"] | None = None  # of the language model; None: bfloat16 on a GPU, else float32
    hook_name: Text = ""
    text: str = ""  # a file, a folder or a hub dataset, pinned once a study has begun; "" for the installation's own
    tokens: PositiveInt = 1
    d_sae: PositiveInt = 1
    seed: int = 0
    evals: Text = "quick"  # evaluation families: a tier, or names separated by commas
    threads: PositiveInt | None = None  # of each process that trains or evaluates; None: all, as before this was kept
    evaluation_data: EvaluationData = ""  # sae-bench, pinned once a study has begun; "" for the local
    baseline: BaselineName = "batchtopk"
    k: PositiveNumber = 1
    l1_coefficient: PositiveNumber = 1  # of a baseline with this knob; of no meaning for others
    batch: PositiveInt = 1  # tokens a step
    learning_rate: PositiveNumber = 1
    context: Context | None = None  # tokens in a window of text; None: defaults.CONTEXT, or as many as the model has
    constants: dict[ConstantName, Any] = {}  # of experiment.py, with BATCH and LEARNING_RATE if they were asked for
    stream: bool = False  # rows come from the model as they are read; so do more of them than are stored
    baseline_seeds: PositiveInt = BASELINE_SEEDS  # of the baseline, behind the noise; one gives no interval

    @field_validator("evals")
    @classmethod
    def _require_known_evals(cls, evals: str) -> str:
        try:
            catalogue.parse_evals(evals)
        except UserError as error:
            raise ValueError(str(error)) from None
        return evals

    @field_validator("k")
    @classmethod
    def _require_whole_k(cls, k: float, others: ValidationInfo) -> float:
        architecture = BASELINES[others.data.get("baseline", "batchtopk")]
        if architecture.whole and k != int(k):
            raise ValueError(f"{architecture.title} keeps a whole number of latents per token")
        return k

    @model_validator(mode="after")
    def _fill_in_model_defaults(self) -> Self:
        own = defaults.for_model(self.model, self.baseline)
        if defaults.is_world(self.model):
            object.__setattr__(self, "dtype", "float32")
        for name in set(OF_THE_MODEL) - self.model_fields_set:
            # It stays out of model_fields_set, so that with_changes(model=...) takes the other model's own.
            object.__setattr__(self, name, getattr(own, name))
        object.__setattr__(self, "stream", defaults.is_streamed(self.model, self.tokens, self.stream))
        return self

    @property
    def architecture(self) -> Architecture:
        """The kind of SAE that the baseline is."""
        return BASELINES[self.baseline]

    @property
    def knob(self) -> float:
        """The study's value of the constant that moves the baseline's L0, in the digits that a template renders."""
        return float(f"{self.k if self.architecture.knob == 'K' else self.l1_coefficient:g}")

    @property
    def baseline_in_words(self) -> str:
        """The baseline's kind and knob: "BatchTopK with K 16"."""
        return f"{self.architecture.title} with {self.architecture.knob_in_words} {self.knob:g}"

    @property
    def model_in_words(self) -> str:
        """The model, and its dtype if that is not the common one: "tiny-lm", "tiny-lm in bfloat16"."""
        return f"{self.model} in bfloat16" if self.dtype == "bfloat16" else self.model

    @property
    def held_in_words(self) -> str:
        """What else is the same in every run, as it was asked for: ", context 256, BATCH 2048"; "" if nothing is."""
        context = {"context": self.context} if self.context else {}
        return "".join(f", {name} {value}" for name, value in (context | self.constants).items())

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with these settings changed; settings never given are the defaults of the new model."""
        return type(self)(**self.model_dump(exclude_unset=True) | changes)
