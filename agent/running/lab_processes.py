"""The lab's processes that come before a study, and the variables that tell any of them how a study computes."""

from collections.abc import Sequence
from pathlib import Path

from agent.ideas import Fixed
from agent.lab.defaults import CONTEXT_VARIABLE, EVALUATION_DATA, POOLS, THREADS
from agent.running import process

PREPARE = (*process.START, "agent.lab.prepare")
DESCRIBE = (*process.START, "agent.lab.describe_model")
EXAMINE = (*process.START, "agent.lab.evaluation.doctor")
IMPORT = (*process.START, "agent.lab.foreign")


def examine(root: Path, fixed: Fixed, evals: str, out: Path) -> int:
    """Write a Report of what can be evaluated to `out`, in a child process, and return its exit code."""
    options = ["--model", fixed.model, "--hook_name", fixed.hook_name, "--evals", evals, "--out", str(out)]
    options += [word for name, value in _shape(fixed).items() for word in (name, value)]
    return run_lab([*EXAMINE, *options], root, fixed, None)


def prepare_command(fixed: Fixed, required: str, out: Path, trainings: int, jobs: int) -> list[str]:
    """Return the command that harvests the activations of a study.

    The model, the hook, the evaluations, of which `required` must run, and what `trainings` with so many `jobs` at once
    need are checked first. `out` receives the fingerprint and the evaluations, as JSON.
    """
    options = {
        "--model": fixed.model,
        "--hook_name": fixed.hook_name,
        "--text": fixed.text,
        **_shape(fixed),
        "--trainings": str(trainings),
        "--jobs": str(jobs),
        "--evals": fixed.evals,
        "--needed": required,
        "--fingerprint": str(out),
    }
    return [*PREPARE, *["--stream"] * fixed.stream, *(word for pair in options.items() if pair[1] for word in pair)]


def import_command(fixed: Fixed, source: str, run_dir: Path) -> list[str]:
    """Return the command that converts an SAE from elsewhere into the checkpoint of a run directory, and prints in a
    line of JSON what it found."""
    return [*IMPORT, source, "--out", str(run_dir), "--model", fixed.model, "--hook", fixed.hook_name]


def lab_settings(fixed: Fixed, device: str | None) -> dict[str, str]:
    """Return the variables of a process that trains or evaluates: where, in which dtype, on what, with how many
    threads."""
    threads = dict.fromkeys(POOLS, str(fixed.threads)) if fixed.threads else {}
    return computation(fixed, device) | threads


def _shape(fixed: Fixed) -> dict[str, str]:
    """Return the options by which the lab reckons what a training needs."""
    sizes = {"tokens": fixed.tokens, "d_sae": fixed.d_sae, "batch": fixed.batch}
    return {f"--{name}": str(size) for name, size in sizes.items()}


def run_lab(command: Sequence[str], root: Path, fixed: Fixed, device: str | None) -> int:
    """Run a command of the lab that may use the network, in the directory of the studies; return its exit code."""
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
