"""What a job leaves is taken into the directory of its study: moved there, compared with its outcome, and read."""

from pathlib import Path

from agent.lab import results
from agent.lab.files import remove
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.running.jobs import Outcome
from agent.study import digests
from agent.study.custody import Custody
from agent.study.outcomes import RunFailed


def move_in(outcome: Outcome, run_dir: Path, custody: Custody) -> Verdict | None:
    """Move the files of a run to `run_dir`; return the verdict that there are no results, or None if there may be.

    What an experiment changed elsewhere is put back, and the verdict is `tampered`.
    """
    verdict = outcome.failure
    if outcome.run_dir != run_dir and outcome.run_dir.is_dir():  # else an earlier driver did it
        if digests.of_files(outcome.run_dir, digests.RUN_FILES) != outcome.digests:
            evidence = f"files of {run_dir.name} changed after its job had ended"
            verdict = verdict or Verdict(name="tampered", evidence=evidence)
        remove(run_dir)
        outcome.run_dir.rename(run_dir)
    try:
        custody.require_untouched()
    except RunFailed as failure:
        verdict = failure.verdict
    custody.artefacts.record()
    return verdict


def take_in(outcome: Outcome, run_dir: Path, custody: Custody) -> FinalInfo:
    """Move the files of a run to `run_dir` and return its results, or the verdict that there are none, which is then
    written there too."""
    if (verdict := move_in(outcome, run_dir, custody)) is None:
        return results.read(run_dir)
    info = FinalInfo(verdict=verdict)
    results.write(run_dir, info)
    return info
