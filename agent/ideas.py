"""Ideas: the schema of idea.yaml, and how each step of its plan is rendered into an experiment.py."""

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from agent import TEMPLATES, constants, idea_folder
from agent.fixed import BASELINE_SEEDS, OF_THE_MODEL, Fixed, Strict, Text
from agent.hypothesis import ANY, Condition, Rules
from agent.idea_folder import BadIdea
from agent.lab import defaults
from agent.lab.architectures import BaselineName
from agent.lab.errors import did_you_mean
from agent.lab.evaluation import catalogue, idea_files
from agent.lab.files import BadFile, read_plain_text
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.visible import Line, Prose
from agent.rendering import render

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["BASELINE_SEEDS", "OF_THE_MODEL", "BadIdea", "Fixed", "Idea", "Step", "Strict", "When"]

MOST_VARIANCE_LOST = 0.05  # an SAE that reconstructs so much less is not better, whatever else it does

Direction = Literal["up", "down", "same"]
Title = Annotated[Line, Field(min_length=1)]
Described = Annotated[Prose, Field(min_length=1)]


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
    parameters: dict[str, Any] = Field(default_factory=dict)
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
    baselines: Annotated[tuple[BaselineName, ...], Field(min_length=1)] = ("batchtopk",)  # the first by default
    why_not_others: Line = ""  # why it does not work on the other kinds of baseline
    fixed: Fixed = Fixed()
    defaults: dict[str, Any] = Field(default_factory=dict)  # the template's parameters, where a step gives none
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

    def works_on(self, baseline: BaselineName) -> bool:
        """Return True if the idea can be tried on a kind of baseline; a plan in words on any, unless it says."""
        in_words = self.template is None and "baselines" not in self.model_fields_set
        return in_words or baseline in self.baselines

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


def load(name: str, templates: Path = TEMPLATES, max_errors: int = 1) -> Idea:
    """Load an idea by its name, or by the path of its folder. Raise BadIdea, with the file and up to `max_errors`
    faults, if there is none or it is invalid."""
    if idea_folder.is_path(name):
        return load_folder(idea_folder.find(name), max_errors)
    if name not in idea_names(templates):
        raise BadIdea(f"unknown idea {name!r}: {did_you_mean(name, idea_names(templates))}")
    return load_folder(templates / "ideas" / name, max_errors)


def load_folder(folder: Path, max_errors: int = 1) -> Idea:
    """Load the idea of a folder. Raise BadIdea, with the file and up to `max_errors` faults, if it is invalid."""
    path = folder / "idea.yaml"
    try:
        return parse(read_plain_text(path), path, max_errors)
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
        root = None
        with suppress(RecursionError):  # nested too deep for this reader: the line is not known
            root = yaml.compose(text, yaml.SafeLoader)
        messages = [
            f"line {_line_of(root, part['loc'])}: {'.'.join(map(str, part['loc']))}: {in_words(part)}"
            for part in error.errors()[:max_errors]
        ]
        raise BadIdea(f"{path} {'; '.join(messages)}") from None


DEEPEST = 50  # lists and fields in one another
FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there


class _FastLoader(FAST):
    """YAML in which no field is given twice; in yaml's own the last of them counts."""


class _Loader(yaml.SafeLoader):
    """The same, in Python."""


def _fields(loader: Any, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    """Construct a mapping. Raise ConstructorError for a field that is given twice."""
    names: set[str] = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if key.value in names:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        names.add(key.value)
    yield from loader.construct_yaml_map(node)


_FastLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _fields)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _fields)


def _load_yaml(text: str) -> Any:
    """Return the content of YAML text. Raise yaml.YAMLError, which says more than that of the faster loader does."""
    with suppress(yaml.YAMLError):
        _require_shallow(text)
        return yaml.load(text, _FastLoader)
    return yaml.load(text, _Loader)


def _require_shallow(text: str) -> None:
    """Raise RecursionError for YAML that is nested deeper than an idea can be; libyaml's loader would end Python."""
    depth = 0
    for event in yaml.parse(text, FAST):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError(f"line {event.start_mark.line + 1}: nested more than {DEEPEST} deep")


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
    fixed: Fixed, knob: float | None = None, templates: Path = TEMPLATES, *, rate: float | None = None
) -> str:
    """Render the baseline experiment.py, with the study's own K or L1_COEFFICIENT and learning rate unless `knob` and
    `rate` are given.

    Raise BadIdea if that fails.
    """
    variables = _constants(fixed, rate) | ({fixed.architecture.knob.lower(): f"{knob:g}"} if knob else {})
    what = f"the baseline {fixed.baseline}"
    return _with_constants(render(_template_of(fixed), variables, what, templates), fixed, what)


def _template_of(fixed: Fixed) -> str:
    return f"baselines/{fixed.baseline}.py.j2"


def render_step(idea: Idea, step: Step, fixed: Fixed, templates: Path = TEMPLATES, *, rate: float | None = None) -> str:
    """Render the experiment.py of one step, with the model's own learning rate unless `rate` is given.

    Raise BadIdea, with the step and the template's line, if that fails.
    """
    known = _constants(fixed, rate)
    settled = {name: known[name] for name in OF_THE_MODEL if name in fixed.model_fields_set}
    variables = known | idea.defaults | settled | step.parameters
    own, what = idea.folder if idea.is_outside(templates) else None, f"{idea.name}, step {step.name}"
    source = render(f"ideas/{idea.name}/experiment.py.j2", variables, what, templates, own)
    return _with_constants(source, fixed, what)


def _with_constants(source: str, fixed: Fixed, what: str) -> str:
    """Return an experiment.py with the constants that a study fixes. Raise BadIdea if it cannot be parsed."""
    try:
        return constants.replaced(source, fixed.constants)
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise BadIdea(f"{what}: the experiment.py that it renders cannot be parsed:{line} {error.args[0]}") from None


def _constants(fixed: Fixed, rate: float | None = None) -> dict[str, Any]:
    """Return what a template may use: the study's settings, the learning rate that it has found, and the other
    constants of the model's baseline."""
    own = defaults.for_model(fixed.model, fixed.baseline)
    names = ("decay", "aux_divisor", "dead_windows")
    found = {"k": f"{fixed.k:g}", "l1_coefficient": f"{fixed.l1_coefficient:g}", "baseline": _template_of(fixed)}
    found |= {"learning_rate": rate} if rate else {}
    return fixed.model_dump() | {name: getattr(own, name) for name in names} | found
