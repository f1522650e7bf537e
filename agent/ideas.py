"""Ideas: the schema of idea.yaml, and the rendering of each step of a plan into an experiment.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from agent.lab.errors import UserError, nearest
from agent.lab.results import HEADLINE, METRICS

if TYPE_CHECKING:
    import jinja2

ROOT = Path(__file__).resolve().parent.parent  # the checkout
TEMPLATES = ROOT / "templates"

Direction = Literal["up", "down", "same"]
Text = Annotated[str, Field(min_length=1)]


class BadIdea(UserError):
    """An idea that does not exist, breaks the schema, or cannot be rendered."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fixed(Strict):
    """What every run of a study has in common."""

    model: Text = "tiny-lm"
    hook_name: Text = "blocks.1.hook_resid_post"
    tokens: PositiveInt = 1_500_000
    d_sae: PositiveInt = 1024
    seed: int = 0


class Step(Strict):
    """One change to try, and what it is expected to do to the headline metrics."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: Text
    description: Text
    why: Text
    predictions: dict[str, Direction]
    parameters: dict[str, Any] = {}


class Idea(Strict):
    """A research question with its plan."""

    name: Text
    title: Text
    description: Text  # becomes the notes' experiment description
    hypothesis: Text
    primary_metric: str = "ce_loss_score"
    smallest_effect: Annotated[float, Field(gt=0)]  # in units of the primary metric
    fixed: Fixed = Fixed()
    defaults: dict[str, Any] = {}  # the template's parameters, as the baseline has them
    plan: Annotated[list[Step], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.primary_metric not in METRICS:
            raise ValueError(f"primary_metric {self.primary_metric!r}: {nearest(self.primary_metric, METRICS)}")
        names = [step.name for step in self.plan]
        for step in self.plan:
            if names.count(step.name) > 1:
                raise ValueError(f"two steps of the plan are named {step.name!r}")
            for metric in step.predictions:
                if metric not in HEADLINE:
                    raise ValueError(f"step {step.name!r} predicts {metric!r}: {nearest(metric, HEADLINE)}")
            for parameter in step.parameters:
                if parameter not in self.defaults:
                    raise ValueError(
                        f"step {step.name!r} sets {parameter!r}, which has no default: "
                        f"{nearest(parameter, self.defaults)}"
                    )
        return self


def names(templates: Path = TEMPLATES) -> list[str]:
    """The ideas there are."""
    return sorted(path.parent.name for path in templates.glob("ideas/*/idea.yaml"))


def load(name: str, templates: Path = TEMPLATES) -> Idea:
    """An idea by name. Raises BadIdea, naming the file and the field."""
    if name not in names(templates):
        raise BadIdea(f"unknown idea {name!r}: {nearest(name, names(templates))}")
    path = templates / "ideas" / name / "idea.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadIdea(f"{path} line {line}: {error.problem}") from None
    if not isinstance(content, dict):
        raise BadIdea(f"{path}: expected fields such as title and plan, found {type(content).__name__}")
    try:
        return Idea.model_validate({"name": name, **content})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadIdea(f"{path}: {field + ': ' if field else ''}{first['msg']}") from None


def render_baseline(fixed: Fixed, templates: Path = TEMPLATES) -> str:
    """The baseline experiment.py. Raises BadIdea."""
    return _render("experiment.py.j2", fixed.model_dump(), "the baseline", templates)


def render_step(idea: Idea, step: Step, fixed: Fixed, templates: Path = TEMPLATES) -> str:
    """The experiment.py of one step. Raises BadIdea, naming the step and the line of the template."""
    variables = fixed.model_dump() | idea.defaults | step.parameters
    return _render(f"ideas/{idea.name}/experiment.py.j2", variables, f"{idea.name}, step {step.name}", templates)


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
