"""A language model's text: what its placeholders become, and what it may not say itself."""

from pathlib import Path

import pytest
from builders import failed, scored

from agent.comparison.judgement import Judgement, Outcome
from agent.ideas import Fixed, render_baseline
from agent.lab.results import Comparison, MetricComparison, Training
from agent.proposers.template import baseline_proposal
from agent.report import prose
from agent.report.prose import Facts
from agent.study.runs import Run
from agent.study.state import RunState

BASELINE = render_baseline(Fixed())
SETTINGS = {"K": 32, "AUX_K": 64, "CE_LOSS_SCORE": 0.993, "NOTE": "the best of all", "KIND": "relu", "ENDS": [8, 16]}


def compared(value: float, reference: float, half_width: float) -> MetricComparison:
    return MetricComparison(
        value=value, reference=reference, noise=0.001, standard_error=0.001, df=4, half_width=half_width, p=0.01
    )


def run(number: int, score: float | None, outside: str | None = None) -> Run:
    """Return a run whose CE-loss score is 0.02 above the baseline's. `outside`: why it is not compared."""
    if score is None:
        info = failed("crashed", "ValueError")
        return Run(RunState(number, baseline_proposal(Fixed())), Path(f"run_{number}"), info)
    metrics = {
        "ce_loss_score": compared(score, score - 0.02, 0.002),
        "explained_variance_centered": compared(0.9, 0.8999, 0.002),
        "l0": compared(16.2, 16.3, 0.05),
    }
    comparison = Comparison(levels=[16, 17], seeds=5, metrics={} if outside else metrics, not_comparable=outside)
    fields = {"model": "m", "hook_name": "h", "layer": 1, "d_in": 1, "d_sae": 1, "steps": 1, "tokens": 1, "seed": 0}
    training = Training(**fields, final_loss=1.0, seconds=1.0, learning_rate=1.0, settings=SETTINGS)
    info = scored(16.2, score).model_copy(update={"comparison": comparison, "training": training})
    return Run(RunState(number, baseline_proposal(Fixed())), Path(f"run_{number}"), info)


def facts(outcome: Outcome = "worse") -> Facts:
    """Return the facts of a study whose run 1 was compared, run 2 crashed and run 3 could not be compared."""
    runs = [run(0, 0.95), run(1, 0.97), run(2, None), run(3, 0.98, outside="no baselines near L0 40")]
    return Facts(runs, {1: Judgement(outcome), 3: Judgement("not comparable")}, "ce_loss_score")


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("A CE-loss score of {{run_1.ce_loss_score}}.", "A CE-loss score of 0.9700."),
        ("KIND {{run_1.KIND}} and ENDS {{run_1.ENDS}}.", "KIND relu and ENDS [8, 16]."),
        ("It has {{run_1.ce_loss_score}}.", "It has 0.9700 (CE-loss score of run 1)."),
        (
            "The explained variance is {{run_1.ce_loss_score}}.",
            "The explained variance is 0.9700 (CE-loss score of run 1).",
        ),
        (
            "The CE-loss score of run 3 is {{run_1.ce_loss_score}}.",
            "The CE-loss score of run 3 is 0.9700 (CE-loss score of run 1).",
        ),
        (
            "Its L0 is {{ run_1.l0 }}, the baseline's {{baseline.l0}}.",
            "Its L0 is 16.20 latents/token, the baseline's 16.20 latents/token (L0 of the baseline).",
        ),
        ("With K at {{run_1.K}} and {{run_1.AUX_K}}.", "With K at 32 and 64 (AUX_K of run 1)."),
        (
            "The explained variance {{run_1 vs baseline explained_variance_centered}}.",
            "The explained variance is within noise of the baseline at the same L0 (difference +0.0001 ± 0.0020).",
        ),
        ("Its L0 {{run_1 vs baseline l0}}.", "Its L0 differs by -0.10 ± 0.05 from the baseline as trained."),
        (
            "As seen, {{run_3 vs baseline ce_loss_score}}.",
            "As seen, the CE-loss score of run 3 cannot be compared with the baseline (no baselines near L0 40).",
        ),
        ("{{run_1.alive_fraction}} of it.", "not measured (alive fraction of run 1) of it."),
        (
            "{{struck run_1}}",
            "[Removed: a claim in words; measured instead:] The CE-loss score of run 1 differs by "
            "+0.0200 ± 0.0020 from the baseline at the same L0 (worse).",
        ),
    ],
)
def test_a_placeholder_becomes_a_figure_and_names_metric_and_run_if_the_words_do_not(text: str, rendered: str):
    assert prose.render(text, facts()) == rendered


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [
        ("better", "from the baseline at the same L0 (better, confirmed by fresh seeds)"),
        ("unconfirmed", "(not confirmed by fresh seeds yet)"),
        ("not confirmed", "(not confirmed)"),
        ("negligible", "(too small to matter)"),
        ("within noise", "is within noise of the baseline at the same L0 (difference +0.0200 ± 0.0020)"),
    ],
)
def test_a_comparison_is_worded_by_its_outcome(outcome: Outcome, ending: str):
    """So that a sentence that was true when it was written stays true when the outcome changes."""
    rendered = prose.render("The CE-loss score {{run_1 vs baseline ce_loss_score}}", facts(outcome))
    assert rendered.endswith(ending)


@pytest.mark.parametrize(
    ("sentence", "why"),
    [
        ("The score is 0.97.", "a number outside a placeholder: 0.97"),
        ("It is better than the baseline.", "a claim in words: better"),
        ("The loss was further reduced.", "a claim in words: further, reduced"),
        ("Half of it died.", "a number outside a placeholder: Half"),
        ("See {{run_2.l0}}.", "run 2 has no results; runs with results: run_0, run_1, run_3"),
        ("See {{run_9.l0}}.", "run 9 has no results"),
        ("See {{run_1.ce_los_score}}.", "did you mean ce_loss_score"),
        ("The score is {{run_1.CE_LOSS_SCORE}}.", "run 1 has no figure 'CE_LOSS_SCORE'"),
        ("It is {{run_1.NOTE}}.", "run 1 has no figure 'NOTE'"),
        ("See {{run_1 vs run_3 l0}}.", "stands for nothing"),
        ("See {{run_0 vs baseline l0}}.", "run 0 is the baseline"),
        ("See {{struck run_1}}.", "stands for nothing"),
        ("See {{run_1.l0}.", "braces that do not close"),
        ("It hardly {{run_1 vs baseline l0}}.", "'hardly' next to a comparison"),
        ("It doesn't do what {{run_1 vs baseline l0}} says.", '"n\'t" next to a comparison'),
    ],
)
def test_a_claim_that_only_results_may_make_is_found(sentence: str, why: str):
    (fault,) = prose.find_faults(f"The tiers are disjoint. {sentence} The rest stayed as it was.", facts())
    assert fault.sentence == sentence
    assert why in fault.why


@pytest.mark.parametrize(
    "text",
    [
        "Three disjoint tiers share one decoder; the L0 of run 1 is {{run_1.l0}}, top-5 AUC was not measured.",
        "As in run 3, probing_auc_5 is left out. The CE-loss score {{run_1 vs baseline ce_loss_score}}.",
    ],
)
def test_a_text_without_claims_passes(text: str):
    assert prose.find_faults(text, facts()) == []


@pytest.mark.parametrize(
    "text",
    [
        "K rises from 16 to 24 and should raise the score, which may be better than the baseline's.",
        "AUX_COEFFICIENT = 1/32 becomes 0.1, or [0.1, 0.3] of it; whether that helped run 1 is open.",
        "A lower tier feeds a higher one, with half the coefficient. The learning rate of 0.008 stays.",
        "Set `LEARNING_RATE` to 4e-3 for 2% of the steps, as Gao et al. (2024) did.",
    ],
)
def test_a_text_before_a_run_may_state_settings_and_expectations(text: str):
    assert prose.find_faults(text, facts(), experiment=BASELINE.replace("K = 16", "K = 24")) == []


@pytest.mark.parametrize(
    ("sentence", "why"),
    [
        ("This reaches a score of 0.987.", "0.987"),
        ("With K at 24 the CE-loss score is 0.987.", "0.987"),
        ("Run 1 is better.", "better"),
        ("Explained variance improved.", "improved"),
        ("A better dictionary.", "better"),
        ("The CE-loss score is 0.9.", "0.9"),  # which stands in the file, as a beta of Adam's
        ("It reaches 0.987.", "0.987"),  # which stands in a comment
        ("The CE-loss score {{run_1 vs baseline ce_loss_score}}, an increase.", "increase"),
    ],
)
def test_a_text_before_a_run_may_not_claim_results_of_earlier_runs(sentence: str, why: str):
    (fault,) = prose.find_faults(sentence, facts(), experiment=BASELINE + "# 0.987")
    assert why in fault.why


def test_a_removed_claim_is_replaced_even_if_the_primary_metric_was_not_measured():
    unmeasured = Facts(facts().runs, {}, "absorption")
    assert prose.render("{{struck run_1}}", unmeasured) == (
        "[Removed: a claim in words; measured instead:] The absorption of run 1 cannot be compared with "
        "the baseline (not measured on both sides)."
    )


def test_faulty_sentences_are_removed_and_the_rest_stays_word_for_word():
    text = "Tiers were added. It is better, by 0.02! L0 is {{run_1.l0}}. It improved.\n\nAnd nothing else."
    faults = prose.find_faults(text, facts())
    assert [fault.sentence for fault in faults] == ["It is better, by 0.02!", "It improved."]
    shortened = prose.remove_sentences(text, faults, "{{struck run_1}}")
    assert shortened == "Tiers were added. {{struck run_1}} L0 is {{run_1.l0}}.\n\nAnd nothing else."
    rendered = prose.render(shortened, facts())
    assert "(worse). L0 is 16.20 latents/token." in rendered
