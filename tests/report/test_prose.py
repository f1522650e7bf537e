"""A language model's text: what its placeholders and the bare figures in it become."""

from pathlib import Path

import pytest
from builders import failed, scored

from agent.comparison.judgement import Judgement, Outcome
from agent.ideas import Fixed
from agent.lab.results import Comparison, Measure, MetricComparison, Training
from agent.proposers.template import baseline_proposal
from agent.report import bare_figures, prose
from agent.report.prose import Facts
from agent.study.run_state import RunState
from agent.study.runs import Run

SETTINGS = {"K": 32, "AUX_K": 64, "CE_LOSS_SCORE": 0.993, "NOTE": "the best of all", "KIND": "relu", "ENDS": [8, 16]}


def compared(value: float, reference: float, half_width: float) -> MetricComparison:
    return MetricComparison(
        value=value, reference=reference, noise=0.001, standard_error=0.001, df=4, half_width=half_width, p=0.01
    )


def run(number: int, score: float | None, outside: str | None = None, l0: float = 16.2) -> Run:
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
    info = scored(l0, score).model_copy(
        update={"comparison": comparison, "training": training, "analysis": {"tier_0_share": 12.34}}
    )
    return Run(RunState(number, baseline_proposal(Fixed())), Path(f"run_{number}"), info)


def facts(outcome: Outcome = "worse") -> Facts:
    """Return the facts of a study whose run 1 was compared, run 2 crashed and run 3 could not be compared."""
    runs = [run(0, 0.95), run(1, 0.97), run(2, None), run(3, 0.98, outside="no baselines near L0 40")]
    runs += [run(4, 0.94), run(5, 0.99, l0=33.0)]
    own = {"tier_0_share": Measure(title="share of tier 0", definition="d", unit="%", digits=1)}
    judged: dict[int, Judgement] = {1: Judgement(outcome), 3: Judgement("not comparable"), 4: Judgement("worse")}
    return Facts(runs, judged, "ce_loss_score", 0.005, own)


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
            "Its L0 is 16.20 latents/token, the baseline's 16.20 latents/token.",
        ),
        ("With K at {{run_1.K}} and {{run_1.AUX_K}}.", "With K at 32 and 64."),
        (
            "The explained variance {{run_1 vs baseline explained_variance_centered}}.",
            "The explained variance is within noise of the baseline at the same L0 (difference +0.0001 ± 0.0020).",
        ),
        ("Its L0 {{run_1 vs baseline l0}}.", "Its L0 differs by -0.10 ± 0.05 from the baseline as trained."),
        (
            "As seen, {{run_3 vs baseline ce_loss_score}}.",
            "As seen, the CE-loss score of run 3 cannot be compared with the baseline (no baselines near L0 40).",
        ),
        (
            "Its CE-loss score {{run_4 vs run_1 ce_loss_score}}.",
            "Its CE-loss score is within noise of that of run 1 (difference +0.0000 ± 0.0039).",
        ),
        (
            "Its CE-loss score {{run_4 vs baseline ce_loss_score}}; against run 1 it {{run_4 vs run_1 ce_loss_score}}.",
            "Its CE-loss score differs by +0.0200 ± 0.0020 from the baseline at the same L0 (worse); against run 1 it "
            "is within noise of that of run 1 (difference +0.0000 ± 0.0039) (CE-loss score of run 4).",
        ),
        (
            "The CE-loss score of run 4 {{run_4 vs baseline ce_loss_score}}, it {{run_4 vs run_3 ce_loss_score}}.",
            "The CE-loss score of run 4 differs by +0.0200 ± 0.0020 from the baseline at the same L0 (worse), it "
            "cannot be compared with the baseline (no baselines near L0 40).",
        ),
        (
            "The CE-loss score of run 4 {{run_4 vs baseline ce_loss_score}}, that of run 1 {{run_1.ce_loss_score}}.",
            "The CE-loss score of run 4 differs by +0.0200 ± 0.0020 from the baseline at the same L0 (worse), that of "
            "run 1 0.9700.",
        ),
        (
            "Its CE-loss score is {{run_1.ce_loss_score}}, up from {{baseline.ce_loss_score}}.",
            "Its CE-loss score is 0.9700, up from 0.9500 (CE-loss score of the baseline).",
        ),
        ("It came to {{run_1 - baseline ce_loss_score}}.", "It came to +0.0200 ± 0.0020."),
        (
            "The CE-loss score of run 5 {{run_5 vs run_1 ce_loss_score}}.",
            "The CE-loss score of run 5 cannot be compared with that of run 1 (L0 33.00 and 16.20).",
        ),
        ("Below {{smallest_effect}} it is nothing.", "Below 0.005 it is nothing."),
        ("It is {{run_1.tier_0_share}}.", "It is 12.3 % (share of tier 0 of run 1)."),
        ("The probing AUC is {{run_1.probing_auc_5}}.", "The probing AUC is not measured."),
        ("Run 9 has {{run_9.l0}}, and {{ 7 * 7 }}.", "Run 9 has [no such figure], and {{ 7 * 7 }}."),
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
        ("See {{run_2.l0}}.", "run 2 has no results; runs with results: run_0, run_1, run_3"),
        ("See {{run_9.l0}}.", "run 9 has no results"),
        ("See {{run_1.ce_los_score}}.", "did you mean ce_loss_score"),
        ("The score is {{run_1.CE_LOSS_SCORE}}.", "run 1 has no figure 'CE_LOSS_SCORE'"),
        ("It is {{run_1.NOTE}}.", "run 1 has no figure 'NOTE'"),
        ("See {{run_0 vs baseline l0}}.", "run 0 cannot be compared with itself"),
        ("See {{run_1 vs run_1 l0}}.", "run 1 cannot be compared with itself"),
        ("See {{run_1 is better}}.", "stands for nothing"),
        ("See {{struck run_1}}.", "stands for nothing"),
        ("See {{run_1.l0}.", "braces that do not close"),
        ("It hardly {{run_1 vs baseline l0}}.", "'hardly' before a comparison"),
        ("It doesn't do what {{run_1 vs baseline l0}} says.", None),
    ],
)
def test_a_placeholder_that_stands_for_nothing_is_found(sentence: str, why: str | None):
    found = prose.faults(f"The tiers are disjoint. {sentence} The rest stayed as it was.", facts())
    assert len(found) == (why is not None)
    assert all(why and why in reason for reason in found)


def test_words_are_the_models_own():
    text = "It is better, half of it died, and (Gregor and LeCun 2010) split the latents into three tiers."
    assert prose.faults(text, facts()) == []
    assert prose.without_faults(text, facts()) == text


def test_figures_of_the_run_that_a_text_is_about_may_be_missing_until_it_is_through():
    assert prose.faults("L0 should be {{run_6.l0}}.", facts(), pending=6) == []
    assert prose.faults("L0 should be {{run_6.l0}}.", facts(), pending=7)


def test_what_stands_for_nothing_is_taken_out():
    text = "L0 is {{run_9.l0}} or {{run_1.l0}} and {{run_1.l0}."
    assert prose.without_faults(text, facts()) == "L0 is [no such figure] or {{run_1.l0}} and {run_1.l0}."


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("The CE-loss score rose to 0.97.", "The CE-loss score rose to {{run_1.ce_loss_score}}."),
        ("Its CE-loss score of 0.9701 is high.", "Its CE-loss score of [not a measured figure] is high."),
        ("It gained 0.02 in CE-loss score.", "It gained {{run_1 - baseline ce_loss_score}} in CE-loss score."),
        ("CE-loss score is down by -0.020 ± 0.002.", "CE-loss score is down by {{run_1 - baseline ce_loss_score}}."),
        ("Run 3 has a CE-loss score of 98%.", "Run 3 has a CE-loss score of {{run_3.ce_loss_score}}."),
        ("Run 3 has a CE-loss score of 0.97.", "Run 3 has a CE-loss score of [not a measured figure]."),
        ("CE-loss score 0.94 in run 4.", "CE-loss score {{run_4.ce_loss_score}} in run 4."),
        ("The CE-loss score should reach 0.99.", "The CE-loss score should reach 0.99."),
        ("A CE-loss score with a coefficient of 0.123.", "A CE-loss score with a coefficient of 0.123."),
        ("An AUC of 0.83 beside it.", "An AUC of [not a measured figure] beside it."),
        ("DECAY = 0.33 leaves the CE-loss score.", "DECAY = 0.33 leaves the CE-loss score."),
        ("A CE-loss score below 0.005 is nothing.", "A CE-loss score below 0.005 is nothing."),
        ("Three tiers of 0.5, as in run 2; L0 is 16.2.", "Three tiers of 0.5, as in run 2; L0 is 16.2."),
    ],
)
def test_a_bare_figure_of_a_score_becomes_a_measured_one_or_is_taken_out(text: str, figures: str):
    assert bare_figures.measured(text, facts()) == figures


def test_texts_of_earlier_versions_whose_claims_were_removed_are_still_rendered():
    assert prose.render("{{struck}} {{struck run_1}}", facts()).startswith(
        "[Removed: a claim about a result before there was one.] [Removed: a claim in words; measured instead:] The CE"
    )
