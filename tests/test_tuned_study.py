"""A study on a model whose rate is not known: tuned first, a front of its winner last, whatever kills its driver."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from standin import HERE, Checkout, make_checkout

from agent.study.events import BaselineMeasured, Event, FrontScored, JobSubmitted, ProposalMade, RateTuned

pytestmark = pytest.mark.slow
RATE = {"SAE_AGENT_STANDIN_RATE": "1"}  # far above all that are tried
KS = (8, 20)


def make_model(directory: Path) -> Path:
    """Make what passes for a language model beside the stand-ins."""
    directory.mkdir()
    sizes = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 100}
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes))
    return directory


def run(checkout: Checkout, model: Path, *more: str, **environment: str) -> Any:
    seeds = ("--baseline-seeds", "3", "--jobs", "2")
    return checkout.run(1, "--model", str(model), *seeds, *more, **RATE | environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "another")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Checkout:
    """Return a study whose driver was killed while rates were tried, and after the first training of the front."""
    checkout = make_checkout(tmp_path_factory.mktemp("killed"))
    checkout.plan("better")
    cut = RATE | {"PYTHONPATH": f"{checkout.root}:{HERE / 'power_cut'}", "STANDIN_KILL_AFTER": "job_submitted"}
    ended = run(checkout, model, "--ks", ",".join(map(str, KS)), **cut)
    assert ended.returncode == -signal.SIGKILL
    assert checkout.agent("resume", **cut | {"STANDIN_KILL_AFTER": "front_scored"}).returncode == -signal.SIGKILL
    ended = checkout.agent("resume", **RATE)
    assert ended.returncode == 0, ended.stderr
    return checkout


def of_kind(checkout: Checkout, kind: type[Event]) -> list[Any]:
    return [event for event in checkout.events if isinstance(event, kind)]


def test_the_rate_is_tuned_once_and_before_the_baseline(killed: Checkout):
    (tuned,) = of_kind(killed, RateTuned)
    low, own, high = [each.rate for each in tuned.tries]
    assert (low, high) == (pytest.approx(own / 3, rel=0.01), pytest.approx(3 * own, rel=0.01))
    assert tuned.rate == high
    assert tuned.tokens < killed.state.started.fixed.tokens
    proposals = of_kind(killed, ProposalMade)
    assert all(event.seq > tuned.seq for event in proposals)
    for event in proposals:
        assert f"\nLEARNING_RATE = {tuned.rate}\n" in event.proposal.source
    assert "It is the largest of these: a larger one may be better still." in killed.notes


def test_what_is_tried_is_not_scored(killed: Checkout):
    (tuned,) = of_kind(killed, RateTuned)
    tried = [event for event in killed.events if event.seq < tuned.seq]
    names = [event.job for event in tried if isinstance(event, JobSubmitted)]
    assert {name.partition("_")[0] for name in names} == {"rate"}
    assert not list(killed.study.directory.glob("rate_*"))


def test_the_winner_and_the_baseline_are_trained_at_each_k(killed: Checkout):
    scored = {(event.run, event.k): event for event in of_kind(killed, FrontScored)}
    assert sorted(scored) == [(1, k) for k in KS]
    baselines = {each.k: each for each in killed.state.baselines if each.seed == 0}
    for k in KS:
        better, baseline = (figures["ce_loss_score"] for figures in (scored[1, k].figures, baselines[k].figures))
        assert better
        assert baseline
        assert better > baseline + 0.01
        assert f"\nK = {k}\n" in (killed.study.directory / f"run_1_k{k}/experiment.py").read_text()
    assert killed.state.runs_used == 1
    assert not list(killed.study.directory.glob("run_1_k*/test_info.json")), "the test text is not used for it"


def test_the_front_is_in_notes_and_page(killed: Checkout):
    section = killed.notes.split("# Front over K\n")[1].split("\n\n")[0]
    assert section.startswith("Run 1 and the baseline, each trained once at every K, scored on the development text.")
    assert "Missing" not in section
    assert (killed.study.notes / "front.png").read_bytes().startswith(b"\x89PNG")
    assert killed.agent("review").returncode == 0
    page = (killed.study.notes / "review.html").read_text()
    assert "The front over K" in page
    assert "It is the largest of these" in page
    audited = killed.agent("audit", str(killed.study.notes / "notes.txt"))
    assert audited.returncode == 0, audited.stdout


def test_another_study_finds_the_rate_and_the_baselines_in_the_cache(killed: Checkout, model: Path, tmp_path: Path):
    other = make_checkout(tmp_path)
    other.plan("worse")
    shared = {"SAE_AGENT_CACHE": str(killed.root.parent / "home/.cache/sae-agent")}
    ended = run(other, model, "--ks", "8", **shared)
    assert ended.returncode == 0, ended.stderr
    (tuned,), (before,) = of_kind(other, RateTuned), of_kind(killed, RateTuned)
    assert (tuned.rate, tuned.tries, tuned.seconds) == (before.rate, before.tries, 0.0)
    assert {event.job for event in of_kind(other, JobSubmitted) if "run_" not in event.job} == set()
    assert {event.seconds for event in of_kind(other, BaselineMeasured)} == {0.0}
    assert "# Front over K\nNo confirmed winner: no front." in other.notes


def test_a_study_that_leaves_the_rate_and_has_one_seed(model: Path, tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("better")
    ended = run(checkout, model, "--no-tune", "--baseline-seeds", "1")
    assert ended.returncode == 0, ended.stderr
    assert not of_kind(checkout, RateTuned)
    assert "learning rate is" not in checkout.notes
    assert checkout.state.runs[1].comparison
    assert checkout.state.runs[1].comparison.not_comparable == (
        "one baseline seed: no interval, so nothing is said to be better or worse"
    )
    assert checkout.state.replicates == {}
    assert len(checkout.state.baselines) == 3
