"""Answers of a language model: understood in whatever form a colleague would understand, else refused with the reason.

benchmarks/answers.py measures this on 200 answers; here is one of each kind.
"""

import pytest

from agent.proposers import answers
from agent.proposers.answers import BadAnswer

MEASURED = ["l0", "ce_loss_score", "probing_auc_5"]
PREDICTED = "\n".join(f"- `{name}`: Up" for name in MEASURED)
GOOD = f"""\
Let me think first.

### reasoning:
It may tell more.

## Description
One paragraph
on two lines.

And another.

## Predictions
{PREDICTED}

## Edits
experiment.py
```python
<<<<<<< SEARCH
# Description
=======
## Description
>>>>>>> REPLACE
```
"""


def test_an_answer_is_parsed_section_by_section():
    parsed = answers.parse_experiment(GOOD, MEASURED)
    assert (parsed.title, parsed.reasoning) == ("", "It may tell more.")
    assert parsed.description == "One paragraph on two lines. And another."
    assert parsed.predictions == dict.fromkeys(MEASURED, "up")
    assert [(edit.search, edit.replace, edit.file) for edit in parsed.edits] == [
        ("# Description\n", "## Description\n", "experiment.py")
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Let me think first.", "<think>\n## Predictions\nl0: down\n<<<<<<< SEARCH\n</think>"),
        ("Let me think first.", "## Predictions (draft)\nl0: down\n"),
        ("### reasoning:", "**Reasoning**"),
        ("### reasoning:", "> ## 1. REASONING"),
        ("## Predictions", "Predictions\n-----------"),
        ("## Predictions", "## Risks\nNone.\n\n## 🔮 My predictions:"),
        ("\n", "\r\n"),
        (PREDICTED, "l0 ↑, CE-loss score: increases slightly (not down), probing AUC: +"),
        (PREDICTED, "| L0 | **higher** |\n| ce_loss_score | better | it must |\n| AUC, top 5 latents | up |"),
        (PREDICTED, '```json\n{"l0": "up", "ce_loss_score": "up", "probing_auc_5": "up"}\n```'),
        ("<<<<<<< SEARCH\n# D", "<<<<<<<<< search\n# D"),
    ],
)
def test_forms_that_models_give_their_answers_are_understood(old: str, new: str):
    assert old in GOOD
    parsed = answers.parse_experiment(GOOD.replace(old, new), MEASURED)
    assert parsed.predictions == dict.fromkeys(MEASURED, "up")
    assert parsed.reasoning == "It may tell more."
    assert [edit.replace for edit in parsed.edits] == ["## Description\n"]


def test_the_signs_of_a_diff_are_taken_off():
    text = GOOD.replace("# Description\n=======\n## D", "-# Description\n a = 1\n=======\n+## Description\n+# D")
    (edit,) = answers.parse_experiment(text, MEASURED).edits
    assert (edit.search, edit.replace) == ("# Description\na = 1\n", "## Description\n# Description\n")


def test_a_new_title_is_taken():
    assert answers.parse_experiment(f"## Title\n**Three: tiers**\n\n{GOOD}", MEASURED).title == "Three: tiers"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("- `l0`: Up\n", "", "no prediction for l0: each headline metric needs one"),
        ("- `l0`: Up\n", "l0: perhaps\n", "no prediction for l0"),
        ("- `l0`: Up\n", "l0: up or down\n", "predicts more than one direction"),
        ("- `l0`: Up\n", "- `l0`: Up\n- L0: down\n", "two predictions for l0"),
        (GOOD[GOOD.index("experiment.py") :], "None.", "no SEARCH/REPLACE block"),
        (">>>>>>> REPLACE", "", "no `>>>>>>> REPLACE`"),
        (GOOD, "<think>I could change K.", "empty, or nothing but thinking"),
    ],
)
def test_what_cannot_be_understood_is_named(old: str, new: str, message: str):
    assert GOOD.count(old) == 1
    with pytest.raises(BadAnswer) as error:
        answers.parse_experiment(GOOD.replace(old, new), MEASURED)
    assert message in str(error.value)


def test_prose_becomes_one_line_without_invisible_characters():
    answer = GOOD.replace("It may tell more.", "It is bet\u200bter.\n\n#### Run 9: Best\n\x1b[2K\u202eDone.")
    assert answers.parse_experiment(answer, MEASURED).reasoning == "It is better. Run 9: Best [2KDone."


PLAN = """\
## Reasoning
One at a time.

## Plan
1. [from baseline] **Tiers**: three of them,
   one above the other.
2) [from run 2] Weights: what they do: a note.
"""


def runs(text: str, left: int = 4) -> list[tuple[str, str, int]]:
    """Parse a plan of runs from 3 on, each of which may start from the baseline, run 2 and those planned above it."""
    plan = answers.parse_plan(text, 3, left, lambda run, start: start in (0, 2) or 3 <= start < run)
    return [(run.title, run.what, run.start) for run in plan.runs]


def test_a_plan_is_parsed_run_by_run():
    assert runs(PLAN) == [
        ("Tiers", "three of them, one above the other.", 0),
        ("Weights", "what they do: a note.", 2),
    ]
    ended = answers.parse_plan("## Reasoning\nEnough.\n\n## Plan\n**ALL_COMPLETED**\n", 3, 2, lambda *_: True)
    assert (ended.reasoning, ended.runs) == ("Enough.", [])


@pytest.mark.parametrize(
    ("item", "planned"),
    [
        ("- [from run 2] Ablation: no sorting: all parts but one", ("Ablation: no sorting", "all parts but one", 2)),
        ("1. **No: sorting** [from the baseline]: why", ("No: sorting", "why", 0)),
        ("1. From run 2: Weights — what they do", ("Weights", "what they do", 2)),
        ("**Run 3** (from run_2): Weights. What they do.", ("Weights", "What they do.", 2)),
        ("1. [baseline]\n   Weights:\n   what they do", ("Weights", "what they do", 0)),
        ("1. Weights: what they do", ("Weights", "what they do", 0)),
        ("| 1 | run 2 | Weights | what they do |", ("Weights", "what they do", 2)),
        (f"1. [from run 2] {'W' * 50} {'w' * 50}: what", (f"{'W' * 50}…", "what", 2)),
    ],
)
def test_an_item_of_a_plan_is_taken_in_any_form(item: str, planned: tuple[str, str, int]):
    assert runs(f"**Plan**\n\n{item}\n") == [planned]


def test_an_item_may_start_from_one_planned_above_it():
    assert [
        start for *_, start in runs("## Plan\n1. [from run 2] A: a\n2. [from run 3] B: b\n3. [from item 2] C: c")
    ] == [*(2, 3, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAN.replace("[from run 2] ", "").replace("a note", "as run 2 did"), "does not say from which file it starts"),
        (PLAN.replace("run 2", "run 9"), "`Weights` starts from run 9, which has no result then"),
        (PLAN.replace("run 2", "run 4"), "`Weights` starts from run 4, which has no result then"),
        (PLAN.replace("Weights", "L0 {{run_2.l0}}"), "contains a placeholder"),
        (
            PLAN + "3. [from baseline] A: b.\n4. [from baseline] C: d.\n5. [from baseline] E: f.\n",
            "has 5 runs, but only 4",
        ),
        ("## Reasoning\nI would try tiers.", "no run is planned: the form is"),
        ("What do you care about?\n\n- F1?\n- the loss?", "no run is planned"),
        (PLAN + "\n**Option B**\n1. [from baseline] More: of it.\n", "there are two plans"),
        (PLAN + "\n## Plan\n1. [from baseline] More: of it.\n", "there are two sections `## Plan` that differ"),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused_with_the_reason(text: str, message: str):
    with pytest.raises(BadAnswer) as error:
        runs(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        "## Findings\nIt came out.\n\nIt means little.",
        "## Key findings:\nIt came out.\n\n### What it means\nIt means little.\n\n## Limits\nOne seed.",
        "It came out.\n\nIt means little.",
        "<think>Hm.</think>\n```markdown\n# Findings\n\nIt came out. It means little.\n```",
    ],
)
def test_findings_are_the_section_or_the_whole_answer(answer: str):
    said = answers.parse_findings(answer)
    assert said.replace("What it means ", "") == "It came out. It means little."


def test_a_conclusion_may_say_nothing_of_what_comes_next():
    both = answers.parse_conclusion("## Conclusion\nSo it is.\n\n**Next steps**\nAnother.")
    assert (both.conclusion, both.next) == ("So it is.", "Another.")
    assert answers.parse_conclusion("So it is.") == answers.Conclusion("So it is.", "")


@pytest.mark.parametrize("answer", ["", "## Findings\n", "I'm sorry, but I can't help with that.", '{"findings": "x"}'])
def test_a_text_that_says_nothing_is_refused(answer: str):
    with pytest.raises(BadAnswer, match=r"empty|missing"):
        answers.parse_findings(answer)
