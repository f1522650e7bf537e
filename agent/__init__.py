"""Automated SAE experiments: propose a change, train it, score it with SAE-Bench, compare at matched L0, write it up.

study       the record: the ledger, the state it adds up to, directories and git
running     processes: preflight, guarded trainings, the evaluator, watchdogs
comparison  statistics: matched L0, noise, Holm's correction, fresh seeds
proposers   where proposals come from: an idea's plan, or a language model
llm         a client of OpenAI-compatible servers, its transcript and replay
report      notes, plots and checked prose
display     what a terminal shows
commands    what each verb of the command line does
audit       claims of a notes.txt against its figures
lab         the frozen harness that experiment.py imports: the only part that imports torch
"""

from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # the checkout
TEMPLATES = ROOT / "templates"


def __getattr__(name: str) -> Any:
    """Let ideas that were written for an earlier layout import `agent.canvas`."""
    if name == "canvas":
        return import_module("agent.report.figure_style")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
