"""Tensors are written as safetensors writes them, and read back without a copy; a file that lies is refused."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from agent.lab.checkpoint import safe_tensors


def tensors() -> dict[str, torch.Tensor]:
    return {
        "W_dec": torch.randn(5, 3),
        "a transposed one": torch.randn(4, 6).T,
        "é": torch.randn(()),
        "empty": torch.zeros(0, 3),
        "open": torch.tensor([True, False, True]),
        "parent": torch.tensor([3, -1]),
        "short": torch.tensor([3, -1], dtype=torch.int32),
    }


def test_the_bytes_are_those_of_safetensors(tmp_path: Path):
    safe_tensors.write(tmp_path / "ours", tensors())
    torch.manual_seed(0)
    named = tensors()
    safe_tensors.write(tmp_path / "same", named)
    assert (tmp_path / "same").read_bytes() == save({name: tensor.contiguous() for name, tensor in named.items()})
    ours, theirs = safe_tensors.parse(bytearray((tmp_path / "same").read_bytes())), load_file(tmp_path / "same")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_what_is_read_shares_the_memory_of_the_file(tmp_path: Path):
    safe_tensors.write(tmp_path / "file", {"W_dec": torch.zeros(4)})
    content = bytearray((tmp_path / "file").read_bytes())
    W_dec = safe_tensors.parse(content)["W_dec"]
    content[-4:] = struct.pack("<f", 2.5)
    assert W_dec.tolist() == [0, 0, 0, 2.5]


ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": []},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": ENTRY | {"shape": [3]}},
        {"a": ENTRY | {"shape": [2.0]}},
        {"a": ENTRY | {"shape": [True, 2]}},
        {"a": ENTRY | {"shape": [-1, -2]}},
        {"a": ENTRY | {"shape": [0, 2**70]}},
        {"a": ENTRY | {"data_offsets": [0]}},
        {"a": ENTRY | {"data_offsets": [8, 0]}},
        {"a": ENTRY | {"data_offsets": [-8, 0]}},
        {"a": ENTRY, "b": ENTRY},  # the same bytes twice
        {"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}},  # bytes that are no tensor's
        {"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
        {"a": ENTRY | {"shape": [4], "data_offsets": [0, 16]}},  # more than there are
        {"a": ENTRY | {"dtype": ["F32"]}},
        {"a": ENTRY | {"dtype": "F8_E4M3", "shape": [8]}},
        {"a": ENTRY | {"more": 1}},
    ],
)
def test_a_header_that_lies_is_refused(header: Any):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with pytest.raises((ValueError, TypeError)):
        safe_tensors.parse(bytearray(struct.pack("<Q", len(text)) + text + bytes(8)))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, struct.pack("<Q", 2**63) + bytes(8), struct.pack("<Q", 9) + b"{}"])
def test_a_file_without_a_header_is_refused(content: bytes):
    with pytest.raises(ValueError, match="header"):
        safe_tensors.parse(bytearray(content))


def test_tensors_at_odd_places_are_refused():
    text = json.dumps({"a": ENTRY}).encode()
    text += b" " * (1 - len(text) % 4)
    text += b" " * (len(text) % 4 == 0)
    with pytest.raises(ValueError, match="does not lie"):
        safe_tensors.parse(bytearray(struct.pack("<Q", len(text)) + text + bytes(8)))


SAVE_AND_LOAD = """
import resource, sys, torch
from pathlib import Path
import agent.lab
from small_sae import Sae, header
from agent.lab import checkpoint

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder, d_in, d_sae, sae = Path(sys.argv[1]), 512, 2**16, Sae()
if sys.argv[2] == "load":
    before = peak()
    checkpoint.load(folder / "wide")
else:
    checkpoint.save(folder / "small", sae.relu, sae.W_dec, sae.b_dec, header())  # what exporting takes by itself
    training = header().training.model_copy(update={"d_in": d_in, "d_sae": d_sae})
    described = header(d_in=d_in, d_sae=d_sae, training=training)
    before = peak()
    W_dec = torch.randn(d_sae, d_in)
    W_enc = W_dec.clone().T
    encode = lambda x: (x @ W_enc).relu()
    checkpoint.save(folder / "wide", encode, W_dec, torch.zeros(d_in), described, W_enc=W_enc, b_enc=torch.zeros(d_sae))
print(peak() - before)
"""


@pytest.mark.slow
def test_a_wide_sae_is_saved_and_loaded_without_needless_copies(tmp_path: Path):
    """The encoder is stored transposed, as trainings have it, so saving copies it, and both try it on 129 rows."""
    tensors_of_it, latents_of_129_rows = 2 * 4 * 512 * 2**16, 4 * 129 * 2**16
    for work in ("save", "load"):
        command = [sys.executable, "-c", SAVE_AND_LOAD, str(tmp_path), work]
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 1.5 * tensors_of_it + 4 * latents_of_129_rows, work
