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


def take_in(outcome: Outcome, run_dir: Path, custody: Custody) -> FinalInfo:
    """Move the files of a run to `run_dir` and return its results, or the verdict that there are none, which is then
    written there too. What an experiment changed elsewhere is put back, and the verdict is `tampered`."""
    verdict, changed = outcome.failure, ""
    if outcome.run_dir != run_dir and outcome.run_dir.is_dir():  # else an earlier driver did it
        if digests.of_files(outcome.run_dir, digests.RUN_FILES) != outcome.digests:
            changed = f"files of {run_dir.name} changed after its job had ended"
        remove(run_dir)
        outcome.run_dir.rename(run_dir)
    try:
        custody.require_untouched()
    except RunFailed as failure:
        verdict = failure.verdict
    if changed:
        verdict = verdict or Verdict(name="tampered", evidence=changed)
    if verdict:
        info = FinalInfo(verdict=verdict)
        results.write(run_dir, info)
    else:
        info = results.read(run_dir)
    custody.artefacts.record()
    return info
