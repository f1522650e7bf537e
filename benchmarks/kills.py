"""Real studies whose driver is killed at random moments and resumed, beside the same study left in peace.

    python benchmarks/kills.py [--seed 0]

Studies (see small_study.py) begin with caches of several kinds, and each is killed a number of times, at moments that
are uniform over what is left of the time it should take. SIGKILL ends the driver alone; what it had started is left to
the next `agent resume`.

A run that is cut short four times has failed, by contract. So that the outcome can be the same, a kill that would cost
a run its last attempt waits until this attempt has ended; the table says how often.

Prints tables, and exits with 1 where anything differs, of which what was found is kept.
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
    tell,
    untrue_notes,
)

from agent.study.attempts import ATTEMPTS
from agent.study.events import Event
from agent.study.state import State
from agent.study.workspace import Study

AT_ONCE = 2  # studies, a core each
STUDIES = (("empty", 16), ("without baselines", 17), ("without baselines", 17), ("full", 10))  # cache, kills
STORED = {"empty": (), "without baselines": ("activations", "evaluation")}
STORED["full"] = (*STORED["without baselines"], "baselines")
COST = 10.0  # seconds of work that a kill adds: what was under way, and the start of another evaluator
WHILE_STARTING = 0.1  # share of the kills that come while a driver prepares itself, within so many seconds
STARTING_SECONDS = 5.0

TRAINING = {  # in the command of a child
    "agent.lab.prepare": "checking the model, harvesting",
    "--out_dir=smoke": "preflight: the smoke run trains",
    "--out_dir=baseline_": "a baseline trains",
    "_seed_": "a fresh seed trains",
    "--out_dir=run_": "a run trains",
}


@dataclass(frozen=True)
class Calm:
    """The study that nothing happened to: how long it took, and what came out."""

    seconds: float
    gaps: list[tuple[str, float]]  # each event of its story, and the seconds it took
    outcome: dict[str, list[str]]

    def moment(self, events: Sequence[Event], full: bool, kills: int, chance: random.Random) -> float:
        """Seconds of work until the first of so many kills, uniform over what is left."""
        cached = {"baseline_measured", "sentinels_scored"} if full else set()
        left = sum(seconds for event, seconds in self.gaps[len(tell(events)) :] if event not in cached)
        return min(chance.uniform(0, left + kills * COST) for _ in range(kills))


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, and what it hit."""

    seconds: float  # after the driver's start
    last_event: str
    going_on: str
    waited: bool


@dataclass
class Ordeal:
    """A study that was killed again and again."""

    number: int
    cache: str
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cut_short: int = 0
    seconds: float = 0.0


def undisturbed(checkout: Checkout) -> Calm:
    """Run the study from its start to its end."""
    start = time.monotonic()
    code, seconds = checkout.start().wait(), time.monotonic() - start
    if code:
        sys.exit(f"the undisturbed study failed: {last_line(checkout)}, see {checkout.root / 'agent.log'}")
    events = tell(checkout.events)
    gaps = [(after.event, after.elapsed - before.elapsed) for before, after in itertools.pairwise(events)]
    return Calm(seconds, [(events[0].event, 0.0), *gaps], outcome(checkout))


def disturbed(checkout: Checkout, ordeal: Ordeal, calm: Calm, chance: random.Random, most: int) -> Ordeal:
    """Carry a study to its end with this many kills on the way, and compare it with the undisturbed one."""
    start = time.monotonic()
    while True:
        more, events = most - len(ordeal.kills), checkout.events
        starting = chance.random() < WHILE_STARTING
        moment = STARTING_SECONDS * chance.random() if starting else 0.0
        if more and not starting:
            moment = calm.moment(events, ordeal.cache == "full", more, chance)
        driver = checkout.start()
        while not starting and driver.poll() is None and len(checkout.events) == len(events):
            time.sleep(0.1)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(moment if more else None)
        if (hit := kill(checkout, driver)) is None:
            break
        ordeal.kills.append(hit)
        print(
            f"study {ordeal.number}, kill {len(ordeal.kills)}: after {hit.seconds:.1f} s, {hit.last_event}, "
            f"{hit.going_on}",
            flush=True,
        )
        ordeal.wrong += [f"after kill {len(ordeal.kills)}: {found}" for found in untrue_notes(checkout)]
    if driver.returncode:
        ordeal.wrong.append(f"agent resume ended with exit code {driver.returncode}: {last_line(checkout)}")
    else:
        ordeal.wrong += differences(calm.outcome, outcome(checkout))
    ordeal.cut_short = sum(event.event == "attempt_cut_short" for event in checkout.events)
    kept = [verdict for _, verdict in kept_attempts(checkout.study[0])].count("killed") if checkout.study else 0
    if kept != ordeal.cut_short:
        ordeal.wrong.append(f"{ordeal.cut_short} attempts were cut short and {kept} are kept")
    ordeal.seconds = time.monotonic() - start
    print(f"study {ordeal.number} ended: {'; '.join(ordeal.wrong) or 'as the undisturbed one'}", flush=True)
    return ordeal


def kill(checkout: Checkout, driver: "subprocess.Popen[bytes]") -> Kill | None:
    """Kill the driver and nothing else; None where it has ended by itself."""
    waited = False
    while driver.poll() is None and at_last_attempt(checkout):
        waited = True
        time.sleep(0.05)
    if driver.poll() is not None:
        return None
    process = psutil.Process(driver.pid)
    seconds, doing = time.time() - process.create_time(), going_on(checkout, process)
    driver.kill()
    if driver.wait() != -signal.SIGKILL:
        return None
    return Kill(seconds, checkout.events[-1].event if checkout.events else "none yet", doing, waited)


def at_last_attempt(checkout: Checkout) -> bool:
    """Whether a kill would make a run one that failed."""
    if checkout.study is None:
        return False
    attempts = {"reserved": ATTEMPTS - 1, "training": ATTEMPTS}
    return any(run.attempt >= attempts.get(run.stage, math.inf) for run in checkout.study[1].runs)


def going_on(checkout: Checkout, driver: psutil.Process) -> str:
    """What a driver and its children are doing."""
    commands = []
    for child in driver.children(recursive=True):
        with suppress(psutil.Error):
            commands.append(child.cmdline())
    said = " ".join(word for command in commands for word in command)
    for sign, doing in TRAINING.items():
        if sign in said:
            return doing
    if any(command and Path(command[0]).name == "git" for command in commands):
        return "git"
    if checkout.study is None or "agent.lab.evaluation" not in said:
        return "the driver alone"
    return scoring(*checkout.study)


def scoring(study: Study, state: State) -> str:
    """What an evaluator is at that was not ended, going by what waits for its answer."""
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


def report(ordeals: Sequence[Ordeal]) -> None:
    kills = [kill for ordeal in ordeals for kill in ordeal.kills]
    print("\n| study | cache at its start | kills | attempts cut short | seconds | beside the undisturbed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for each in ordeals:
        said = "; ".join(each.wrong).replace("|", "/") or "the same"
        print(f"| {each.number} | {each.cache} | {len(each.kills)} | {each.cut_short} | {each.seconds:.0f} | {said} |")
    print(f"\n{len(kills)} kills; {sum(kill.waited for kill in kills)} waited for a run's last attempt to end.")
    print("\n| what went on | the ledger's last event | kills |")
    print("| --- | --- | --- |")
    for (doing, event), count in sorted(Counter((kill.going_on, kill.last_event) for kill in kills).items()):
        print(f"| {doing} | {event} | {count} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    start, scratch = time.monotonic(), Path(tempfile.mkdtemp(prefix="kills-"))
    model = make_model(scratch / "model")
    first = make_checkout(scratch / "undisturbed", model)
    calm = undisturbed(first)
    print(f"undisturbed: {calm.seconds:.0f} s, {calm.outcome['budgets']}, {len(calm.gaps)} events", flush=True)

    def one(number: int, cache: str, most: int) -> Ordeal:
        checkout = make_checkout(scratch / f"study {number}", model)
        for kind in STORED[cache]:
            shutil.copytree(first.cache / kind, checkout.cache / kind)
        return disturbed(checkout, Ordeal(number, cache), calm, random.Random(f"{args.seed} {number}"), most)

    ordeals: list[Ordeal] = []
    wanted = sum(kills for _, kills in STUDIES)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ordeals += pool.map(one, range(1, 1 + len(STUDIES)), *zip(*STUDIES, strict=True))
    while (missing := wanted - sum(len(ordeal.kills) for ordeal in ordeals)) > 0:  # a study was faster than expected
        ordeals.append(one(len(ordeals) + 1, "full", missing))
    report(ordeals)
    print(f"\n{time.monotonic() - start:.0f} s in all, {AT_ONCE} studies at a time, seed {args.seed}")
    if any(ordeal.wrong for ordeal in ordeals):
        sys.exit(f"what was found is in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
