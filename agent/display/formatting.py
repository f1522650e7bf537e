"""Metrics, comparisons and progress as text."""

from collections.abc import Iterable, Mapping, Sequence

from agent.lab.metrics import METRICS, Metric
from agent.lab.results import Comparison, FinalInfo, Measure, MetricComparison, headline
from agent.lab.verdicts import MetricsRow
from agent.study.events import RateTuned, Remark
from agent.study.state import State


def format_value(name: str, value: float | None, sign: str = "") -> str:
    """Return the value with as many digits as the metric has, or `-` if it was not measured or is not finite.

    >>> format_value("l0", 16.284), format_value("ce_loss_score", 0.004, sign="+"), format_value("l0", None)
    ('16.28', '+0.0040', '-')
    """
    return "-" if value is None else f"{value:{sign}z,.{METRICS[name].digits}f}"


def unit_of(metric: Metric | Measure) -> str:
    """Return the unit of a metric as it follows a figure."""
    return f" {metric.unit}" if metric.unit else ""


def format_difference(name: str, compared: MetricComparison) -> str:
    """Return a difference from the baseline with the half width of its 95% interval."""
    return f"{format_value(name, compared.difference, sign='+')} ± {format_value(name, compared.half_width)}"


def companion_difference(name: str, comparison: Comparison) -> str:
    """Return, in brackets, the difference of the companion metric, without which that of `name` could mislead.

    Empty if `name` has no companion or it was not compared.
    """
    companion = METRICS[name].companion
    compared = comparison.metrics.get(companion)
    return f" ({METRICS[companion].title} {format_difference(companion, compared)})" if compared else ""


def comparison_line(info: FinalInfo, primary: str) -> str:
    """Return one line on how the primary metric compares with the baseline; empty if the run was not compared."""
    if info.comparison is None:
        return ""
    if compared := info.comparison.metrics.get(primary):
        difference = format_difference(primary, compared) + companion_difference(primary, info.comparison)
        return f"{METRICS[primary].title} {difference} from the baseline at this L0"
    return f"not comparable: {info.comparison.not_comparable or 'not measured on both sides'}"


def remarks(infos: Iterable[FinalInfo]) -> list[str]:
    """Return the remarks of evaluations on their own results, without repetitions."""
    texts = (
        f"{family}: {scored.remark}" for info in infos for family, scored in info.evaluations.items() if scored.remark
    )
    return list(dict.fromkeys(texts))


def rate_line(tuned: RateTuned) -> str:
    """Return two sentences at most on how the baseline's learning rate was found."""
    tries = ", ".join(
        f"{each.why_not} at {each.rate:g}" if each.error is None else f"{each.error:.4g} at {each.rate:g}"
        for each in tuned.tries
    )
    rates = [each.rate for each in tuned.tries]
    if all(each.error is None for each in tuned.tries):
        return f"The baseline's learning rate is {tuned.rate:g}, the model's own: no try came to its end ({tries})."
    edge = {min(rates): "smallest of these: a smaller", max(rates): "largest of these: a larger"}.get(tuned.rate)
    beyond = f" It is the {edge} one may be better still." if edge else ""
    return (
        f"The baseline's learning rate is {tuned.rate:g}, the best of {len(rates)} that were each tried on "
        f"{tuned.tokens:,} training tokens: their {tuned.judged_by} at the end was {tries}.{beyond}"
    )


def remark_line(remark: Remark) -> str:
    """Return one line on an answer of the language model."""
    match remark.event:
        case "plan_made":
            titles = "; ".join(planned.title for planned in remark.runs)
            return f"plan after run {remark.after_run}: {titles or 'nothing left to try'}"
        case "answer_sent_back":
            why = remark.why.splitlines()[0]
            return f"the {remark.purpose} of the language model was sent back: {why}"
        case "run_described":
            return f"run {remark.run} is described"
        case "conclusion_drawn":
            return "the language model concludes"


def run_line(info: FinalInfo) -> str:
    """Return one line on the result of a run: its verdict, and if it succeeded its headline metrics, and the
    evaluations that gave no result."""
    if not info.verdict.ok:
        return f"{info.verdict.name} ({info.verdict.evidence})"
    figures = ", ".join(f"{METRICS[name].title} {format_value(name, info.metric(name))}" for name in headline([info]))
    return "; ".join([f"ok, {figures}", *error_lines(info.errors)])


def error_lines(errors: Mapping[str, str]) -> list[str]:
    """Return a line on each evaluation that gave no result; `errors` has the reasons, by family."""
    return [f"{family} gave no result: {reason}" for family, reason in errors.items()]


def hours_line(state: State) -> str:
    """Return in one line how long a study has been worked on, and its jobs have taken, which may overlap."""
    return (
        f"worked on for {state.seconds / 3600:.3g} hours; its jobs took {state.job_seconds / 3600:.3g} hours together"
    )


def training_progress(label: str, rows: Sequence[MetricsRow], tokens: int) -> str:
    """Return one line on how far a training has come: tokens, loss, L0, rate and time left."""
    if not rows:
        return f"{label}: starting"
    row = rows[-1]
    loss, l0 = (f"{value:.4g}" if value is not None else "not finite" for value in (row.loss, row.l0))
    rate = row.tokens / row.seconds if row.seconds > 0 else 0.0
    left = f", {rate:,.0f} tokens/s, {max(0, tokens - row.tokens) / rate:.0f} s left" if rate else ""
    done = min(1.0, row.tokens / tokens)
    return f"{label}: training {row.tokens:,} of {tokens:,} tokens ({done:.0%}), loss {loss}, L0 {l0}{left}"
