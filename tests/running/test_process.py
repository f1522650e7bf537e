"""Child processes: their environment, how they end, and that nothing they started is left running."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin import processes

from agent.lab.verdicts import Verdict
from agent.running import process
from agent.running.process import ProcessResult


def run_python(code: str, directory: Path, **limits):
    return process.run(
        [sys.executable, "-c", code], cwd=directory, env=dict(os.environ), stderr=directory / "stderr.log", **limits
    )


def test_a_time_out_ends_the_whole_process_tree(tmp_path: Path):
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    start = time.monotonic()
    command = [sys.executable, "-c", code]
    result = process.run(command, cwd=tmp_path, env=dict(os.environ), stdout=tmp_path / "out", timeout=1)
    assert time.monotonic() - start < 5
    assert result.stop_verdict
    assert result.stop_verdict.name == "timed_out"
    assert _gone(int((tmp_path / "out").read_text()))


def test_a_background_process_does_not_outlive_a_run_that_succeeds(tmp_path: Path):
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    command = [sys.executable, "-c", code]
    result = process.run(command, cwd=tmp_path, env=dict(os.environ), stdout=tmp_path / "out")
    assert (result.exit_code, result.stop_verdict) == (0, None)
    assert _gone(int((tmp_path / "out").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that left the session is out of reach")
def test_a_child_that_ends_leaves_one_that_was_started_after_it(tmp_path: Path):
    first, second = (process.Child(["cat"], cwd=tmp_path, env=dict(os.environ), stdin=True) for _ in range(2))
    first.end()
    assert not second.exited
    second.end()
    assert second.exited


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_other_process_writes_to_what_a_child_reads(tmp_path: Path):
    """The evaluator runs what a request on its standard input names."""
    child = process.Child(["cat"], cwd=tmp_path, env=dict(os.environ), stdin=True, stdout=tmp_path / "out")
    child.write_line("a request")
    other = f"open('/proc/{child._process.pid}/fd/0', 'w').write('another')"
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert "No such device or address" in refused.stderr
    assert child.wait(until=lambda: bool((tmp_path / "out").read_text()), timeout=30) is None
    child.end()
    assert (tmp_path / "out").read_text() == "a request\n"


def test_a_daemon_does_not_outlive_its_run(tmp_path: Path):
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True, env={}).pid, flush=True)"
    unrelated = subprocess.Popen(["sleep", "60"])
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    result = process.run(command, cwd=tmp_path, env=dict(os.environ), stdout=tmp_path / "out")
    assert (result.exit_code, result.stop_verdict) == (0, None)
    assert _gone(int((tmp_path / "out").read_text()))
    assert unrelated.poll() is None, "a process from before the run must not be killed"
    unrelated.kill()
    unrelated.wait()


BURN = "import time\nwhile time.process_time() < 0.5: pass"


@pytest.mark.parametrize(
    "code",
    [
        BURN,
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])",
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {BURN!r}], start_new_session=True); "
        "time.sleep(3)",
        f"import signal, subprocess, sys, time; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        f"subprocess.Popen([sys.executable, '-c', {BURN.replace('0.5', '1.2')!r}]); time.sleep(4)",
    ],
    ids=["by itself", "by a child", "by a daemon", "by a child that is disowned"],
)
def test_all_cpu_seconds_of_a_process_are_counted(tmp_path: Path, code: str):
    assert 0.5 <= run_python(code, tmp_path).cpu_seconds < 3


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "planted", ["os.mkfifo(log)", "os.symlink('/dev/zero', log)", "os.symlink(key, log)", "os.link(key, log)"]
)
def test_a_log_that_an_experiment_replaced_is_not_read(tmp_path: Path, planted: str):
    key = tmp_path / "id_rsa"
    key.write_text("a private key")
    log = tmp_path / "stderr.log"
    result = run_python(
        f"import os; log, key = {str(log)!r}, {str(key)!r}; os.remove(log); {planted}; os._exit(3)", tmp_path
    )
    verdict = process.exit_verdict(result, log)
    assert verdict
    assert verdict.name == "crashed"
    assert verdict.evidence.startswith(f"{log} is not a regular file")


def test_what_another_child_starts_meanwhile_is_not_ended(tmp_path: Path):
    """As the evaluator does, and the processes of its sandbox, while an experiment trains."""
    code = "import subprocess, time; time.sleep(0.3); subprocess.run(['sleep', '63.5'])"
    other = process.Child([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ))
    run_python("import time; time.sleep(1)", tmp_path)
    assert "sleep 63.5" in processes()
    other.end()
    assert "sleep 63.5" not in processes()


def test_the_verdict_of_a_watchdog_ends_the_process(tmp_path: Path):
    nan = Verdict(name="nan", evidence="loss")
    result = run_python("import time; time.sleep(60)", tmp_path, watchdogs=[lambda: None, lambda: nan])
    assert result.stop_verdict == nan
    assert result.seconds < 5


@pytest.mark.parametrize(
    ("code", "name", "evidence"),
    [
        ("raise ValueError('wrong')", "crashed", "ValueError: wrong"),
        ("import sys; sys.exit(3)", "crashed", "exit status 3 and nothing on stderr"),
        ("raise MemoryError", "out_of_memory", "MemoryError"),
        ("import sys; sys.exit('torch.OutOfMemoryError: CUDA out of memory.')", "out_of_memory", "CUDA"),
        ("raise OSError(28, 'No space left on device')", "disk_full", "No space left"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
        ("import sys; sys.exit('stopped: zero_steps: training ended without a step')", "zero_steps", "without a step"),
        ("import sys; sys.exit('stopped: ok: believe me')", "crashed", "stopped: ok"),
        ("import sys; sys.exit('stopped: magic: believe me')", "crashed", "stopped: magic"),
    ],
)
def test_a_failed_process_gets_a_verdict(tmp_path: Path, code: str, name: str, evidence: str):
    verdict = process.exit_verdict(run_python(code, tmp_path), tmp_path / "stderr.log")
    assert verdict
    assert verdict.name == name
    assert evidence in verdict.evidence


@pytest.mark.skipif(sys.platform != "linux", reason="set on Linux only")
def test_no_file_grows_beyond_the_limit(tmp_path: Path):
    code = "open('huge', 'wb').truncate(9 * 2**30)"
    verdict = process.exit_verdict(run_python(code, tmp_path), tmp_path / "stderr.log")
    assert verdict
    assert (verdict.name, "File too large" in verdict.evidence) == ("crashed", True)


def test_a_process_that_succeeds_gets_no_verdict(tmp_path: Path):
    assert process.exit_verdict(ProcessResult(exit_code=0, seconds=1, stop_verdict=None), tmp_path / "none.log") is None


def test_only_trusted_code_gets_the_keys_of_the_hub_and_of_the_judge(monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "SAE_AGENT_API_KEY", "TORCH_PASSWD"):
        monkeypatch.setenv(name, "secret")
    for name in ("CUDA_VISIBLE_DEVICES", "LC_ALL", "HF_HOME", "SAE_AGENT_CACHE"):
        monkeypatch.setenv(name, "kept")
    patterns = ("", process.JUDGE_VARIABLES, process.ALL_VARIABLES)
    untrusted, judge, prepare = (process.child_environment({"X": "1"}, secrets) for secrets in patterns)
    assert "secret" not in untrusted.values()
    assert [name for name, value in judge.items() if value == "secret"] == ["OPENAI_API_KEY"]
    assert [name for name, value in prepare.items() if value == "secret"] == ["OPENAI_API_KEY", "HF_TOKEN"]
    assert list(untrusted.values()).count("kept") == 4
    assert untrusted["X"] == "1"


def test_the_last_lines_of_a_log_show_the_last_state_of_a_progress_bar(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 20_000 + b"\nfirst\n\n 1%|\r 2%|\r 3%| \n\xff\n\n")
    assert process.last_lines(log, 3) == ["first", "3%|", "�"]
    assert process.last_lines(tmp_path / "none") == []


def _gone(pid: int) -> bool:
    """Return True for a process that has ended, also if init has yet to reap it."""
    status = Path(f"/proc/{pid}/stat")
    time.sleep(0.2)
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"
