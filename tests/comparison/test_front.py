"""The front over K: which K fit, how a winner is given another, and what notes and figure show of it."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from builders import OK, SECOND, STARTED, scored
from figure_checks import overlapping
from standin import make_checkout

from agent import ideas
from agent.comparison import front
from agent.comparison.judgement import Judgement
from agent.comparison.matching import all_metrics
from agent.comparison.significance import compare_to_reference
from agent.ideas import Fixed
from agent.lab.errors import UserError
from agent.lab.results import Comparison
from agent.report import figure_style, front_over_k
from agent.study.events import BaselineMeasured, Event, FrontScored, StudyEnded
from agent.study.records import Baseline
from agent.study.runs import Run
from agent.study.state import State, derive

KS = (8.0, 16.0, 32.0)


def test_ks_are_read():
    assert front.parse_ks("40,80,160", Fixed(d_sae=2048)) == (40.0, 80.0, 160.0)
    assert front.parse_ks("7.5, 8", Fixed(d_sae=64, k=8)) == (7.5, 8.0)


@pytest.mark.parametrize(
    ("ks", "said"),
    [
        ("8,sixteen", "give numbers with commas between, such as 40,80,160"),
        ("", "give numbers with commas between"),
        ("8,129", "129 is not between 1 and 128, an eighth of d_sae 1024"),
        ("0.5,8", "0.5 is not between 1 and 128"),
        ("nan", "nan is not between 1 and 128"),
        ("16,8", "8 follows 16: give each K once, in rising order"),
        ("8,8", "8 follows 8: give each K once, in rising order"),
    ],
)
def test_ks_that_do_not_fit_are_refused(ks: str, said: str):
    with pytest.raises(UserError) as refused:
        front.parse_ks(ks, Fixed())
    assert said in str(refused.value)


def test_ks_are_refused_where_the_baseline_has_none_like_them():
    with pytest.raises(UserError, match=r"--ks 8,16: ReLU \+ L1 has no K, but an L1 coefficient"):
        front.parse_ks("8,16", Fixed(baseline="relu"))
    with pytest.raises(UserError, match=r"--ks 7\.5,8: TopK keeps a whole number of latents per token, not 7\.5"):
        front.parse_ks("7.5,8", Fixed(baseline="topk"))


def test_ks_that_do_not_fit_end_with_exit_code_2(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("better")
    ended = checkout.run(1, "--ks", "16,8")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: --ks 16,8: 8 follows 16: give each K once, in rising order\n",
    )
    assert not (checkout.root / "runs").exists()


@pytest.mark.parametrize("name", ideas.idea_names())
def test_every_idea_can_be_given_another_k(name: str):
    idea = ideas.load(name)
    for step in idea.plan:
        source = ideas.render_step(idea, step, idea.fixed)
        changed = front.with_k(source, 7.5)
        assert changed
        differing = [pair for pair in zip(source.splitlines(), changed.splitlines(), strict=True) if len({*pair}) > 1]
        assert [after.split("#")[0] for _, after in differing] == ["K = 7.5  "]


def test_an_experiment_without_a_constant_k_is_left():
    source = ideas.render_baseline(Fixed())
    assert front.with_k(source.replace("\nK = 16 ", "\nK = 2 * 8 "), 32) is None
    assert front.with_k(source.replace("\nK = 16 ", "\nTOP = 16 "), 32) is None
    assert front.with_k("μ = 'K = 16'; K = 16; L = K\n", 32) == "μ = 'K = 16'; K = 32; L = K\n"


# Notes and figure


def at(k: float, score: float | None) -> list[Event]:
    """Return a run's front at one K, a little above the baseline's; without a score it ran out of memory."""
    info, baseline = scored(k, score), scored(k, 0.9 + k / 1000)
    failed = {"figures": {}, "why_not": "out_of_memory: on the GPU"} if score is None else {}
    return [
        FrontScored.model_validate({"run": 1, "k": k, "figures": all_metrics(info)} | failed),
        BaselineMeasured(baseline=Baseline(k=k, seed=0, figures=all_metrics(baseline)), verdict=OK, seconds=1),
    ]


def study(*more: Event, source: str = "K = 16\n") -> tuple[State, list[Run], dict[int, Judgement]]:
    """Return a study that was asked for a front, and whose run 1 is better."""
    state = derive([STARTED.model_copy(update={"ks": KS}), *SECOND[1:], *more])
    runs = [Run(each, Path("nowhere"), scored(16.0, 0.95)) for each in state.runs]
    runs[1].state.proposal = runs[1].state.proposal.model_copy(update={"source": source})
    assert runs[1].info
    better = compare_to_reference(0.95, 0.93, 0.001, 0.001, 4)
    runs[1].info.comparison = Comparison(levels=[16], seeds=5, metrics={"ce_loss_score": better})
    return state, runs, {1: Judgement("better")}


MEASURED = [*at(8, 0.91), *at(16, 0.95), *at(32, 0.96)]


def test_the_notes_have_both_beside_each_other():
    said, *table = front_over_k.lines(*study(*MEASURED))
    assert " ".join(said.split()) == (
        "Run 1 and the baseline, each trained once at every K, scored on the development text. Nothing is decided by "
        "it, and without further seeds small differences say nothing."
    )
    assert table == [
        " K  L0 of run 1  CE-loss score  L0 of the baseline  CE-loss score",
        " 8         8.00         0.9100                8.00         0.9080",
        "16        16.00         0.9500               16.00         0.9160",
        "32        32.00         0.9600               32.00         0.9320",
    ]


def test_what_is_missing_is_named():
    said, *table = front_over_k.lines(*study(*at(8, 0.91), *at(16, None)))
    assert " ".join(said.split()).endswith(
        "Missing: run 1 has no result at K 16 (out_of_memory: on the GPU); K 32 was not trained."
    )
    assert table[2:] == [
        "16            -              -               16.00         0.9160",
        "32            -              -                   -              -",
    ]


def test_why_there_is_no_front():
    state, runs, judged = study(source="TOP = 16\n")
    assert front_over_k.lines(state, runs, judged) == ["The experiment of run 1 has no constant K to change: no front."]
    assert front_over_k.lines(state, runs, {}) == ["A confirmed winner's follows at the end."]
    ended, runs, _ = study(StudyEnded(why="the plan ended"))
    assert front_over_k.lines(ended, runs, {}) == ["No confirmed winner: no front."]
    not_asked = derive([*SECOND, StudyEnded(why="the plan ended")])
    assert front_over_k.lines(not_asked, runs, {}) == []


def test_the_figure_has_a_line_for_each_and_shows_where_they_were_measured():
    shown = front_over_k.of(*study(*MEASURED))
    assert shown
    with matplotlib.rc_context(figure_style.STYLE):
        figure = front_over_k.draw("front.png", shown)
    assert not overlapping(figure)
    assert figure.drawing
    (panel,) = figure.drawing.axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()).T.tolist() for line in panel.lines}
    assert lines["the baseline"] == [[8, 16, 32], [0.908, 0.916, 0.932]]
    assert lines["run 1: A change"] == [[8, 16, 32], [0.91, 0.95, 0.96]]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["8", "16", "32"]
