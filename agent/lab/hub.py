"""Models of the hub: fetched once into the hub's own cache, whole, so that everything after works without a network.

python -P -m agent.lab.hub REPOSITORY [COMMIT]: fetch one; what went wrong is printed as one line, with exit code 2.
With config.json for COMMIT, the newest of that file alone is fetched.
"""

import functools
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from agent.lab import model_files, start
from agent.lab.errors import UserError, describe
from agent.lab.progress import notify

ONLINE = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}  # for a process that may use the network
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_complete(snapshot: Path) -> bool:
    """Return whether a folder of the hub's cache holds all that loading needs."""
    try:
        return bool(model_files.needed(snapshot))
    except UserError:
        return False


def stored(repository: str) -> Path | None:
    """Return the folder of a repository in the hub's cache, which may lack files, or None if it was never fetched."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, model_files.CONFIG)
    return Path(config).parent if isinstance(config, str) else None


def snapshot(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache, named by its commit, fetched or completed if need be.

    Raises UserError if it cannot be fetched, or has not all that is needed.
    """
    folder = stored(repository)
    if folder is None or not is_complete(folder):
        folder = _fetch(repository, *([folder.name] if folder else []))
    model_files.needed(folder)
    return folder


def config_folder(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache, which holds its config.json, fetched if need be.

    Raises UserError if it cannot be fetched, or the repository has none.
    """
    return stored(repository) or _fetch(repository, model_files.CONFIG)


@functools.cache
def hub_error() -> OSError | None:
    """Return the error of a connection to the hub, or None if it can be reached."""
    from huggingface_hub.constants import ENDPOINT

    hub = urlparse(ENDPOINT)
    address = (hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443))
    try:
        if hub.scheme not in getproxies():  # behind a proxy only the proxy knows
            socket.create_connection(address, timeout=5).close()
    except OSError as error:
        return error
    return None


def _fetch(repository: str, *what: str) -> Path:
    """Fetch a repository, what the cache lacks of one of its commits, or its config.json alone; return the folder."""
    if error := hub_error():
        state = "not stored" if what in ((), (model_files.CONFIG,)) else "stored only in part"
        raise UserError(
            f"model {repository} is {state} on this machine and the hub cannot be reached ({error}): "
            "use the embedded tiny-lm, a local directory, or fetch it where there is a network"
        )
    bars = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    in_a_process(f"model {repository}", start.command("agent.lab.hub", repository, *what), bars)
    if (folder := stored(repository)) is None:
        raise UserError(f"model {repository} holds no config.json on the hub: use another model")
    return folder


def in_a_process(what: str, command: list[str], variables: Mapping[str, str]) -> None:
    """Have `what` fetched by a process that may use the network. Raise UserError with the last line that it prints."""
    env = {**os.environ, **variables, "HF_HUB_VERBOSITY": "critical"}
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        lines = result.stdout.strip().splitlines() or [f"its process ended with exit code {result.returncode}"]
        raise UserError(f"{what} could not be fetched: {lines[-1]}")


def fetch(repository: str, commit: str | None) -> None:
    """Fetch the needed files of a repository, at a commit or the newest; or its config.json. Raise UserError."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    with answers_in_words(repository):
        if commit == model_files.CONFIG:
            hf_hub_download(repository, model_files.CONFIG)
            return
        info = HfApi().model_info(repository, revision=commit, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        files = model_files.wanted(sizes)
        if not set(files) & set(model_files.WEIGHTS):
            raise UserError(f"it holds no weights ({' or '.join(model_files.WEIGHTS)}): use another model")
        size = sum(sizes[name] for name in files)
        _require_space(Path(HF_HUB_CACHE), size)
        notify(f"fetching {repository} from the hub: {len(files)} files, {size / 1e9:,.1f} GB")
        snapshot_download(repository, revision=commit, allow_patterns=files)


@contextmanager
def answers_in_words(repository: str) -> Iterator[None]:
    """Raise UserError for whatever a call of the hub's library about a repository raises."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"it is gated: accept its terms at {ENDPOINT}/{repository}, and give a token of the account that did, in "
            "HF_TOKEN or with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            "the hub has no such model, or it is private and needs a token in HF_TOKEN; nor is there such a directory"
        ) from None
    except HfHubHTTPError as error:
        hint = ": the token in HF_TOKEN is not valid" if error.response.status_code == 401 else ""
        raise UserError(f"the hub answered {error.response.status_code}{hint}") from None
    except Exception as error:  # a connection that breaks off may raise anything
        if isinstance(error, UserError):
            raise
        raise UserError(f"{describe(error)}: try again, what was fetched is kept") from None


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < 1.1 * size:
        raise UserError(f"it takes {size / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB free: set HF_HOME")


if __name__ == "__main__":
    os.environ.update(ONLINE)  # before the hub's library is imported
    try:
        fetch(sys.argv[1], *(sys.argv[2:] or [None]))
    except UserError as failure:
        print(failure)
        sys.exit(2)
