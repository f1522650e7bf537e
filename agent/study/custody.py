"""Custody of what later runs are judged by: checked against the ledger, and put back where an experiment changed it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.append_log import AppendLog
from agent.lab import features
from agent.lab.files import remove, write_atomically
from agent.lab.verdicts import Verdict
from agent.study import digests
from agent.study.artefacts import Artefacts
from agent.study.events import RecordsLost
from agent.study.judging_code import JudgingCode
from agent.study.ledger import Ledger
from agent.study.outcomes import RunFailed
from agent.study.state import State
from agent.study.workspace import ChangedRecord, Study

IN_CACHE = " in the cache"


def changed_records(study: Study, state: State) -> list[str]:
    """Return the recorded files that have changed since, by their paths in the study.

    A checkpoint that was deleted is none of them: it takes room, and shows no figure. Nor are features.
    """
    names = [name for name in state.digests if not _is_recorded(study, state, name)]
    return [
        name
        for name in names
        if not ("/checkpoint/" in name or _is_features(name)) or study.recorded_path(name).exists()
    ]


def require_records(study: Study, state: State) -> None:
    """Raise ChangedRecord if a recorded file has changed, saying how to put it back."""
    names = changed_records(study, state)
    if not names:
        return
    name, *others = names
    path, blob = study.recorded_path(name), study.find_blob(name, state.digests[name])
    command = f"git -C {shlex.quote(str(study.directory))} cat-file blob {blob} > {shlex.quote(str(path))}"
    otherwise = "remove it" if _is_features(name) else "put it back from a copy, or start a new study"
    remedy = f"put it back with {command}" if blob else otherwise
    more = f", and so were {', '.join(others)}" if others else ""
    raise ChangedRecord(f"{path} was changed after it was recorded{more}: {remedy}")


def driver_custody(study: Study, ledger: Ledger, lab: Mapping[str, Any]) -> "Custody":
    """Return the custody of a driver that starts now; `lab` is what the lab wrote of the folders in the cache."""
    artefacts = Artefacts(ledger, Path(lab["artefacts"]), Path(lab["activations"]))
    return Custody(study, ledger, artefacts, JudgingCode(study.idea_folder(ledger.state.started)))


class Custody:
    """Watches over the records of one study while experiments run beside them."""

    def __init__(self, study: Study, ledger: Ledger, artefacts: Artefacts, code: JudgingCode) -> None:
        self.study, self.ledger, self.artefacts, self.code = study, ledger, artefacts, code
        self._head = study.head()
        self._transcript = AppendLog(study.transcript)

    def commit(self, message: str) -> None:
        """Commit to the study's repository what tells the story."""
        self.study.commit(message)
        self._head = self.study.head()

    def note_transcript(self) -> None:
        """Take over what the driver itself has added to the transcript."""
        self._transcript.reload()

    def require_untouched(self) -> None:
        """Raise RunFailed(tampered) if an experiment changed something that is not its own, once that is restored."""
        if changed := self.restore():
            lost = [name for name in changed if name in self.ledger.state.lost]
            cached = any(name.endswith(IN_CACHE) for name in changed)
            remedy = "put back, and what lies in the cache made again" if cached else "put back as it was"
            evidence = f"the experiment changed {', '.join(changed)}; {remedy}"
            if lost:
                evidence += f", but for {', '.join(lost)} in {self.study.name}, of which there is no copy"
            raise RunFailed(Verdict(name="tampered", evidence=evidence))
        if code := self.code.changed():
            evidence = f"{', '.join(code)} changed while it ran: the study stops, put that back"
            raise RunFailed(Verdict(name="tampered", evidence=evidence))

    def require_present(self, run_dir: Path) -> None:
        """Raise RunFailed(not_evaluated) if a file of this run was changed and could not be put back."""
        for name in self.ledger.state.lost:
            if Path(name).parts[0] == run_dir.name and not _is_features(name):
                raise RunFailed(Verdict(name="not_evaluated", evidence=f"{name} was changed after it was recorded"))

    def has_recorded_files(self, run_dir: Path) -> bool:
        """Return True if all recorded files of a run are there, and as they were recorded."""
        state = self.ledger.state
        names = [name for name in (*state.digests, *state.lost) if name.startswith(f"{run_dir.name}/")]
        return all(name not in state.lost and _is_recorded(self.study, state, name) for name in names)

    def restore(self) -> list[str]:
        """Put back what was changed, and return it. Commits that the driver did not make are undone.

        A recorded file is sought in git by its digest. One that was never committed is recorded as lost.
        """
        changed = ["the commits"] if self.study.restore_head(self._head) else []
        state, lost = self.ledger.state, []
        if not all(f"run_{run.number}/final_info.json" in state.digests for run in state.runs if run.stage == "done"):
            changed += self.study.restore_committed_files()  # recorded before digests were kept
        if self.ledger.restore():
            changed.append("the ledger")
        if self._transcript.restore():  # the limits of a language model are summed over it
            changed.append("the transcript")
        for name in state.digests:
            if not _is_recorded(self.study, state, name):
                changed += [name] * (name not in changed)
                if not self._put_back(name, state.digests[name]):
                    lost.append(name)
        if lost:
            self.ledger.append(RecordsLost(paths=lost))
        cached = self.artefacts.discard_changed() + self.artefacts.discard_changed_manifest()
        return [*changed, *(f"{name}{IN_CACHE}" for name in cached)]

    def _put_back(self, name: str, digest: str) -> bool:
        """Write the committed version of a file that has this digest. Return False if there is none."""
        blob, path = self.study.find_blob(name, digest), self.study.recorded_path(name)
        if blob is None:
            return False
        for folder in reversed(path.relative_to(self.study.directory).parents[:-1]):
            if not (self.study.directory / folder).is_dir() or (self.study.directory / folder).is_symlink():
                remove(self.study.directory / folder)
            (self.study.directory / folder).mkdir(exist_ok=True)
        remove(path)
        write_atomically(path, self.study.read_blob(blob))
        return True


def _is_recorded(study: Study, state: State, name: str) -> bool:
    return digests.of_file(study.recorded_path(name)) == state.digests[name]


def _is_features(name: str) -> bool:
    return Path(name).name == features.FILE
