"""Measure what the driver spends on a run, and on being resumed, when a study has many runs behind it.

    python benchmarks/many_runs.py [--runs 1000]

A study of stand-ins is driven until its first run is compared. The ledger, the directories and the commits of so many
runs are made after the pattern of that one, by the driver's own classes, with other figures in each. Then the study is
resumed, and a few more runs are trained, each of which sleeps for a while.

Prints the seconds from `agent resume` to the first job that it submits, without the stand-in's preparation, and for
each run those from the outcome of its job to the next submission, and those for notes and figures, which are written
while the next job runs. Exits with 1 if they are above the aims.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from standins import last_line, make_checkout, start

from agent.lab import results
from agent.study import digests, events
from agent.study.ledger import Ledger
from agent.study.run_state import RunState
from agent.study.workspace import Study

MORE = 4  # runs after those that are made up
SLEEP = 6.0  # seconds of a job: longer than what the driver does beside it
RESUME_AIM, RUN_AIM = 3.0, 1.0  # seconds
FILES = ("experiment.py", "metrics.jsonl", "final_info.json")  # of a run, that are committed


def begin(checkout: Any, runs: int) -> None:
    """Drive a study of so many runs until its first is compared with all baselines, and stop it there."""
    checkout.plan(*(f"sleeping.{number}" for number in range(1, runs + 1)))
    budget = ["run", "--idea", "stand_in", "--max-runs", str(runs), "--jobs", "1", "--sandbox", "off"]
    driver = start(checkout, *budget, SAE_AGENT_STANDIN_SLEEP="0")
    while not any((checkout.root / "runs").glob("*/run_2/final_info.json")):
        if driver.poll() is not None:
            sys.exit(f"the study did not begin: {last_line(checkout)}")
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    cut_off(checkout)


def cut_off(checkout: Any) -> None:
    """Take away what came after the first run was compared for good, and all of the second run."""
    study, recorded = checkout.study, checkout.events
    final = next(e.seq for e in recorded if isinstance(e, events.RunCompared) and not e.provisional)
    study.ledger.unlink()
    ledger = Ledger(study.ledger)
    for event in recorded[: final + 1]:
        if getattr(event, "run", 0) < 2 and not getattr(event, "job", "").startswith("run_2_"):
            ledger.append(event)
    for path in (study.directory / "run_2", study.directory / "jobs"):
        shutil.rmtree(path, ignore_errors=True)


def multiply(study: Study, plan: list[Any], runs: int) -> None:
    """Add runs to a study, each with the events, files and commits of run 1 and figures of its own."""
    ledger = Ledger(study.ledger)
    first, sample = ledger.state.runs[1], results.read(study.run_dir(1))
    assert first.comparison
    for number in range(2, runs + 1):
        directory = study.run_dir(number)
        shutil.copytree(study.run_dir(1), directory)
        proposal = first.proposal.model_copy(update=plan[number - 1] | {"source": source_of(first, number)})
        (directory / "experiment.py").write_text(proposal.source)
        environment = sample.environment | {"checkpoint": f"{number:016x}"}
        results.write(directory, sample.model_copy(update={"environment": environment}))
        for event in events_of(number, first, proposal, digests.of_run(directory)):
            ledger.append(event)
    commit_all(study, plan, runs)


def source_of(first: RunState, number: int) -> str:
    return first.proposal.source.replace("sleeping.1", f"sleeping.{number}")


def events_of(number: int, first: RunState, proposal: Any, recorded: dict[str, str]) -> Iterator[Any]:
    """Yield the events of a run that went as the first did."""
    assert first.verdict
    assert first.comparison
    job, verdict = f"run_{number}_attempt_1", first.verdict
    whole: dict[str, Any] = {"run": number, "digests": recorded}
    yield events.ProposalMade(run=number, proposal=proposal)
    yield events.RunReserved(run=number)
    yield events.AttemptStarted(run=number, attempt=1)
    yield events.JobSubmitted(job=job)
    yield events.AttemptEnded(attempt=1, verdict=None, seconds=0.2, work=first.work, **whole)
    yield events.EvaluationEnded(attempt=1, verdict=verdict, seconds=0.1, **whole)
    yield events.RunCommitted(verdict=verdict, **whole)
    moved = {
        name: each.model_copy(update={"difference": each.difference + 1e-6 * number})
        for name, each in first.comparison.metrics.items()
    }
    yield events.RunCompared(run=number, comparison=first.comparison.model_copy(update={"metrics": moved}))
    yield events.NotesWritten(after_run=number)


def commit_all(study: Study, plan: list[Any], runs: int) -> None:
    """Add the two commits of each run to the study's repository, as the objects that single commits would leave."""
    lines: list[bytes] = []
    for number in range(2, runs + 1):
        for kind, names in (("proposal", ()), ("result: ok", FILES)):
            message = f"run {number}, {kind}: {plan[number - 1]['title']}".encode()
            lines += [b"commit refs/heads/main", b"committer sae-agent <sae-agent@localhost> 1700000000 +0000"]
            lines += [b"data %d" % len(message), message]
            lines += [b"from refs/heads/main^0"] * (number == 2 and kind == "proposal")
            for name in ("experiment.py", *(f"run_{number}/{name}" for name in names)):
                content = (study.run_dir(number) / name.rpartition("/")[2]).read_bytes()
                lines += [f"M 100644 inline {name}".encode(), b"data %d" % len(content), content]
    stream, keep = b"\n".join(lines) + b"\n", ["-c", "fastimport.unpackLimit=1000000"]
    command = ["git", *keep, "-C", str(study.directory), "fast-import", "--quiet"]
    subprocess.run(command, input=stream, check=True)


def watch(checkout: Any, driver: "subprocess.Popen[bytes]") -> dict[int, tuple[float, float]]:
    """Return when the outcome of each run's job was seen, in seconds since 1970, and the CPU seconds of the driver and
    its git until then; of 0 when the first job was seen. Wait for the end of the driver."""
    seen: dict[int, tuple[float, float]] = {}
    jobs, process = checkout.study.directory / "jobs", psutil.Process(driver.pid)
    while driver.poll() is None:
        ended = [int(path.parent.name.split("_")[1]) for path in jobs.glob("run_*_attempt_1/outcome.json")]
        begun = [0] if any(jobs.glob("run_*")) else []
        for number in {*ended, *begun} - seen.keys():
            with suppress(psutil.Error):
                seen[number] = (time.time(), sum(process.cpu_times()[:4]))
        time.sleep(0.01)
    return seen


def spent(recorded: list[Any], seen: dict[int, tuple[float, float]]) -> list[tuple[int, float, float, float]]:
    """Return for each run the seconds from its outcome to the next submission, those of its notes after that, and the
    CPU seconds of the driver until the next outcome."""
    submitted = {e.job: e.time.timestamp() for e in recorded if isinstance(e, events.JobSubmitted)}
    rows = []
    for number, (moment, cpu) in sorted(seen.items()):
        following = submitted.get(f"run_{number + 1}_attempt_1")
        if following is None or number + 1 not in seen:
            continue
        end, cpu_at_end = seen[number + 1]
        notes = sum(
            event.time.timestamp() - before.time.timestamp()
            for before, event in itertools.pairwise(recorded)
            if isinstance(event, events.NotesWritten) and following < event.time.timestamp() < end
        )
        rows.append((number, following - moment, notes, cpu_at_end - cpu))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="that the study has behind it")
    runs = parser.parse_args().runs
    scratch = Path(tempfile.mkdtemp(prefix="many-runs-"))
    checkout = make_checkout(scratch)
    begin(checkout, runs + MORE)
    study = checkout.study
    plan = [
        {"name": f"step_{number}", "title": f"Step {number} that is sleeping.{number}"} for number in range(1, runs + 1)
    ]
    multiply(study, plan, runs)
    size = study.ledger.stat().st_size
    print(f"{runs} runs, {len(checkout.events)} events, a ledger of {size / 1e6:.1f} MB", flush=True)
    began, before = time.time(), len(checkout.events)
    driver = start(checkout, "resume", "--jobs", "1", SAE_AGENT_STANDIN_SLEEP=str(SLEEP))
    seen = watch(checkout, driver)
    if driver.returncode:
        sys.exit(f"agent resume failed: {last_line(checkout)}; its files are in {scratch}")
    recorded = checkout.events[before:]
    first = next(e for e in recorded if isinstance(e, events.JobSubmitted))
    resumed, rows = first.time.timestamp() - began, spent(recorded, seen)
    cpu = f"{seen[0][1]:.2f} of CPU"
    print(f"\nfrom `agent resume` to the first job: {resumed:.2f} s, {cpu} (aim: {RESUME_AIM:g})")
    print("\n| run | from the outcome to the next job, s | notes and figures beside that, s | CPU, s |")
    print("| --- | --- | --- | --- |")
    for number, waited, notes, cpu in rows:
        print(f"| {number} | {waited:.2f} | {notes:.2f} | {cpu:.2f} |")
    worst = max(waited + notes for _, waited, notes, _ in rows)
    print(f"\nthe most that a run cost: {worst:.2f} s (aim: {RUN_AIM:g})")
    if resumed > RESUME_AIM or worst > RUN_AIM:
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
