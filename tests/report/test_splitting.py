"""What is taken for a sentence."""

import pytest

from agent.report.splitting import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "It ran. It ended at L0 16.3, i.e. below 17. Done!",
            ["It ran.", "It ended at L0 16.3, i.e. below 17.", "Done!"],
        ),
        ("A line that\nis broken. Next", ["A line that is broken.", "Next"]),
        (
            "Findings:\n- loss 3.2\n- L0 (e.g. 16) held\n\n1. First",
            ["Findings:", "loss 3.2", "L0 (e.g. 16) held", "First"],
        ),
        ('He said "it works." Then (it failed.) So?', ['He said "it works."', "Then (it failed.)", "So?"]),
        (
            "The score is {{run_3.ce_loss_score}}. It is final.",
            ["The score is {{run_3.ce_loss_score}}.", "It is final."],
        ),
        ("see J. Doe et al. for it", ["see J. Doe et al. for it"]),
        (" \n\n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]):
    assert split_sentences(text) == expected
