"""Attacks on what is recorded: earlier results, their git, the ledger, a run's own results.

As in machine.py, a decorated function is the attack, and the function before it says what it has done.
"""

# ruff: noqa: F821  (names of inside.py)
# pyright: reportUndefinedVariable=false

import json
import os
import subprocess
import sys
import time
from typing import Any

from attacking.attack import Attack, attack
from attacking.trial import BREAKS, Trial, driver_failed

SHOWN = "0.9990"  # the figure that forged results give


def forged_figure(trial: Trial) -> str:
    """Say where the forged figure of run 0 is shown."""
    places = ["the notes"] if SHOWN in trial.notes else []
    before = trial.out
    trial.out = ""
    trial.agent("show", str(trial.study.directory))
    places += ["agent show"] if "0.999" in trial.out else []
    trial.out = before + trial.out
    return f"{SHOWN} in {' and '.join(places)}" if places else ""


@attack("15", "edit run_0/final_info.json", forged_figure, then=("fine",))
def edit_results(at: Any) -> None:
    forge(at.study)


def other_checkpoint(trial: Trial) -> str:
    header = trial.study.run_dir(0) / "checkpoint/header.json"
    return "the checkpoint of run 0 stays changed" if "forged" in header.read_text() else ""


@attack("15b", "edit run_0/checkpoint", other_checkpoint, then=("fine",))
def edit_checkpoint(at: Any) -> None:
    header = at.study / "run_0/checkpoint/header.json"
    header.write_text(header.read_text().replace('"model"', '"forged": 1, "model"'))


@attack("16", "the same, committed by the run", forged_figure, then=("fine",))
def commit_results(at: Any) -> None:
    forge(at.study)
    git = ["git", "-C", str(at.study), "-c", "user.name=sae-agent", "-c", "user.email=sae-agent@localhost"]
    subprocess.run([*git, "commit", "--quiet", "--all", "--amend", "--no-edit"], check=True)


@attack("16b", "the same, with --assume-unchanged", forged_figure, then=("fine",))
def hide_results(at: Any) -> None:
    path = forge(at.study)
    subprocess.run(["git", "-C", str(at.study), "update-index", "--assume-unchanged", str(path)], check=True)


@attack("17", "the same during fresh seeds", forged_figure, behaviour="better")
def results_by_seed(at: Any) -> None:
    if at.seed >= 1000:
        forge(at.study)


def changed_ledger(trial: Trial) -> str:
    return "the ledger says so" if trial.state.started.max_runs > 1000 else ""


@attack("18", "change the ledger", changed_ledger)
def ledger(at: Any) -> None:
    path = at.study / "events.jsonl"
    path.write_text(path.read_text().replace('"max_runs":', '"max_runs":999999'))


FORGED_LEDGER = """
import json, os, pathlib, shutil, signal, sys, time
root, study, driver = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, str(root))
os.kill(driver, signal.SIGKILL)
time.sleep(1)
from agent.comparison import curves, matching
from agent.lab import results
from agent.study import events, ledger
log = ledger.Ledger(study / "events.jsonl")
shutil.rmtree(study / "run_1")
shutil.copytree(study / "run_0", study / "run_1")
info = results.read(study / "run_0")
info.core = info.core.model_copy(update={"ce_loss_score": info.core.ce_loss_score + 0.03})
info.comparison = comparison = matching.compare(info, curves.own_curve(log.state))
results.write(study / "run_1", info)
log.append(events.AttemptEnded(run=1, attempt=1, verdict=None, seconds=1.0))
log.append(events.EvaluationEnded(run=1, attempt=1, verdict=info.verdict, seconds=1.0))
log.append(events.RunCommitted(run=1, verdict=info.verdict))
for seed in (1000, 1001, 1002):
    log.append(events.ReplicateEnded(run=1, seed=seed, comparison=comparison, seconds=1.0))
"""


def bring_forger(trial: Trial) -> None:
    trial.extra["values"] = {"forger": FORGED_LEDGER}


def better_after_resume(trial: Trial) -> str:
    """Resume the study as its user would, and say what the notes then claim."""
    time.sleep(15)  # for the forger
    trial.agent("resume")
    return claimed(trial)


def claimed(trial: Trial) -> str:
    lines = [line for line in trial.notes.splitlines() if line.startswith("Better (confirmed)")]
    return lines[0][:90] if lines else ""


@attack(
    "19", "kill the driver, write a ledger with good checksums, the user resumes", better_after_resume,
    prepare=bring_forger,
)  # fmt: skip
def forged_ledger(at: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SAE_AGENT_STUDY"}
    command = [sys.executable, "-c", at.forger, str(at.root), str(at.study), str(driver())]
    subprocess.Popen(command, env=environment, start_new_session=True)
    time.sleep(20)


def forged_run(trial: Trial) -> str:
    info = trial.study.run_dir(1) / "final_info.json"
    return "the forged results stand" if info.exists() and "it is mine" in info.read_text() else ""


@attack("21", "forged final_info.json, no checkpoint", forged_run, own_end="not_evaluated")
def forged_results(at: Any) -> None:
    (at.out_dir / "final_info.json").write_text(
        '{"format_version": 1, "verdict": {"name": "ok", "evidence": "it is mine"}}'
    )
    os._exit(0)


def forged_history(trial: Trial) -> str:
    run = trial.state.runs[1]
    forged = "1e-09" in (trial.study.run_dir(1) / "metrics.jsonl").read_text()
    return "a forged history counts" if forged and run.verdict and run.verdict.ok else ""


@attack("22", "forged metrics.jsonl", forged_history, when="after")
def forged_metrics(at: Any) -> None:
    path = at.out_dir / "metrics.jsonl"
    rows = [json.loads(line) | {"loss": 1e-9} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def show_failed(trial: Trial) -> str:
    before, trial.out = trial.out, ""
    trial.agent("show", str(trial.study.run_dir(1)))
    failed = "Traceback" in trial.out
    trial.out = before + trial.out
    return f"{BREAKS}agent show ends with a traceback" if failed else driver_failed(trial)


@attack("44", "header with steps and tokens of 400 digits", show_failed, when="after")
def long_header(at: Any) -> None:
    path = at.out_dir / "checkpoint/header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": 10**400, "steps": 10**400}))


ATTACKS: list[Attack] = [value for value in list(globals().values()) if isinstance(value, Attack)]
