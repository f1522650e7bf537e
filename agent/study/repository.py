"""The git repository of a study, opened so that git runs nothing that an experiment, or a sender, has put into it."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.files import remove
from agent.lab.progress import notify
from agent.study import digests

if TYPE_CHECKING:
    from git import Git, Repo

KEPT = {"objects", "refs", "packed-refs", "logs"}  # the story; whatever else is in .git is written anew or not needed
SAFE = {  # given with each command too, as the file may change between
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
}
CONFIG = """\
# Written anew by the driver whenever it opens the repository.
[core]
	repositoryformatversion = 0
	bare = false
	logallrefupdates = true
	autocrlf = false
	fsmonitor = false
	hooksPath = /dev/null
	attributesFile = /dev/null
	excludesFile = /dev/null
[commit]
	gpgsign = false
[gc]
	auto = 0
[diff]
	ignoreSubmodules = all
"""
ATTRIBUTES = "* -text -ident -filter -working-tree-encoding -diff\n"  # they go before those of any .gitattributes
# Of our environment git gets no more: no key, and no GIT_DIR of a hook that the driver may run in.
ENVIRONMENT = re.compile(r"PATH|HOME|USER|LANG|LC_\w+|TMPDIR|(DY)?LD_LIBRARY_PATH")
WITHOUT_USER_SETTINGS = {
    **{f"GIT_{who}_NAME": "sae-agent" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "sae-agent@localhost" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TERMINAL_PROMPT": "0",
}


@contextmanager
def opened(directory: Path, environment: Mapping[str, str], whole: bool = True) -> "Iterator[Repo]":
    """Open the repository in `directory`, or make it; git runs with `environment` and without our keys.

    Everything in it but commits and references is written anew. One that git cannot use is kept aside, and a new one
    is begun; unless the `whole` story is to be read, only what the newest commit needs is looked at, and nothing where
    no file has changed since this process had the repository open.
    """
    from git import Git, Repo  # here because the import fails where git is not installed

    shell = Git(directory)
    _set_up(shell, directory, environment)
    left = _left.pop(directory, None)
    if whole or left is None or left != _contents(directory / ".git"):
        _make_usable(shell, directory, whole)
    with Repo(directory) as repo:
        _set_up(repo.git, directory, environment)
        yield repo
    _left[directory] = _contents(directory / ".git")


_left: dict[Path, frozenset[tuple[str, digests.Status]]] = {}  # what lay in .git when a study's was last closed


def _contents(folder: Path) -> frozenset[tuple[str, digests.Status]]:
    """Return path and status of a folder and of all in it: its times of change can be forged by root alone."""
    found, folders = set(), [str(folder)]
    with suppress(OSError):  # what cannot be listed whole is not as it was left
        found.add(("", digests.content_status(folder.lstat())))
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    found.add((entry.path, digests.content_status(entry.stat(follow_symlinks=False))))
                    folders += [entry.path] if entry.is_dir(follow_symlinks=False) else []
    return frozenset(found)


def _make_usable(shell: "Git", directory: Path, whole: bool) -> None:
    """Leave commits and references that git can use in .git, and nothing of a run's; or begin anew."""
    if not _is_directory(directory / ".git"):
        remove(directory / ".git")
        _begin(shell, directory)
    _clean(directory / ".git")
    if not _is_usable(shell, directory, whole):
        names = (f"git_damaged_{number}" for number in count(1))
        kept = next(path for name in names if not os.path.lexists(path := directory / name))
        (directory / ".git").rename(kept)
        _begin(shell, directory)
        notify(f"the git repository of {directory} was damaged: it is kept as {kept.name}, and a new one is begun")


def _set_up(shell: "Git", directory: Path, environment: Mapping[str, str]) -> None:
    """Take our environment and the user's settings from the git processes of `shell`."""
    hidden = {name: "" for name in os.environ if not ENVIRONMENT.fullmatch(name)}
    own = {
        "GIT_DIR": str(directory / ".git"),
        "GIT_COMMON_DIR": str(directory / ".git"),
        "GIT_WORK_TREE": str(directory),
        "GIT_INDEX_FILE": str(directory / ".git/index"),
        "GIT_OBJECT_DIRECTORY": str(directory / ".git/objects"),
    }
    shell.update_environment(**(hidden | WITHOUT_USER_SETTINGS | own | dict(environment)))
    options = {**SAFE, "safe.directory": str(directory)}  # of another user, perhaps: nothing of theirs is run
    shell.set_persistent_git_options(c=[f"{name}={value}" for name, value in options.items()])


def _begin(shell: "Git", directory: Path) -> None:
    shell.init("--quiet", "--template=", "--initial-branch=main")
    _clean(directory / ".git")


def _clean(folder: Path) -> None:
    """Leave commits and references, as regular files, and write the rest of .git anew."""
    for path in folder.iterdir():
        if path.name not in KEPT or (path.name != "packed-refs" and not _is_directory(path)):
            remove(path)
    _leave_plain(folder)
    remove(folder / "objects/info/alternates")
    for name in ("objects", "refs", "info"):
        (folder / name).mkdir(exist_ok=True)
    for name, content in (("HEAD", "ref: refs/heads/main\n"), ("config", CONFIG), ("info/attributes", ATTRIBUTES)):
        with (folder / name).open("x") as file:
            file.write(content)


def _leave_plain(folder: Path) -> None:
    """Remove what git would follow, or wait for, or take for the lock of another git."""
    folders = [folder]
    while folders:
        for entry in list(os.scandir(folders.pop())):
            if entry.name.endswith(".lock"):  # of a git that was killed
                remove(Path(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                remove(Path(entry.path))


def _is_usable(shell: "Git", directory: Path, whole: bool) -> bool:
    """Return True if there is no commit yet, or the newest one is there with all its files, and all that went before.

    The files of those before are looked for only if the `whole` story is to be read, since that takes long.
    """
    from git import GitCommandError

    try:
        if not (newest := shell.for_each_ref("--format=%(objectname)", "refs/heads/main")):
            return not (directory / ".git/refs/heads/main").exists()
        shell.rev_list("--quiet", newest)
        shell.rev_list("--quiet", "--objects", newest, *[] if whole else ["--max-count=1"])
        shell.read_tree(newest)
    except GitCommandError:
        return False
    return True


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
