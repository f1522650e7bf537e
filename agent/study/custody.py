"""Custody of what later runs are judged by: checked against the ledger, and put back where an experiment changed it."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.lab import results
from agent.lab.files import BadFile, remove, write_atomically
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

    A checkpoint that was deleted is none of them: it takes room, and shows no figure.
    """
    names = [name for name in state.digests if not _is_recorded(study, state, name)]
    return [name for name in names if "/checkpoint/" not in name or study.recorded_path(name).exists()]


def require_records(study: Study, state: State) -> None:
    """Raise ChangedRecord if a recorded file has changed, saying how to put it back."""
    names = changed_records(study, state)
    if not names:
        return
    name, *others = names
    path, blob = study.recorded_path(name), study.find_blob(name, state.digests[name])
    command = f"git -C {shlex.quote(str(study.directory))} cat-file blob {blob} > {shlex.quote(str(path))}"
    remedy = f"put it back with {command}" if blob else "put it back from a copy, or start a new study"
    more = f", and so were {', '.join(others)}" if others else ""
    raise ChangedRecord(f"{path} was changed after it was recorded{more}: {remedy}")


def driver_custody(study: Study, ledger: Ledger, lab: Mapping[str, Any]) -> "Custody":
    """Return the custody of a driver that starts now; `lab` is what the lab wrote of the folders in the cache."""
    artefacts = Artefacts(ledger, Path(lab["artefacts"]), Path(lab["activations"]))
    return Custody(study, ledger, artefacts, JudgingCode(ledger.state.started.idea))


class Custody:
    """Watches over the records of one study while experiments run beside them."""

    def __init__(self, study: Study, ledger: Ledger, artefacts: Artefacts, code: JudgingCode) -> None:
        self.study, self.ledger, self.artefacts, self.code = study, ledger, artefacts, code

    @contextmanager
    def guard(self, own: str, confined: bool) -> Iterator[None]:
        """Restore what a training into the directory `own` has changed elsewhere; raise RunFailed(tampered) if it did.

        Commits that it made are undone. What is new in the cache is another study's if the training is confined.
        """
        head, cached = self.study.head(), self.artefacts.names()
        try:
            yield
        except RunFailed:
            self.require_untouched(own, head)
            raise
        finally:
            if not confined:
                self.artefacts.discard_new(cached, f"the training of {own}")
        self.require_untouched(own, head)

    def require_untouched(self, own: str = "", head: str | None = None) -> None:
        """Raise RunFailed(tampered) if something was changed outside the directory `own`, once it is restored."""
        if changed := self.restore(own, head):
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
            if Path(name).parts[0] == run_dir.name:
                raise RunFailed(Verdict(name="not_evaluated", evidence=f"{name} was changed after it was recorded"))

    def restore(self, own: str = "", head: str | None = None) -> list[str]:
        """Put back what was changed outside the directory `own`, and return it. `head` is the newest commit before.

        A recorded file is sought in git by its digest. One that was never committed is recorded as lost.
        """
        changed = ["the commits"] if head is not None and self.study.restore_head(head) else []
        state, lost = self.ledger.state, []
        if not all(f"run_{run.number}/final_info.json" in state.digests for run in state.runs if run.stage == "done"):
            changed += self.study.restore_committed_files(except_for=own)  # recorded before digests were kept
        if self.ledger.restore():
            changed.append("the ledger")
        for name in state.digests:
            if Path(name).parts[0] != own and not _is_recorded(self.study, state, name):
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
    """Return True if a file is as it was recorded, or a run's results are but for the comparison that was added."""
    path, recorded = study.recorded_path(name), state.digests[name]
    if digests.of_file(path) == recorded:
        return True
    settling = [f"run_{run.number}/final_info.json" for run in state.runs if run.stage == "judged"]
    if name not in settling:
        return False
    try:
        info = results.read(path.parent)
    except BadFile:
        return False
    return digests.of_text(results.as_text(info.model_copy(update={"comparison": None}))) == recorded
