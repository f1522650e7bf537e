"""Ideas: the schema of idea.yaml, and the rendering of each step of a plan into an experiment.py."""

import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from agent import TEMPLATES
from agent.lab import defaults
from agent.lab.errors import UserError, nearest
from agent.lab.evaluation import catalogue
from agent.lab.metrics import HEADLINE, METRICS

if TYPE_CHECKING:
    import jinja2
    from pydantic_core import ErrorDetails


Direction = Literal["up", "down", "same"]
Text = Annotated[str, Field(min_length=1)]


class BadIdea(UserError):
    """An idea that does not exist, breaks the schema, or cannot be rendered."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fixed(Strict):
    """What every run of a study has in common. What is not said is as the model has it."""

    model: Text = "tiny-lm"
    hook_name: Text = ""
    tokens: PositiveInt = 1
    d_sae: PositiveInt = 1
    seed: int = 0
    evals: Text = "quick"  # the evaluation families asked for: a tier, or names with commas between them

    @field_validator("evals")
    @classmethod
    def _known(cls, evals: str) -> str:
        try:
            catalogue.parse_evals(evals)
        except UserError as error:
            raise ValueError(str(error)) from None
        return evals

    @model_validator(mode="after")
    def _as_the_model_has_it(self) -> Self:
        own = defaults.of(self.model)
        for name in {"hook_name", "tokens", "d_sae"} - self.model_fields_set:
            object.__setattr__(self, name, getattr(own, name))  # and stays unset: another model has its own
        return self

    def but(self, **given: Any) -> Self:
        """With other settings; what nobody has said is as the model then has it."""
        return type(self)(**self.model_dump(exclude_unset=True) | given)


class When(Strict):
    """What an earlier step must have shown for a step to be tried."""

    step: Text
    metric: Text
    came_out: Direction  # against the baseline; same: within noise


class Step(Strict):
    """One change to try, and what it is expected to do to the headline metrics."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: Text
    description: Text
    why: Text
    predictions: dict[str, Direction]
    parameters: dict[str, Any] = {}
    when: When | None = None  # None: always


class Idea(Strict):
    """A research question with its plan."""

    folder: Path  # where it was loaded from
    title: Text
    description: Text  # becomes the notes' experiment description
    hypothesis: Text
    primary_metric: str = "ce_loss_score"
    smallest_effect: Annotated[float, Field(gt=0)]  # in units of the primary metric
    fixed: Fixed = Fixed()
    defaults: dict[str, Any] = {}  # the template's parameters, as the baseline has them
    plan: Annotated[list[Step], Field(min_length=1)]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def template(self) -> Path | None:
        """What its plan is rendered with; an idea without one is for a language model to work out."""
        path = self.folder / "experiment.py.j2"
        return path if path.exists() else None

    @property
    def analysis(self) -> Path | None:
        """The idea's own measures, where it has some."""
        path = self.folder / "analysis.py"
        return path if path.exists() else None

    @property
    def figures(self) -> Path | None:
        """The idea's own figures, where it has some."""
        path = self.folder / "figures.py"
        return path if path.exists() else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        decide = [name for name in HEADLINE if METRICS[name].better != "none" and METRICS[name].decides]
        known = "a headline metric with a better direction that decides"
        _one_of(self.primary_metric, decide, "primary_metric", known_as=known)
        names = [step.name for step in self.plan]
        for number, step in enumerate(self.plan):
            if step.name in names[:number]:
                raise _wrong(f"another step of the plan is named {step.name!r}, too", "plan", number, "name")
            for metric in step.predictions:
                _one_of(metric, HEADLINE, "plan", number, "predictions", metric)
            for parameter in step.parameters:
                _one_of(parameter, self.defaults, "plan", number, "parameters", parameter, known_as="a default's name")
            if step.when:
                decisive = [name for name in HEADLINE if METRICS[name].decides]
                _one_of(step.when.metric, decisive, "plan", number, "when", "metric", known_as="a metric that decides")
                earlier = names[:number]
                _one_of(step.when.step, earlier, "plan", number, "when", "step", known_as="an earlier step's name")
        return self


MODELS: dict[str, type[Strict]] = {"": Idea, "fixed": Fixed, "plan": Step, "plan.when": When}  # by their place in it


def _one_of(name: str, known: Iterable[str], *place: str | int, known_as: str = "a metric's name") -> None:
    if name not in known:
        raise _wrong(f"expected {known_as}, found {name!r}: {nearest(name, known)}", *place)


def _wrong(message: str, *place: str | int) -> ValidationError:
    """An error at a place in the idea, for fields that are wrong only beside others."""
    error = PydanticCustomError("inconsistent", "{message}", {"message": message})
    return ValidationError.from_exception_data("Idea", [InitErrorDetails(type=error, loc=place, input=None)])


def names(templates: Path = TEMPLATES) -> list[str]:
    """The ideas there are."""
    return sorted(path.parent.name for path in templates.glob("ideas/*/idea.yaml"))


def load(name: str, templates: Path = TEMPLATES) -> Idea:
    """An idea by name. Raises BadIdea, naming the file and the field."""
    if name not in names(templates):
        raise BadIdea(f"unknown idea {name!r}: {nearest(name, names(templates))}")
    path = templates / "ideas" / name / "idea.yaml"
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise BadIdea(f"{path}: {error}") from None


def parse(text: str, path: Path, most: int = 1) -> Idea:
    """An idea from the text of its idea.yaml at `path`. Raises BadIdea, with up to `most` wrong fields."""
    try:
        content, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadIdea(f"{path} line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a character or date that is none, nested too deep
        raise BadIdea(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise BadIdea(f"{path}: expected fields such as title and plan, found {type(content).__name__}")
    try:
        return Idea.model_validate(content | {"folder": path.parent})
    except ValidationError as error:
        wrong = [(part["loc"], _expected(part)) for part in error.errors()[:most]]
        said = [f"line {_line(root, place)}: {'.'.join(map(str, place))}: {what}" for place, what in wrong]
        raise BadIdea(f"{path} {'; '.join(said)}") from None


def _line(node: yaml.Node | None, place: tuple[str | int, ...]) -> int:
    """The line of a field, or of the nearest field around it that is there."""
    line = 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = [(item, item) for item in node.value[part : part + 1]]
        else:
            found = []
        if not found:
            break
        marked, node = found[0]
        line = marked.start_mark.line + 1
    return line


def _expected(error: "ErrorDetails") -> str:
    """What pydantic found wrong, as `expected ..., found ...`."""
    message = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "missing":
            return "expected this field, found none"
        case "extra_forbidden":
            *around, field = error["loc"]
            known = MODELS[".".join(part for part in around if isinstance(part, str))].model_fields.keys() - {"folder"}
            return f"unknown field: {nearest(str(field), known)}"
        case "inconsistent":
            return message
    return f"{message.replace('Input should be', 'expected', 1)}, found {reprlib.repr(error['input'])}"


def goal(idea: Idea, model: str) -> tuple[str, float]:
    """The primary metric of a study on a model, and the smallest effect worth having: the idea's, or where this kind of
    model has no such metric, the model's own."""
    if catalogue.measurable(idea.primary_metric, defaults.is_world(model)):
        return idea.primary_metric, idea.smallest_effect
    own = defaults.of(model)
    return own.primary_metric, own.smallest_effect


def render_baseline(fixed: Fixed, k: float | None = None, templates: Path = TEMPLATES) -> str:
    """The baseline experiment.py, at the model's own K or another. Raises BadIdea."""
    variables = _constants(fixed) | ({"k": f"{k:g}"} if k else {})
    return _render("experiment.py.j2", variables, "the baseline", templates)


def render_step(idea: Idea, step: Step, fixed: Fixed, templates: Path = TEMPLATES) -> str:
    """The experiment.py of one step. Raises BadIdea, naming the step and the line of the template."""
    variables = _constants(fixed) | idea.defaults | step.parameters
    return _render(f"ideas/{idea.name}/experiment.py.j2", variables, f"{idea.name}, step {step.name}", templates)


def _constants(fixed: Fixed) -> dict[str, Any]:
    """What a template may use: the fixed settings, and the constants of the model's baseline."""
    own = defaults.of(fixed.model)
    names = ("batch", "learning_rate", "decay", "aux_divisor", "dead_windows")
    return fixed.model_dump() | {name: getattr(own, name) for name in names} | {"k": f"{own.k:g}"}


def strict_templates(folder: Path) -> "jinja2.Environment":
    """The templates of a folder, in which an undefined variable is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(template: str, variables: dict[str, Any], what: str, templates: Path) -> str:
    import jinja2  # here because `agent --help` answers sooner without it

    environment = strict_templates(templates)
    try:
        return environment.get_template(template).render(variables)
    except jinja2.TemplateNotFound as error:
        raise BadIdea(f"{what}: template {templates / (error.name or template)} does not exist") from None
    except jinja2.TemplateSyntaxError as error:
        raise BadIdea(f"{what}: {templates / (error.name or template)} line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BadIdea(f"{what}: {_place(error, templates)}: {error}") from None


def _place(error: Exception, templates: Path) -> str:
    """The template and line an error came from: jinja2 puts them in the traceback."""
    place, trace = str(templates), error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(str(templates)):
            place = f"{file} line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
