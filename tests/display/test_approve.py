"""A change is shown and asked about, on a real terminal, and nobody is asked where there is none."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from agent.display.approve import approve
try:
    print("said", approve(sys.argv[1], sys.argv[2], "Half the [width]"))
except KeyboardInterrupt:
    print("interrupted")
"""
BEFORE = "a = 1\nb = 2\nc = [/bold]\n"
AFTER = "a = 1\nb = 3\nc = [/bold]\n"


def asked(answers: bytes, before: str = BEFORE, after: str = AFTER, term: str = "xterm") -> str:
    """What a terminal shows whose user types these answers."""
    ours, theirs = pty.openpty()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": term, "LANG": "C.UTF-8"}
    child = subprocess.Popen(
        [sys.executable, "-c", ASK, before, after], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    os.write(ours, answers)
    shown = b""
    try:
        while read := os.read(ours, 4096):
            shown += read
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait() == 0
    return shown.decode()


def test_the_difference_is_shown_in_colour_and_the_answer_is_taken():
    shown = asked(b"y\n")
    assert "Half the [width]" in shown
    assert "\x1b[31m-b = 2\x1b[0m" in shown
    assert "\x1b[32m+b = 3\x1b[0m" in shown
    assert " c = [/bold]" in shown
    assert "said True" in shown


@pytest.mark.parametrize(
    ("answers", "end"),
    [(b"n\n", "said False"), (b"perhaps\n\nYES\n", "said True"), (b"\x04", "interrupted")],
)
def test_it_asks_until_there_is_an_answer(answers: bytes, end: str):
    assert asked(answers, term="dumb").splitlines()[-1].endswith(end)


def test_what_could_make_the_terminal_lie_is_shown():
    shown = asked(b"n\n", after="a = 1\nb = 3  # \u202e\x1b[2K\nc = [/bold]\n")
    assert "+b = 3  # \\u202e\\x1b[2K" in shown


def test_without_a_terminal_nobody_is_asked():
    ended = subprocess.run(
        [sys.executable, "-c", ASK, BEFORE, AFTER], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT
    )
    assert "UserError: --approve asks before each run, and there is no terminal" in ended.stderr
