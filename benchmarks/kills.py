"""Kill drivers and jobs of studies at random moments, resume them, and compare them with undisturbed studies.

    python benchmarks/kills.py [--local 90] [--slurm 70] [--inside 30] [--real 10] [--seed 0]

Each study trains three jobs at a time. `local` and `slurm` are studies of stand-ins, on this machine and on a real
SLURM cluster of two nodes; `real` is the small study of small_study.py. Half of their kills end the driver alone, whose
processes are left to the next `agent resume` (on a cluster its jobs go on); the others end the process that carries out
a job. Such a study must come to the same end as one that nothing happened to, in all but attempts cut short.

`inside` kills a process within a job: the training, the evaluator, the server of activations. By contract that counts
as a failure of this training or this evaluation, as when the kernel is out of memory. So figures are compared only of
runs that count in both studies; budgets, the ledger, the notes and the processes that are left must be in order.

By contract too, a run that is cut short four times has failed, and a fresh seed whose job is lost three times. A kill
that would cost a run its last attempt waits; the table shows how often.

Prints tables. Exits with 1 if anything differs, and then keeps the studies' files.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import standins
from small_study import (
    Checkout,
    differences,
    disorder,
    last_line,
    make_checkout,
    make_model,
    outcome,
    processes_of,
    untrue_notes,
)

from agent.study.attempts import ATTEMPTS

AT_ONCE = 2  # studies
MOST_KILLS = 12  # of one study
PLAN = ("importing", "crashing", "denser", "better", "fine", "worse")  # behaviours of the stand-ins
RUNS, JOBS = "4", "3"
FIRST_SECONDS = 3.0  # a share of the kills come within so many of a driver's first event, the others later
CARRIES_OUT = ("agent.running.slot", "slurm_script")  # parts of the command line of a process that is a job
INSIDE = {  # by a part of its command line, what a process within a job is
    "agent.lab.evaluation": "evaluator",
    "agent.lab.serve": "server of activations",
    "--out_dir=": "training",
}


@dataclass(frozen=True)
class StandinCheckout(Checkout):
    """A checkout in which nothing is trained; `place` is how `agent run` is told where jobs run."""

    place: tuple[str, ...] = ()

    def start(self) -> "subprocess.Popen[bytes]":
        run = ["run", "--idea", "stand_in", "--max-runs", RUNS, "--jobs", JOBS, *self.place]
        return standins.start(self, *(["resume"] if self.study else run), SAE_AGENT_CACHE=str(self.cache))


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, and what it interrupted."""

    what: str
    last_event: str
    waited: bool


@dataclass
class Killed:
    """A study that was killed repeatedly, and how it differs from the undisturbed one."""

    kind: str
    number: int
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cut_short: int = 0
    lost: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Kind:
    """What is killed how often, in which studies."""

    name: str
    kills: int
    checkout: Checkout  # of the undisturbed study
    seconds: float  # that it took
    outcome: dict[str, list[str]]

    def copy(self, number: int) -> Checkout:
        """Return a checkout for another study, that has nothing in its cache."""
        root = self.checkout.root.parents[1] / f"{self.name} {number}" / self.checkout.root.name
        for name in ("agent", "templates"):
            shutil.copytree(self.checkout.root / name, root / name)
        return type(self.checkout)(**{**vars(self.checkout), "root": root})


def undisturbed(name: str, kills: int, checkout: Checkout) -> Kind:
    """Run a study from start to end."""
    start = time.monotonic()
    if checkout.start().wait():
        sys.exit(f"the undisturbed study failed: {last_line(checkout)}, see {checkout.root.parent}")
    kind = Kind(name, kills, checkout, time.monotonic() - start, outcome(checkout))
    print(f"{name}, undisturbed: {kind.seconds:.0f} s, {kind.outcome['budgets']}", flush=True)
    return kind


def disturbed(kind: Kind, number: int, most: int, seed: int) -> Killed:
    """Run a study to its end with up to `most` kills, and compare it with the undisturbed one."""
    result, chance = Killed(kind.name, number), random.Random(f"{seed} {kind.name} {number}")
    checkout, start = kind.copy(number), time.monotonic()
    while True:
        driver, before = checkout.start(), len(checkout.events)
        while driver.poll() is None and len(checkout.events) == before:
            time.sleep(0.1)
        disturb(kind, checkout, driver, result, most, chance)
        code = driver.wait()
        if code == -signal.SIGKILL and checkout.study and checkout.study[1].finished:
            code = 0  # there is nothing left to resume
        if code != -signal.SIGKILL and "agent resume continues" not in last_line(checkout):
            break
    result.wrong += faults(kind, checkout, code)
    result.cut_short = sum(event.event == "attempt_cut_short" for event in checkout.events)
    result.lost = sum(event.event == "job_lost" for event in checkout.events)
    result.seconds = time.monotonic() - start
    print(f"{kind.name} {number} ended: {'; '.join(result.wrong) or 'as it should'}", flush=True)
    return result


def disturb(
    kind: Kind, checkout: Checkout, driver: "subprocess.Popen[bytes]", result: Killed, most: int, chance: random.Random
) -> None:
    """Kill jobs of a driver, and at last the driver itself, unless it ends before."""
    while len(result.kills) < most and driver.poll() is None:
        of_driver = kind.name != "inside" and chance.random() < 0.5
        longest = FIRST_SECONDS if chance.random() < 0.5 else max(FIRST_SECONDS, kind.seconds / 3)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(chance.uniform(0, longest))
        killed = kill(kind, checkout, driver, of_driver, chance)
        if killed is None:
            continue
        result.kills.append(killed)
        place = f"{kind.name} {result.number}, kill {len(result.kills)}"
        print(f"{place}: {killed.what}, after {killed.last_event}", flush=True)
        result.wrong += [f"after kill {len(result.kills)}: {problem}" for problem in untrue_notes(checkout)]
        if of_driver:
            return


def kill(
    kind: Kind, checkout: Checkout, driver: "subprocess.Popen[bytes]", of_driver: bool, chance: random.Random
) -> Kill | None:
    """Kill one process; return None if the driver has ended, or none of those runs that are to be killed."""
    waited = False
    while driver.poll() is None and kind.name != "inside" and at_last_attempt(checkout):
        waited = True
        time.sleep(0.05)
    last = checkout.events[-1].event if checkout.events else "none yet"
    if of_driver:
        driver.kill()
        return Kill("the driver", last, waited) if driver.wait() == -signal.SIGKILL else None
    found = victims(checkout, driver, kind.name == "inside")
    if driver.poll() is not None or not found:
        time.sleep(0.1)
        return None
    what, victim = chance.choice(found)
    with suppress(psutil.Error):
        victim.kill()
        return Kill(what, last, waited)
    return None


def victims(checkout: Checkout, driver: "subprocess.Popen[bytes]", inside: bool) -> list[tuple[str, psutil.Process]]:
    """Return the processes that carry out jobs, or those `inside` of them, with what they are."""
    found = []
    for process in processes_of(checkout):
        with suppress(psutil.Error, OSError):
            command, parent = " ".join(process.cmdline()), process.parent()
            if parent and parent.cmdline() == process.cmdline():
                continue  # it is about to become another program, of the other sort
            is_job = any(part in command for part in CARRIES_OUT)
            what = "a job" if is_job else next((name for part, name in INSIDE.items() if part in command), "")
            if what and is_job is not inside and process.pid != driver.pid:
                found.append((what, process))
    return found


def at_last_attempt(checkout: Checkout) -> bool:
    """Return whether a kill now may make a run fail, or a fresh seed: a step that crashes needs another attempt after
    it."""
    if checkout.study is None:
        return False
    state = checkout.study[1]
    attempts = {"reserved": ATTEMPTS - 1, "training": ATTEMPTS}
    last = any(
        run.attempt >= attempts.get(run.stage, run.attempt + 2) - ("crashing" in run.proposal.title)
        for run in state.runs
    )
    return last or any(state.losses.get(job, 0) >= 2 for job in state.jobs)


def faults(kind: Kind, checkout: Checkout, code: int) -> list[str]:
    """Return what is not as it should be with a study that has come to its end."""
    wrong = disorder(checkout)
    if kind.name == "inside":
        assert checkout.study
        known = dict(zip(kind.outcome["names"], kind.outcome["results"], strict=True))
        found = outcome(checkout)
        for name, results in zip(found["names"], found["results"], strict=True):
            if '"name": "ok"' in results and '"name": "ok"' in known.get(name, "") and results != known[name]:
                wrong.append(f"the results of {name} differ")
        return wrong + [f"still running: {line}" for line in found["processes still running"]]
    if code:
        return [*wrong, f"agent ended with exit code {code}: {last_line(checkout)}"]
    return wrong + differences(kind.outcome, outcome(checkout))


def print_tables(studies: Sequence[Killed]) -> None:
    kills = [kill for result in studies for kill in result.kills]
    print("\n| study | kills | attempts cut short | jobs lost | seconds | compared with the undisturbed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for study in studies:
        wrong = "; ".join(study.wrong).replace("|", "/") or "as it should be"
        counts = f"{len(study.kills)} | {study.cut_short} | {study.lost} | {study.seconds:.0f}"
        print(f"| {study.kind} {study.number} | {counts} | {wrong} |")
    print(f"\n{len(kills)} kills; {sum(kill.waited for kill in kills)} waited for a last attempt to end.")
    print("\n| what was killed | the ledger's last event | kills |\n| --- | --- | --- |")
    rows = Counter((f"{study.kind}: {kill.what}", kill.last_event) for study in studies for kill in study.kills)
    for (what, event), count in sorted(rows.items()):
        print(f"| {what} | {event} | {count} |")


def standin(scratch: Path, name: str, *place: str) -> Checkout:
    """Return a checkout of stand-ins."""
    directory = scratch / name
    directory.mkdir()
    made = standins.make_checkout(directory)
    made.plan(*PLAN)
    return StandinCheckout(made.root, directory, place)


def carry_out(kind: Kind, pool: ThreadPoolExecutor, seed: int) -> list[Killed]:
    """Kill until there were as many kills as asked for: a study that was quick had fewer than it might."""
    results: list[Killed] = []
    while (missing := kind.kills - sum(len(result.kills) for result in results)) > 0:
        shares = [min(MOST_KILLS, missing - part) for part in range(0, missing, MOST_KILLS)][:AT_ONCE]
        jobs = [pool.submit(disturbed, kind, len(results) + i, most, seed) for i, most in enumerate(shares, 1)]
        results += [job.result() for job in jobs]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kills in {"local": 90, "slurm": 70, "inside": 30, "real": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=kills, help="kills in these studies")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    start, scratch, studies = time.monotonic(), Path(tempfile.mkdtemp(prefix="kills-")), []
    with ExitStack() as stack:
        kinds = []
        if args.local or args.inside:
            local = undisturbed("local", args.local, standin(scratch, "local"))
            kinds += [local, replace(local, name="inside", kills=args.inside)]
        if args.slurm:
            stack.enter_context(standins.slurm_cluster(Path(tempfile.mkdtemp(prefix="slurm-", dir=scratch))))
            kinds.append(undisturbed("slurm", args.slurm, standin(scratch, "slurm", "--executor", "slurm")))
        if args.real:
            (scratch / "real").mkdir()
            checkout = make_checkout(scratch / "real/checkout", make_model(scratch / "model"))
            kinds.append(undisturbed("real", args.real, checkout))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for kind in kinds:
                studies += carry_out(kind, pool, args.seed)
    print_tables(studies)
    print(f"\n{time.monotonic() - start:.0f} s in total, {AT_ONCE} studies at a time, seed {args.seed}")
    if any(result.wrong for result in studies):
        sys.exit(f"studies differ from the undisturbed one; their files are in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
