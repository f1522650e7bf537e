"""Fewer seeds of the baseline make wider intervals, and one seed gives no verdict; the notes say so."""

from pathlib import Path

import pytest
from builders import OK, SECOND, STARTED, scored
from pydantic import ValidationError

from agent.comparison import matching
from agent.comparison.brackets import Brackets
from agent.comparison.curves import required_baselines
from agent.comparison.judgement import judgements
from agent.comparison.matching import all_metrics
from agent.hypothesis import Condition, Rules
from agent.ideas import Fixed
from agent.lab.results import Measure
from agent.report import notes
from agent.report.answer import answer
from agent.study.events import BaselineMeasured, Event, RunCommitted, StudyStarted
from agent.study.records import Baseline
from agent.study.runs import Run
from agent.study.state import State, derive

SCORES = (0.949, 0.951, 0.950, 0.9495, 0.9505)
SHARE = Measure(title="share of pairs", definition="what is paired", main=True)


def study(seeds: int, rules: Rules | None = None) -> tuple[State, list[Run]]:
    """Return a study with so many seeds of the baseline, whose run 1 scores 0.97 at the baseline's L0."""
    fixed = Fixed(baseline_seeds=seeds)
    started = STARTED.model_copy(update={"fixed": fixed, "answer": rules, "measures": {"share": SHARE}})
    baselines: list[Event] = [
        BaselineMeasured(
            baseline=Baseline(k=k, seed=seed, figures=all_metrics(scored(k, SCORES[seed]))), verdict=OK, seconds=1
        )
        for k, seed in required_baselines(fixed)
    ]
    state = derive([started, *SECOND[1:], *baselines, RunCommitted(run=1, verdict=OK)])
    infos = [scored(16, 0.949), scored(16, 0.97).model_copy(update={"analysis": {"share": 0.9}})]
    runs = [Run(run, Path("nowhere"), info) for run, info in zip(state.runs, infos, strict=True)]
    assert runs[1].info
    one = matching.not_comparable(matching.ONE_SEED, 1)
    runs[1].info.comparison = one if seeds == 1 else matching.compare(runs[1].info, Brackets(state.baselines))
    return state, runs


def notes_of(seeds: int) -> str:
    state, runs = study(seeds)
    return notes.render(state, runs, judgements(runs, state), []).replace("\n  ", " ")


def test_the_baselines_of_a_study_follow_from_its_seeds():
    assert required_baselines(Fixed()) == required_baselines(Fixed(baseline_seeds=5))
    assert required_baselines(Fixed(baseline_seeds=2)) == [(16, 0), (16, 1), (15, 0), (17, 0), (8, 0), (32, 0)]
    assert [seed for k, seed in required_baselines(Fixed(baseline_seeds=7, seed=3)) if k == 16] == list(range(3, 10))


def test_one_seed_needs_no_neighbours():
    assert required_baselines(Fixed(baseline_seeds=1)) == [(16, 0), (8, 0), (32, 0)]
    with pytest.raises(ValidationError, match="greater than 0"):
        Fixed(baseline_seeds=0)


def test_a_ledger_from_before_this_was_kept_has_five():
    before = STARTED.model_dump(mode="json")
    del before["fixed"]["baseline_seeds"], before["tune"], before["ks"]
    read = StudyStarted.model_validate(before)
    assert (read.fixed.baseline_seeds, read.tune, read.ks) == (5, False, ())


def test_notes_say_how_much_wider_the_intervals_of_fewer_seeds_are():
    """t(0.975, 1) sqrt(3/2) over t(0.975, 4) sqrt(6/5): 15.56 over 3.04."""
    said = "The study has 2 baseline seeds in place of 5: at the same noise its intervals are 5.1 times as wide."
    assert said in notes_of(2)
    assert "baseline seeds in place of" not in notes_of(5)


def test_one_seed_gives_no_verdict():
    text = notes_of(1)
    assert "The study has one baseline seed: no interval, so nothing is said to be better or worse." in text
    section = text.split("## Run 1: ")[1].split("\n\n")[0]
    assert "Not comparable: one baseline seed: no interval, so nothing is said to be better or worse." in section
    assert "±" not in text


def test_one_seed_answers_no_hypothesis():
    """A rule on a measure of the idea's own has no interval, and would answer it alone."""
    rules = Rules(
        supported_if_all=(Condition(step="c", measure="share", above=0.5),),
        refuted_if_any=(Condition(step="c", measure="share", below=0.1),),
    )
    one, two = (
        answer(state, runs, judgements(runs, state), {"share": SHARE})
        for state, runs in (study(seeds, rules) for seeds in (1, 2))
    )
    assert two.decision == "supported"
    assert (one.decision, one.sentence) == ("not decided", f"Not decided: {matching.ONE_SEED}.")
    assert [tested.holds for tested in one.supporting] == [True], "what is known of the conditions is shown"
