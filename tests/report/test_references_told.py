"""What tables, notes and figures say of an SAE from elsewhere, and what the audit says of them."""

from pathlib import Path

import pytest
from builders import OK, SECOND, STARTED, history, measured, run, scored

from agent.audit import audit, notes_reader
from agent.comparison import matching
from agent.comparison.brackets import Brackets
from agent.comparison.judgement import judgements
from agent.comparison.matching import all_metrics
from agent.lab.results import FinalInfo, Imported
from agent.lab.verdicts import Verdict
from agent.report import notes, plots, references
from agent.study.events import BaselineMeasured, Event, RunCommitted
from agent.study.records import Baseline, Reference
from agent.study.reference_events import ReferenceImported, ReferenceScored
from agent.study.runs import Run
from agent.study.state import State, derive


def imported(name: str, **known: object) -> ReferenceImported:
    origin = {"source": f"/saes/{name}", "format": "saelens", "architecture": "topk"} | known
    reference = Reference(name=name, d_sae=512, imported=Imported.model_validate(origin))
    return ReferenceImported(reference=reference, digests={})


def scored_as(name: str, info: FinalInfo) -> ReferenceScored:
    figures = all_metrics(info) if info.verdict.ok else {}
    return ReferenceScored(name=name, verdict=info.verdict, figures=figures, errors={}, seconds=1, digests={})


def baseline(k: int, seed: int, score: float) -> BaselineMeasured:
    figures = all_metrics(scored(k, score + 0.01 * (k - 16)))
    return BaselineMeasured(baseline=Baseline(k=k, seed=seed, figures=figures), verdict=OK, seconds=1)


BASELINES: list[Event] = [
    *(baseline(16, seed, 0.95 + off) for seed, off in enumerate((-0.001, 0, 0.001))),
    *(baseline(k, 0, 0.95) for k in (15, 17)),
]


def told(*events: Event) -> tuple[State, str]:
    """Return the state and the notes of a study with these events."""
    state = derive([STARTED, *SECOND[1:], *BASELINES, *events, RunCommitted(run=1, verdict=OK)])
    runs = [Run(each, Path("nowhere"), scored(16, 0.95)) for each in state.runs]
    return state, notes.render(state, runs, judgements(runs, state), [])


def test_a_reference_on_the_baselines_curve_has_a_difference_without_interval_or_outcome():
    _, text = told(imported("mine", declared_tokens=4_000_000, declared_l0=16), scored_as("mine", scored(16, 0.93)))
    row = next(line for line in text.splitlines() if "reference mine, d_sae 512, 4,000,000 tokens" in line)
    assert row.split()[-4:-2] == ["-0.0200", "reference"]
    flat = text.replace("\n  ", " ")
    assert "Reference mine was trained elsewhere, on 4,000,000 tokens: topk with d_sae 512 (the study's 1,024)" in flat
    assert (
        "Reference mine has L0 16.00 (declared 16); it is one SAE, so without intervals: explained variance 0.80"
        in flat
    )
    assert (
        "Reference mine differs from the baseline at L0 16.00 by explained variance +0.0000, CE-loss score -0.0200, "
        in flat
    )


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (
            scored(40, 0.93),
            "is not compared with the baseline: no baselines on both sides of L0 40.00 within 10% of it.",
        ),
        (FinalInfo(verdict=Verdict(name="nan", evidence="NaN weights")), "has no result: nan (NaN weights)."),
        (None, "is not scored yet."),
    ],
)
def test_a_reference_without_a_difference_says_why(info: FinalInfo | None, said: str):
    _, text = told(imported("mine"), *([scored_as("mine", info)] if info else []))
    assert f"Reference mine {said}" in text.replace("\n  ", " ")
    assert "an unknown number of tokens" in text
    assert "±" not in next(line for line in text.splitlines() if "reference mine" in line)


def test_the_audit_knows_the_figures_of_a_reference_and_finds_false_ones():
    _, text = told(imported("mine"), scored_as("mine", scored(16, 0.93)))

    def statuses(text: str) -> set[str]:
        return {each.status for each in audit.findings(notes_reader.parse(text)) if "reference mine" in each.quote}

    assert statuses(text) == {"supported"}
    lines = text.splitlines()
    row = next(line for line in lines if "reference mine" in line)
    for true, false in (
        ("0.9300", "0.9900"),
        ("-0.0200", "+0.0200"),
        ("-0.0200", "-0.02 ± 0.001"),
        ("  reference", "  better"),
    ):
        assert statuses(text.replace(row, row[::-1].replace(true[::-1], false[::-1], 1)[::-1])) == {"contradicted"}


def test_each_figure_shows_a_reference_or_says_why_not(tmp_path: Path):
    state, _ = told(
        imported("near"), imported("far"), scored_as("near", scored(16, 0.5)), scored_as("far", scored(40, 0.97))
    )
    info = measured(16, 0.85, 0.95, 0.9, 0.7)
    runs = [run(tmp_path, number, f"Run {number}", info) for number in (0, 1)]
    for each in runs:
        history(each.directory, info)
    curve = Brackets(state.baselines)
    assert runs[1].info
    runs[1].info.comparison = matching.compare(runs[1].info, curve)
    shown = references.shown(state)
    curves, front, differences = plots.draw_study(runs, curve, {}, "ce_loss_score", 0.005, None, shown)
    assert "Not shown: reference near was trained elsewhere; reference far was trained elsewhere." in curves.description
    assert "Yellow marks are SAEs that were trained elsewhere: near and far." in front.description
    assert "Yellow marks are SAEs that were trained elsewhere, without an interval: near." in differences.description
    assert "reference far (no baselines on both sides of L0 40.00 within 10% of it)" in differences.description
    assert differences.drawing
    written = [text.get_text() for text in differences.drawing.axes[0].texts]
    assert any(text.startswith("← -0.4") for text in written), "far beyond the runs it stands in digits"
