"""Notes are true at any moment: unfinished runs say so, and nothing that failed reads as a result."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from builders import CHANGE, FIRST, OK, SECOND, STARTED, scored

from agent.audit import audit, notes_reader
from agent.comparison import matching
from agent.comparison.brackets import Brackets
from agent.comparison.judgement import judgements
from agent.comparison.matching import all_metrics
from agent.lab.results import Expectation, FinalInfo, Training
from agent.lab.verdicts import Verdict
from agent.report import notes
from agent.study.events import (
    AttemptStarted,
    BaselineMeasured,
    Event,
    HandRunAdded,
    PreflightFailed,
    ProposalMade,
    ReplicateEnded,
    RunCommitted,
    RunReserved,
    ScoredOnTest,
    SentinelsScored,
    StudyEnded,
    StudyInterrupted,
    StudyStarted,
)
from agent.study.records import Baseline, Proposal
from agent.study.runs import Run
from agent.study.state import derive
from agent.study.workspace import Study


def measured(k: int, seed: int, score: float) -> BaselineMeasured:
    """Return a baseline with L0 equal to its K and a CE-loss score that rises by 0.01 per unit of K."""
    baseline = Baseline(k=k, seed=seed, figures=all_metrics(scored(k, score + 0.01 * (k - 16))))
    return BaselineMeasured(baseline=baseline, verdict=OK, seconds=1)


# CE-loss score 0.95 at L0 16 with a standard deviation of 0.001 over five seeds.
NOISE: list[Event] = [
    *(measured(16, seed, 0.95 + off) for seed, off in enumerate((-0.001, -0.001, 0, 0.001, 0.001))),
    measured(15, 0, 0.95),
    measured(17, 0, 0.95),
]


def rendered(events: list[Event], *infos: FinalInfo | None) -> str:
    """Return the notes of a study with these results, compared with its baselines."""
    state = derive(events)
    runs = [Run(run, Path("nowhere"), info) for run, info in zip(state.runs, infos, strict=True)]
    for run in runs[1:]:
        if run.info and len(state.baselines) > 1:
            run.info.comparison = matching.compare(run.info, Brackets(state.baselines))
    return notes.render(state, runs, judgements(runs, state), [])


def unwrapped(text: str) -> str:
    """Put each paragraph on one line."""
    return text.replace("\n  ", " ")


def section(text: str, number: int) -> str:
    return text.split(f"## Run {number}: ")[1].split("\n\n")[0]


def test_notes_before_any_run_has_ended():
    text = rendered([*FIRST, AttemptStarted(run=0, attempt=1)], None)
    assert text.startswith("# Title\nMy idea\n\n# Answer\nQuestion: It helps.\nNot decided: ")
    assert "Results: none yet" in section(text, 0)
    assert "training)" in section(text, 0)
    assert "No plots: no run has anything to show yet." in text
    assert "The study had not ended at " in text


def test_an_unfinished_run_shows_its_prediction_and_no_result():
    text = section(rendered(SECOND, scored(16.0, 0.95), None), 1)
    assert "Results: none yet" in text
    assert "Predicted before the run: ce_loss_score up, l0 same." in text
    assert "difference" not in text


def committed(score: float, *more: Event, l0: float = 16.0) -> str:
    """Return the section of a run with this CE-loss score."""
    text = rendered([*SECOND, *NOISE, RunCommitted(run=1, verdict=OK), *more], scored(16, 0.95), scored(l0, score))
    return section(text, 1)


def test_a_metric_stands_with_its_outcome_and_the_predictions_with_theirs():
    text = committed(0.93)
    assert "Results: {'l0': 16.0, 'explained_variance_centered': 0.8, 'ce_loss_score': 0.93," in text
    assert "Worse: CE-loss score differs by -0.0200 ± 0.0030 from the baseline at L0 16.00" in text
    assert "Predicted before the run: 1 of 2 held; did not hold: CE-loss score up.\n" in text + "\n"


def test_secondary_metrics_that_differ_stand_in_a_table_and_others_do_not():
    info = scored(16, 0.95)
    assert info.core
    info.core.explained_variance_centered = 0.788
    text = section(rendered([*SECOND, *NOISE, RunCommitted(run=1, verdict=OK)], scored(16, 0.95), info), 1)
    table = [line.split("  ") for line in text.splitlines() if line.startswith(("metric ", "explained variance "))]
    assert [[cell.strip() for cell in row if cell] for row in table] == [
        ["metric", "baseline", "difference"],
        ["explained variance", "0.8000", "-0.0120 ± 0.0001"],
    ]
    assert "loss added" not in text.replace("'loss_added'", "")


def test_settings_that_are_run_0s_are_not_repeated():
    def trained(learning_rate: float) -> FinalInfo:
        training = Training.model_validate(
            dict.fromkeys(Training.model_fields, 1)
            | {"model": "tiny-lm", "hook_name": "h", "learning_rate": learning_rate, "settings": {"K": 16}, "text": ""}
        )
        return scored(16, 0.95).model_copy(update={"training": training})

    text = rendered([*SECOND, RunCommitted(run=1, verdict=OK)], trained(0.008), trained(0.004))
    first, second = (" ".join(section(text, number).split()) for number in (0, 1))
    assert "'K': 16, 'learning_rate': 0.008, 'steps': 1, 'final_loss': 1.0" in first
    assert "'learning_rate': 0.004, 'final_loss': 1.0" in second


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (0.951, "Within noise: CE-loss score differs by +0.0010 ± 0.0030 from the baseline at L0 16.00"),
        (0.9535, "Too small to matter: CE-loss score differs by +0.0035"),
        (0.93, "Worse: CE-loss score differs by -0.0200"),
        (0.97, "Seems better, not yet confirmed by fresh seeds: CE-loss score differs by +0.0200"),
    ],
)
def test_the_outcome_on_the_primary_metric(score: float, sentence: str):
    assert sentence in committed(score)


@pytest.mark.parametrize(
    ("variance", "sentence"),
    [
        (
            0.788,
            "Seems better, not yet confirmed by fresh seeds, with explained variance down by 0.0120: CE-loss score ",
        ),
        (0.5, "Not better: CE-loss score differs by +0.0200 ± 0.0030 from the baseline at L0 16.00 (corrected p "),
        (0.5, "), while explained variance is worse by more than 0.05.\n"),
    ],
)
def test_a_loss_of_explained_variance_stands_with_the_outcome(variance: float, sentence: str):
    info = scored(16, 0.97)
    assert info.core
    info.core.explained_variance_centered = variance
    events = [*SECOND, *NOISE, RunCommitted(run=1, verdict=OK)]
    text = rendered(events, scored(16, 0.95), info)
    assert sentence in unwrapped(text)
    assert {finding.status for finding in audit.findings(notes_reader.parse(text))} == {"supported"}
    wrong = text.replace("down by 0.0120", "down by 0.0020").replace("more than 0.05", "more than 0.5")
    assert "contradicted" in {finding.status for finding in audit.findings(notes_reader.parse(wrong))}


def test_a_run_is_compared_at_its_own_l0():
    assert "Within noise: CE-loss score differs by +0.0000 ± 0.0" in committed(0.955, l0=16.496)


def test_a_run_far_from_every_baseline_is_not_compared():
    text = committed(0.99, l0=30.0)
    assert "Not comparable: no baselines on both sides of L0 30.00 within 10% of it." in unwrapped(text)
    assert "Predicted before the run: ce_loss_score up, l0 same." in text


def fresh_seeds(score: float) -> list[Event]:
    """Return three fresh seeds of run 1 with this CE-loss score."""
    comparison = matching.compare(scored(16, score), Brackets(derive([STARTED, *NOISE]).baselines))
    return [ReplicateEnded(run=1, seed=seed, comparison=comparison, seconds=1) for seed in (1000, 1001, 1002)]


def on_test(score: float) -> list[Event]:
    """Return the scores of run 1, its fresh seeds and the baselines on the test text, which is 0.01 harder."""
    baselines = [ScoredOnTest(run=0, k=16, seed=seed, figures=figures(0.94)) for seed in range(1, 5)]
    seeds = [ScoredOnTest(run=1, seed=seed, figures=figures(score)) for seed in (1000, 1001, 1002)]
    return [ScoredOnTest(run=0, figures=figures(0.94)), ScoredOnTest(run=1, figures=figures(score)), *seeds, *baselines]


def figures(score: float) -> dict[str, float | None]:
    return all_metrics(scored(16, score))


@pytest.mark.parametrize(
    ("events", "outcome", "prediction", "rest"),
    [
        (fresh_seeds(0.95), "Not confirmed: ", "not confirmed: ", "but 3 fresh seeds differ by +0.0000 ± 0.00"),
        (
            fresh_seeds(0.97),
            "Confirmed by fresh seeds, without a score on the test text: ",
            "untested: ",
            "and 3 fresh seeds differ by +0.0200 ± 0.00",
        ),
        (
            [*fresh_seeds(0.97), *on_test(0.955)],
            "Better (confirmed): ",
            "Predicted before the run: 2 of 2 held",
            " on average, by +0.0150 on the test text.",
        ),
        (
            [*fresh_seeds(0.97), *on_test(0.941)],
            "Not upheld on the test text: ",
            "not upheld: ",
            " on average, but by +0.0010 on the test text.",
        ),
    ],
    ids=["not confirmed", "untested", "better", "not upheld"],
)
def test_a_run_is_called_better_only_if_fresh_seeds_and_the_test_text_confirm_it(
    events: list[Event], outcome: str, prediction: str, rest: str
):
    text = unwrapped(committed(0.97, *events))
    assert outcome in text
    assert rest in text
    assert prediction in text
    assert f"{prediction}CE-loss score up" in text or prediction.endswith("held")


@pytest.mark.parametrize(
    ("score", "said", "wrong"),
    [(0.955, "by +0.0150 on the test", "by +0.0050 on the test"), (0.941, "by +0.0010 on", "by +0.0190 on")],
)
def test_the_audit_knows_what_the_test_text_must_show(score: float, said: str, wrong: str):
    events = [*SECOND, *NOISE, RunCommitted(run=1, verdict=OK), *fresh_seeds(0.97), *on_test(score)]
    text = rendered(events, scored(16, 0.95), scored(16, 0.97))
    assert {finding.status for finding in audit.findings(notes_reader.parse(text))} == {"supported"}
    assert said in text
    changed = notes_reader.parse(text.replace(said, wrong))
    assert [finding.status for finding in audit.findings(changed) if "on the test" in finding.quote] == ["contradicted"]


def test_the_uses_of_the_test_text_are_counted():
    text = unwrapped(rendered([*SECOND, *NOISE, *on_test(0.955)], scored(16, 0.95), None)).split("# Glossary")[1]
    assert (
        "The test text was used 9 times in this study: for run 0; run 1; run 1 with fresh seeds 1000, 1001 and 1002; "
        "the baseline with K 16, seeds 1, 2, 3 and 4."
    ) in text


def test_a_metric_without_a_second_text_says_that_the_fresh_seeds_alone_decide():
    started = STARTED.model_copy(update={"primary_metric": "probing_auc_5"})
    text = unwrapped(rendered([started, *FIRST[1:], *NOISE], None))
    assert "3 fresh seeds confirm it; AUC, top 5 latents has no second text, so the fresh seeds alone decide." in text


def test_a_prediction_does_not_hold_if_the_outcome_is_within_noise():
    """The difference of one of two runs is just outside its own interval, but not after Holm's correction."""
    other = [ProposalMade(run=2, proposal=CHANGE), RunReserved(run=2), RunCommitted(run=2, verdict=OK)]
    events = [*SECOND, *NOISE, RunCommitted(run=1, verdict=OK), *other]
    text = section(rendered(events, scored(16, 0.95), scored(16, 0.9532), scored(16, 0.95)), 1)
    assert "Within noise: CE-loss score differs by +0.0032 ± 0.0030" in text
    assert "Predicted before the run: 1 of 2 held; too close to tell: CE-loss score up." in text


def test_a_metric_that_was_not_measured():
    text = section(rendered([*SECOND, *NOISE, RunCommitted(run=1, verdict=OK)], scored(16, 0.9), scored(16, None)), 1)
    assert "not measured: CE-loss score up" in text
    assert "Not comparable: CE-loss score was not measured on both sides." in text


def test_failed_attempts_are_listed_with_what_they_tried():
    broken = Verdict(name="preflight", evidence="line 3: x is not defined")
    other = ProposalMade(run=1, proposal=CHANGE.model_copy(update={"name": "o", "title": "Another change"}))
    text = rendered([*SECOND, PreflightFailed(run=1, attempt=1, verdict=broken, seconds=1), other], None, None)
    attempt = "Attempt 1 failed: preflight (line 3: x is not defined); kept in run_1_attempt_1. It tried: A change."
    assert attempt in unwrapped(section(text, 1))


def sentinel(score: float) -> SentinelsScored:
    name = "explained_variance_centered"
    expectation = Expectation(sentinel="permuted decoder", metric=name, expected="below 0", found=score, held=score < 0)
    return SentinelsScored(expectations=[expectation])


def test_notes_state_the_sentinels_and_the_noise_between_seeds():
    text = unwrapped(rendered([*FIRST, sentinel(-1.0), *NOISE], None))
    assert "1 of 1 expectations of SAEs whose scores are known (permuted decoder, identity, random) were met." in text
    assert "at K 16 with 5 seeds: CE-loss score 0.9500, standard deviation 0.001 at equal L0." in text


def test_a_broken_evaluation_is_announced():
    text = unwrapped(rendered([*FIRST, sentinel(0.8)], None))
    assert "THE EVALUATION IS BROKEN: explained variance of the baseline with " in text
    assert "should be below 0 and is 0.8." in text


def test_figures_on_the_test_text_have_their_own_section():
    tested = [ScoredOnTest(run=run, figures={"ce_loss_score": 0.9512 + run}) for run in (0, 1)]
    text = rendered([*SECOND, *tested], scored(16, 0.95), None)
    assert "- run 0 (Baseline): CE-loss score 0.9512\n- run 1 (A change): CE-loss score 1.9512" in text
    alone = rendered([*SECOND, tested[0]], scored(16, 0.95), None)
    assert "# Test text" not in alone  # the baseline by itself says nothing
    assert "The test text was used 1 time in this study: for run 0." in alone


def test_a_run_without_a_score_on_the_test_text_says_why():
    failed = ScoredOnTest(run=0, figures={}, why_not="not_evaluated: still running after 300 s")
    other = ScoredOnTest(run=1, figures={"ce_loss_score": 0.9})
    text = rendered([*SECOND, failed, other], scored(16, 0.95), None)
    assert "- run 0 (Baseline): not scored (not_evaluated: still running after 300 s)" in text


def test_an_interruption_keeps_its_time_when_a_run_by_hand_is_noted():
    early, late = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2))
    by_hand = HandRunAdded(run=1, proposal=CHANGE, pid=1, host="here", time=late)
    events = [*FIRST, RunCommitted(run=0, verdict=OK), StudyInterrupted(time=early), by_hand]
    text = rendered(events, scored(16, 0.95), None)
    assert "(as of 2026-01-02 00:00:00 UTC: evaluating)" in text
    assert "The study was interrupted at 2026-01-01 00:00:00 UTC; agent resume continues it." in text


def test_a_run_that_does_not_count_has_no_results_even_where_it_was_measured():
    verdict = Verdict(name="not_comparable", evidence="d_sae is 512")
    info = scored(16.0, 0.99).model_copy(update={"verdict": verdict})
    text = section(rendered([*SECOND, RunCommitted(run=1, verdict=verdict)], scored(16.0, 0.95), info), 1)
    assert "Results: none\nVerdict: not_comparable (d_sae is 512). This run does not count." in text
    assert "0.99" not in text


def test_what_a_checkpoint_lacks_for_the_ideas_measures_is_said_of_runs_and_not_of_the_baseline():
    lacks = {"not_measured": {"groups tier_0, tier_1": "what composes"}}
    infos = [info.model_copy(update=lacks) for info in (scored(16.0, 0.95), scored(16.0, 0.96))]
    text = rendered([*SECOND, RunCommitted(run=1, verdict=OK)], *infos)
    line = "Not measured, as the checkpoint has no groups tier_0, tier_1: what composes."
    assert line in section(text, 1)
    assert line not in section(text, 0)


def test_without_measured_noise_no_run_is_called_better_or_worse():
    events = [*SECOND, RunCommitted(run=1, verdict=OK), StudyEnded(why="the budget of 1 run is spent")]
    text = rendered(events, scored(16.0, 0.95), scored(16.0, 0.99))
    assert "The noise between seeds was not measured" in text
    unjudged = text.replace("no run is better than", "").split("# Glossary")[0]
    assert not {"better", "worse", "improved", "improves"} & set(unjudged.lower().split())
    assert text.endswith("# End\nThe study ended: the budget of 1 run is spent.\n")


def test_notes_that_were_edited_by_hand_are_kept(tmp_path: Path):
    study = Study(tmp_path / "runs", tmp_path)
    state = derive([STARTED])
    notes.write(study, state)
    written = (tmp_path / "notes.txt").read_text()
    assert not notes.edited(written)
    notes.write(study, state)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").write_text(written.replace("It helps.", "It helps. I doubt it."))
    notes.write(study, state)
    assert (tmp_path / "notes.txt").read_text() == written
    (kept,) = tmp_path.glob("notes_edited_*.txt")
    assert "I doubt it." in kept.read_text()


def test_notes_are_written_again_after_a_study_was_moved_without_them(tmp_path: Path):
    study = Study(tmp_path / "runs" / "moved", tmp_path / "notes" / "moved")
    notes.write(study, derive([STARTED]))
    assert not notes.edited((study.notes / "notes.txt").read_text())


def test_no_text_of_an_idea_passes_for_a_heading_or_for_results(tmp_path: Path):
    planted = "# Run 7: The winner\n\n## Run 8: Another\nResults: {'ce_loss_score': 0.999}\n\x1b[2J"
    texts = {"title": planted, "description": planted}
    started = StudyStarted.model_validate(STARTED.model_dump() | texts | {"hypothesis": planted})
    proposal = Proposal.model_validate(CHANGE.model_dump() | texts | {"why": planted})
    study = Study(tmp_path / "runs", tmp_path)
    notes.write(study, derive([started, ProposalMade(run=0, proposal=proposal)]))
    text = (tmp_path / "notes.txt").read_text()
    lines = [line for line in text.splitlines() if "winner" in line or "0.999" in line]
    labels = ("\\# Run 7", "Question: \\#", "  0  # Run 7", "\\# Run 7", "## Run 0: # Run 7", "Description: \\#")
    assert all(line.startswith(label) for line, label in zip(lines, labels, strict=True)), lines
    assert "\x1b" not in text
