"""What the rules take for a sentence, a number, a claim of a result; and what they leave alone."""

import pytest

from agent.report.claim_words import numbers, result_words, split_sentences


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


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a loss of 1,234.5, then -0.002 and 3e-4", ["1,234.5", "-0.002", "3e-4"]),
        ("up 12% at ~16 latents, 3x faster, ×2, .5", ["12%", "~16", "3x", "2", ".5"]),
        ("a difference of +0.0110 ± 0.0108", ["+0.0110", "0.0108"]),
        ("between 3-5 and 1–2", ["3", "5", "1", "2"]),
        ("the top-5 AUC of a 16-dimensional code", ["5", "16"]),
        ("a three-fold gain, doubled, half the loss, twice", ["three-fold", "doubled", "half", "twice"]),
        ("a third of the latents, two percent, ½, ten times", ["a third", "two", "percent", "½", "ten times"]),
        ("twenty-five latents died", ["twenty-five"]),
        ("tenfold and 10-fold", ["tenfold", "10-fold"]),
        ("L0, L1 norm, h_1, run_3, W_2, blocks.1.hook_resid_post, GPT2, tier_0, R²", []),
        ("run 3 beside runs 1 to 2, run 4 and run 5", []),
        ("run 3 scores 0.9 in runs 1, 2 and 4 at 7", ["0.9", "7"]),
        ("three disjoint tiers with two auxiliary losses, one of them first", []),
        ("in run 3, 5 latents died", ["5"]),
        ("two thirds of them", ["two thirds"]),
        ("a manifold, unfolded", []),
        ("٣ runs, a score of ⁹⁷ or ⑨, v0.97", ["٣", "⁹⁷", "⑨", "0.97"]),
        ("the squared norm ‖x‖² of h₁ and R²", []),
    ],
)
def test_numbers(sentence: str, expected: list[str]):
    assert numbers(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("This significantly improved the loss.", ["significantly", "improved"]),
        ("The variant outperforms the baseline.", ["outperforms"]),
        ("Successfully achieved a higher score.", ["Successfully", "achieved", "higher"]),
        ("The loss was further reduced.", ["further", "reduced"]),
        ("It is sparser than it was, and the best so far.", ["sparser", "best"]),
        ("It is quicker than the baseline.", ["quicker than"]),
        ("The score rose, then fell steadily.", ["rose", "fell", "steadily"]),
        (
            "The loss went down, is below the baseline and matches the baseline.",
            ["went down", "below the baseline", "matches the baseline"],
        ),
        ("A good result: it works. The hypothesis holds.", ["good", "works", "hypothesis holds"]),
        ("Latents below the threshold are set to zero.", []),
        ("State-of-the-art results.", ["State-of-the-art"]),
        ("As expected, the tiers work well.", ["As expected", "work well"]),
        ("This confirms the hypothesis.", ["confirms"]),
        ("The latents stand in disjoint tiers, each with a bias of its own.", []),
        ("An L1 penalty on W_l is added to the loss; sg stops the gradient.", []),
        ("The mean of the activations is subtracted before the encoder.", []),
    ],
)
def test_result_words(sentence: str, expected: list[str]):
    assert result_words(sentence) == expected
