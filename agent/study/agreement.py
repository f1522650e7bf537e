"""What was agreed for every run of a study: its settings, the rows it is served, and the work that a row may take."""

from agent.constants import same
from agent.ideas import Fixed
from agent.lab.results import FinalInfo, Training, Work

ROWS_TOLERANCE = 0.01  # the stream ends with a whole batch
MOST_WORK = 8.0  # CPU seconds a row, in those of the baseline; see docs/measurements.md
LEAST_MEASURED = 1.0  # CPU seconds; a baseline that took fewer was mostly the start of Python, which varies by half


def departure(fixed: Fixed, info: FinalInfo, stepped: int, baseline: Work | None) -> str:
    """Return how a run that was evaluated departed from what was agreed, or an empty string.

    `stepped` is the number of rows in the steps of its training by its own count; `baseline` the work of run 0.
    """
    differences = [different_settings(fixed, info.training)]
    if work := info.work:
        if abs(work.rows - fixed.tokens) > ROWS_TOLERANCE * fixed.tokens:
            differences.append(f"it read {work.rows:,} rows of activations, the study's are {fixed.tokens:,}")
        if stepped > (1 + ROWS_TOLERANCE) * work.rows:
            differences.append(
                f"its steps took {stepped:,} rows and it read {work.rows:,}: rows were trained on more than once"
            )
        if (ratio := work_ratio(work, baseline)) and ratio > MOST_WORK:
            differences.append(
                f"each row took {ratio:.1f} times the baseline's work ({work.cpu_seconds:.0f} CPU seconds in all); "
                f"up to {MOST_WORK:g} times is compared"
            )
    elif info.training and abs(info.training.tokens - fixed.tokens) > ROWS_TOLERANCE * fixed.tokens:
        differences.append(f"trained on {info.training.tokens} tokens, the study's are {fixed.tokens}")
    return "; ".join(filter(None, differences))


def different_settings(fixed: Fixed, training: Training | None) -> str:
    """Return the fixed settings that a checkpoint departs from, or an empty string."""
    if training is None:
        return "the results do not say what was trained"
    compared = [
        (name, getattr(training, name), getattr(fixed, name)) for name in ("model", "hook_name", "text", "d_sae")
    ]
    compared += [(name, training.settings.get(name, value), value) for name, value in fixed.constants.items()]
    return "; ".join(
        f"{name} is {found}, the study's is {agreed}" for name, found, agreed in compared if not same(found, agreed)
    )


def work_ratio(work: Work | None, baseline: Work | None) -> float | None:
    """Return the CPU seconds of a row in those of the baseline, or None if the two cannot be compared: measured on
    unlike machines, or of a baseline too short to measure."""
    if work is None or baseline is None or work.machine != baseline.machine or not work.rows:
        return None
    if baseline.cpu_seconds < LEAST_MEASURED:
        return None
    return (work.cpu_seconds / work.rows) / (baseline.cpu_seconds / baseline.rows)
