"""A training's state in a file, from which it goes on after it was cut short: tensors and JSON, no pickle."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import CellType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.lab.activations import Stream
from agent.lab.defaults import SAVE_EVERY, STATE_FILE
from agent.lab.errors import UserError
from agent.lab.files import atomic_path
from agent.lab.packing import Packer, Restorer, Unkeepable
from agent.lab.progress import notify

SAVE_MINUTES = 10.0  # between two saves: what an interruption costs at most
SPARE_BYTES = 2**30  # that stay free on the disk, or no state is saved
FORMAT = 1


class BadState(UserError):
    """The error of a saved state that a training cannot go on from."""


class Saved(BaseModel):
    """What stands beside the tensors in the file of a state."""

    format: int
    source: str  # SHA-256 of the experiment
    subject: list[Any]  # of the stream: model, hook, text and so on
    rows: int  # that the stream had handed out
    parts: dict[str, Any]  # as packing.py writes them


def files(out_dir: Path) -> list[Path]:
    """Return the saved states in the directory of a run, the newest last."""
    return sorted(out_dir.glob(STATE_FILE.format("*")), key=lambda path: (path.stat().st_mtime_ns, path.name))


def discard(out_dir: Path) -> None:
    """Remove the saved states of a training that has ended."""
    for path in files(out_dir):
        path.unlink()


def require_same_source(path: Path, script: Path) -> None:
    """Raise BadState unless a state was saved by this very experiment."""
    if read(path).source != _digest(script):
        raise _bad(path, "was saved by another experiment.py")


def read(path: Path) -> Saved:
    """Return what stands beside the tensors of a state. Raise BadState."""
    try:
        with safe_open(path, "pt") as file:
            saved = Saved.model_validate(json.loads((file.metadata() or {})["state"]))
    except (SafetensorError, OSError, KeyError, ValueError):
        raise _bad(path, "is cut short, or no saved state") from None
    if saved.format != FORMAT:
        raise _bad(path, f"has the format {saved.format}, this version reads {FORMAT}")
    return saved


class SavedTraining:
    """The state of one training: the variables that it declares, the guard's figures, the streams of chance."""

    def __init__(self, out_dir: Path, stream: Stream, state: Callable[[], Any]) -> None:
        """`state` is a lambda that names variables of the function around it. Raise UserError if it is none."""
        self.out_dir, self.stream = out_dir, stream
        cells: tuple[CellType, ...] | None = getattr(state, "__closure__", None)
        if not cells:
            raise UserError("guard.resumes takes a lambda that names variables of main: lambda: (sae, optimizer)")
        self._cells = dict(zip(state.__code__.co_freevars, cells, strict=True))
        self._source = _digest(out_dir / "experiment.py")
        manifest = stream.manifest
        self._subject = [manifest.model, manifest.hook_name, manifest.text, manifest.rows, manifest.scale]
        self._subject += [stream.total, stream.batch, stream.seed]
        every = os.environ.get(SAVE_EVERY)
        self._every = int(every) if every else None
        self._wait(0)

    def restore(self) -> dict[str, Any] | None:
        """Go on from the state that lies in the directory: return the guard's figures, or None if there is none.

        Raise BadState if it is damaged, or another training's.
        """
        path = next(reversed(files(self.out_dir)), None)
        if path is None:
            return None
        saved = read(path)
        if saved.source != self._source:
            raise _bad(path, "was saved by another experiment.py")
        if saved.subject != self._subject or not 0 < saved.rows < self.stream.total:
            raise _bad(path, f"is of {saved.subject}, and this training of {self._subject}")
        try:
            with safe_open(path, "pt") as file:
                restorer = Restorer(file.get_tensor, self.stream.device)
                figures = restorer.restore(saved.parts["figures"])
                for name, cell in sorted(self._cells.items(), key=lambda item: not _holds_parameters(item[1])):
                    cell.cell_contents = restorer.restore(saved.parts["variables"][name], _content(cell))
                _set_chance(restorer.restore(saved.parts["chance"]), self.stream.device)
        except (Unkeepable, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise _bad(path, f"does not fit this training ({str(error).splitlines()[0]})") from None
        self.stream.skip = saved.rows
        self._wait(saved.rows)
        return figures

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        if self._every is None:
            return time.monotonic() >= self._next
        return self.stream.position >= self._next

    def save(self, figures: dict[str, Any]) -> None:
        """Write the state between two steps, whole, in the place of the one before; say so if that cannot be."""
        rows = self.stream.position
        self._wait(rows)
        try:
            if self.stream.budget.served != rows:
                raise Unkeepable("activations were read in more than one pass")
            packer = Packer()
            variables = {name: packer.pack(_content(cell)) for name, cell in self._cells.items()}
            parts = {"variables": variables, "figures": packer.pack(figures)}
            parts["chance"] = packer.pack(_chance(self.stream.device))
            self._write(rows, parts, packer.tensors)
        except Unkeepable as error:
            self._next = float("inf")
            notify(f"no state is saved, so an interruption starts this training over: {error}")
        except OSError as error:
            notify(f"the state could not be saved ({error.strerror or error}); an interruption loses more")

    def _write(self, rows: int, parts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        size, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(self.out_dir).free
        if free < size + SPARE_BYTES:
            raise OSError(f"it takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
        saved = Saved(format=FORMAT, source=self._source, subject=self._subject, rows=rows, parts=parts)
        path = self.out_dir / STATE_FILE.format(rows)
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata={"state": json.dumps(saved.model_dump())})
        for other in files(self.out_dir):
            if other != path:
                other.unlink(missing_ok=True)  # the driver may have taken it
        self.stream.note_saved()

    def _wait(self, rows: int) -> None:
        """Set when the state is saved next."""
        self._next = time.monotonic() + 60 * SAVE_MINUTES if self._every is None else float(rows + self._every)


def _content(cell: CellType) -> Any:
    """Return the value of a variable, or None if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _holds_parameters(cell: CellType) -> bool:
    """Return True for what other variables may refer to the tensors of, and is restored first."""
    return isinstance(_content(cell), torch.nn.Module)


def _chance(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of random numbers that a program has without asking for them."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    name, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state(), "device": own, "python": random.getstate(), "numpy": (name, keys, *rest)}


def _set_chance(chance: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(chance["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(chance["device"])
    random.setstate(chance["python"])
    np.random.set_state(chance["numpy"])


def _digest(script: Path) -> str:
    """Return the SHA-256 of an experiment, which a training that was not started by `run` has no copy of."""
    return hashlib.sha256(script.read_bytes() if script.exists() else b"").hexdigest()


def _bad(path: Path, why: str) -> BadState:
    return BadState(f"{path} {why}: delete it to start over, or choose another --out_dir")
