"""The answer to a hypothesis follows from the rules that its idea declared, and says by what."""

from pathlib import Path

import pytest
from builders import OK, SECOND, scored
from pydantic import ValidationError

from agent.audit import audit, notes_reader
from agent.comparison import matching
from agent.comparison.brackets import Brackets
from agent.comparison.judgement import judgements
from agent.comparison.matching import all_metrics
from agent.hypothesis import Condition, Rules
from agent.lab.results import FinalInfo, Measure
from agent.report import notes
from agent.report.answer import Answer, answer
from agent.report.story import tell
from agent.study.events import BaselineMeasured, Event, ProposalMade, ReplicateEnded, RunCommitted, RunReserved
from agent.study.records import Baseline
from agent.study.runs import Run
from agent.study.state import State, derive

MEASURES = {
    "share": Measure(title="share of pairs", definition="what is paired", main=True, control="shuffled"),
    "shuffled": Measure(title="share of pairs, shuffled", definition="the same by chance"),
}


def noise() -> list[Event]:
    """Return baselines with a CE-loss score of 0.95 at L0 16, standard deviation 0.001."""
    figures = [(16, seed, 0.95 + off) for seed, off in enumerate((-0.001, -0.001, 0, 0.001, 0.001))]
    return [
        BaselineMeasured(
            baseline=Baseline(k=k, seed=seed, figures=all_metrics(scored(k, score))), verdict=OK, seconds=1
        )
        for k, seed, score in [*figures, (15, 0, 0.95), (17, 0, 0.95)]
    ]


def study(rules: Rules | None, *scores: float, share: float | None = None, more: list[Event] | None = None):
    """Return the state and the runs of a study with these CE-loss scores, the steps of its plan being c0, c1, ..."""
    first, *rest = SECOND[:4]
    events: list[Event] = [first.model_copy(update={"answer": rules, "measures": MEASURES}), *rest, *noise()]
    infos = [scored(16, 0.95)]
    proposal = SECOND[4].proposal  # type: ignore[union-attr]
    for number, score in enumerate(scores, 1):
        named = proposal.model_copy(update={"name": f"c{number - 1}", "title": f"Change {number}"})
        events += [ProposalMade(run=number, proposal=named), RunReserved(run=number)]
        events += [RunCommitted(run=number, verdict=OK)]
        own = {} if share is None else {"share": share / number, "shuffled": 0.01}
        infos.append(scored(16, score).model_copy(update={"analysis": own}))
    state = derive([*events, *(more or [])])
    runs = [Run(run, Path("nowhere"), info) for run, info in zip(state.runs, infos, strict=True)]
    for run in runs[1:]:
        assert run.info
        run.info.comparison = matching.compare(run.info, Brackets(state.baselines))
    return state, runs


def answered(state: State, runs: list[Run]) -> Answer:
    return answer(state, runs, judgements(runs, state), MEASURES)


def rules(supports: list[dict], refutes: list[dict]) -> Rules:
    return Rules(
        supported_if_all=tuple(map(Condition.model_validate, supports)),
        refuted_if_any=tuple(map(Condition.model_validate, refutes)),
    )


COST = rules(
    [{"step": "c0", "metric": "ce_loss_score", "above": -0.005}],
    [{"step": "c0", "metric": "ce_loss_score", "below": -0.005}],
)


@pytest.mark.parametrize(
    ("score", "decision", "sentence"),
    [
        (
            0.95,
            "supported",
            "Supported: CE-loss score of run 1 differs by +0.0000 ± 0.0030 from the baseline's (asked: ",
        ),
        (0.93, "refuted", "Refuted: CE-loss score of run 1 differs by -0.0200 ± 0.0030 from the baseline's (asked: "),
        (0.945, "not decided", "Not decided: CE-loss score of run 1 differs by -0.0050 ± 0.0030 from the baseline's"),
    ],
)
def test_a_metric_decides_with_its_whole_interval(score: float, decision: str, sentence: str):
    found = answered(*study(COST, score))
    assert found.decision == decision
    assert found.sentence.startswith(sentence)


def test_a_step_that_was_not_run_decides_nothing():
    found = answered(*study(rules([{"step": "c7", "metric": "ce_loss_score", "above": -1}], COST_REFUTES), 0.95))
    assert found.sentence == "Not decided: the step c7 has no run that counts."


COST_REFUTES = [{"step": "c0", "metric": "ce_loss_score", "below": -0.005}]


@pytest.mark.parametrize(
    ("condition", "decision", "reason"),
    [
        ({"measure": "share", "above": 0.1}, "supported", "share of pairs of run 1 is 0.200 (asked: above 0.1)"),
        ({"measure": "share", "above": 0.3}, "not decided", "share of pairs of run 1 is 0.200 (asked: above 0.3)"),
        (
            {"measure": "share", "than": "shuffled", "above": 0.1},
            "supported",
            "share of pairs of run 1 is 0.200, share of pairs, shuffled 0.010, a difference of +0.190 (asked: above "
            "0.1)",
        ),
        (
            {"measure": "share", "than": "c1", "above": 0.05},
            "supported",
            "share of pairs of run 1 is 0.200, that of run 2 0.100, a difference of +0.100 (asked: above 0.05)",
        ),
        ({"measure": "share", "than": "c9", "above": 0}, "not decided", "that of the step c9 is not measured"),
        (
            {"metric": "ce_loss_score", "than": "c1", "above": -0.005},
            "supported",
            "CE-loss score of run 1 differs by +0.0000 ± 0.0039 from that of run 2 (asked: above -0.005)",
        ),
        ({"metric": "f1", "above": 0}, "not decided", "F1 of run 1 is not compared with the baseline's"),
    ],
)
def test_conditions_on_measures_and_on_other_steps(condition: dict, decision: str, reason: str):
    found = answered(*study(rules([{"step": "c0"} | condition], COST_REFUTES), 0.95, 0.95, share=0.2))
    assert found.decision == decision
    assert reason in found.sentence


def test_one_refuting_condition_outweighs_those_that_support():
    both = rules([{"step": "c0", "measure": "share", "above": 0.1}], COST_REFUTES)
    found = answered(*study(both, 0.93, share=0.2))
    assert found.decision == "refuted"
    assert "share of pairs" not in found.sentence


def test_a_winner_supports_nothing_before_fresh_seeds_and_the_test_text_have_confirmed_it():
    better = rules([{"step": "any", "metric": "ce_loss_score", "outcome": ["better"]}], COST_REFUTES)
    state, runs = study(better, 0.95, 0.97)
    assert answered(state, runs).sentence == "Not decided: run 2 is unconfirmed on CE-loss score (asked: better)."
    comparison = matching.compare(scored(16, 0.95), Brackets(state.baselines))
    seeds: list[Event] = [ReplicateEnded(run=2, seed=s, comparison=comparison, seconds=1) for s in (1, 2, 3)]
    state, runs = study(better, 0.95, 0.97, more=seeds)
    assert answered(state, runs).decision == "not decided"
    other = rules([{"step": "any", "metric": "f1", "outcome": ["better"]}], COST_REFUTES)
    assert "F1 is not the primary metric on this model" in answered(*study(other, 0.95)).sentence


def test_without_rules_the_notes_say_so():
    found = answered(*study(None, 0.95))
    assert found.sentence == (
        "Not decided: the idea declares no rules for its hypothesis; on CE-loss score no run is better than the "
        "baseline."
    )


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "expected one of metric and measure"),
        ({"metric": "ce_loss_score"}, "expected one of outcome, above and below"),
        ({"metric": "ce_loss_score", "above": 0, "below": 0}, "expected one of outcome, above and below"),
        ({"metric": "scr", "above": 0}, "expected a metric that decides"),
        ({"measure": "share", "outcome": ["better"]}, "a measure has no outcome"),
        ({"metric": "f1", "outcome": ["better"], "than": "c1"}, "leave than out"),
        ({"metric": "f1", "outcome": ["superb"]}, "Input should be 'better'"),
    ],
)
def test_a_condition_that_asks_nothing_is_refused(condition: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        Condition.model_validate({"step": "c0"} | condition)


def test_the_notes_open_with_the_answer_and_the_audit_checks_it():
    both = rules(
        [
            {"step": "c0", "measure": "share", "than": "shuffled", "above": 0.1},
            {"step": "c0", "metric": "ce_loss_score", "above": -0.005},
        ],
        COST_REFUTES,
    )
    state, runs = study(both, 0.9501, 0.93, share=0.2)
    text = notes.render(state, runs, judgements(runs, state), [], measures=MEASURES)
    opening = text.split("# Answer\n")[1].split("\n\n")[0]
    assert len(opening.splitlines()) <= 15
    assert opening.startswith(
        "Question: It helps.\nSupported: share of pairs of run 1 is 0.200, share of pairs, shuffled"
    )
    assert max(map(len, text.splitlines())) <= 160

    def status(text: str) -> set[str]:
        return {finding.status for finding in audit.findings(notes_reader.parse(text))}

    assert status(text) == {"supported"}
    for was, becomes in (
        ("Supported: ", "Refuted: "),
        ("is 0.200, share", "is 0.050, share"),
        ("  2  Change 2  16.00         0.9300", "  2  Change 2  16.00         0.9900"),
        ("-0.0200 ± 0.0030  worse", "-0.0200 ± 0.0030  better"),
        ("-0.0200 ± 0.0030  worse", "+0.0200 ± 0.0030  worse"),
    ):
        assert was in text
        if was == "Supported: ":
            continue  # all that it names is beyond its limit, so the figures alone cannot tell the two apart
        assert status(text.replace(was, becomes, 1)) != {"supported"}, becomes


def test_figures_of_a_directory_contradict_a_table_that_was_changed(tmp_path: Path):
    state, runs = study(COST, 0.9501, share=0.2)
    text = notes.render(state, runs, judgements(runs, state), [], measures=MEASURES)
    for run in runs:
        (tmp_path / f"run_{run.number}").mkdir()
        assert run.info
        (tmp_path / f"run_{run.number}" / "final_info.json").write_text(run.info.model_dump_json())
    known = audit.known_figures.from_directory(tmp_path)
    assert {finding.status for finding in audit.findings(notes_reader.parse(text), known)} == {"supported"}
    row = next(line for line in text.splitlines() if line.startswith("share of pairs "))
    changed = text.replace(row, row.replace("0.200", "0.900"))
    known = audit.known_figures.from_directory(tmp_path)
    wrong = [each for each in audit.findings(notes_reader.parse(changed), known) if each.status != "supported"]
    assert [each.quote.split("  ")[0] for each in wrong] == ["share of pairs"]


def test_no_line_is_too_long_whatever_a_title_is():
    state, runs = study(COST, 0.9501, 0.93, share=0.2)
    for run in runs[1:]:
        run.state.proposal = run.state.proposal.model_copy(update={"title": "a title of many words " * 20})
    long = {name: measure.model_copy(update={"title": "m" * 300 + name}) for name, measure in MEASURES.items()}
    text = notes.render(state, runs, judgements(runs, state), [], measures=long)
    assert max(map(len, text.splitlines())) <= 160
    assert "  1  a title of many words a title" in text


def test_a_story_names_what_failed_and_what_it_cost():
    state, runs = study(None, 0.95)
    broken = FinalInfo(verdict=OK.model_copy(update={"name": "nan", "evidence": "loss was not finite at step 7"}))
    runs[1] = Run(runs[1].state, runs[1].directory, broken)
    story = tell(state, runs, {}, MEASURES, "the model: 3 requests, 10 tokens read, 2 written, $0.01")
    assert story.failed == "run 1: nan (loss was not finite at step 7)"
    assert story.cost.endswith("the model: 3 requests, 10 tokens read, 2 written, $0.01")
    assert story.rows[1].cells[2:] == ("", "", "", "nan", *("",) * (len(story.columns) - 6))
