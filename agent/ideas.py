"""Ideas: the schema of idea.yaml, and how each step of its plan is rendered into an experiment.py."""

import reprlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from agent import TEMPLATES, constants, idea_folder
from agent.hypothesis import ANY, Condition, Rules
from agent.idea_folder import BadIdea
from agent.lab import defaults
from agent.lab.errors import UserError, did_you_mean
from agent.lab.evaluation import catalogue, idea_files
from agent.lab.files import BadFile, read_plain_text
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.visible import Line, Prose
from agent.rendering import render

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


BASELINE_SEEDS = 5  # behind the noise, the study's own seed among them
MOST_VARIANCE_LOST = 0.05  # an SAE that reconstructs so much less is not better, whatever else it does

Direction = Literal["up", "down", "same"]
Text = Annotated[str, Field(min_length=1)]
Title = Annotated[Line, Field(min_length=1)]
Described = Annotated[Prose, Field(min_length=1)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Context = Annotated[int, Field(ge=defaults.LEAST_CONTEXT)]
ConstantName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
EvaluationData = Annotated[str, Field(pattern=rf"^({defaults.SAE_BENCH}(@[0-9a-f]{{16}})?)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


OF_THE_MODEL = ("hook_name", "tokens", "d_sae", "k", "batch", "learning_rate")  # settings with a default of its own


class Fixed(Strict):
    """The settings of a study, those OF_THE_MODEL by default the model's own.

    All runs share them but for k, batch and learning_rate, which are the baseline's; a run may have others unless they
    are among `constants`, which hold for every run that has a constant of the name.
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
    k: PositiveNumber = 1
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

    @model_validator(mode="after")
    def _fill_in_model_defaults(self) -> Self:
        own = defaults.for_model(self.model)
        if defaults.is_world(self.model):
            object.__setattr__(self, "dtype", "float32")
        for name in set(OF_THE_MODEL) - self.model_fields_set:
            # It stays out of model_fields_set, so that with_changes(model=...) takes the other model's own.
            object.__setattr__(self, name, getattr(own, name))
        streamed = not defaults.is_world(self.model) and (self.stream or self.tokens > defaults.MAX_HARVEST)
        object.__setattr__(self, "stream", streamed)
        return self

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


class When(Strict):
    """A condition on the result of an earlier step, without which a step is skipped."""

    step: Text
    metric: Text
    observed_direction: Direction = Field(alias="came_out")  # relative to the baseline; same: within noise


class Step(Strict):
    """One change to try, with its predicted effect on the headline metrics."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: Title
    description: Described
    why: Described
    predictions: dict[str, Direction]
    parameters: dict[str, Any] = {}
    when: When | None = None  # None: always


class Idea(Strict):
    """A research idea: a hypothesis and the plan of runs that tests it."""

    folder: Path  # of its idea.yaml
    title: Title
    description: Described  # shown in the notes
    hypothesis: Described
    primary_metric: str = "ce_loss_score"
    smallest_effect: Annotated[float, Field(gt=0)]  # in units of the primary metric
    most_variance_lost: Annotated[float, Field(gt=0)] = MOST_VARIANCE_LOST  # beside a better CE-loss score
    fixed: Fixed = Fixed()
    defaults: dict[str, Any] = {}  # the template's parameters and their values where a step gives none
    plan: Annotated[list[Step], Field(min_length=1)]
    answer: Rules | None = None  # when the hypothesis is supported or refuted

    @property
    def name(self) -> str:
        return self.folder.name

    def is_outside(self, templates: Path = TEMPLATES) -> bool:
        """Return True if the idea is none of `templates`: a study keeps a copy of it."""
        return self.folder != templates / "ideas" / self.name

    @property
    def template(self) -> Path | None:
        """The template that renders the plan's steps; None if the plan is in words, for a language model."""
        path = self.folder / "experiment.py.j2"
        return path if path.exists() else None

    @property
    def analysis(self) -> Path | None:
        """The file that computes the idea's own measures; None if it has none."""
        path = self.folder / "analysis.py"
        return path if path.exists() else None

    @property
    def measures(self) -> Path | None:
        """The file that lists the idea's own measures: measures.py, or analysis.py in an older idea; None if none."""
        path = idea_files.measures_file(self.folder / "analysis.py")
        return path if path.exists() else None

    @property
    def figures(self) -> Path | None:
        """The file that draws the idea's own figures; None if it has none."""
        path = self.folder / "figures.py"
        return path if path.exists() else None

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        decide = [name for name in HEADLINE if METRICS[name].better != "none" and METRICS[name].decides]
        known = "a headline metric with a better direction that decides"
        _check(self.primary_metric, decide, "primary_metric", known_as=known)
        names = [step.name for step in self.plan]
        for number, step in enumerate(self.plan):
            if step.name in names[:number]:
                raise _error_at(f"another step of the plan is also named {step.name!r}", "plan", number, "name")
            for metric in step.predictions:
                _check(metric, HEADLINE, "plan", number, "predictions", metric)
            for parameter in step.parameters:
                _check(parameter, self.defaults, "plan", number, "parameters", parameter, known_as="a default's name")
            if step.when:
                decisive = [name for name in HEADLINE if METRICS[name].decides]
                _check(step.when.metric, decisive, "plan", number, "when", "metric", known_as="a metric that decides")
                earlier = names[:number]
                _check(step.when.step, earlier, "plan", number, "when", "step", known_as="an earlier step's name")
        for name in Rules.model_fields if self.answer else ():
            for number, condition in enumerate(getattr(self.answer, name)):
                _check(condition.step, [*names, ANY], "answer", name, number, "step", known_as="a step's name")
                if condition.metric and condition.than:
                    _check(condition.than, names, "answer", name, number, "than", known_as="a step's name")
        return self


# By their path in an idea.
MODELS: dict[str, type[BaseModel]] = {
    "": Idea,
    "fixed": Fixed,
    "plan": Step,
    "plan.when": When,
    "answer": Rules,
    **{f"answer.{name}": Condition for name in Rules.model_fields},
}


def _check(name: str, known: Iterable[str], *place: str | int, known_as: str = "a metric's name") -> None:
    """Raise ValidationError, at this place in the idea, if a name is unknown."""
    if name not in known:
        raise _error_at(f"expected {known_as}, found {name!r}: {did_you_mean(name, known)}", *place)


def _error_at(message: str, *place: str | int) -> ValidationError:
    """Return an error at a place in the idea, for a field that contradicts another one."""
    error = PydanticCustomError("inconsistent", "{message}", {"message": message})
    return ValidationError.from_exception_data("Idea", [InitErrorDetails(type=error, loc=place, input=None)])


def idea_names(templates: Path = TEMPLATES) -> list[str]:
    """Return the names of all ideas, sorted."""
    return sorted(path.parent.name for path in templates.glob("ideas/*/idea.yaml"))


def load(name: str, templates: Path = TEMPLATES) -> Idea:
    """Load an idea by its name, or by the path of its folder. Raise BadIdea, with the file and the field, if there is
    none or it is invalid."""
    if idea_folder.is_path(name):
        return load_folder(idea_folder.find(name))
    if name not in idea_names(templates):
        raise BadIdea(f"unknown idea {name!r}: {did_you_mean(name, idea_names(templates))}")
    return load_folder(templates / "ideas" / name)


def load_folder(folder: Path) -> Idea:
    """Load the idea of a folder. Raise BadIdea, with the file and the field, if it is invalid."""
    path = folder / "idea.yaml"
    try:
        return parse(read_plain_text(path), path)
    except (BadFile, FileNotFoundError) as error:
        raise BadIdea(str(error)) from None


def parse(text: str, path: Path, max_errors: int = 1) -> Idea:
    """Parse the text of the idea.yaml at `path`. Raise BadIdea, with up to `max_errors` faults, if it is invalid."""
    try:
        content = _load_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadIdea(f"{path} line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an invalid character or date, nested too deep
        raise BadIdea(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise BadIdea(f"{path}: expected fields such as title and plan, found {type(content).__name__}")
    try:
        return Idea.model_validate(content | {"folder": path.parent})
    except ValidationError as error:
        root = yaml.compose(text, yaml.SafeLoader)
        messages = [
            f"line {_line_of(root, part['loc'])}: {'.'.join(map(str, part['loc']))}: {in_words(part)}"
            for part in error.errors()[:max_errors]
        ]
        raise BadIdea(f"{path} {'; '.join(messages)}") from None


def _load_yaml(text: str) -> Any:
    """Return the content of YAML text. Raise yaml.YAMLError, which says more than that of the faster loader does."""
    with suppress(yaml.YAMLError):
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return yaml.safe_load(text)


def _line_of(node: yaml.Node | None, place: tuple[str | int, ...]) -> int:
    """Return the line of a field, or of the nearest enclosing field that is present."""
    line = 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            children = [(key, value) for key, value in node.value if key.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            children = [(item, item) for item in node.value[part : part + 1]]
        else:
            children = []
        if not children:
            break
        marked, node = children[0]
        line = marked.start_mark.line + 1
    return line


def in_words(error: "ErrorDetails") -> str:
    """Reword a pydantic error as `expected ..., found ...`."""
    message = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "missing":
            return "expected this field, found none"
        case "extra_forbidden":
            *around, field = error["loc"]
            fields = MODELS[".".join(part for part in around if isinstance(part, str))].model_fields
            known = {info.alias or name for name, info in fields.items()} - {"folder"}
            return f"unknown field: {did_you_mean(str(field), known)}"
        case "inconsistent":
            return message
    return f"{message.replace('Input should be', 'expected', 1)}, found {reprlib.repr(error['input'])}"


def primary_metric_and_effect(idea: Idea, model: str) -> tuple[str, float]:
    """Return the primary metric of a study on a model and its smallest effect of interest, in the metric's unit.

    They are the idea's, or the model's own if the idea's primary metric cannot be measured on it.
    """
    if catalogue.measurable(idea.primary_metric, defaults.is_world(model)):
        return idea.primary_metric, idea.smallest_effect
    own = defaults.for_model(model)
    return own.primary_metric, own.smallest_effect


def render_baseline(
    fixed: Fixed, k: float | None = None, templates: Path = TEMPLATES, *, rate: float | None = None
) -> str:
    """Render the baseline experiment.py, with the model's own K and learning rate unless `k` and `rate` are given.

    Raise BadIdea if that fails.
    """
    variables = _constants(fixed, rate) | ({"k": f"{k:g}"} if k else {})
    return constants.replaced(render("experiment.py.j2", variables, "the baseline", templates), fixed.constants)


def render_step(idea: Idea, step: Step, fixed: Fixed, templates: Path = TEMPLATES, *, rate: float | None = None) -> str:
    """Render the experiment.py of one step, with the model's own learning rate unless `rate` is given.

    Raise BadIdea, with the step and the template's line, if that fails.
    """
    known = _constants(fixed, rate)
    settled = {name: known[name] for name in OF_THE_MODEL if name in fixed.model_fields_set}
    variables = known | idea.defaults | settled | step.parameters
    own, what = idea.folder if idea.is_outside(templates) else None, f"{idea.name}, step {step.name}"
    source = render(f"ideas/{idea.name}/experiment.py.j2", variables, what, templates, own)
    return constants.replaced(source, fixed.constants)


def _constants(fixed: Fixed, rate: float | None = None) -> dict[str, Any]:
    """Return what a template may use: the study's settings, the learning rate that it has found, and the other
    constants of the model's baseline."""
    own = defaults.for_model(fixed.model)
    names = ("decay", "aux_divisor", "dead_windows")
    found = {"k": f"{fixed.k:g}"} | ({"learning_rate": rate} if rate else {})
    return fixed.model_dump() | {name: getattr(own, name) for name in names} | found
