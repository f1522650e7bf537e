"""Runs made by hand in a study's directory."""

import os
import socket

from agent.lab.errors import UserError
from agent.lab.files import read_plain_text
from agent.study.events import HandRunAdded
from agent.study.records import Proposal
from agent.study.state import State
from agent.study.workspace import Study


def hand_run_event(study: Study, state: State, name: str, message: str) -> HandRunAdded:
    """Return the event that adds the run in directory `name` to a study. Raise UserError if it cannot be added."""
    number, directory = len(state.runs), study.directory / name
    if number == 0:
        raise UserError(f"{study.name} has no baseline yet: agent resume trains it")
    if state.open_runs:
        raise UserError(f"{study.name} is in the middle of run {state.open_runs[0].number}: agent resume finishes it")
    if name != f"run_{number}":
        raise UserError(f"the next run of {study.name} is run_{number}, not {name}: rename its directory")
    if not (directory / "experiment.py").is_file() or not (directory / "checkpoint").is_dir():
        raise UserError(
            f"{directory} holds no finished run: make one with python experiment.py --out_dir={name}, "
            f"in {study.directory}"
        )
    title, _, rest = message.strip().partition("\n")
    if not title:
        raise UserError("--message is empty: say what was tried, for the notes")
    proposal = Proposal(
        name=f"by_hand_{number}",
        title=title,
        description=rest.strip() or title,
        why="Made by hand.",
        predictions={},
        source=read_plain_text(directory / "experiment.py"),
    )
    return HandRunAdded(run=number, proposal=proposal, pid=os.getpid(), host=socket.gethostname())
