"""Every sentence of the notes is read back as it was written, and so are its older wordings."""

from string import Formatter

import pytest

from agent.report import sentences
from agent.report.sentences import Sentence

VALUES = {
    "title": "AUC, top 5 latents",
    "band": ", the band where 95% of its trainings fall",
    "titles": "explained variance, CE-loss score and F1",
    "value": "1,234.5",
    "reference": "0.9500",
    "l0": "16.28",
    "p": "1.5e-05",
    "smallest": "0.005",
    "difference": "-0.0200 ± 0.0030",
    "companion": " (uniqueness -0.4510 ± 0.0271)",
    "on_test": ", by +0.0190 nats/token on the test text",
    "why_untested": "; the study ended before it was scored there",
    "test_difference": "+0.0190",
    "held_out": "text",
    "used": "was used",
    "asides": ", with explained variance down by 0.0120, each row at 5.1 times the baseline's work",
    "beyond": " by more than 0.05",
    "unit": " nats/token",
    "own_unit": " nats/1000 tokens",
    "never_decides": sentences.NEVER_DECIDES,
    "as_trained": sentences.AS_TRAINED,
    "within_noise": sentences.WITHIN_NOISE,
    "with_prediction": sentences.WITH_PREDICTION,
    "prediction": "; predicted up: not measured",
    "predicted": "up",
    "prediction_outcome": "not measured",
    "outcome_on_primary": " (too small on CE-loss score)",
    "from_baseline": sentences.FROM_SAME_L0,
    "baseline": "the baseline as trained",
    "in_words": " (better, confirmed by fresh seeds)",
    "run": "3",
    "other": "2",
    "quoted": '"It worked."',
    "attempt": "2",
    "verdict": "not_comparable",
    "family": "sparse_probing",
    "metric": "mcc",
    "figure": "CE-loss score",
    "which": "run 3",
    "predictions": "L0 up",
    "held": "4",
    "count": "6",
    "outcome": "within noise",
    "from_": "that of run 4",
    "asked": "above 0.05",
    "change": "+0.080",
    "sae": "gpt2-small.res-jb",
    "declared": "declared 16",
    "d_sae": "16,384",
    "width": " (the study's 1,024)",
}
OPTIONAL = (
    "unit",
    "own_unit",
    "companion",
    "asides",
    "on_test",
    "why_untested",
    "beyond",
    "never_decides",
    "as_trained",
    "within_noise",
    "with_prediction",
    "prediction",
    "width",
)
SHORTENED = (
    "quoted",
    "companion",
    "in_words",
    "beyond",
    "on_test",
    "why_untested",
)  # without the words around them
ALL = {name: value for name, value in vars(sentences).items() if isinstance(value, Sentence)} | {
    f"{table}[{name}]": sentence
    for table in ("OUTCOMES", "ANSWERS")
    for name, sentence in getattr(sentences, table).items()
}


def fields(wording: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(wording) if field]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("with_optional", [True, False])
def test_a_sentence_is_read_back_as_it_was_written(name: str, with_optional: bool):
    sentence = ALL[name]
    for wording in sentence.wordings:
        values = {field: VALUES.get(field, f"any text of {field}") for field in fields(wording)}
        if not with_optional:
            values |= dict.fromkeys(values.keys() & set(OPTIONAL), "")
        text = wording.format(**values)
        match = sentence.read(text)
        assert match, text
        assert sentence.opens(text)
        for field, value in match.groupdict().items():
            if field == "difference":
                assert (value, match["half_width"]) == ("-0.0200", "0.0030")
            elif field in values and field not in SHORTENED:
                assert value == values[field]


@pytest.mark.parametrize(
    ("text", "measure", "value"),
    [
        ("loss of its parts 0.284 nats/1000 tokens", "loss of its parts", "0.284"),
        ("coverage, tier 0 to 1 0.552", "coverage, tier 0 to 1", "0.552"),
        ("warmth, tier 2 -3.50 °C", "warmth, tier 2", "-3.50"),
    ],
)
def test_a_measure_of_an_idea_is_read_back_in_any_unit(text: str, measure: str, value: str):
    match = sentences.OWN_MEASURE.read(text)
    assert match
    assert (match["measure"], match["value"]) == (measure, value)


def test_a_sentence_is_rendered_in_its_newest_wording():
    assert sentences.COMPARED_HEADING.render(with_prediction="") == "Compared with the baseline at matched L0:"
    older = "Beside the baseline at the same L0, and what was predicted before the run:"
    assert sentences.COMPARED_HEADING.read(older)


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("Attempt 3 failed: crashed (a text. That goes on", True),
        ("Attempt three failed: crashed", False),
        (sentences.DIFFERENCES.render().replace("95%", "59%"), False),
    ],
)
def test_a_sentence_is_known_by_its_opening_up_to_the_first_free_text(text: str, opens: bool):
    assert any(sentence.opens(text) for sentence in (sentences.ATTEMPT_FAILED, sentences.DIFFERENCES)) == opens
