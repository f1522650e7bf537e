"""The section of a run in the notes: its results, what may be said of them, and how they compare."""

from collections.abc import Mapping, Sequence

from agent.comparison import judgement
from agent.comparison.judgement import Judgement
from agent.display.formatting import format_difference, format_value, unit_of
from agent.ideas import Direction
from agent.lab.architectures import KNOBS
from agent.lab.defaults import is_world
from agent.lab.evaluation.catalogue import measurable
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Comparison, FinalInfo, Floor, MetricComparison, headline
from agent.report import model_words, prose, sentences
from agent.report.layout import aligned, paragraph, wrapped_results
from agent.report.model_words import Check
from agent.report.outcome import outcome_sentence
from agent.report.prose import Facts
from agent.report.story import clip
from agent.study.runs import Run
from agent.study.state import State

UNSETTLED = ("within noise", "unconfirmed", "untested", "not upheld", "not confirmed")  # no prediction holds by these
SETTINGS = (*KNOBS, "learning_rate", "steps", "final_loss", "kl_div_score")  # that stand with the headline metrics
SAME = (*KNOBS, "learning_rate", "steps")  # shown where they differ from run 0's
MOST_LINES = 25  # of a section
MOST_METRICS = 6  # rows
DESCRIBED, PLANNED = 800, 240  # characters: of what a language model wrote after a run, and of what was planned


def section(
    run: Run,
    state: State,
    runs: Sequence[Run],
    judged: Mapping[int, Judgement],
    check: Check = model_words.unchecked,
) -> list[str]:
    """Return the lines of a run's section, without its heading; `check` looks for what results contradict in a model's
    words."""
    texts = run_texts(run, state, runs, judged)
    own_judged, facts = judged.get(run.number), Facts.of(runs, judged, state.started)
    lines = _results(run, state, runs[0])
    if run.counts and run.number > 0:
        lines += paragraph(outcome_sentence(run, state, own_judged, companion=False)).split("\n")
    if run.state.provisional and run.info and run.info.comparison:
        lines.append(sentences.PROVISIONAL.render(seeds=run.info.comparison.seeds))
    if texts["described"]:
        words = clip_sentences(texts["described"], DESCRIBED)
        found = model_words.marks(words, run.number, facts, check)
        lines += model_words.paragraphs(words, model_words.HEADING, found)
    by_model = bool(state.started.language_model) and run.number > 0 and not run.state.by_hand
    label = model_words.CHANGED if by_model else "Description"
    lines += paragraph(clip_sentences(texts["description"], PLANNED), label).split("\n")
    if run.state.proposal.start:
        lines.append(f"It starts from the experiment of run {run.state.proposal.start}.")
    if run.state.by_hand:
        lines.append(sentences.BY_HAND.render())
    lines += _compared(run, state, own_judged)
    if run.counts:
        lines += random_sae(run, runs)
    remarks = _remarks(run)
    room = max(1, MOST_LINES - 1 - len(lines))
    if len(remarks) > room:
        remarks = [
            *remarks[: room - 1],
            f"{len(remarks) - room + 1} more remarks: agent show STUDY --run {run.number}.",
        ]
    return lines + remarks


def run_texts(run: Run, state: State, runs: Sequence[Run], judged: Mapping[int, Judgement]) -> dict[str, str]:
    """Return what was written about a run before it (title, description, why) and after it (described, by a model).

    The placeholders of a language model are rendered.
    """
    proposal = run.state.proposal
    texts = {"title": proposal.title, "description": proposal.description, "why": proposal.why}
    texts["described"] = run.state.described or ""
    if state.started.language_model and not run.state.by_hand:
        facts = Facts.of(runs, judged, state.started)
        texts = {name: prose.render(text, facts) for name, text in texts.items()}
    return texts


def clip_sentences(text: str, most: int) -> str:
    """Shorten a text to so many characters, at the end of a sentence if the first one fits."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    end = max(text.rfind(mark, 0, most) for mark in (". ", "! ", "? "))
    return f"{text[: end + 1]} (...)" if end > 0 else clip(text, most)


def _results(run: Run, state: State, baseline: Run) -> list[str]:
    if run.info is None:
        time = f"{state.last_time:%Y-%m-%d %H:%M:%S} UTC" if state.last_time else ""
        return [f"Results: none yet (as of {time}: {run.state.stage})"]
    if not run.counts:
        verdict = run.info.verdict
        why = sentences.DOES_NOT_COUNT.render(verdict=verdict.name, evidence=verdict.evidence)
        return ["Results: none", *paragraph(why).split("\n")]
    shown = results(run.info)
    if run.number > 0 and baseline.info:  # settings as in run 0 are not repeated
        same = results(baseline.info)
        shown = {name: value for name, value in shown.items() if name not in SAME or value != same.get(name)}
    return wrapped_results(f"Results: {shown}").split("\n")


def results(info: FinalInfo) -> dict[str, float | None]:
    """Return the headline metrics of a run and the settings of its training, rounded as they are shown."""
    shown = {name: _rounded(name, info.metric(name)) for name in headline([info])}
    training = info.training
    settings = training.settings if training else {}
    others = {
        **{name: value if isinstance(value := settings.get(name), int | float) else None for name in KNOBS},
        "learning_rate": training.learning_rate if training else None,
        **{name: _rounded(name, info.metric(name)) for name in ("steps", "final_loss", "kl_div_score")},
    }
    return shown | {name: others[name] for name in SETTINGS if others[name] is not None}


def _rounded(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    digits = METRICS[name].digits
    return round(value, digits) if digits else round(value)


def _compared(run: Run, state: State, judged: Judgement | None) -> list[str]:
    """Return a table of the secondary metrics that differ from the baseline's, and what became of the predictions."""
    comparison = run.info.comparison if run.info else None
    primary, world = state.started.primary_metric, is_world(state.started.fixed.model)
    predictions: dict[str, Direction] = {
        name: way for name, way in run.state.proposal.predictions.items() if measurable(name, world)
    }
    if run.number == 0:
        return []
    if not run.counts or comparison is None or comparison.not_comparable:
        listed = ", ".join(map(" ".join, predictions.items()))
        return paragraph(sentences.PREDICTED.render(predictions=listed)).split("\n") if predictions else []
    rows = [
        [METRICS[name].title, format_value(name, compared.reference), format_difference(name, compared)]
        for name in HEADLINE
        if name != primary and METRICS[name].decides and (compared := comparison.metrics.get(name))
        if judgement.observed_direction(compared) != "same"
    ]
    lines = aligned(sentences.METRIC_COLUMNS, rows[:MOST_METRICS]) if rows else []
    if (more := len(rows) - MOST_METRICS) > 0:
        lines.append(sentences.MORE_METRICS.render(count=more, run=run.number))
    return lines + _predictions(predictions, comparison, primary, judged)


def _predictions(
    predictions: Mapping[str, Direction], comparison: Comparison, primary: str, judged: Judgement | None
) -> list[str]:
    """Count the predictions that held, and name the others with what became of them."""
    outcomes = {
        name: prediction_result(name, comparison.metrics.get(name), way, judged if name == primary else None)
        for name, way in predictions.items()
    }
    if not outcomes:
        return []
    held = sum(each == "held" for each in outcomes.values())
    parts = [sentences.PREDICTIONS_HELD.render(held=held, count=len(outcomes))]
    for outcome in dict.fromkeys(each for each in outcomes.values() if each != "held"):
        named = [
            sentences.PREDICTED_METRIC.render(title=METRICS[name].title, predicted=predictions[name])
            for name, each in outcomes.items()
            if each == outcome
        ]
        words = sentences.UNTRUE.get(outcome, outcome)
        parts.append(sentences.NOT_HELD.render(outcome=words, predictions=", ".join(named)))
    return paragraph(f"{'; '.join(parts)}.").split("\n")


def prediction_result(
    name: str, compared: MetricComparison | None, predicted: Direction, judged: Judgement | None
) -> str:
    """Return what became of a prediction, which is no more than the outcome, if `judged` is the primary metric's."""
    result = judgement.prediction_outcome(name, predicted, compared)
    if judged and judged.outcome in UNSETTLED and (predicted, result) != ("same", "held"):
        return judged.outcome
    return result


def compared_lines(run: Run, primary: str, judged: Judgement | None) -> list[str]:
    """Compare each headline metric with the baseline's in a line of words, for a language model."""
    comparison, predictions = run.info.comparison if run.info else None, run.state.proposal.predictions
    if run.number == 0 or not run.counts or comparison is None or comparison.not_comparable:
        return []
    names = [name for name in HEADLINE if name in comparison.metrics or name in predictions]
    return [
        _compared_line(name, comparison.metrics.get(name), predictions.get(name), judged if name == primary else None)
        for name in names
    ]


def _compared_line(
    name: str, compared: MetricComparison | None, predicted: Direction | None, judged: Judgement | None
) -> str:
    metric, prediction = METRICS[name], ""
    never_decides = "" if metric.decides else sentences.NEVER_DECIDES
    if predicted:
        outcome = prediction_result(name, compared, predicted, judged)
        prediction = sentences.PREDICTION.render(predicted=predicted, prediction_outcome=outcome)
    if compared is None:
        return sentences.NOT_MEASURED.render(title=metric.title, never_decides=never_decides, prediction=prediction)
    noise = (judged and judged.outcome == "within noise") or judgement.observed_direction(compared) == "same"
    return sentences.COMPARED.render(
        title=metric.title,
        never_decides=never_decides,
        value=format_value(name, compared.value),
        unit=unit_of(metric),
        as_trained=sentences.AS_TRAINED if name == "l0" else "",  # all else is interpolated at the run's L0
        reference=format_value(name, compared.reference),
        difference=format_difference(name, compared),
        within_noise=sentences.WITHIN_NOISE if noise else "",
        prediction=prediction,
    )


def random_sae(run: Run, runs: Sequence[Run]) -> list[str]:
    """State the figures of the random SAE at a run's L0, unless an earlier run has stated the same."""
    floor = run.info.floor if run.info else None
    if floor is None or run.info is None:
        return []
    figures = _floor(floor, run.info)
    earlier = (other.info for other in runs if other.number < run.number and other.counts)
    if any(info and info.floor and (info.floor.k, _floor(info.floor, info)) == (floor.k, figures) for info in earlier):
        return []
    return paragraph(sentences.RANDOM_SAE.render(l0=floor.k, figures=figures)).split("\n")


def _floor(floor: Floor, info: FinalInfo) -> str:
    """Return the figures of the random SAE, under the titles of the run's own."""
    figures = {
        "explained_variance_centered": floor.explained_variance_centered,
        "ce_loss_score": floor.ce_loss_score,
        **{name: floor.truth.get(name) for name in ("f1", "uniqueness", "mcc")},
        "probing_auc_5": info.probing.random_auc[5] if info.probing else None,
        "forgetting": info.metric("forgetting_random"),
    }
    return ", ".join(figure(name, value) for name, value in figures.items() if value is not None)


def figure(name: str, value: float | None) -> str:
    """Return a metric's title and value."""
    return sentences.FIGURE.render(title=METRICS[name].title, value=format_value(name, value))


def _remarks(run: Run) -> list[str]:
    """Return a line on each warning, evaluation without a result and attempt that failed."""
    lines, info = [], run.info
    if info:
        lines += [sentences.WARNING.render(warning=warning) for warning in info.verdict.warnings]
        for family, scored in info.evaluations.items():
            for metric, why in scored.not_applicable.items():
                lines.append(sentences.NOT_APPLICABLE.render(family=family, metric=metric, why=why))
        lines += [sentences.NO_RESULT.render(family=family, why=why) for family, why in info.errors.items()]
        if run.number > 0:  # the baseline has nothing of the idea
            lines += [sentences.NEED_LACKS.render(need=need, what=what) for need, what in info.not_measured.items()]
    for attempt, failure in run.state.failed_attempts.items():
        line = sentences.ATTEMPT_FAILED.render(
            attempt=attempt,
            verdict=failure.verdict.name,
            evidence=failure.verdict.evidence,
            directory=f"run_{run.number}_attempt_{attempt}",
        )
        if failure.proposal.title != run.state.proposal.title:
            line += f" It tried: {failure.proposal.title}."
        lines.append(line)
    return [line for text in lines for line in paragraph(text).split("\n")]
