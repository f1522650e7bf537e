"""Kill the driver of real studies at random moments, resume them, and compare them with an undisturbed study.

    python benchmarks/kills.py [--seed 0]

Studies (see small_study.py) start with caches of several kinds, and each is killed several times, at moments uniform
over the rest of its expected time. SIGKILL ends the driver alone; the processes that it started are left to the next
`agent resume`.

By contract, a run that is cut short four times has failed. So that the outcome can be the same, a kill that would cost
a run its last attempt waits until this attempt has ended; the table shows how often.

Prints tables. Exits with 1 if anything differs, and then keeps the studies' files.
"""

import argparse
import itertools
import math
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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from small_study import (
    Checkout,
    differences,
    kept_attempts,
    last_line,
    make_checkout,
    make_model,
    outcome,
    study_events,
    untrue_notes,
)

from agent.study.attempts import ATTEMPTS
from agent.study.events import Event
from agent.study.state import State
from agent.study.workspace import Study

AT_ONCE = 2  # studies, one core each
STUDIES = (("empty", 16), ("without baselines", 17), ("without baselines", 17), ("full", 10))  # cache, kills
CACHED = {"empty": (), "without baselines": ("activations", "evaluation")}
CACHED["full"] = (*CACHED["without baselines"], "baselines")
COST = 10.0  # seconds of work that a kill adds: the interrupted work, and another start of the evaluator
WHILE_STARTING = 0.1  # share of the kills during a driver's first STARTING_SECONDS
STARTING_SECONDS = 5.0

ACTIVITIES = {  # by a part of a child process's command line
    "agent.lab.prepare": "checking the model, harvesting",
    "--out_dir=smoke": "preflight: the smoke run trains",
    "--out_dir=baseline_": "a baseline trains",
    "_seed_": "a fresh seed trains",
    "--out_dir=run_": "a run trains",
}


@dataclass(frozen=True)
class Undisturbed:
    """The undisturbed study: how long it took, and its outcome."""

    seconds: float
    gaps: list[tuple[str, float]]  # each event and the seconds it took
    outcome: dict[str, list[str]]

    def moment(self, events: Sequence[Event], full: bool, kills: int, chance: random.Random) -> float:
        """Return the seconds of work until the first of so many kills, uniform over the rest of the study."""
        cached = {"baseline_measured", "sentinels_scored"} if full else set()
        left = sum(seconds for event, seconds in self.gaps[len(study_events(events)) :] if event not in cached)
        return min(chance.uniform(0, left + kills * COST) for _ in range(kills))


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, and what it interrupted."""

    seconds: float  # after the driver's start
    last_event: str
    activity: str
    waited: bool


@dataclass
class KilledStudy:
    """A study that was killed repeatedly, and how it differs from the undisturbed one."""

    number: int
    cache: str
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cut_short: int = 0
    seconds: float = 0.0


def undisturbed(checkout: Checkout) -> Undisturbed:
    """Run the study from start to end."""
    start = time.monotonic()
    code, seconds = checkout.start().wait(), time.monotonic() - start
    if code:
        sys.exit(f"the undisturbed study failed: {last_line(checkout)}, see {checkout.root / 'agent.log'}")
    events = study_events(checkout.events)
    gaps = [(after.event, after.elapsed - before.elapsed) for before, after in itertools.pairwise(events)]
    return Undisturbed(seconds, [(events[0].event, 0.0), *gaps], outcome(checkout))


def disturbed(
    checkout: Checkout, result: KilledStudy, reference: Undisturbed, chance: random.Random, most: int
) -> KilledStudy:
    """Run a study to its end with up to `most` kills, and compare it with the undisturbed one."""
    start = time.monotonic()
    while True:
        more, events = most - len(result.kills), checkout.events
        starting = chance.random() < WHILE_STARTING
        moment = STARTING_SECONDS * chance.random() if starting else 0.0
        if more and not starting:
            moment = reference.moment(events, result.cache == "full", more, chance)
        driver = checkout.start()
        while not starting and driver.poll() is None and len(checkout.events) == len(events):
            time.sleep(0.1)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(moment if more else None)
        if (killed := kill(checkout, driver)) is None:
            break
        result.kills.append(killed)
        print(
            f"study {result.number}, kill {len(result.kills)}: after {killed.seconds:.1f} s, {killed.last_event}, "
            f"{killed.activity}",
            flush=True,
        )
        result.wrong += [f"after kill {len(result.kills)}: {problem}" for problem in untrue_notes(checkout)]
    if driver.returncode:
        result.wrong.append(f"agent resume ended with exit code {driver.returncode}: {last_line(checkout)}")
    else:
        result.wrong += differences(reference.outcome, outcome(checkout))
    result.cut_short = sum(event.event == "attempt_cut_short" for event in checkout.events)
    kept = [verdict for _, verdict in kept_attempts(checkout.study[0])].count("killed") if checkout.study else 0
    if kept != result.cut_short:
        result.wrong.append(f"{result.cut_short} attempts were cut short, but {kept} are kept")
    result.seconds = time.monotonic() - start
    print(f"study {result.number} ended: {'; '.join(result.wrong) or 'same as the undisturbed one'}", flush=True)
    return result


def kill(checkout: Checkout, driver: "subprocess.Popen[bytes]") -> Kill | None:
    """Kill the driver and nothing else; return None if it ended by itself."""
    waited = False
    while driver.poll() is None and at_last_attempt(checkout):
        waited = True
        time.sleep(0.05)
    if driver.poll() is not None:
        return None
    process = psutil.Process(driver.pid)
    seconds, activity = time.time() - process.create_time(), current_activity(checkout, process)
    driver.kill()
    if driver.wait() != -signal.SIGKILL:
        return None
    return Kill(seconds, checkout.events[-1].event if checkout.events else "none yet", activity, waited)


def at_last_attempt(checkout: Checkout) -> bool:
    """Return whether a kill now would make a run fail."""
    if checkout.study is None:
        return False
    attempts = {"reserved": ATTEMPTS - 1, "training": ATTEMPTS}
    return any(run.attempt >= attempts.get(run.stage, math.inf) for run in checkout.study[1].runs)


def current_activity(checkout: Checkout, driver: psutil.Process) -> str:
    """Return what a driver and its children are doing."""
    commands = []
    for child in driver.children(recursive=True):
        with suppress(psutil.Error):
            commands.append(child.cmdline())
    words = " ".join(word for command in commands for word in command)
    for pattern, activity in ACTIVITIES.items():
        if pattern in words:
            return activity
    if any(command and Path(command[0]).name == "git" for command in commands):
        return "git"
    if checkout.study is None or "agent.lab.evaluation" not in words:
        return "the driver alone"
    return scoring(*checkout.study)


def scoring(study: Study, state: State) -> str:
    """Return what a running evaluator scores, inferred from what waits for its answer."""
    unscored = [path for path in study.directory.glob("*/checkpoint") if not (path.parent / "final_info.json").exists()]
    names = [path.parent.name for path in unscored]
    if "smoke" in names:
        return "preflight: a slice is scored"
    if any(name.startswith("baseline_") for name in names):
        return "a baseline is scored"
    if any("_seed_" in name for name in names):
        return "a fresh seed is scored"
    if any(run.stage == "evaluating" for run in state.runs):
        return "a run is scored"
    if state.runs and state.runs[0].stage == "done" and state.sentinels is None:
        return "the sentinels are scored"
    finished = state.runs_used == state.started.max_runs and state.runs[-1].stage == "done"
    return "the test text is scored" if finished and not state.ended else "the driver alone"


def print_tables(killed_studies: Sequence[KilledStudy]) -> None:
    kills = [kill for result in killed_studies for kill in result.kills]
    print("\n| study | cache at its start | kills | attempts cut short | seconds | compared with the undisturbed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for study in killed_studies:
        wrong = "; ".join(study.wrong).replace("|", "/") or "the same"
        counts = f"{len(study.kills)} | {study.cut_short} | {study.seconds:.0f}"
        print(f"| {study.number} | {study.cache} | {counts} | {wrong} |")
    print(f"\n{len(kills)} kills; {sum(kill.waited for kill in kills)} waited for a run's last attempt to end.")
    print("\n| activity | the ledger's last event | kills |")
    print("| --- | --- | --- |")
    for (activity, event), count in sorted(Counter((kill.activity, kill.last_event) for kill in kills).items()):
        print(f"| {activity} | {event} | {count} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    start, scratch = time.monotonic(), Path(tempfile.mkdtemp(prefix="kills-"))
    model = make_model(scratch / "model")
    first = make_checkout(scratch / "undisturbed", model)
    reference = undisturbed(first)
    print(
        f"undisturbed: {reference.seconds:.0f} s, {reference.outcome['budgets']}, {len(reference.gaps)} events",
        flush=True,
    )

    def kill_study(number: int, cache: str, most: int) -> KilledStudy:
        checkout = make_checkout(scratch / f"study {number}", model)
        for kind in CACHED[cache]:
            shutil.copytree(first.cache / kind, checkout.cache / kind)
        return disturbed(checkout, KilledStudy(number, cache), reference, random.Random(f"{args.seed} {number}"), most)

    killed_studies: list[KilledStudy] = []
    kills = sum(kills for _, kills in STUDIES)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        killed_studies += pool.map(kill_study, range(1, 1 + len(STUDIES)), *zip(*STUDIES, strict=True))
    # A study that was faster than expected had fewer kills.
    while (missing := kills - sum(len(result.kills) for result in killed_studies)) > 0:
        killed_studies.append(kill_study(len(killed_studies) + 1, "full", missing))
    print_tables(killed_studies)
    print(f"\n{time.monotonic() - start:.0f} s in total, {AT_ONCE} studies at a time, seed {args.seed}")
    if any(result.wrong for result in killed_studies):
        sys.exit(f"studies differ from the undisturbed one; their files are in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
