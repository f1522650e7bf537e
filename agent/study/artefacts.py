"""The files of the cache that a study's runs are judged by: recorded before its first run, and watched from then on."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from agent.lab import cache
from agent.lab.files import remove
from agent.lab.progress import notify
from agent.study import digests
from agent.study.events import ArtefactsRecorded
from agent.study.ledger import Ledger

NOT_READ = (".lock", ".partial", ".making")  # what the evaluator locks, or has not finished


class EvaluatorFiles:
    """The files that the evaluator keeps in its folder of the cache. An experiment of the same user can write there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            top = self.top(path).name
            unfinished = path.suffix in NOT_READ or top.endswith(NOT_READ) or top.startswith("tmp")
            if not unfinished and (path.is_symlink() or not path.is_dir()):
                yield path

    def digests(self) -> dict[Path, str | None]:
        """Return the digests of all files; None for what is no regular file."""
        return {path: digests.of_file(path) for path in self}

    def discard(self, paths: Iterable[Path]) -> None:
        """Remove files so that they are made again. What belongs together is removed together: all but single files
        lie in a folder of their kind."""
        for path in paths:
            remove(self.top(path))

    def discard_what_came(self, before: Mapping[Path, str | None]) -> tuple[list[str], list[str]]:
        """Remove files that are changed or new since `before`, while an experiment ran and no evaluator did.

        Return the names of those that were changed, and of those that were new.
        """
        changed = [path for path, digest in before.items() if os.path.lexists(path) and digests.of_file(path) != digest]
        kept = {self.top(path) for path in before}
        came = {path if self.top(path) in kept else self.top(path) for path in set(self) - before.keys()}
        for path in came:
            remove(path)
        self.discard(changed)
        return [cached_name(path) for path in changed], [cached_name(path) for path in sorted(came)]

    def top(self, path: Path) -> Path:
        """Return the file or folder directly below the folder that a path lies in."""
        return self.folder / path.relative_to(self.folder).parts[0]


class Artefacts:
    """What the evaluator of a study keeps in the folder `evaluation` of the cache, and the manifest in `activations`.

    The digests are the ledger's, by paths in the cache.
    """

    def __init__(self, ledger: Ledger, evaluation: Path, activations: Path) -> None:
        self.ledger, self.files, self.manifest = ledger, EvaluatorFiles(evaluation), activations / "manifest.json"

    @property
    def recorded(self) -> dict[str, str]:
        """The digests so far."""
        return self.ledger.state.artefacts or {}

    def begin(self, others: Iterable[Path]) -> None:
        """Record what a driver finds, with the `others` if it is the study's first. Say what has changed since."""
        if self.ledger.state.artefacts is None:
            self.record(others, always=True)
        for name in self.discard_changed():
            notify(f"{name} in the cache was changed since this study relied on it: made again")
        if self._differs(self.manifest):
            notify(f"{self.manifest} is not the one that earlier runs of this study were trained by")
        self.record()

    def record(self, others: Iterable[Path] = (), always: bool = False) -> None:
        """Record the evaluator's files and `others` as they are, as far as they are not recorded so."""
        files = [*self.files, self.manifest, *others]
        found = {cached_name(path): digest for path in files if (digest := digests.of_file(path))}
        new = {name: digest for name, digest in found.items() if self.recorded.get(name) != digest}
        if new or always:
            self.ledger.append(ArtefactsRecorded(digests=new))

    def are_recorded(self, folder: Path, names: Iterable[str]) -> bool:
        """Return True if the files in a folder are as they were recorded, and those that were not are not there."""
        prefix = cached_name(folder) + "/"
        known = {name.removeprefix(prefix): digest for name, digest in self.recorded.items() if name.startswith(prefix)}
        return digests.is_recorded(folder, names, known)

    def discard_changed(self) -> list[str]:
        """Remove the evaluator's files that are not as they were recorded, so that they are made again; return them."""
        prefix = cached_name(self.files.folder) + "/"
        changed = [name for name in self.recorded if name.startswith(prefix) and self._differs(cache.root() / name)]
        self.files.discard(cache.root() / name for name in changed)
        return changed

    def discard_changed_manifest(self) -> list[str]:
        """Remove the manifest if it is not as it was recorded, so that the activations are harvested again."""
        if not self._differs(self.manifest):
            return []
        remove(self.manifest)
        return [cached_name(self.manifest)]

    def _differs(self, path: Path) -> bool:
        """Return True if a recorded file lies there and is not as it was recorded."""
        recorded = self.recorded.get(cached_name(path))
        return recorded is not None and os.path.lexists(path) and digests.of_file(path) != recorded


def cached_name(path: Path) -> str:
    """Return a path in the cache as the ledger has it."""
    return path.relative_to(cache.root()).as_posix()
