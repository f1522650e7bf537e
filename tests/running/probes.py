"""What an experiment that means harm tries, each in one function; test_sandbox.py runs it in a child.

python probes.py TARGETS OUT: TARGETS is JSON with what there is outside; OUT receives, for each probe, whether it
succeeded. A probe that raises has failed; of those that leave something, test_sandbox.py looks whether it is there.
Run without a sandbox, none does harm to the machine.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

targets: dict[str, Any] = json.loads(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_DETACH, CLONE_NEWUSER = 16, 17, 0x10000000


def target(name: str) -> Path:
    return Path(targets[name])


def call(function: str, *arguments: object) -> bool:
    return getattr(LIBC, function)(*arguments) >= 0


def can_write_into(folder: Path | str) -> bool:
    os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))  # a file without a name
    return True


def read_environment_of_the_driver() -> bool:
    return b"canary" in Path(f"/proc/{targets['pid']}/environ").read_bytes()


def read_memory_of_the_driver() -> bool:
    place = Path(f"/proc/{targets['pid']}/maps").read_text().partition("-")[0]
    with open(f"/proc/{targets['pid']}/mem", "rb") as file:
        return file.seek(int(place, 16)) >= 0 and len(file.read(16)) == 16


def write_to_the_input_of_the_evaluator() -> bool:
    Path(f"/proc/{targets['pid']}/fd/0").write_text("{}")
    return True


def read_the_driver_through_its_root() -> bool:
    return bool(os.listdir(f"/proc/{targets['pid']}/cwd/"))


def kill_the_driver() -> bool:
    os.kill(targets["pid"], signal.SIGCONT)
    return True


def trace_the_driver() -> bool:
    pid = ctypes.c_long(targets["pid"])
    if not call("ptrace", ctypes.c_long(PTRACE_ATTACH), pid, None, None):
        return False
    os.waitpid(targets["pid"], 0)
    return call("ptrace", ctypes.c_long(PTRACE_DETACH), pid, None, None)


def limit_the_driver() -> bool:
    resource.prlimit(targets["pid"], resource.RLIMIT_CORE, (0, 0))
    return True


def read_a_private_key() -> bool:
    return bool(target("home").joinpath(".ssh/id_rsa").read_text())


def write_a_start_up_file() -> bool:
    return target("home").joinpath(".bashrc").write_text("evil") > 0


def list_the_home() -> bool:
    return bool(os.listdir(target("home")))


def read_a_file_of_the_real_home() -> bool:
    return any(path.read_bytes() for path in target("real_home").iterdir() if path.is_file())


def read_the_shadow_file() -> bool:
    return bool(Path("/etc/shadow").read_text())


def write_into_etc() -> bool:
    return can_write_into("/etc")


def read_the_project() -> bool:
    return bool(target("root").joinpath("pyproject.toml").read_text())


def read_the_templates() -> bool:
    return bool(os.listdir(target("root") / "templates/notes"))


def write_into_the_project() -> bool:
    return target("root").joinpath("pyproject.toml").open("r+").readable()


def change_the_lab() -> bool:
    return target("root").joinpath("agent/lab/start.py").open("a").writable()


def plant_bytecode_in_the_lab() -> bool:
    return can_write_into(target("root") / "agent/lab")


def plant_a_module_in_the_environment() -> bool:
    return can_write_into(target("site"))


def plant_a_module_beside_the_script() -> bool:
    return target("study").joinpath("torch.py").write_text("evil") > 0


def read_an_earlier_run() -> bool:
    return bool(target("study").joinpath("run_0/final_info.json").read_text())


def change_an_earlier_run() -> bool:
    return target("study").joinpath("run_0/final_info.json").open("r+").write("evil") > 0


def link_to_an_earlier_run() -> bool:
    os.link(target("study") / "run_0/final_info.json", target("run_dir") / "linked")
    return True


def read_through_a_planted_link() -> bool:
    (target("run_dir") / "link").symlink_to(target("study") / "run_0")
    return bool((target("run_dir") / "link/final_info.json").read_text())


def rename_an_earlier_run() -> bool:
    os.rename(target("study") / "run_0", target("study") / "run_9")
    return True


def read_the_ledger() -> bool:
    return bool(target("study").joinpath("events.jsonl").read_text())


def change_the_ledger() -> bool:
    return target("study").joinpath("events.jsonl").open("r+").write("evil") > 0


def plant_a_git_hook() -> bool:
    return target("study").joinpath(".git/hooks/post-commit").write_text("evil") > 0


def change_its_own_script() -> bool:
    return target("study").joinpath("experiment.py").open("r+").write("evil") > 0


def replace_its_own_log() -> bool:
    log = target("study").joinpath("run_1.stderr.log")
    log.unlink()
    return True


def read_cached_baselines() -> bool:
    return bool(target("cache").joinpath("baselines/k16.json").read_text())


def change_cached_baselines() -> bool:
    return target("cache").joinpath("baselines/k16.json").open("r+").write("evil") > 0


def read_cached_token_windows() -> bool:
    return bool(target("cache").joinpath("evaluation/tokens-dev").read_text())


def read_the_activations_by_path() -> bool:
    return bool(target("cache").joinpath("activations/shard").read_text())


def read_the_held_out_text() -> bool:
    return any(path.read_bytes() for path in target("text").rglob("*") if path.is_file())


def read_the_weights_of_the_model() -> bool:
    return bool(target("root").joinpath("agent/lab/tiny_lm/model.safetensors").read_bytes())


def connect_by_tcp() -> bool:
    return bool(socket.create_connection(("127.0.0.1", targets["port"]), timeout=2))


def send_by_udp() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"x", ("127.0.0.1", targets["port"])) > 0


def connect_to_an_abstract_socket() -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + targets["abstract"])
        return True


def connect_to_a_socket_by_its_path() -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(targets["socket"])
        return True


def leave_a_file_in_shared_memory() -> bool:
    return Path(targets["shared_memory"]).write_text("evil") > 0


def leave_a_file_in_tmp() -> bool:
    return target("tmp").write_text("evil") > 0


def leave_a_file_in_var_tmp() -> bool:
    return can_write_into("/var/tmp")


def change_where_core_dumps_go() -> bool:
    with open("/proc/sys/kernel/core_pattern", "r+"):
        return True


def trigger_the_system_request() -> bool:
    with open("/proc/sysrq-trigger", "w"):  # opened, and nothing written
        return True


def make_a_user_namespace() -> bool:
    return call("unshare", ctypes.c_int(CLONE_NEWUSER))


def mount_something() -> bool:
    call("mount", b"none", os.fsencode(target("run_dir")), b"no such kind", ctypes.c_ulong(0), None)
    return ctypes.get_errno() == errno.ENODEV  # after permission was given


def make_a_device() -> bool:
    os.mknod(target("run_dir") / "memory", 0o20600, os.makedev(1, 1))
    return True


def read_a_key_of_the_session() -> bool:
    request_key = {"x86_64": 249, "aarch64": 218}[platform.machine()]
    return call("syscall", ctypes.c_long(request_key), b"user", targets["key"].encode(), None, ctypes.c_int(0))


def leave_a_daemon() -> bool:
    return subprocess.Popen(["sleep", "67.5"], start_new_session=True).poll() is None


# What an honest experiment needs: these have to succeed.
def write_into_its_directory() -> bool:
    (target("run_dir") / "checkpoint").mkdir()
    return (target("run_dir") / "checkpoint/header.json").write_text("{}") > 0


def use_a_temporary_file() -> bool:
    with tempfile.NamedTemporaryFile() as file:
        return file.write(b"x") > 0 and Path.home() == Path(tempfile.gettempdir())


def start_a_process() -> bool:
    return subprocess.run([sys.executable, "-c", "import json"]).returncode == 0


def use_what_the_driver_handed_on() -> bool:
    with socket.socket(fileno=targets["descriptor"]) as connection:
        return connection.send(b"rows, please") > 0


def use_plain_devices() -> bool:
    return len(os.urandom(4) + Path("/dev/zero").open("rb").read(4)) == 8 and bool(shutil.which("sh"))


HONEST = (
    write_into_its_directory,
    use_a_temporary_file,
    start_a_process,
    use_what_the_driver_handed_on,
    use_plain_devices,
)
HARMFUL = tuple(
    function
    for name, function in list(globals().items())
    if callable(function)
    and getattr(function, "__module__", None) == __name__
    and function not in (*HONEST, target, call, can_write_into)
)


def succeeds(probe: Any) -> bool:
    try:
        return bool(probe())
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    results = {probe.__name__: succeeds(probe) for probe in (*HARMFUL, *HONEST)}
    Path(sys.argv[2]).write_text(json.dumps(results))
