"""What each kind of process of a study sees, when it is confined (see sandbox.py)."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import ROOT
from agent.idea_folder import KEPT
from agent.ideas import Fixed
from agent.lab import cache
from agent.lab.defaults import SAE_BENCH
from agent.running.sandbox import Access, View, interpreter_paths

NETWORKED = {"autointerp"}  # families that ask a server


def hub_cache() -> Path:
    """Return the folder in which the hub's libraries keep models, data sets and the user's token."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(base, "huggingface")).expanduser().absolute()


def folders() -> dict[str, str]:
    """Return the variables that say where the caches are, for a process with another home."""
    return {"SAE_AGENT_CACHE": str(cache.root()), "HF_HOME": str(hub_cache())}


def for_training(script: Path, run_dir: Path, environment: Mapping[str, str]) -> View:
    """Return the view of an experiment: the interpreter, the lab, its script; and it writes `run_dir` alone.

    Held-out text and the weights of the embedded model are not in it.
    """
    hidden = [ROOT / "agent/lab/tiny_lm", *_held_out_text()]
    return View({**_code(environment), **_each(hidden, "hidden"), script: "read", run_dir: "write"})


def for_evaluator(study: Path, fixed: Fixed, evals: tuple[str, ...], environment: Mapping[str, str]) -> View:
    """Return the view of the evaluator: the models, what evaluations have cached, the study without its records."""
    written = [_cached("evaluation"), _cached("worlds"), study]
    given = [_cached("unlearning")] if "unlearning" in evals else []  # the corpus, which users put there
    given += [_cached(f"texts/{SAE_BENCH}")] if fixed.evaluation_data else []
    own = (".git", "events.jsonl", "transcript.jsonl", "setup.json", "lock", "lock.held", KEPT)
    records = [study / name for name in own]
    seen = _each([ROOT / "templates", *given, *records], "read")
    paths: dict[Path, Access] = {**_models(fixed, environment), **_each(written, "write"), **seen}
    return View(paths, network=not NETWORKED.isdisjoint(evals))


def for_server(fixed: Fixed, environment: Mapping[str, str]) -> View:
    """Return the view of the process that serves activations, and harvests them again if they are damaged.

    Of a text of the user's own it sees the windows that were kept, not the files.
    """
    written, read = [_cached("activations"), _cached("worlds")], [_cached("texts")] if fixed.text else []
    return View({**_models(fixed, environment), **_each(written, "write"), **_each(read, "read")})


def for_idea(folder: Path, seen: Sequence[Path], environment: Mapping[str, str]) -> View:
    """Return the view of an idea's own code: what it is about, and a `folder` that it writes."""
    return View({**_code(environment), **_each(seen, "read"), folder: "write"})


def _code(environment: Mapping[str, str]) -> dict[Path, Access]:
    """Return what every child reads. Whatever of the user's lies inside the system's folders is hidden."""
    private = _each([Path.home(), ROOT, cache.root(), hub_cache()], "hidden")
    return {**private, **interpreter_paths(environment), ROOT / "agent": "read"}


def _models(fixed: Fixed, environment: Mapping[str, str]) -> dict[Path, Access]:
    """Return what a process reads that loads the study's model: also what the hub's libraries keep, but for tokens."""
    hub, names = hub_cache(), ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "TRANSFORMERS_CACHE")
    kept = [hub, *(Path(environment[name]).expanduser() for name in names if environment.get(name))]
    model = [Path(fixed.model)] if Path(fixed.model).is_absolute() else []  # a bare name is not a directory's
    tokens = _each([hub / "token", hub / "stored_tokens"], "hidden")
    return {**_code(environment), **_each([*kept, *model], "read"), **tokens}


def _held_out_text() -> list[Path]:
    """Return the folders of the data sets that training text and held-out text are taken from."""
    found = importlib.util.find_spec("sae_probes")
    return [Path(folder) / "data" for folder in (found.submodule_search_locations or [])] if found else []


def _cached(kind: str) -> Path:
    """Return a folder of the cache, which is there, so that it can be shown."""
    folder = cache.root() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _each(paths: Sequence[Path], access: Access) -> dict[Path, Access]:
    return dict.fromkeys(paths, access)
