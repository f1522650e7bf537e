"""A trained SAE on disk: saved, checked, loaded. It is hostile until checked; reading it runs none of its content.

A checkpoint is a folder of three files: header.json, encode.json (the encoder, see graph.py) and tensors.safetensors
(the decoder, W_enc and b_enc if the encoder has them, and the tensors that encode.json refers to). It holds no
torch.export archive and no pickle: loading either has run planted code.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.lab.checkpoint import files, sae_lens
from agent.lab.checkpoint import header as headers
from agent.lab.checkpoint.files import DTYPES, ENCODE, HEADER, TENSORS, CheckpointError, flat_message
from agent.lab.checkpoint.graph import Graph, GraphError, parse
from agent.lab.checkpoint.header import Header
from agent.lab.checkpoint.trace import trace

GROUPS, LEAST_GROUP = 8, 64  # of rows that are encoded together, and the rows of one at least
ROWS_AT_ONCE = 16_384  # bounds the memory of the encoder's intermediate values

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Header",
    "check_behaviour",
    "content_hash",
    "load",
    "read_header",
    "sample_rows",
    "save",
]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded SAE; its tensors are as trained, on scaled activations, and encode and decode undo the scaling."""

    header: Header
    graph: Graph
    tensors: dict[str, Tensor]
    device: torch.device
    order_seed: int  # of the order in which rows are encoded; from the content, so that no content can know it

    @property
    def W_dec(self) -> Tensor:
        """The decoder `[d_sae, d_in]` as trained: divide by header.scale for the model's own units."""
        return self.tensors["W_dec"]

    @property
    def b_dec(self) -> Tensor:
        """The decoder's bias `[d_in]` as trained: divide by header.scale for the model's own units."""
        return self.tensors["b_dec"]

    @property
    def W_enc(self) -> Tensor | None:
        """The encoder `[d_in, d_sae]` as trained, or None if it is not affine.

        Multiply it by header.scale for the model's own units.
        """
        return self.tensors.get("W_enc")

    @property
    def b_enc(self) -> Tensor | None:
        """The encoder's bias `[d_sae]`, or None."""
        return self.tensors.get("b_enc")

    @property
    def threshold(self) -> Tensor | None:
        """The pre-activations `[d_sae]` that latents must exceed, or None."""
        return self.tensors.get("threshold")

    @property
    def extra(self) -> dict[str, Tensor]:
        """The tensors that an idea's analysis needs, by name."""
        return {name: self.tensors[f"extra.{name}"] for name in self.header.extra}

    @property
    def non_finite(self) -> bool:
        """True if a parameter of the encoder or the decoder is NaN or infinite."""
        return any(not _finite(tensor) for name, tensor in self.tensors.items() if not name.startswith("extra."))

    def encode(self, x: Tensor) -> Tensor:
        """Return latents `[..., d_sae]`, float32, of the model's own (unscaled) activations `[..., d_in]`."""
        rows = x.to(self.device, torch.float32).reshape(-1, self.header.d_in) * self.header.scale
        return self._encode_scaled(rows).reshape(*x.shape[:-1], self.header.d_sae)

    def _encode_scaled(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return rows.new_zeros(0, self.header.d_sae)
        parts = [self._encode_part(part) for part in rows.split(ROWS_AT_ONCE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _encode_part(self, rows: Tensor) -> Tensor:
        """Encode rows in groups drawn at random: an encoder that looks for the next row finds it in few of them."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.order_seed)).to(rows.device)
        groups = order.tensor_split(min(GROUPS, max(1, len(rows) // LEAST_GROUP)))
        latents: Tensor | None = None
        for group in groups:
            own = self._encode_group(rows[group])
            latents = own.new_empty(len(rows), self.header.d_sae) if latents is None else latents
            latents[group] = own
        assert latents is not None
        return latents

    def _encode_group(self, rows: Tensor) -> Tensor:
        latents = self.graph(rows, self.tensors)
        if not isinstance(latents, Tensor) or latents.shape != (len(rows), self.header.d_sae):
            raise GraphError(f"the graph gives {_kind(latents)} in place of [{len(rows)}, {self.header.d_sae}]")
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruct the model's own activations `[..., d_in]` from latents `[..., d_sae]`."""
        return (latents.to(self.device, torch.float32) @ self.W_dec + self.b_dec) / self.header.scale

    def encoder_matrix(self, x: Tensor) -> Tensor:
        """Return the encoder's Jacobian `[d_in, d_sae]`, in place of W_enc if it has none, and scaled like it.

        x is one scaled activation `[d_in]`, such as the mean of the data, or several `[n, d_in]`. A latent has no slope
        where it does not fire, so its column is the mean over the points at which it fires, and zero if it fires at
        none: at the mean alone most latents of a sparse encoder are silent.
        """
        total = torch.zeros(self.header.d_in, self.header.d_sae, device=self.device)
        fired = torch.zeros(self.header.d_sae, device=self.device)
        directions = torch.eye(self.header.d_in, device=self.device)
        for point in x.to(self.device, torch.float32).reshape(-1, self.header.d_in):
            # Rows encode independently, so one forward-mode pass over d_in copies gives every partial derivative.
            copies = point.expand_as(directions).contiguous()
            latents, slopes, *_ = torch.func.jvp(self._encode_scaled, (copies,), (directions,))
            total += slopes
            fired += latents[0] != 0
        return total / fired.clamp(min=1)


def save(
    folder: Path,
    encode: Callable[[Tensor], Tensor],
    W_dec: Tensor,
    b_dec: Tensor,
    header: Header,
    *,
    W_enc: Tensor | None = None,
    b_enc: Tensor | None = None,
    threshold: Tensor | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Save an SAE as `folder`, whole or not at all; for a standard architecture also as ../sae_lens.

    encode: a module, method or function from scaled activations `[batch, d_in]` to latents `[batch, d_sae]`, for any
    batch size, on the device of W_dec. W_dec `[d_sae, d_in]`, b_dec `[d_in]`, W_enc `[d_in, d_sae]`, b_enc `[d_sae]`,
    threshold `[d_sae]` or a scalar: the pre-activation that a latent must exceed.
    Raises CheckpointError if shapes are wrong, encode cannot be exported, or the graph computes something else.
    """
    destinations = [folder, folder.parent / "sae_lens"] if header.architecture else [folder]
    for destination in destinations:
        if os.path.lexists(destination):
            raise CheckpointError(f"{destination} exists and is not overwritten; save to another folder")
    header = headers.checked(header.model_copy(update={"extra": sorted(extra or {})}))
    named = _named_tensors(header, W_dec, b_dec, W_enc, b_enc, threshold)
    sample = sample_rows(named).to(W_dec.device)
    try:
        expected = _encode_eagerly(encode, sample, header)
        document, traced = trace(encode, sample[: len(sample) // 2], named)
        tensors = named | {name: _to_saved(name, tensor) for name, tensor in traced.items()}
        graph = parse(document, tensors)
        # On the device of encode: elsewhere the last bits differ.
        if not _agree(graph(sample, {name: t.to(sample.device) for name, t in tensors.items()}), expected):
            raise GraphError("the exported graph and encode differ on the same input: encode is random or keeps state")
        standard = {}
        if header.architecture:
            standard = sae_lens.files(header, sae_lens.parts(header, named, sample.cpu(), graph(sample.cpu(), tensors)))
    except GraphError as error:
        raise CheckpointError(f"cannot save {folder}: {error}") from error
    tensors |= {f"extra.{name}": _to_saved(name, tensor) for name, tensor in (extra or {}).items()}
    parts = {HEADER: header.model_dump_json(indent=2) + "\n", ENCODE: _encode_json(document), TENSORS: tensors}
    for destination, content in zip(destinations, (parts, standard), strict=False):
        files.write(destination, content)


def load(folder: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Check and load a checkpoint. Raises CheckpointError. Call check_behaviour on real activations next."""
    device = torch.device(device)
    with files.reading(folder) as contents:
        header = headers.parse(contents[HEADER])
        tensors = files.as_tensors(contents[TENSORS])
        _check_shapes(header, tensors)
        graph = parse(files.as_json(contents[ENCODE], ENCODE), tensors)
        if unexpected := set(tensors) ^ (_declared_names(header, tensors) | graph.tensor_names):
            raise GraphError(f"tensor {min(unexpected)[:60]!r} is missing in {TENSORS}, or does not belong there")
        digest = _digest(*(hashlib.sha256(contents[name]).digest() for name in (ENCODE, TENSORS)))
        seed = int(digest[:15], 16)
        checkpoint = Checkpoint(header, graph, {name: t.to(device) for name, t in tensors.items()}, device, seed)
        latents = _run(checkpoint, torch.zeros(3, header.d_in))
        if latents.dtype != torch.float32:
            raise GraphError(f"encode returns {latents.dtype}, not float32")
    return checkpoint


def read_header(folder: Path) -> Header:
    """Read the header alone, of a folder with the right files. Raises CheckpointError."""
    with files.reading(folder, [HEADER]) as contents:
        return headers.parse(contents[HEADER])


def check_behaviour(checkpoint: Checkpoint, x: Tensor) -> None:
    """Check that rows of x `[n, d_in]`, the model's own activations, encode alike alone, in other batches, and twice.

    Give it ordinary rows, and whole windows with their special rows: an encoder may act on one kind alone.
    A few entries may differ: the last bits of a matrix product change with the batch size and can carry a latent over
    its threshold. A few hundred rows are enough. Raises CheckpointError; ValueError for fewer than 16 rows.
    """
    rows = len(x)
    if rows < 16 or x.shape[1:] != (checkpoint.header.d_in,):
        raise ValueError(f"x is {list(x.shape)}; at least 16 rows of width {checkpoint.header.d_in} are needed")
    whole = _run(checkpoint, x)
    if not checkpoint.non_finite and _finite(x) and not _finite(whole):
        raise CheckpointError("bad checkpoint: latents are not finite though every parameter is")
    if bool((whole == whole[0]).all()) and bool(whole.any()):
        raise CheckpointError("bad checkpoint: encode gives every input the same latents")
    if not _agree(_run(checkpoint, x), whole):
        raise CheckpointError("bad checkpoint: encode gives the same input other latents the second time")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(x.device)
    others = torch.cat([_run(checkpoint, x[part]) for part in order.split(max(3, rows // 7))])
    alone = torch.cat([_run(checkpoint, x[i : i + 1]) for i in range(16)])
    if not _agree(others, whole[order.to(whole.device)]) or not _agree(alone, whole[:16]):
        raise CheckpointError(
            "bad checkpoint: a row's latents depend on the other rows of its batch; "
            "in evaluation use a threshold in place of a top-k over the batch"
        )


def content_hash(folder: Path) -> str:
    """Return the sha256 of encoder and tensors, equal for checkpoints that compute the same. Raises CheckpointError."""
    return _digest(*files.digests(folder, [ENCODE, TENSORS]))


def _digest(*digests: bytes) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _named_tensors(header: Header, *tensors: Tensor | None) -> dict[str, Tensor]:
    names = ("W_dec", "b_dec", "W_enc", "b_enc", "threshold")
    named = {name: _to_saved(name, t) for name, t in zip(names, tensors, strict=True) if t is not None}
    if "threshold" in named and named["threshold"].numel() == 1:
        named["threshold"] = named["threshold"].reshape(1).expand(header.d_sae).contiguous()
    try:
        _check_shapes(header, named)
    except GraphError as error:
        raise CheckpointError(f"cannot save the checkpoint: {error}") from None
    return named


def _to_saved(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, floats as float32; it shares memory if it can. Raises CheckpointError."""
    saved = tensor.detach().cpu()
    saved = saved.float() if saved.is_floating_point() else saved
    if saved.dtype not in DTYPES:
        raise CheckpointError(f"tensor {name} is {saved.dtype}; a checkpoint holds float32, integers and bool")
    return saved


def sample_rows(named: Mapping[str, Tensor]) -> Tensor:
    """Draw scaled activations `[129, d_in]` to compare encoder and graph on: noise, and rows on which latents fire."""
    W_dec, b_dec = named["W_dec"], named["b_dec"]
    generator = torch.Generator().manual_seed(0)  # the caller's random state is left alone
    directions = [W_dec, named["W_enc"].T] if "W_enc" in named else [W_dec]
    rows = [torch.randn(33, len(b_dec), generator=generator)]
    for matrix in directions:
        drawn = matrix[torch.randint(len(matrix), (96 // len(directions),), generator=generator)]
        drawn = torch.nn.functional.normalize(drawn.nan_to_num(0, 0, 0), dim=1)
        rows.append(b_dec.nan_to_num(0, 0, 0) + 2 * math.sqrt(len(b_dec)) * drawn)  # twice the mean norm
    return torch.cat(rows)


def _encode_eagerly(encode: Callable[[Tensor], Tensor], sample: Tensor, header: Header) -> Tensor:
    with torch.no_grad():
        latents = encode(sample.clone())
    shape = [len(sample), header.d_sae]
    if not isinstance(latents, Tensor) or list(latents.shape) != shape or latents.dtype != torch.float32:
        raise GraphError(f"encode turned {_kind(sample)} into {_kind(latents)}; expected torch.float32 {shape}")
    return latents.cpu()


def _encode_json(document: dict[str, Any]) -> str:
    nodes = ",\n".join(json.dumps(node, allow_nan=False) for node in document["nodes"])
    return f'{{"nodes": [\n{nodes}\n],\n"output": {json.dumps(document["output"])}}}\n'


def _check_shapes(header: Header, tensors: Mapping[str, Tensor]) -> None:
    d_in, d_sae = header.d_in, header.d_sae
    for name, expected in {
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "threshold": (d_sae,),
    }.items():
        if name not in tensors:
            if name in ("W_dec", "b_dec"):
                raise GraphError(f"{name} is missing")
            continue
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        if shape != expected and shape == expected[::-1]:
            raise GraphError(f"{name} is transposed: it is {list(shape)} and must be {list(expected)}; give {name}.T")
        if shape != expected or dtype != torch.float32:
            raise GraphError(f"{name} is {dtype} {list(shape)} and must be torch.float32 {list(expected)}")


def _declared_names(header: Header, tensors: Mapping[str, Tensor]) -> set[str]:
    optional = {"W_enc", "b_enc", "threshold"} & set(tensors)
    return {"W_dec", "b_dec"} | optional | {f"extra.{name}" for name in header.extra}


def _run(checkpoint: Checkpoint, x: Tensor) -> Tensor:
    """Encode without gradients. Raises CheckpointError if the encoder fails."""
    try:
        with torch.no_grad():
            return checkpoint.encode(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"bad checkpoint: its encoder fails on {list(x.shape)}: {flat_message(error)}") from None


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _agree(a: Tensor, b: Tensor) -> bool:
    """Return True if two encodings of the same rows are equal but for a few latents carried over their threshold."""
    if a.shape != b.shape:
        return False
    close = (a == b) | ((a - b).abs() <= 1e-3 * (1 + a.abs())) | (a.isnan() & b.isnan())
    return int((~close).sum()) <= 4 + 1e-3 * int((b != 0).sum())
