"""`agent run --dry-run`: every setting of a study, with its value and the reason for it."""

from collections.abc import Iterable

from agent import constants, ideas
from agent.commands.study_settings import GIVEN, OF_CONSTANTS, Settled, known_constants, option, shown
from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.ideas import Idea
from agent.lab import defaults
from agent.lab.visible import one_line


def show(idea: Idea, settled: Settled, smallest_effect: float) -> None:
    """Print every setting of a study, with its value and the reason for it."""
    rows = [(name, one_line(value), why) for name, value, why in _settings(idea, settled, smallest_effect)]
    print_table(make_console(LONGEST_LINE), ("setting", "value", "why"), rows)
    print("Nothing was started. Without --dry-run the study begins.")


def _settings(idea: Idea, settled: Settled, smallest_effect: float) -> Iterable[tuple[str, str, str]]:
    """Yield every setting of a study: its name, its value, and why it has that."""
    fixed, reasons, shape = settled.fixed, settled.reasons, settled.shape
    for name in ("model", "dtype", "hook_name"):
        yield option(name), shown(getattr(fixed, name), "bfloat16 on a GPU, else float32"), reasons[name]
    if shape:
        yield "d_in", f"{shape.width_at(fixed.hook_name):,}", f"of {fixed.model} at this hook"
    knob = OF_CONSTANTS[fixed.architecture.knob]
    for name in ("d_sae", "baseline", knob, "tokens", "batch", "learning_rate", "seed", "baseline_seeds"):
        yield option(name), shown(getattr(fixed, name)), reasons[name]
    if not defaults.is_world(fixed.model):
        yield "--context", shown(fixed.context, str(defaults.CONTEXT)), reasons["context"]
        is_long = defaults.is_streamed(fixed.model, fixed.tokens)
        why = f"more than {defaults.MAX_HARVEST:,} tokens" if is_long else reasons["stream"]
        yield "--stream", "yes" if fixed.stream else "no", why
        yield "--text", fixed.text or "the text that is installed", reasons["text"]
    yield "--evals", fixed.evals, reasons["evals"]
    own = "the idea's" if settled.smallest_effect is None else GIVEN
    yield "--smallest-effect", f"{smallest_effect:g}", own
    baseline = constants.values(ideas.render_baseline(fixed))
    for name, value in known_constants(idea, fixed).items():
        if name not in OF_CONSTANTS:
            own = "the baseline's" if name in baseline else f"the first step's of {idea.name}"
            text = "an expression" if value is constants.UNKNOWN else repr(value)
            yield f"--set {name}", text, reasons.get(name, own)
