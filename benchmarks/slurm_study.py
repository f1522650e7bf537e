"""Measure how well a study fills four slots of a SLURM cluster with jobs that do not wait for each other.

    python benchmarks/slurm_study.py [--seconds 20]

A real SLURM cluster is started on this machine. The study's jobs are stand-ins that sleep in the place of training:
twelve runs and the baselines beside them are the jobs that are counted, up to eight of them in the queue at once.
Serial is the sum of the jobs' own time on the nodes (from the start of a job's script to its outcome), measured in the
same study.

Prints the time from the first submission to the last outcome of these jobs over a quarter of the serial time. Exits
with 1 if that is more than 1.25.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from standins import last_line, make_checkout, slurm_cluster, start

RUNS, SLOTS = 12, 4
OF_A_SLOT = "cpus-per-task=2"  # of the cluster's eight cores
QUEUED = 8  # jobs submitted at once, as by default: the scheduler has the next one when a slot is free
MOST = 1.25  # times a quarter of the serial time


def watch(jobs: Path, times: dict[str, list[float]]) -> None:
    """Note when each job's script began and when its outcome was there, in seconds since 1970."""
    for job in jobs.glob("*/"):
        for path in (*job.glob("started_*"), job / "outcome.json"):
            try:
                moment = path.stat().st_mtime
            except FileNotFoundError:  # not there yet, or taken in
                continue
            known = times.setdefault(job.name, [moment, moment])
            times[job.name] = [min(known[0], moment), max(known[1], moment)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="that a run sleeps")
    seconds = parser.parse_args().seconds
    scratch, base = Path(tempfile.mkdtemp(prefix="slurm-study-")), Path(tempfile.mkdtemp(prefix="slurm-"))
    checkout = make_checkout(scratch)
    template = checkout.root / "templates/baselines/batchtopk.py.j2"
    template.write_text(template.read_text().replace("%}sound{%", "%}sleeping.0{%"))  # the baselines sleep too
    checkout.plan(*(f"sleeping.{number}" for number in range(1, RUNS + 1)))
    times: dict[str, list[float]] = {}
    with slurm_cluster(base):
        place = ["--executor", "slurm", "--slurm", OF_A_SLOT, "--jobs", str(QUEUED)]
        run = ["run", "--idea", "stand_in", "--max-runs", str(RUNS), *place]
        driver = start(checkout, *run, SAE_AGENT_STANDIN_SLEEP=str(seconds))
        while driver.poll() is None:
            for jobs in (checkout.root / "runs").glob("*/jobs"):
                watch(jobs, times)
            time.sleep(0.05)
    if driver.returncode:
        sys.exit(f"the study failed: {last_line(checkout)}; its files are in {scratch}")
    counted = {name: each for name, each in times.items() if name.startswith(("run_", "baseline_"))}
    runs = [name for name in counted if name.startswith("run_") and name != "run_0_attempt_1"]
    submitted = {
        event.job: event.time.timestamp()
        for event in checkout.events
        if event.event == "job_submitted" and event.job in counted
    }
    taken = max(end for _, end in counted.values()) - min(submitted.values())
    serial = sum(end - begin for begin, end in counted.values())
    ratio = taken / (serial / SLOTS)
    print(f"{len(runs)} runs and {len(counted) - len(runs)} baselines: {serial:.1f} s of jobs on {SLOTS} slots")
    print(f"{taken:.1f} s from the first submission to the last outcome: {ratio:.2f} of a quarter (aim: {MOST:g})")
    shutil.rmtree(base, ignore_errors=True)
    if ratio > MOST or len(runs) != RUNS:
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
