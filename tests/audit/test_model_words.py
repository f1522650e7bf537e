"""A language model's words in notes are no claims of the notes, but what results contradict in them must be marked."""

from pathlib import Path

import pytest
from builders import core

from agent.audit import audit, known_figures, notes_reader
from agent.lab import results
from agent.lab.results import Comparison, FinalInfo, Latents, MetricComparison
from agent.lab.verdicts import Verdict
from agent.report import sentences
from agent.report.layout import paragraph

NOTES = """\
# Title
A study

# Experiment description
Something is tried.

## Run 0: Baseline
Results: {{'ce_loss_score': 0.94, 'l0': 16.0}}

## Run 1: A change
Results: {{'ce_loss_score': 0.9512, 'l0': 16.0}}
{words}
{marks}
CE-loss score: 0.9512, baseline 0.9400, difference +0.0112 ± 0.0030

# In the model's words (not checked)
{conclusion}
"""
TRUE = "The CE-loss score improved over the baseline (see Bricken et al. 2023), which is what was hoped for all along."
FALSE = (
    "The CE-loss score fell below that of the baseline (by a little), as a wider code would have made it in any case."
)


def words(text: str) -> str:
    return paragraph(text, sentences.IN_THE_MODELS_WORDS)


def mark(sentence: str) -> str:
    return paragraph(sentences.CONTRADICTED_WORDS.render(quoted=f'"{sentence}"', evidence="0.9512 is above (0.94)"))


def findings(
    text: str, marks: str = "", conclusion: str = "It stands.", measured: known_figures.KnownRuns | None = None
) -> list[tuple[str, str]]:
    notes = NOTES.format(words=words(text), marks=marks, conclusion=words(conclusion))
    found = audit.findings(notes_reader.parse(notes), measured)
    return [(each.status, each.quote) for each in found if not each.quote.startswith(("CE-loss score: ", "Results"))]


@pytest.fixture
def measured(tmp_path: Path) -> known_figures.KnownRuns:
    compared = MetricComparison(
        value=0.9512, reference=0.94, noise=0.001, standard_error=0.001, df=4, half_width=0.003, p=0.001
    )
    latents = Latents.model_validate(dict.fromkeys(Latents.model_fields, 1.0))
    for number, score in enumerate((0.94, 0.9512)):
        comparison = Comparison(levels=[16], seeds=5, metrics={"ce_loss_score": compared}) if number else None
        info = FinalInfo(
            verdict=Verdict(name="ok", evidence="sound"),
            core=core(0.5, l0=16.0, ce_loss_score=score),
            latents=latents,
            comparison=comparison,
        )
        (tmp_path / f"run_{number}").mkdir()
        results.write(tmp_path / f"run_{number}", info)
    return known_figures.from_directory(tmp_path)


def test_words_that_nothing_contradicts_are_no_claims():
    assert findings(f"{TRUE} Praise: it is excellent!\n- run 9 is best") == []


def test_a_contradicted_sentence_without_a_mark_is_found():
    assert findings(f"{TRUE} {FALSE}") == [("contradicted", FALSE)]
    assert findings(TRUE, conclusion=FALSE) == [("contradicted", FALSE)]


def test_a_marked_sentence_is_supported():
    assert findings(f"{TRUE} {FALSE}", mark(FALSE)) == [("supported", FALSE)]


def test_a_mark_of_a_sentence_that_is_not_there_is_unsupported():
    assert findings(TRUE, mark(FALSE)) == [("unsupported", FALSE)]


def test_a_mark_of_a_sentence_that_results_confirm_is_unsupported():
    assert findings(TRUE, mark(TRUE)) == [("unsupported", TRUE)]


def test_a_mark_that_only_the_run_directories_can_decide(measured: known_figures.KnownRuns):
    about_another = "Absorption rose."
    assert findings(about_another, mark(about_another)) == []
    assert findings(about_another, mark(about_another), measured=measured) == [("unsupported", about_another)]
    assert findings(f"{TRUE} {FALSE}", mark(FALSE), measured=measured) == [("supported", FALSE)]
    assert findings(FALSE, measured=measured) == [("contradicted", FALSE)]


def test_what_stands_below_the_words_is_read_as_before():
    text = NOTES.format(words=words("It stands, without a full stop"), marks="The loss is 3.", conclusion="")
    assert [each.quote for each in audit.findings(notes_reader.parse(text))][:1] == ["The loss is 3."]
