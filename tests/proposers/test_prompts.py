"""What a language model is shown of the test text: nothing, and of a run that it took the word back from, one word."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import CHANGE, SECOND

from agent.comparison.judgement import judgements
from agent.ideas import Idea
from agent.lab.results import Comparison
from agent.lab.verdicts import Verdict
from agent.proposers.language_model import file_to_edit
from agent.proposers.prompts import Prompts
from agent.study import attempts, ledger
from agent.study.events import Event, PreflightFailed, ProposalMade, ScoredOnTest
from agent.study.state import State, derive
from agent.study.workspace import Study

SAVED = Path(__file__).parents[1] / "fixtures/version_0_1/llm_study"
STUDY = Study(SAVED, SAVED)
STEP = {"name": "s", "title": "t", "description": "d", "why": "w", "predictions": {"l0": "same"}}
IDEA = Idea.model_validate(
    {"folder": SAVED, "title": "t", "description": "d", "hypothesis": "h", "smallest_effect": 0.005, "plan": [STEP]}
)
SCORE = "ce_loss_score"
WINNER = 1


def scored_on_test(state: State, kept: float) -> State:
    """Return a concluded study whose winner kept this share of its difference on the test text."""
    state = replace(state, tested={}, tested_seeds={}, tested_baselines={})
    for each in state.baselines:
        event = ScoredOnTest(run=0, k=each.k, seed=each.seed, figures=each.figures)
        state.tested_baselines[each.k, each.seed] = event
    state.tested[0] = ScoredOnTest(run=0, figures=state.baselines[0].figures)
    seeds = state.replicates[WINNER]
    state.tested_seeds[WINNER] = {seed: on_test(seed, comparison, kept) for seed, comparison in seeds.items()}
    return state


def on_test(seed: int, comparison: Comparison, kept: float) -> ScoredOnTest:
    compared = comparison.metrics[SCORE]
    figures: dict[str, float | None] = {
        "l0": comparison.metrics["l0"].value,
        SCORE: compared.reference + kept * compared.difference,
    }
    return ScoredOnTest(run=WINNER, seed=seed, figures=figures)


def with_seeds_like_the_baseline(state: State) -> State:
    def like(comparison: Comparison) -> Comparison:
        metrics = {
            name: compared.model_copy(update={"value": compared.reference})
            for name, compared in comparison.metrics.items()
        }
        return comparison.model_copy(update={"metrics": metrics})

    seeds = {seed: like(comparison) for seed, comparison in state.replicates[WINNER].items()}
    return replace(state, replicates=state.replicates | {WINNER: seeds})


def prompts(state: State) -> str:
    """Return all that a language model is asked in this state."""
    own, run = Prompts(STUDY, IDEA, 128_000), state.runs[WINNER]
    asked = [
        own.plan(state, len(state.runs)),
        own.proposal(state, run.proposal, len(state.runs), 1),
        own.findings(state, WINNER),
    ]
    return "\n".join(message["content"] for messages in asked for message in messages)


@pytest.fixture
def state() -> State:
    return derive(ledger.read(STUDY.ledger))


def outcome(state: State) -> str:
    return judgements(STUDY.load_runs(state), state)[WINNER].outcome


def test_a_run_that_the_test_text_takes_back_reads_as_one_that_its_fresh_seeds_do_not_show(state: State):
    taken_back, refused = scored_on_test(state, 0.1), with_seeds_like_the_baseline(state)
    assert (outcome(taken_back), outcome(refused)) == ("not upheld", "not confirmed")
    assert prompts(taken_back) == prompts(refused)
    assert "Not confirmed: CE-loss score differs by " in prompts(taken_back)


def test_no_figure_of_the_test_text_is_in_a_prompt(state: State):
    upheld, barely = scored_on_test(state, 0.95), scored_on_test(state, 0.55)
    assert outcome(upheld) == outcome(barely) == "better"
    assert prompts(upheld) == prompts(barely)
    assert "Better (confirmed): CE-loss score differs by " in prompts(upheld)
    assert "test text" not in prompts(upheld)


def test_after_a_no_the_next_attempt_starts_from_the_file_before_the_refused_change():
    no, failed = attempts.refusal("too slow"), Verdict(name="preflight", evidence="line 3")

    def tried(*attempted: tuple[str, Verdict]) -> str:
        events: list[Event] = SECOND[:-2]
        for number, (source, verdict) in enumerate(attempted, 1):
            proposal = CHANGE.model_copy(update={"source": source})
            events = [*events, ProposalMade(run=1, proposal=proposal)]
            events.append(PreflightFailed(run=1, attempt=number, verdict=verdict, seconds=1))
        state = derive(events)
        return file_to_edit(state, state.runs[1].proposal, 1)

    assert tried(("a", failed)) == "a"
    assert tried(("a", no)) == source_of_the_baseline()
    assert tried(("a", failed), ("b", no)) == "a"
    assert tried(("a", failed), ("b", no), ("c", no)) == "a"
    assert tried(("a", no), ("b", failed)) == "b"


def source_of_the_baseline() -> str:
    return derive(SECOND).runs[0].proposal.source
