"""The sentences of the notes: `render` writes one from values, `read` gets the values back.

notes.py, plots.py and prose.py write them; agent.audit reads them. When a wording changes, the one before is kept as
`older`, so that notes of earlier versions are still read.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from string import Formatter

from agent.comparison.judgement import Outcome
from agent.lab.metrics import METRICS

NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
TITLES = {metric.title: name for name, metric in METRICS.items()}
TITLE = "|".join(re.escape(title) for title in sorted(TITLES, key=len, reverse=True))

# Parts that a sentence has or has not.
NEVER_DECIDES = " (never decides)"
AS_TRAINED = " as trained"
WITHIN_NOISE = " (within noise)"
WITH_PREDICTION = " (with the prediction made before the run)"
FROM_SAME_L0 = " from the baseline at the same L0"
FROM_AS_TRAINED = " from the baseline as trained"

# How the value of a field is written; a field that is not listed may be any text. Patterns with groups name their own.
_FIELDS = {
    "title": TITLE,
    "titles": rf"(?:(?:{TITLE})(?:, | and )?)+",
    "value": NUMBER,
    "reference": NUMBER,
    "l0": NUMBER,
    "p": NUMBER,
    "smallest": NUMBER,
    "difference": rf"(?P<difference>[+-]{NUMBER}) ± (?P<half_width>{NUMBER})",  # as formatting.format_difference
    "companion": r"(?: \((?P<companion>[^)]*)\))?",  # as formatting.companion_difference
    "on_test": rf"(?:, by (?P<on_test>[+-]{NUMBER})(?: [a-zA-Z/]+)? on the test (?:text|samples)"
    rf"|; (?:{TITLE}) has no second text, so the fresh seeds alone decide)?",
    "why_untested": r"(?:; (?P<why_untested>.*))?",
    "test_difference": rf"[+-]{NUMBER}",
    "held_out": "text|samples",
    "used": "was used|were used",
    "asides": rf"(?:, with (?P<lost_title>{TITLE}) down by (?P<lost>{NUMBER}))?"
    rf"(?:, (?:with|each row at) (?P<work>{NUMBER}) times the baseline's (?:CPU time a token|work))?",
    "beyond": rf"(?: by more than (?P<beyond>{NUMBER})(?P<in_fresh_seed> in a fresh seed)?)?",
    "unit": r"(?: [a-zA-Z/]+)?",
    "own_unit": rf"(?: (?!{NUMBER}(?: |$))[^\s;]+)*",  # an idea names its units, as nats/1000 tokens
    "run": r"\d+",
    "other": r"\d+",
    "quoted": r'"(?P<quoted>.*)"',
    "attempt": r"\d+",
    "verdict": r"\w+",
    "family": r"\w+",
    "metric": r"\w+",
    "predicted": "up|down|same",
    "prediction_outcome": "[a-z ]+",
    "held": r"\d+",
    "count": r"\d+",
    "outcome": "[a-z ]+",
    "from_": r"the baseline's|that of run \d+",
    "asked": r"[^()]+",
    "change": rf"[+-]{NUMBER}",
    "figure": r"[^()]+?",
    "which": r"run \d+|the baseline",
    "shape": r"[\w ]+",
    "never_decides": rf"(?:{re.escape(NEVER_DECIDES)})?",
    "as_trained": r"(?: as (?:it was )?trained)?",
    "within_noise": rf"(?:{re.escape(WITHIN_NOISE)})?",
    "with_prediction": rf"(?:{re.escape(WITH_PREDICTION)})?",
    "prediction": r"(?:; predicted (?P<predicted>up|down|same): (?P<prediction_outcome>[a-z ]+))?",
    "outcome_on_primary": r"(?: \([a-z ]+ on [^)]*\))?",
    "sae": r"[A-Za-z0-9.-]+",
    "declared": rf"declared {NUMBER}|none declared",
    "d_sae": NUMBER,
    "width": rf"(?: \(the study's {NUMBER}\))?",
    "from_baseline": r"(?: from the baseline (?:at the same L0|as (?:it was )?trained))?",
    "baseline": r"the baseline[\w ]*",
    "in_words": r"(?: \((?P<in_words>[\w ,]+)\))?",
}


class Sentence:
    """A sentence with named fields, and the wordings it had in earlier versions.

    >>> Sentence("{title}: {value}{unit}.").render(title="L0", value="16.28", unit=" latents/token")
    'L0: 16.28 latents/token.'
    >>> Sentence("{title}: {value}.", "{title} is {value}.").read("L0 is 16.28.")["value"]
    '16.28'
    """

    def __init__(self, wording: str, *older: str) -> None:
        self.wordings = (wording, *older)

    @cached_property  # only the audit needs it, and the driver starts sooner without
    def _wholes(self) -> list[re.Pattern[str]]:
        return [re.compile(_regex(text)) for text in self.wordings]

    @cached_property
    def _openings(self) -> list[re.Pattern[str]]:
        return [re.compile(_regex(text, until_free=True)) for text in self.wordings]

    def render(self, **values: object) -> str:
        return self.wordings[0].format(**values)

    def read(self, text: str) -> re.Match[str] | None:
        """Match a text that is this sentence and nothing else."""
        return next(filter(None, (whole.fullmatch(text) for whole in self._wholes)), None)

    def opens(self, text: str) -> re.Match[str] | None:
        """Match a text that begins as this sentence does, up to its first field of free text."""
        return next(filter(None, (opening.match(text) for opening in self._openings)), None)

    def within(self, text: str, before: str = "", after: str = "") -> Iterator[re.Match[str]]:
        """Find this sentence within a text, in any case, with patterns for what stands before and after it."""
        for whole in self._wholes:
            yield from re.finditer(before + whole.pattern + after, text, re.IGNORECASE)


def _regex(wording: str, until_free: bool = False) -> str:
    regex, used = "", set()
    for literal, field, _, _ in Formatter().parse(wording):
        regex += re.escape(literal)
        if field is None or (until_free and field not in _FIELDS):
            break
        pattern = _FIELDS.get(field, ".*?")
        named = field not in used and "(?P<" not in pattern and field != "unit"
        regex += f"(?P<{field}>{pattern})" if named else f"(?:{pattern})"
        used.add(field)
    return regex


# A run: its results, and how each metric compares with the baseline.
DOES_NOT_COUNT = Sentence("Verdict: {verdict} ({evidence}). This run does not count.")
COMPARED = Sentence(
    "{title}{never_decides}: {value}{unit}, baseline{as_trained} {reference}, "
    "difference {difference}{within_noise}{prediction}"
)
NOT_MEASURED = Sentence("{title}{never_decides}: not measured on both sides{prediction}")
PREDICTION = Sentence("; predicted {predicted}: {prediction_outcome}")
COMPARED_HEADING = Sentence(
    "Compared with the baseline at matched L0{with_prediction}:",
    "Beside the baseline at the same L0, and what was predicted before the run:",
)
PREDICTED = Sentence("Predicted before the run: {predictions}.")
RANDOM_SAE = Sentence("A random untrained SAE at L0 {l0} scores: {figures}.")
OWN_MEASURES = Sentence("The idea's own measures: {measures}.")
OWN_MEASURE = Sentence("{measure} {value}{own_unit}")
BY_HAND = Sentence("Run by hand, outside the budget.")
ATTEMPT_FAILED = Sentence("Attempt {attempt} failed: {verdict} ({evidence}); kept in {directory}.")
WARNING = Sentence("Warning: {warning}.")
NEED_LACKS = Sentence("Not measured, as the checkpoint has no {need}: {what}.")
NO_RESULT = Sentence("{family} gave no result: {why}.")
NO_RESULT_ON = Sentence("{family} gave no result on {saes}: {why}.")
NOT_APPLICABLE = Sentence("{family}: {metric} is not applicable: {why}.")

# Tables, and what became of the predictions.
METRIC_COLUMNS = ("metric", "baseline", "difference")
OWN_MEASURE_COLUMN = "own measure"
PREDICTIONS_HELD = Sentence("Predicted before the run: {held} of {count} held")
NOT_HELD = Sentence("{outcome}: {predictions}")
UNTRUE = {"failed": "did not hold", "within noise": "too close to tell"}
PREDICTED_METRIC = Sentence("{title} {predicted}")
UNRELIABLE = Sentence("Known to be unreliable, so that they never decide: {titles}.")
MORE_METRICS = Sentence("{count} more metrics differ: agent show STUDY --run {run}.")
MORE_RUNS = Sentence("{count} more runs are below.")

PROVISIONAL = Sentence(
    "Provisional: the noise rests on {seeds} trainings so far, and the comparison is made again.",
    "Provisional: the noise rests on {seeds} seeds so far, and the comparison is made again.",
)

# A run: what may be said of its primary metric.
_DIFFERS = "{title} differs by {difference}{unit}{companion} from the baseline at L0 {l0} (corrected p {p})"
_DIFFERED = (
    "{title} differs by {difference}{unit}{companion} from the baseline at L0 {l0} (p {p} after Holm's correction)"
)
WORK = Sentence(
    ", with {value} times the baseline's CPU time a token", ", each row at {value} times the baseline's work"
)
COMPANION_LOST = Sentence(", with {title} down by {value}")
NOT_COMPARABLE = Sentence("Not comparable: {why}.")
FRESH_SEEDS = Sentence("{seeds} fresh seeds differ by {difference}{unit} on average")
NOT_SHOWN_AGAIN = "it was not shown again"  # all that a proposer learns
ON_TEST = Sentence(", by {test_difference}{unit} on the test {held_out}")
NO_SECOND_TEXT = Sentence("; {title} has no second text, so the fresh seeds alone decide")
_OUTCOMES: dict[Outcome, Sentence] = {
    "better": Sentence(f"Better (confirmed){{asides}}: {_DIFFERS}, and {{fresh_seeds}}{{on_test}}."),
    "unconfirmed": Sentence(
        f"Seems better, not yet confirmed by fresh seeds{{asides}}: {_DIFFERS}.",
        f"Seems better, and is not confirmed by fresh seeds yet: {_DIFFERS}.",
    ),
    "untested": Sentence(
        f"Confirmed by fresh seeds, without a score on the test {{held_out}}{{asides}}: {_DIFFERS}, and {{fresh_seeds}}"
        "{why_untested}."
    ),
    "not upheld": Sentence(
        f"Not upheld on the test {{held_out}}{{asides}}: {_DIFFERS}, and {{fresh_seeds}}, but by {{test_difference}}"
        "{unit} on the test {held_out}."
    ),
    "not confirmed": Sentence(f"Not confirmed{{asides}}: {_DIFFERS}, but {{fresh_seeds}}."),
    "not better": Sentence(f"Not better{{asides}}: {_DIFFERS}, while {{companion_title}} is worse{{beyond}}."),
    "worse": Sentence(f"Worse{{asides}}: {_DIFFERS}."),
    "negligible": Sentence(
        f"Too small to matter{{asides}}: {_DIFFERS}, less than the smallest effect worth having, {{smallest}}{{unit}}.",
        f"Too small to matter: {_DIFFERS}, less than the smallest difference worth having, {{smallest}}{{unit}}.",
    ),
    "within noise": Sentence(
        f"Within noise{{asides}}: {_DIFFERS}; a difference of {{smallest}}{{unit}} would have been detected.",
        f"Within noise: {_DIFFERS}; a difference of {{smallest}}{{unit}} could have been seen.",
    ),
}
OUTCOMES: dict[Outcome, Sentence] = {
    outcome: Sentence(*sentence.wordings, *(wording.replace(_DIFFERS, _DIFFERED) for wording in sentence.wordings))
    for outcome, sentence in _OUTCOMES.items()
}

# The answer to the hypothesis, and the figures that decide it.
ANSWERS = {
    "supported": Sentence("Supported: {reasons}."),
    "refuted": Sentence("Refuted: {reasons}."),
    "not decided": Sentence("Not decided: {reasons}."),
}
NO_RULES = Sentence("Not decided: the idea declares no rules for its hypothesis; {found}.")
REASON_OUTCOME = Sentence("run {run} is {outcome} on {title} (asked: {asked})")
REASON_METRIC = Sentence("{title} of run {run} differs by {difference} from {from_} (asked: {asked})")
REASON_VALUE = Sentence("{measure} of run {run} is {value}{own_unit} (asked: {asked})")
REASON_CONTROL = Sentence(
    "{measure} of run {run} is {value}{own_unit}, {control} {reference}, a difference of {change} (asked: {asked})"
)
MET = "met: "  # before the conditions that hold, beside those that do not
MET_REASON = Sentence("{figure} ({asked})")

# The descriptions of plots in notes of earlier versions.
TRAINING_CURVES = Sentence(
    "training loss (logarithmic), L0 and alive fraction against training tokens, as the training itself recorded "
    "them on its training batches: {runs}."
)
LOWER_ROW = Sentence("The lower row enlarges L0 {low} to {high}.")

# The test split.
TEST_USES = Sentence("The test {held_out} {used} {times} in this study: for {used_for}.")

# A language model's text: what its placeholders become.
DIFFERS_FROM = Sentence("differs by {difference}{from_baseline}{in_words}")
WITHIN_NOISE_OF = Sentence("is within noise of {baseline} (difference {difference})")
DIFFERS_FROM_RUN = Sentence("differs by {difference} from that of run {other}")
WITHIN_NOISE_OF_RUN = Sentence("is within noise of that of run {other} (difference {difference})")
VALUE_OF = Sentence("{value}{unit} ({figure} of {which})")

# What a language model concludes, and what of it the results contradict.
IN_THE_MODELS_WORDS = "In the model's words (not checked)"  # how a paragraph of them begins, and a section's heading
CONTRADICTED_WORDS = Sentence("Contradicted by the results: {quoted} ({evidence}).")

# The front over K.
NO_FRONT = "no confirmed winner: no front"
FRONT = Sentence(
    "Run {run} and the baseline, each trained once at every K, scored on the development {held_out}. Nothing is "
    "decided by it, and without further seeds small differences say nothing."
)

# SAEs that were trained elsewhere.
REFERENCE = Sentence(
    "Reference {sae} was trained elsewhere, on {tokens}: {architecture} with d_sae {d_sae}{width}, read from {source} "
    "({format}); {checked}."
)
REFERENCE_SCORES = Sentence("Reference {sae} has L0 {l0} ({declared}); it is one SAE, so without intervals: {figures}.")
REFERENCE_BESIDE = Sentence(
    "Reference {sae} differs from the baseline at L0 {l0} by {differences}; tokens, width and training differ too, so "
    "none of these is an outcome."
)
REFERENCE_OFF = Sentence("Reference {sae} is not compared with the baseline: {why}.")
REFERENCE_NONE = Sentence("Reference {sae} has no result: {verdict} ({evidence}).")
REFERENCE_UNSCORED = Sentence("Reference {sae} is not scored yet.")
REFERENCE_WARNING = Sentence("Warning: reference {sae}: {warning}.")
REFERENCES_DRAWN = Sentence("Yellow marks are SAEs that were trained elsewhere{aside}: {saes}.")

# The descriptions of plots.
ENLARGED = "; below, the rectangle enlarged"
BAND = ", the band where 95% of its trainings fall"
NO_BAND = "; the noise between seeds was not measured, so it has no band"
TRAINING = Sentence("Training loss (logarithmic), L0 and alive fraction against training tokens, on training batches.")
OWN_LOSS = Sentence(
    "Where a run adds terms to the loss, its height does not compare.",
    "The loss is each experiment's own: where a run adds terms to it, its height does not compare with another run's.",
)
L0_FRONT = Sentence(
    "{titles} against L0, a point for each run{enlarged}.",
    "{titles} against L0, one point for each run that counts, one seed each.",
)
NO_CURVE = Sentence("The baseline's curve was not measured, nor the noise.")
NO_LINE = Sentence(
    "The baseline was measured at too few L0 to have a line.",
    "The baseline was measured at one L0 alone and so has no line.",
    "The baseline was measured at L0 {levels} alone and so has no line; {noise}.",
)
BASELINE_LINE = Sentence(
    "The line is the baseline, {shape}{band}.",
    "The line is the baseline, read linearly in log L0 between its levels at L0 {levels}; {noise}.",
)
FRONT_PLOT = Sentence("{title} against L0 at several K: a line for run {run}, and one for the baseline.")
DIFFERENCES = Sentence(
    "Each run's difference from the baseline at its own L0, with its 95% interval.",
    "each run's difference from the baseline at the run's own L0, with its 95% interval; the line at 0 is the "
    "baseline.",
)
ON_PRIMARY = Sentence(
    "The dotted lines are the smallest effect worth having in {title}, {smallest}{unit} to either side.",
    "The outcomes are for {title} and corrected for the number of runs, as the intervals are not; "
    "the dotted lines are the smallest effect worth having, {smallest}{unit} to either side.",
    "The verdicts are on {title} and corrected for the number of runs, as the intervals are not; "
    "the dotted lines are the smallest effect worth having, {smallest}{unit} to either side.",
)
NO_PRIMARY = Sentence("{title}, the primary metric, is not shown: it was not measured on both sides.")
NOT_SHOWN = Sentence("Not shown: {runs}.")
NOT_DRAWN = Sentence(
    "Drawn are {drawn} runs: the baseline, those that are or may be better, and the newest; {runs} more are not."
)
NO_PLOTS = Sentence("No plots: no run has anything to show yet.")
LISTED_RUN = Sentence("run {run}{outcome_on_primary}: {figures}")
FIGURE = Sentence("{title} {value}")
DIFFERENCE = Sentence("{title} {difference}")
