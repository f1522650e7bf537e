"""`--approve`: a change and its reasons are shown and asked about on a real terminal, and refused without one."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from agent.display.approve import refusal
texts = {"Description": "The [width]\u202e is halved.", "Reasons": "", "Predictions": "L0 same"}
try:
    print("refused:", refusal(sys.argv[1], sys.argv[2], "Half the [width]", texts))
except KeyboardInterrupt:
    print("interrupted")
"""
BEFORE = "a = 1\nb = 2\nc = [/bold]\n"
AFTER = "a = 1\nb = 3\nc = [/bold]\n"


def output_of_asking(answers: bytes, before: str = BEFORE, after: str = AFTER, term: str = "xterm") -> str:
    """Return what the terminal shows to a user who types these answers."""
    ours, theirs = pty.openpty()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": term, "LANG": "C.UTF-8"}
    child = subprocess.Popen(
        [sys.executable, "-c", ASK, before, after], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    os.write(ours, answers)
    output = b""
    try:
        while read := os.read(ours, 4096):
            output += read
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait() == 0
    return output.decode()


def test_the_change_is_shown_with_what_is_said_of_it_and_the_answer_is_returned():
    output = output_of_asking(b"y\n")
    assert "Half the [width]" in output
    assert "Description: The [width]\\u202e is halved." in output
    assert "Predictions: L0 same" in output
    assert "Reasons" not in output, "it has none"
    assert "\x1b[31m-b = 2\x1b[0m" in output
    assert "\x1b[32m+b = 3\x1b[0m" in output
    assert " c = [/bold]" in output
    assert "refused: None" in output


@pytest.mark.parametrize(
    ("answers", "last_line"),
    [
        (b"n\nthe width\tis fixed, mostly\n", "refused: the width is fixed, mostly"),
        (b"no\n\n", "refused: "),
        (b"perhaps\n\nYES\n", "refused: None"),
        (b"\x04", "interrupted"),
        (b"n\n\x04", "interrupted"),
    ],
)
def test_the_question_is_repeated_until_it_is_answered(answers: bytes, last_line: str):
    assert output_of_asking(answers, term="dumb").splitlines()[-1].endswith(last_line)


def test_control_characters_are_shown_as_escapes():
    output = output_of_asking(b"n\n\n", after="a = 1\nb = 3  # \u202e\x1b[2K\nc = [/bold]\n")
    assert "+b = 3  # \\u202e\\x1b[2K" in output


def test_asking_without_a_terminal_is_an_error():
    result = subprocess.run(
        [sys.executable, "-c", ASK, BEFORE, AFTER], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT
    )
    assert "UserError: --approve asks before each run, but there is no terminal" in result.stderr
