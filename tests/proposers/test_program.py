"""A study whose language model is a program: it needs no key, is killed and resumed, and its tokens are estimates."""

import shlex
import signal
import sys
from pathlib import Path

import pytest
from standin import HERE, Checkout, make_checkout

from agent.llm import transcript

MODEL = '''\
"""Answer by what is asked for."""

import sys

asked = sys.stdin.read().rpartition("===== user =====")[2]
if "Are you there?" in asked:
    print("Yes.")
elif "SEARCH quotes whole lines" in asked:
    print("""\
## Reasoning
To see.

## Description
The behaviour is another one.

## Predictions
l0: same
explained_variance_centered: up
ce_loss_score: up
loss_added: down
alive_fraction: same
probing_auc_5: same

## Edits
<<<<<<< SEARCH
BEHAVIOUR = "sound"
=======
BEHAVIOUR = "fine"
>>>>>>> REPLACE
""")
elif "## Plan" in asked:
    print("## Reasoning\\nTo see.\\n\\n## Plan\\n1. [from baseline] Another behaviour: to see.")
else:
    print("## Findings\\nThe behaviour was set.")
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = make_checkout(tmp_path)
    made.plan("fine")
    return made


@pytest.mark.slow
def test_a_study_asks_a_program_and_goes_on_with_it(checkout: Checkout, tmp_path: Path):
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    command = shlex.join([sys.executable, str(model)])
    path = {"PYTHONPATH": f"{checkout.root}:{HERE / 'power_cut'}", "STANDIN_KILL_AFTER": "plan_made"}
    ended = checkout.run(1, "--llm-command", command, **path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert f"asking {command} for a word\n" in ended.stdout
    assert f"proposals: {command}\n" in ended.stdout
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    started = checkout.state.started.language_model
    assert started
    assert started.command == command
    run = checkout.state.runs[1]
    assert run.verdict
    assert (run.proposal.title, run.verdict.name, run.described) == (
        "Another behaviour",
        "ok",
        "The behaviour was set.",
    )
    exchanges = transcript.read(checkout.study.transcript)
    purposes = ["check", "plan", "check", "proposal", "description", "conclusion"]
    assert [exchange.purpose for exchange in exchanges] == purposes
    assert all(exchange.usage.estimated and not exchange.error for exchange in exchanges)
    assert "the model: 6 requests, about " in checkout.notes
    assert "the model: 6 requests, about " in ended.stdout


def test_a_program_that_fails_is_told_before_a_study_is_begun(checkout: Checkout):
    ended = checkout.run(1, "--llm-command", f"{sys.executable} -c 'exit(\"log in first\")'")
    assert ended.returncode == 2
    assert "no answer; asking again in 4 s\n" in ended.stdout
    assert "failed (exit code 1): log in first: try the program by hand\n" in ended.stderr
    assert not (checkout.root / "runs").exists()
