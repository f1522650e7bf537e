"""The lab's processes that come before a study, and the variables that tell any of them how a study computes."""

from collections.abc import Sequence
from pathlib import Path

from agent.ideas import Fixed
from agent.lab.defaults import EVALUATION_DATA, THREADS
from agent.running import process

PREPARE = (*process.START, "agent.lab.prepare")
EXAMINE = (*process.START, "agent.lab.evaluation.doctor")
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")  # of threads


def prepare(root: Path, fixed: Fixed, required: str, device: str | None, out: Path) -> int:
    """Harvest the activations of a study in a child process and return its exit code.

    The model, the hook and the evaluations, of which `required` must run, are checked first. `out` receives the
    fingerprint and the evaluations, as JSON.
    """
    options = {"--tokens": str(fixed.tokens), "--evals": fixed.evals, "--needed": required, "--fingerprint": str(out)}
    if fixed.text:
        options["--text"] = fixed.text
    return _run_lab(PREPARE, root, fixed, device, options)


def examine(root: Path, fixed: Fixed, evals: str, out: Path) -> int:
    """Write a Report of what can be evaluated to `out`, in a child process, and return its exit code."""
    return _run_lab(EXAMINE, root, fixed, None, {"--evals": evals, "--out": str(out)})


def lab_settings(fixed: Fixed, device: str | None) -> dict[str, str]:
    """Return the variables of a process that trains or evaluates: where, in which dtype, on what, with how many
    threads."""
    threads = dict.fromkeys(POOLS, str(fixed.threads)) if fixed.threads else {}
    return _computation(fixed, device) | threads


def _run_lab(command: Sequence[str], root: Path, fixed: Fixed, device: str | None, options: dict[str, str]) -> int:
    runs = root / "runs"  # not where the user stands: a directory there must not pass for a model of the same name
    runs.mkdir(exist_ok=True)
    arguments = {"--model": fixed.model, "--hook_name": fixed.hook_name} | options
    env = process.child_environment(_computation(fixed, device), process.ALL_VARIABLES)
    command = [*command, *(part for pair in arguments.items() for part in pair)]
    return process.run(command, cwd=runs, env=env, max_file_bytes=0).exit_code  # the weights of a model may be larger


def _computation(fixed: Fixed, device: str | None) -> dict[str, str]:
    settings = {
        "SAE_AGENT_DEVICE": device,
        "SAE_AGENT_DTYPE": fixed.dtype,
        EVALUATION_DATA: fixed.evaluation_data,
        THREADS: str(fixed.threads or ""),
    }
    return {name: value for name, value in settings.items() if value}
