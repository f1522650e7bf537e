"""A SLURM cluster on this machine: the distribution's own slurmctld, slurmd and munged, in a directory of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool_%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd_%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=2
MessageTimeout=5
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=2 State=UP
PartitionName=short Nodes=n1,n2 MaxTime=10 State=UP
"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[1]}
AccountingStoragePass={base}/munge.socket
AccountingStorageEnforce=limits,qos"""
DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
DbdHost=localhost
DbdPort={ports[1]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[0]}
StorageUser=slurm
StoragePass=tests
StorageLoc=slurm_acct_db
LogFile={base}/slurmdbd.log
PidFile={base}/slurmdbd.pid
"""


@dataclass
class Cluster:
    """Two nodes, n1 and n2, of four cores each, in the partitions main, short (10 minutes) and urgent (preempts)."""

    base: Path
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def command(self, *words: str) -> str:
        """Run a command of SLURM's and return what it printed."""
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground, so that it is a child of this process and ends with the tests."""
        with (self.base / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def start_controller(self, *options: str) -> None:
        self.start("slurmctld", "slurmctld", "-D", *options)
        self.wait_for_nodes()

    def start_node(self, name: str, *wrapper: str) -> None:
        self.start(name, *wrapper, "slurmd", "-D", "-N", name)

    def stop(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if set(self.command("sinfo", "-h", "-N", "-o", "%T").split()) <= {"idle", "mixed", "allocated"}:
                    return
            except subprocess.CalledProcessError:
                pass
            time.sleep(0.1)
        raise AssertionError((self.base / "slurmctld.log").read_text()[-3000:])


@contextmanager
def slurm_cluster(base: Path) -> Iterator[Cluster]:
    """Run a cluster in an empty directory, found by the commands that this process starts.

    Tests that use it are skipped if its packages are not installed, or if this process is not root's, whom munge and
    slurmd need here.
    """
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.getuid():
        pytest.skip("a cluster of SLURM is started by root alone")
    for name in ("state", "spool_n1", "spool_n2"):
        (base / name).mkdir()
    (base / "munge.key").touch(0o600)
    (base / "munge.key").write_bytes(os.urandom(128))
    host = socket.gethostname().split(".")[0]
    (base / "slurm.conf").write_text(
        CONFIGURATION.format(accounting=NO_ACCOUNTING, host=host, ports=_free_ports(3), base=base)
    )
    (base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    cluster = Cluster(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        patch.setenv("SLURM_CONF", str(base / "slurm.conf"))
        try:
            files = [f"--{name}-file={base}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            cluster.start("munged", "munged", "--foreground", "--force", f"--socket={base}/munge.socket", *files)
            cluster.start_node("n1")
            cluster.start_node("n2")
            cluster.start_controller("-c", "-i")
            yield cluster
        finally:
            for name in ("n1", "n2", "slurmctld", "munged"):
                if name in cluster.daemons:
                    cluster.stop(name)
            _kill_what_is_left(base)


def _kill_what_is_left(base: Path) -> None:
    """Kill the jobs of a cluster that has been stopped, with what looks after them and writes to its logs."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "slurmstepd" and any(Path(file.path).parent == base for file in process.open_files()):
                for each in (process, *process.children(recursive=True)):
                    each.kill()


@contextmanager
def accounting(cluster: Cluster, *limits: str) -> Iterator[None]:
    """Give a cluster accounts in a database, a user's limits on the QOS `normal` among them.

    Tests that use it are skipped where slurmdbd or MariaDB is not installed. The database lasts as long as the cluster.
    """
    programs = ("mariadbd", "mariadb", "mariadb-install-db", "slurmdbd", "sacctmgr", "sacct")
    if missing := [name for name in programs if not shutil.which(name)]:
        pytest.skip(
            f"SLURM's accounting is not installed ({', '.join(missing)}): apt-get install slurmdbd mariadb-server"
        )
    base, ports = cluster.base, _free_ports(2)
    configuration, socket_file = base / "slurm.conf", base / "mariadb.socket"
    before = configuration.read_text()
    cluster.command("mariadb-install-db", "--no-defaults", f"--datadir={base}/database", "--user=root")
    options = [f"--datadir={base}/database", f"--socket={socket_file}", "--user=root", "--bind-address=127.0.0.1"]
    cluster.start("mariadbd", "mariadbd", "--no-defaults", *options, f"--port={ports[0]}")
    user = "create user slurm@localhost identified by 'tests'; grant all on *.* to slurm@localhost"
    _retry(cluster, "mariadb", "--no-defaults", f"--socket={socket_file}", "--execute", user)
    (base / "slurmdbd.conf").touch(0o600)
    (base / "slurmdbd.conf").write_text(DATABASE.format(base=base, ports=ports))
    cluster.stop("slurmctld")
    configuration.write_text(before.replace(NO_ACCOUNTING, ACCOUNTING.format(base=base, ports=ports)))
    cluster.start("slurmdbd", "slurmdbd", "-D")
    try:
        _retry(cluster, "sacctmgr", "-i", "add", "cluster", "tests")
        cluster.command("sacctmgr", "-i", "add", "account", "tests")
        cluster.command("sacctmgr", "-i", "add", "user", "root", "account=tests")
        cluster.command("sacctmgr", "-i", "modify", "qos", "normal", "set", *limits)
        cluster.start_controller("-c")
        yield
    finally:
        for name in ("slurmctld", "slurmdbd", "mariadbd"):
            if name in cluster.daemons:
                cluster.stop(name)
        configuration.write_text(before)
        cluster.start_controller("-c")


def _retry(cluster: Cluster, *words: str) -> None:
    """Run a command until it succeeds, as a daemon that was just started takes its time."""
    deadline = time.monotonic() + 60
    while True:
        try:
            cluster.command(*words)
            return
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
