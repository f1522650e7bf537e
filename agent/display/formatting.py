"""What the driver shows while it works: a live table on a terminal, plain lines otherwise."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from agent.lab.metrics import METRICS
from agent.lab.results import Compared, Comparison, FinalInfo, headline
from agent.lab.verdicts import MetricsRow

if TYPE_CHECKING:
    from agent.study.events import Remark


def format_value(name: str, value: float | None, sign: str = "") -> str:
    """A metric's value with its digits; `-` where it was not measured or not finite."""
    return "-" if value is None else f"{value:{sign}z,.{METRICS[name].digits}f}"


def format_difference(name: str, compared: Compared) -> str:
    """A difference from the baseline with the half width of its 95% interval."""
    return f"{format_value(name, compared.difference, sign='+')} ± {format_value(name, compared.half_width)}"


def companion_difference(name: str, comparison: Comparison) -> str:
    """The difference of the metric without which this one's would mislead, in brackets; empty where there is none."""
    other = METRICS[name].companion
    compared = comparison.metrics.get(other)
    return f" ({METRICS[other].title} {format_difference(other, compared)})" if compared else ""


def comparison_line(info: FinalInfo, primary: str) -> str:
    """How the primary metric compares, in one line; empty for a run that was not compared."""
    if info.comparison is None:
        return ""
    if compared := info.comparison.metrics.get(primary):
        difference = format_difference(primary, compared) + companion_difference(primary, info.comparison)
        return f"{METRICS[primary].title} {difference} from the baseline at this L0"
    return f"not comparable: {info.comparison.not_comparable or 'not measured on both sides'}"


def remarks(infos: Iterable[FinalInfo]) -> list[str]:
    """What evaluations say of their own figures, each once."""
    said = (
        f"{family}: {scored.remark}" for info in infos for family, scored in info.evaluations.items() if scored.remark
    )
    return list(dict.fromkeys(said))


def remark_line(remark: "Remark") -> str:
    """What a language model has said, in one line."""
    match remark.event:
        case "plan_made":
            titles = "; ".join(planned.title for planned in remark.runs)
            return f"plan after run {remark.after_run}: {titles or 'nothing is left to try'}"
        case "answer_sent_back":
            why = "it claims what only results may say" if remark.prose else remark.why.splitlines()[0]
            return f"the model's {remark.purpose} went back: {why}"
        case "run_described":
            return f"run {remark.run} is described"


def run_line(info: FinalInfo) -> str:
    """How a run came out, in one line."""
    if not info.verdict.ok:
        return f"{info.verdict.name} ({info.verdict.evidence})"
    return "ok, " + ", ".join(
        f"{METRICS[name].title} {format_value(name, info.metric(name))}" for name in headline([info])
    )


def training_progress(label: str, rows: Sequence[MetricsRow], tokens: int) -> str:
    """Tokens done of all, loss, L0, rate and time left."""
    if not rows:
        return f"{label}: starting"
    row = rows[-1]
    loss, l0 = (f"{value:.4g}" if value is not None else "not finite" for value in (row.loss, row.l0))
    rate = row.tokens / row.seconds if row.seconds > 0 else 0.0
    left = f", {rate:,.0f} tokens/s, {max(0, tokens - row.tokens) / rate:.0f} s left" if rate else ""
    done = min(1.0, row.tokens / tokens)
    return f"{label}: training {row.tokens:,} of {tokens:,} tokens ({done:.0%}), loss {loss}, L0 {l0}{left}"
