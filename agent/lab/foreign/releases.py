"""SAEs of the hub: RELEASE/ID of SAELens' own directory of releases, and OWNER/NAME/FOLDER in any format that is read.

python -P -m agent.lab.foreign.releases SAE: fetch one; what went wrong is printed as one line, with exit code 2.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agent.lab import hub, start
from agent.lab.errors import UserError, did_you_mean
from agent.lab.foreign import saelens
from agent.lab.foreign.sae import Foreign
from agent.lab.foreign.saelens import Declared

NO_SAE = ("transcoder", "clt", "crosscoder", "temporal")  # in the names of SAELens' readers of what is no such SAE

Found = TypeVar("Found")


def is_named(source: str) -> bool:
    """Return whether a name can be that of an SAE on the hub."""
    return "/" in source and not source.startswith(("/", ".", "~"))


def read_release(source: str) -> Foreign | None:
    """Return an SAE of SAELens' directory, fetched if need be, or None for a name that is not in it.

    Raises UserError.
    """
    if (lookup := _lookup(source)) is None:
        return None
    release, sae_id = source.split("/", 1)
    reader = str(lookup.conversion_func)
    if any(word in reader for word in NO_SAE):
        raise UserError(f"{source} is read by SAELens as {reader}: it is no SAE that reconstructs what it reads")
    if sae_id not in lookup.saes_map:
        raise UserError(f"SAELens' release {release} has no SAE {sae_id}: {did_you_mean(sae_id, lookup.saes_map)}")
    sae = _with_files(source, lambda: _load(release, sae_id))
    config = sae.cfg.to_dict()
    saelens.refuse(config, source)
    if config["normalize_activations"] != "none":
        raise UserError(f"{source} expects activations that are scaled by a factor, and SAELens does not know which")
    config["metadata"] = {"model_name": lookup.model} | config["metadata"]
    declared = Declared(source, lookup.expected_l0.get(sae_id) or None)
    return saelens.convert(config, sae.state_dict(), declared, architecture=config["architecture"], original=sae)


def repository_folder(source: str) -> Path:
    """Return the folder of OWNER/NAME/FOLDER in the hub's cache, fetched if need be. Raises UserError."""
    owner, name, *folders = source.strip("/").split("/")
    if not hub.REPOSITORY.fullmatch(f"{owner}/{name}") or ".." in folders:
        raise UserError(
            f"there is no directory {source}, and it is no name of the hub: RELEASE/ID or OWNER/NAME/FOLDER"
        )
    return _with_files(source, lambda: _snapshot(f"{owner}/{name}", "/".join(folders)))


def _lookup(source: str) -> Any:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory().get(source.split("/", 1)[0])


def _load(release: str, sae_id: str) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SAE.from_pretrained(release, sae_id, dtype="float32")


def _snapshot(repository: str, folder: str) -> Path:
    """Return a folder of a repository, with the configuration above it that sparsify writes."""
    from huggingface_hub import snapshot_download

    above = f"{folder.rpartition('/')[0]}/config.json".lstrip("/")
    patterns = [f"{folder}/*.{suffix}" for suffix in ("json", "safetensors", "pt")] if folder else ["*"]
    path = Path(snapshot_download(repository, allow_patterns=[*patterns, above])) / folder
    if not any(path.glob("*.json")):  # offline, that is what a cache without this folder looks like
        raise FileNotFoundError(f"{repository} has no SAE in {folder or 'it'}")
    return path


def _with_files(source: str, load: Callable[[], Found]) -> Found:
    """Return what is loaded from the hub's cache, with the files fetched by a process that may use the network."""
    try:
        return load()
    except OSError:  # of any kind: the hub's library has many for what its cache lacks
        _fetch(source)
    try:
        return load()
    except OSError as error:
        raise UserError(f"{source} was fetched and cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def _fetch(source: str) -> None:
    if error := hub.hub_error():
        raise UserError(
            f"there is no directory {source}, no SAE of the hub of this name is stored on this machine, and the hub "
            f"cannot be reached ({error}): give a directory, or fetch it where there is a network"
        )
    hub.in_a_process(f"SAE {source}", start.command("agent.lab.foreign.releases", source), hub.ONLINE)


def fetch(source: str) -> None:
    """Fetch the files of an SAE into the hub's cache. Raises UserError."""
    lookup = _lookup(source)
    first, second, *folders = source.strip("/").split("/")
    with hub.answers_in_words(lookup.repo_id if lookup else f"{first}/{second}"):
        if lookup:
            _load(*source.split("/", 1))
        else:
            _snapshot(f"{first}/{second}", "/".join(folders))


if __name__ == "__main__":
    try:
        fetch(sys.argv[1])
    except UserError as failure:
        print(failure)
        sys.exit(2)
