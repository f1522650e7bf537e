"""The lab's processes that come before a study, and the variables that tell any of them how a study computes."""

from collections.abc import Sequence
from pathlib import Path

from agent.ideas import Fixed
from agent.lab.defaults import CONTEXT_VARIABLE, EVALUATION_DATA, POOLS, THREADS
from agent.running import process

PREPARE = (*process.START, "agent.lab.prepare")
DESCRIBE = (*process.START, "agent.lab.describe_model")
EXAMINE = (*process.START, "agent.lab.evaluation.doctor")


def prepare(root: Path, fixed: Fixed, required: str, device: str | None, out: Path) -> int:
    """Harvest the activations of a study in a child process and return its exit code.

    The model, the hook and the evaluations, of which `required` must run, are checked first. `out` receives the
    fingerprint and the evaluations, as JSON.
    """
    return _run_lab(prepare_command(fixed, required, out), root, fixed, device)


def examine(root: Path, fixed: Fixed, evals: str, out: Path) -> int:
    """Write a Report of what can be evaluated to `out`, in a child process, and return its exit code."""
    options = ["--model", fixed.model, "--hook_name", fixed.hook_name, "--evals", evals, "--out", str(out)]
    return _run_lab([*EXAMINE, *options], root, fixed, None)


def prepare_command(fixed: Fixed, required: str, out: Path) -> list[str]:
    """Return the command that harvests the activations of a study."""
    options = {
        "--model": fixed.model,
        "--hook_name": fixed.hook_name,
        "--text": fixed.text,
        "--tokens": str(fixed.tokens),
        "--evals": fixed.evals,
        "--needed": required,
        "--fingerprint": str(out),
    }
    return [*PREPARE, *["--stream"] * fixed.stream, *(word for pair in options.items() if pair[1] for word in pair)]


def lab_settings(fixed: Fixed, device: str | None) -> dict[str, str]:
    """Return the variables of a process that trains or evaluates: where, in which dtype, on what, with how many
    threads."""
    threads = dict.fromkeys(POOLS, str(fixed.threads)) if fixed.threads else {}
    return computation(fixed, device) | threads


def _run_lab(command: Sequence[str], root: Path, fixed: Fixed, device: str | None) -> int:
    runs = root / "runs"  # not where the user stands: a directory there must not pass for a model of the same name
    runs.mkdir(exist_ok=True)
    env = process.child_environment(computation(fixed, device), process.ALL_VARIABLES)
    return process.run(command, cwd=runs, env=env, max_file_bytes=0).exit_code  # the weights of a model may be larger


def computation(fixed: Fixed, device: str | None) -> dict[str, str]:
    """Return the variables of any of the lab's processes: where, in which dtype, and on text of which kind."""
    settings = {
        "SAE_AGENT_DEVICE": device,
        "SAE_AGENT_DTYPE": fixed.dtype,
        CONTEXT_VARIABLE: str(fixed.context or ""),
        EVALUATION_DATA: fixed.evaluation_data,
        THREADS: str(fixed.threads or ""),
    }
    return {name: value for name, value in settings.items() if value}
