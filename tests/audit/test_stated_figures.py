"""Figures that only a run's text states are that run's: relations to other runs are checked with them."""

import pytest

from agent.audit import audit, notes_reader

NOTES = """\
# Title
A study

# Experiment description
Something is tried.

## Run 0: Baseline
Results: none
Description: The loss is 12.9, at an L0 of 51.

## Run 1: A change
Results: {results}
Description: {first}

## Run 2: More of it
Results: none
Description: {second}
"""
FIRST = "The loss fell to 10.1, at an L0 of 52."


def finding(sentence: str, first: str = FIRST, results: str = "none") -> audit.Finding:
    text = NOTES.format(results=results, first=first, second=sentence)
    findings = audit.findings(notes_reader.parse(text))
    return next(each for each in findings if each.quote == sentence)


def test_a_loss_called_further_reduced_that_rose_is_contradicted():
    found = finding("The loss was further reduced to 12.4.")
    assert found.status == "contradicted"
    assert found.evidence == "loss, as stated is 12.4 in run 2, 10.1 in run 1"


def test_a_comparison_between_stated_l0_that_are_far_apart_is_unmatched():
    found = finding("The loss fell to 9.0, at an L0 of 140.")
    assert found.status == "unsupported"
    assert "run 2 has L0 140 and the baseline 51, more than 10% apart: they do not compare" in found.evidence


def test_a_stated_figure_is_no_evidence_for_itself():
    assert finding("The loss is 9.0.").evidence == "run 2 has no value of loss"


def test_the_first_statement_of_a_run_counts():
    first = f"{FIRST} The loss is 13.0."
    assert finding("The loss was further reduced to 12.4.", first).status == "contradicted"


def test_a_figure_that_results_hold_is_not_taken_from_the_text():
    found = finding("The loss was further reduced to 12.4.", results="{'loss': 12.0}")
    assert found.status == "contradicted"
    assert "12 in run 1" in found.evidence


@pytest.mark.parametrize(
    "first",
    [
        "The loss should reach 10.1.",
        "The target is a loss of 10.1.",
        "The loss fell by 10.1.",
        "The loss is 10.1%.",
        "The loss was below 10.1.",
        "The loss of the random SAE is 10.1.",
        "The loss fell from 10.1.",
    ],
    ids=["hypothetical", "target", "difference", "percentage", "bound", "another model", "start"],
)
def test_what_is_no_result_of_the_run_is_not_taken(first: str):
    assert "10.1" not in finding("The loss was further reduced to 12.4.", first).evidence
