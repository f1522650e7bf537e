"""A language model as proposer, from end to end: the real client, a scripted server, stand-in experiments."""

from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer
from standin import Checkout, make_checkout

PREDICTIONS = """l0: same
explained_variance_centered: up
ce_loss_score: up
loss_added: down
alive_fraction: same
probing_auc_5: same"""


def plan(*titles: str) -> str:
    runs = "\n".join(f"{i}. [from baseline] {title}: it is tried to see." for i, title in enumerate(titles, 1))
    return f"## Reasoning\nOne change at a time.\n\n## Plan\n{runs or 'ALL_COMPLETED'}"


def edit(old: str, new: str, description: str = "The behaviour is another one.", why: str = "It may tell more.") -> str:
    return f"""## Reasoning
{why}

## Description
{description}

## Predictions
{PREDICTIONS}

## Edits
<<<<<<< SEARCH
{old}
=======
{new}
>>>>>>> REPLACE
"""


def behave(behaviour: str, before: str = "sound", **prose: str) -> str:
    return edit(f'BEHAVIOUR = "{before}"', f'BEHAVIOUR = "{behaviour}"', **prose)


def describe(text: str) -> str:
    return f"## Description\n{text}"


GOOD = "The behaviour was set. Its CE-loss score {{run_%d vs baseline ce_loss_score}}; L0 is {{run_%d.l0}}."


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    return checkout


def study(checkout: Checkout, max_runs: int, *script: Answer, options: tuple[str, ...] = ()):
    """A study whose model answers as scripted; what ended, and the server with its requests."""
    with ScriptedServer(*script) as server:
        llm = ("--proposer", "llm", "--llm", "scripted", "--run-timeout", "3")
        ended = checkout.run(max_runs, *llm, *options, **server.environment)
    return ended, server


def test_first(checkout: Checkout):
    ended, server = study(
        checkout,
        2,
        plan("Better"),
        behave("better"),
        describe(GOOD % (1, 1)),
        plan(),
    )
    print(ended.stdout, ended.stderr)
    print(checkout.notes)
    for request in server.requests:
        print("=" * 100)
        print(request.said)
    assert 0
