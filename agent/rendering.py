"""Templates rendered by jinja2 in its sandbox, with errors that name the template and the line."""

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import idea_folder
from agent.idea_folder import BadIdea
from agent.lab.files import read_plain_text

if TYPE_CHECKING:
    from collections.abc import Callable

    import jinja2

LARGEST = 100_000  # bits of a power, characters or items of a repetition, in a template


def strict_templates(folder: Path) -> "jinja2.Environment":
    """Return a jinja2 environment for a folder of templates.

    Undefined variables are errors, and so is whatever reaches beyond the values that a template is given: an idea may
    come from somebody else.
    """
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    class Sandbox(SandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: "jinja2.runtime.Context", operator: str, left: Any, right: Any) -> Any:
            _require_small(operator, left, right)
            return super().call_binop(context, operator, left, right)

    return Sandbox(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _require_small(operator: str, left: Any, right: Any) -> None:
    """Raise OverflowError for a power or a repetition that would take all of the time or the memory there is."""
    if operator == "**":
        size = left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0
    else:
        sizes = [len(one) if isinstance(one, str | bytes | list | tuple) else one for one in (left, right)]
        size = math.prod(sizes) if sizes != [left, right] and all(isinstance(one, int) for one in sizes) else 0
    if size > LARGEST:
        raise OverflowError(f"the result of {operator} is too big")


@cache
def _compiled_templates(templates: Path, idea: Path | None) -> "jinja2.Environment":
    """Return an environment that compiles each template once, and again when its file has changed.

    With the folder of an `idea` from outside, "ideas/NAME/..." are its files, and so is what `templates` does not have.
    """
    import jinja2

    environment = strict_templates(templates)
    if idea and environment.loader:
        own = jinja2.FunctionLoader(lambda name: _own_template(idea, name))
        named = jinja2.PrefixLoader({"ideas": jinja2.PrefixLoader({idea.name: own})})
        environment.loader = jinja2.ChoiceLoader([named, environment.loader, own])
    return environment


def _own_template(idea: Path, name: str) -> "tuple[str, str, Callable[[], bool]] | None":
    """Return a template among the files of an idea, or None: no name leads to another file."""
    path = idea / name
    if path not in idea_folder.files(idea):
        return None
    written = path.stat().st_mtime_ns
    return read_plain_text(path), str(path), lambda: path.exists() and path.stat().st_mtime_ns == written


def render(template: str, variables: dict[str, Any], what: str, templates: Path, idea: Path | None = None) -> str:
    """Render a template of `templates`, or of the folder of an `idea` from outside it.

    Raise BadIdea, with `what` is rendered and the template's line, if that fails.
    """
    import jinja2  # here because `agent --help` answers sooner without it

    folders = [folder for folder in (idea, templates) if folder]
    try:
        return _compiled_templates(templates, idea).get_template(template).render(variables)
    except jinja2.TemplateNotFound as error:
        places = " or ".join(str(folder / (error.name or template)) for folder in folders)
        raise BadIdea(f"{what}: template {places} does not exist") from None
    except jinja2.TemplateSyntaxError as error:
        file = error.filename or templates / (error.name or template)
        raise BadIdea(f"{what}: {file} line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BadIdea(f"{what}: {_template_line(error, folders)}: {error}") from None


def _template_line(error: Exception, folders: list[Path]) -> str:
    """Return the template and line that raised an error; jinja2 puts them in the traceback."""
    place, trace = str(folders[0]), error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(tuple(map(str, folders))):
            place = f"{file} line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
