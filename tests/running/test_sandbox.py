"""Confinement: what a training can do outside its directory under each sandbox, and that it finds what it needs."""

import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from standin import processes

from agent import ROOT
from agent.running import confine, process, sandbox, views
from agent.running.sandbox import UNCONFINED, Sandbox, View
from agent.running.watchdogs import Memory
from agent.study.records import SandboxKind

PROBES = Path(__file__).with_name("probes.py")
NAMES = [line[4:].partition("(")[0] for line in PROBES.read_text().splitlines() if line.startswith("def ")]
HONEST = NAMES[NAMES.index("write_into_its_directory") : NAMES.index("succeeds")]
HARMFUL = [name for name in NAMES if name not in (*HONEST, "target", "call", "can_write_into", "succeeds")]
LIBC = ctypes.CDLL(None, use_errno=True)
KINDS: tuple[SandboxKind, ...] = ("bubblewrap", "landlock")


def confined(kind: SandboxKind) -> Sandbox:
    """Return the sandbox of a kind, or skip the test where it does not work."""
    found = {"bubblewrap": sandbox.find_bubblewrap, "landlock": sandbox.find_landlock}[kind]()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, bool]]]:
    """What the probes did under each kind, filled as tests ask for it."""
    results: dict[str, dict[str, bool]] = {}
    with pytest.MonkeyPatch.context() as patch:

        def attack(used: Sandbox) -> dict[str, bool]:
            if used.kind not in results:
                results[used.kind] = _attack(used, tmp_path_factory.mktemp(used.kind), patch)
            return results[used.kind]

        yield attack  # type: ignore[misc]


def _attack(used: Sandbox, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, bool]:
    home, cache, study = folder / "home", folder / "cache", folder / "a study"
    shared, tmp = Path(f"/dev/shm/sae-agent-canary-{os.getpid()}"), Path(f"/tmp/sae-agent-canary-{os.getpid()}")
    for name, text in {
        home / ".ssh/id_rsa": "the key",
        home / ".bashrc": "",
        cache / "baselines/k16.json": "{}",
        cache / "evaluation/tokens-dev": "tokens",
        cache / "activations/shard": "rows",
        study / "events.jsonl": "{}\n",
        study / "run_0/final_info.json": "{}",
        study / ".git/hooks/sample": "",
        study / "experiment.py": PROBES.read_text(),
    }.items():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(text)
    run_dir = study / "run_1"
    run_dir.mkdir()
    patch.setenv("HOME", str(home))
    patch.setenv("SAE_AGENT_CACHE", str(cache))
    with ExitStack() as stack:
        victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"KEY": "canary"})
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        tcp, udp, abstract, by_path = (
            stack.enter_context(socket.socket(*kind))
            for kind in ((), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX,), (socket.AF_UNIX,))
        )
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        abstract.bind(f"\0sae-agent-{victim.pid}")
        by_path.bind(f"/tmp/sae-agent-{victim.pid}.socket")
        stack.callback(os.unlink, by_path.getsockname())
        for listener in (tcp, abstract, by_path):
            listener.listen()
        ours, theirs = socket.socketpair()
        key = f"sae-agent-{victim.pid}"
        _add_key(key)
        site = sysconfig.get_path("purelib")
        targets = {"home": home, "cache": cache, "study": study, "run_dir": run_dir, "root": ROOT, "site": site} | {
            "real_home": os.path.expanduser("~root"),
            "text": Path(site, "sae_probes/data"),
            "pid": victim.pid,
            "port": tcp.getsockname()[1],
            "abstract": f"sae-agent-{victim.pid}",
            "socket": by_path.getsockname(),
            "shared_memory": shared,
            "tmp": tmp,
            "key": key,
            "descriptor": theirs.fileno(),
        }
        env, script = process.child_environment({}), study / "experiment.py"
        ended = process.run(
            [sys.executable, "-s", "-P", script.name, json.dumps(targets, default=str), str(run_dir / "out.json")],
            cwd=study,
            env=env,
            stdout=study / "run_1.stdout.log",
            stderr=study / "run_1.stderr.log",
            timeout=60,
            pass_fds=[theirs.fileno()],
            sandbox=used,
            view=views.for_training(script, run_dir, env),
        )
        assert ended.exit_code == 0, process.last_lines(study / "run_1.stderr.log")
        time.sleep(0.1)
        left = {
            "leave_a_file_in_shared_memory": shared.exists(),
            "leave_a_file_in_tmp": tmp.exists(),
            "leave_a_daemon": any("67.5" in line for line in processes()),
            "plant_a_module_beside_the_script": (study / "torch.py").exists(),
            "write_a_start_up_file": bool((home / ".bashrc").read_text()),
            "send_by_udp": _received(udp),
            "use_what_the_driver_handed_on": ours.recv(100) == b"rows, please",
        }
        for path in (shared, tmp):
            path.unlink(missing_ok=True)
        for connection in (ours, theirs):
            connection.close()
    return json.loads((run_dir / "out.json").read_text()) | left


def _add_key(name: str) -> None:
    """Put a key into the keyring of the session, where children find it."""
    add_key, session = {"x86_64": 248, "aarch64": 217}.get(platform.machine(), -1), ctypes.c_int(-3)
    LIBC.syscall(ctypes.c_long(add_key), b"user", name.encode(), b"secret", ctypes.c_size_t(6), session)


def _received(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        return bool(listener.recv(10))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_confined_training_cannot(attacked, kind: SandboxKind, name: str):
    assert not attacked(confined(kind))[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_confined_training_has_what_it_needs(attacked, kind: SandboxKind):
    results = attacked(confined(kind))
    assert {name for name in HONEST if not results[name]} == set()


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="an ordinary user is refused some of it anyway")
def test_the_attacks_are_real(attacked):
    """Without a sandbox they succeed, but for what a container refuses to its root; the reaper ends the daemon."""
    failed = {name for name in HARMFUL if not attacked(UNCONFINED)[name]}
    assert failed <= {"leave_a_daemon", "trigger_the_system_request", "mount_something", "make_a_device"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_confined_process_is_watched_and_ended_as_others_are(tmp_path: Path, kind: SandboxKind):
    used = confined(kind)

    def run(code: str, **limits) -> process.ProcessResult:
        view = View({**sandbox.interpreter_paths(os.environ), tmp_path: "write"})
        command = [sys.executable, "-I", "-c", code]
        log = tmp_path / "stderr.log"
        return process.run(command, cwd=tmp_path, env={}, stderr=log, sandbox=used, view=view, **limits)

    assert run("import os; os.kill(os.getpid(), 9)").exit_code == -9
    assert run("import sys; sys.exit(3)").exit_code == 3
    assert run("x = 0\nfor i in range(10**7): x += i").cpu_seconds > 0.2
    slept = run("import time; time.sleep(60)", timeout=0.5)
    assert slept.stop_verdict
    assert (slept.stop_verdict.name, slept.seconds < 5) == ("timed_out", True)
    hungry = run("import time; data = b'x' * 2**26; time.sleep(60)", watchdogs=[Memory(40 * 2**20)], timeout=20)
    assert hungry.stop_verdict
    assert hungry.stop_verdict.name == "out_of_memory"
    assert run("open('huge', 'wb').truncate(9 * 2**30)").exit_code == 1
    assert "File too large" in process.last_lines(tmp_path / "stderr.log", 1)[0]


def test_what_is_private_is_hidden_inside_what_is_shown(tmp_path: Path):
    """A checkout under /opt, say, with a virtual environment in it."""
    shown, checkout = tmp_path / "opt", tmp_path / "opt/checkout"
    for path in (checkout / "runs/run_0", checkout / ".venv", shown / "tool"):
        path.mkdir(parents=True)
        (path / "file").write_text("content")
    view = View({shown: "read", checkout: "hidden", checkout / ".venv": "read", checkout / "runs/run_0": "write"})
    files = [shown / "tool/file", checkout / ".venv/file", checkout / "runs/run_0/file"]
    assert list(view.resolved()) == sorted(view.resolved(), key=lambda path: len(path.parts))
    for kind in KINDS:
        found = {"bubblewrap": sandbox.find_bubblewrap, "landlock": sandbox.find_landlock}[kind]()
        if isinstance(found, Sandbox):
            (checkout / "runs/secret").write_text("")
            code = f"""
for name in {[str(file) for file in files]!r}:
    assert open(name).read() == "content"
try:
    open({str(checkout / "runs/secret")!r})
except OSError:
    pass
else:
    raise SystemExit("it was read")
try:
    open({str(files[0])!r}, "w")
except OSError:
    pass
else:
    raise SystemExit("it was written")
"""
            complete = View({**sandbox.interpreter_paths(os.environ), **view.paths})
            command, log = [sys.executable, "-I", "-c", code], tmp_path / "log"
            ended = process.run(command, cwd=checkout / "runs/run_0", env={}, stderr=log, sandbox=found, view=complete)
            assert ended.exit_code == 0, process.last_lines(log)


def test_every_gpu_of_the_machine_is_shown(tmp_path: Path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "kfd", "sda", "mem"):
        (tmp_path / name).touch()
    (tmp_path / "dri").mkdir()
    names = {path.name for path in sandbox.gpu_devices(tmp_path)}
    assert names == {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "kfd", "dri"}
    options = sandbox.bubblewrap_options(View({}), tmp_path, tmp_path, tmp_path)
    for name in names:
        place = options.index(str(tmp_path / name))
        assert options[place - 1 : place + 2] == ["--dev-bind-try", str(tmp_path / name), str(tmp_path / name)]
        assert place > options.index("--dev")


NOTHING_WORKS = """
from agent.running import confine, sandbox
confine.REFUSED["landlock_create_ruleset"] = (444, 444)
confine._prctl("no new privileges", confine.SET_NO_NEW_PRIVS, 1)
confine.restrict_calls(network=True)
print(sandbox.settle("auto").description)
sandbox.settle("required")
"""


@pytest.mark.skipif(platform.machine() not in confine.ARCHITECTURES or sys.platform != "linux", reason="no filter here")
@pytest.mark.parametrize(
    ("bwrap", "reason"),
    [
        ("", "bwrap is not installed (apt-get install bubblewrap)"),
        ("echo 'bwrap: Unknown option --disable-userns' >&2; exit 1", "it is too old (0.8.0 or newer would do)"),
        ("echo 'No permissions to create new namespace' >&2; exit 1", "No permissions to create new namespace"),
    ],
)
def test_where_nothing_works_it_says_why_and_required_refuses(tmp_path: Path, bwrap: str, reason: str):
    if bwrap:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{bwrap}")
        (tmp_path / "bwrap").chmod(0o755)
    env = {"PATH": f"{tmp_path}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", NOTHING_WORKS], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert ended.stdout.startswith("NOT confined: bwrap is not installed" if not bwrap else "NOT confined: bubblewrap ")
    assert reason in ended.stdout
    assert "this kernel has no Landlock" in ended.stdout
    assert f"UserError: --sandbox required: runs would not be confined: {ended.stdout.strip()[14:]}" in ended.stderr
