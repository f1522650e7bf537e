"""Answers of a language model: parsed if they have the required form, else refused with what is missing."""

import pytest

from agent.proposers import answers
from agent.proposers.answers import BadAnswer
from agent.proposers.edits import EditError

MEASURED = ["l0", "ce_loss_score", "probing_auc_5"]
PREDICTED = "\n".join(f"- `{name}`: Up" for name in MEASURED)
GOOD = f"""\
Let me think first.

### reasoning:
It may tell more.

## Description
One paragraph
on two lines.

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
    assert (parsed.reasoning, parsed.description) == ("It may tell more.", "One paragraph on two lines.")
    assert parsed.predictions == dict.fromkeys(MEASURED, "up")
    assert [(edit.search, edit.replace, edit.file) for edit in parsed.edits] == [
        ("# Description\n", "## Description\n", "experiment.py")
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("### reasoning:", "Reasoning", "`## Reasoning` missing or empty: an answer has the sections"),
        ("It may tell more.", "", "`## Reasoning` missing or empty"),
        ("## Predictions", "## Description", "there are two sections `## Description`"),
        ("One paragraph\n", "One paragraph\n\n", "must be one paragraph"),
        ("- `l0`: Up\n", "", "no prediction for l0: each headline metric needs one"),
        ("- `l0`: Up\n", "l0: up a bit\n", "`l0: up a bit` is not a valid prediction"),
        ("- `l0`: Up\n", "- l00: up\n", "`l00` is not a headline metric: did you mean l0?"),
        (GOOD[GOOD.index("experiment.py") :], "None.", "`## Edits` has no SEARCH/REPLACE block"),
    ],
)
def test_a_missing_or_malformed_section_is_named(old: str, new: str, message: str):
    assert GOOD.count(old) == 1
    with pytest.raises(BadAnswer) as error:
        answers.parse_experiment(GOOD.replace(old, new), MEASURED)
    assert message in str(error.value)


def test_prose_becomes_one_line_without_invisible_characters():
    answer = GOOD.replace("It may tell more.", "It is bet\u200bter.\n\n## Run 9: Best\n\x1b[2K\u202eDone.")
    assert answers.parse_experiment(answer, MEASURED).reasoning == "It is better. ## Run 9: Best [2KDone."


def test_a_malformed_block_is_refused():
    with pytest.raises(EditError, match="no `>>>>>>> REPLACE`"):
        answers.parse_experiment(GOOD.replace(">>>>>>> REPLACE", ""), MEASURED)


PLAN = """\
## Reasoning
One at a time.

## Plan
1. [from baseline] **Tiers**: three of them,
   one above the other.
2) [from run 2] Weights: what they do: a note.
"""


def test_a_plan_is_parsed_run_by_run():
    runs = [(run.title, run.what, run.start) for run in answers.parse_plan(PLAN, 2, {0, 2})]
    assert runs == [("Tiers", "three of them, one above the other.", 0), ("Weights", "what they do: a note.", 2)]
    assert answers.parse_plan("## Reasoning\nEnough.\n\n## Plan\n**ALL_COMPLETED**\n", 2, {0}) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PLAN.replace("[from baseline] ", ""),
            "`1. **Tiers**: three of them,` is not a valid item of a plan: the form is",
        ),
        (PLAN.replace("run 2", "run 3"), "`Weights` starts from run 3, which has no result"),
        (PLAN.replace("1.", "First,\n1."), "must begin with a run, in the form"),
        (PLAN.replace("Weights", "W" * 81), "longer than the 80 characters of a title"),
        (PLAN.replace("Weights", "L0 {{run_2.l0}}"), "contains a placeholder"),
        (PLAN + "3. [from baseline] More: of it.\n", "the plan has 3 runs, but only 2 are left"),
        ("## Reasoning\nALL_COMPLETED", "`## Plan` missing or empty"),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused_with_the_reason(text: str, message: str):
    with pytest.raises(BadAnswer) as error:
        answers.parse_plan(text, 2, {0, 2})
    assert message in str(error.value)
