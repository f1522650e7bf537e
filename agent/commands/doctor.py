"""`agent doctor`: which evaluations can run here, what the others lack, and what a study needs."""

import tempfile
from pathlib import Path

from agent import ROOT, ideas
from agent.display.console import make_console, print_table
from agent.lab.evaluation.catalogue import Report
from agent.running import lab_processes
from agent.running.sandbox import settle


def show(fixed: ideas.Fixed, evals: str) -> int:
    """Print which evaluations can run on a model and hook.

    Return the exit code: 0 if all requested ones can, 1 if not, 2 for a mistake of the user.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        if code := lab_processes.examine(ROOT, fixed, evals, out):
            return 2 if code == 2 else 1
        report = Report.model_validate_json(out.read_bytes())
    console = make_console(width=200)
    console.print(f"{report.model}, {report.hook_name}")
    for name, state in report.machine.items():
        console.print(f"{name}: {state}", soft_wrap=True)
    for line in report.needs:
        console.print(line, soft_wrap=True)
    console.print(f"sandbox: {settle('auto').description}", soft_wrap=True)
    if report.unsuited:
        console.print(f"left out, as {report.why_unsuited}: {', '.join(report.unsuited)}", soft_wrap=True)
    console.print()
    rows = [
        (family.name, "no" if family.unmet_requirements else "yes", *row)
        for family in report.families
        for row in ([(unmet.reason, unmet.remedy) for unmet in family.unmet_requirements] or [(family.summary, "")])
    ]
    print_table(console, ("evaluation", "runs", "what it measures, or why it cannot run", "what to do"), rows)
    return 1 if any(family.unmet_requirements for family in report.families) else 0
