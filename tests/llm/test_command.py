"""A program as the language model: what it is given, what its output means, and that nothing of it is left."""

import os
import shlex
import sys
import time
from pathlib import Path

import psutil
import pytest
from talk import HELLO, Talk

from agent.lab.errors import UserError
from agent.llm.client import LLMError
from agent.llm.command import Command
from agent.llm.limits import Limits
from agent.llm.redact import REMOVED
from agent.llm.replay import Replay


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(tmp_path, monkeypatch)


def program(code: str, timeout: float = 20) -> Command:
    return Command(shlex.join([sys.executable, "-c", f"import os, sys, time\n{code}"]), timeout)


def test_a_program_reads_the_roles_and_messages_and_its_output_is_the_answer(talk: Talk):
    messages = [*HELLO, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Well\udcff?"}]
    client = talk.client_of(program("print('\\n', sys.stdin.read(), '\\n')"), Limits(prices=(1.0, 1.0)))
    answered = client.ask(messages, "greeting")
    assert answered.split("\n\n") == [
        "===== system =====\nBe brief.",
        "===== user =====\nHello?",
        "===== assistant =====\nHm.",
        "===== user =====\nWell??",
    ]
    (line,) = talk.lines
    assert line["usage"]["estimated"]
    assert line["usage"]["tokens_out"] >= len(answered) / 3
    assert line["cost"] > 0
    assert client.spent.estimated
    assert Replay(talk.path).ask(messages, "greeting") == answered


def test_a_program_sees_nothing_of_the_study(talk: Talk):
    talk.patch.setenv("SAE_AGENT_STUDY", "here")
    talk.patch.setenv("MY_SETTING", "kept")
    show = "print(os.getcwd(), os.listdir(), [n for n in os.environ if 'SAE' in n], os.environ['MY_SETTING'],"
    seen = talk.client_of(program(f"{show} os.environ['PWD'])")).ask(HELLO, "greeting").split()
    assert seen[1:4] == ["[]", "[]", "kept"]
    assert seen[4] == seen[0] != os.getcwd()
    assert not Path(seen[0]).exists()


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("sys.exit('line 1\\nnot logged in')", "connection", r"failed \(exit code 1\): line 1; not logged in: try the"),
        ("sys.exit(3)", "connection", r"failed \(exit code 3\): try the program by hand"),
        ("os.abort()", "connection", r"failed \(exit code -6\)"),
        ("print()", "malformed", "is empty"),
        ("time.sleep(60)", "timeout", "within 0.5 s"),
    ],
)
def test_a_program_that_gives_no_answer_fails_with_its_last_words(talk: Talk, code: str, kind: str, message: str):
    with pytest.raises(LLMError, match=message) as caught:
        talk.client_of(program(code, timeout=0.5 if kind == "timeout" else 20)).ask(HELLO, "greeting")
    assert caught.value.kind == kind
    assert talk.waited == ([] if kind == "malformed" else [1, 4, 16, 60])


def test_a_program_that_writes_without_end_is_ended(talk: Talk):
    with pytest.raises(LLMError, match="wrote more than 16 MiB"):
        talk.client_of(program("while True: print('y' * 100_000)")).ask(HELLO, "greeting")


@pytest.mark.parametrize("end", ["", "time.sleep(60)"])
def test_nothing_that_a_program_started_is_left(talk: Talk, tmp_path: Path, end: str):
    """Neither after its answer, for which a child that holds its output is not waited for, nor after its time."""
    note = tmp_path / "pid"
    start = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(p.pid))"
    begun = time.monotonic()
    command = program(f"{start}; print('Hi.', flush=True); {end}", timeout=2)
    if end:
        with pytest.raises(LLMError, match="within 2 s"):
            talk.client_of(command).check()
    else:
        assert talk.client_of(command).ask(HELLO, "greeting") == "Hi."
    assert time.monotonic() - begun < 20
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(int(note.read_text())):
        time.sleep(0.05)
    assert not _runs(int(note.read_text()))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_secrets_are_in_no_answer_and_no_message(talk: Talk):
    talk.patch.setenv("MY_TOKEN", "hush-hush-hush")
    shown = "os.environ['MY_TOKEN']"
    assert talk.client_of(program(f"print({shown})")).ask(HELLO, "greeting") == REMOVED
    with pytest.raises(LLMError, match="failed") as caught:
        talk.client_of(program(f"sys.exit({shown})")).ask(HELLO, "again")
    assert "hush" not in str(caught.value) + talk.path.read_text()
    with pytest.raises(UserError, match="holds a secret"):
        Command("cat hush-hush-hush")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "there is no such program"),
        ("no-such-program -p", "no-such-program -p: there is no such program"),
        ("/etc/passwd", "there is no such program"),
        ("cat 'x", "No closing quotation"),
    ],
)
def test_what_is_no_program_is_refused(command: str, message: str):
    with pytest.raises(UserError, match=message):
        Command(command)


def test_a_program_is_found_by_a_relative_path(talk: Talk, tmp_path: Path):
    script = tmp_path / "answers"
    script.write_text("#!/bin/sh\necho Hi.\n")
    script.chmod(0o755)
    talk.patch.chdir(tmp_path)
    assert talk.client_of(Command("./answers")).ask(HELLO, "greeting") == "Hi."


def test_a_budget_holds_for_a_program(talk: Talk):
    client = talk.client_of(program("print('word ' * 900)"), Limits(max_tokens=1700))
    client.ask(HELLO, "greeting")
    with pytest.raises(LLMError, match="a larger --max-llm-tokens") as caught:
        client.ask(HELLO, "again")
    assert caught.value.kind == "budget"
