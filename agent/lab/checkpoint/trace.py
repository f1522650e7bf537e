"""The export of an encoder in Python as the document that graph.py checks and interprets."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export.graph_signature import InputKind, OutputKind

from agent.lab.checkpoint.graph import INPUT, OPERATORS, PYTHON_NAMES, PYTHON_OPERATORS, GraphError

_HINTS = {
    "aten._local_scalar_dense.default": "use the tensor itself in place of .item()",
    "aten.nonzero.default": "use torch.where or a multiplication in place of a list of indices",
    "aten.linalg_lstsq.default": "the shapes of its results depend on values; use torch.linalg.solve",
    "aten.linalg_pinv.atol_rtol_tensor": "compute the pseudo-inverse before, as a buffer, or use torch.linalg.solve",
}
_aten = torch.ops.aten
# Their own implementations, and that of group norm, trust sizes or multiply them past 2^64: a hostile graph could have
# them read out of bounds. So a checkpoint holds the arithmetic that they stand for.
_BATCH_NORMS = (
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit.no_stats,
    _aten._native_batch_norm_legit_no_training.default,
)
LARGE_BATCH = 26  # from which on torch.cdist takes one and the same way; its graph is right for any batch


def trace(
    encode: Callable[[Tensor], Tensor], sample: Tensor, named: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Export encode on a sample `[batch, d_in]`. Returns the document, and the tensors it reads beside the `named`.

    A tensor equal to one of `named` refers to that one; the others are called encode.0, encode.1, ... No name comes
    from the traced program, so equal encoders give equal documents.
    Raises GraphError if encode cannot be exported, is random, or changes a tensor that it should only read.
    """
    program = _export(encode, sample)
    outputs = program.graph_signature.output_specs
    outputs = [spec for spec in outputs if spec.kind != OutputKind.TOKEN]  # of checks that linear algebra succeeded
    if mutated := [spec.target or INPUT for spec in outputs if spec.kind != OutputKind.USER_OUTPUT]:
        raise GraphError(f"encode changes {', '.join(map(str, mutated))} in place; it may only read")
    if len(outputs) != 1:
        raise GraphError(f"encode returns {len(outputs)} values; it must return the latents [batch, d_sae] alone")
    writer = _Writer(program, named)
    return writer.document(), writer.tensors


class _Encode(nn.Module):
    """A wrapper of a method that shows torch.export its module, so that the parameters are found."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        owner = getattr(encode, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner
        self._encode = encode

    def forward(self, x: Tensor) -> Tensor:
        return self._encode(x)


def _export(encode: Callable[[Tensor], Tensor], sample: Tensor) -> torch.export.ExportedProgram:
    module = encode if isinstance(encode, nn.Module) else _Encode(encode)
    batch = torch.export.Dim("batch", min=LARGE_BATCH)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (sample,), dynamic_shapes=({0: batch},), strict=False)
            decompositions = torch.export.default_decompositions()
            decompositions.update(get_decompositions(_BATCH_NORMS))
            decompositions[_aten.native_group_norm.default] = _group_norm
            return program.run_decompositions(decompositions)  # to the core operators: linear becomes addmm
    except Exception as error:  # encode is a researcher's code: it may raise anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        general = (
            "it may consist only of tensor operations for any batch size: no .item(), no branch on values, no numpy"
        )
        hint = next((hint for name, hint in _HINTS.items() if name in reason), general)
        raise GraphError(f"encode cannot be exported ({type(error).__name__}: {reason}); {hint}") from error


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, batch: int, channels: int, _: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what aten.native_group_norm does: the normalised x `[batch, channels, ...]`, means, 1 / deviations."""
    grouped = x.reshape(batch, groups, -1)
    variance, mean = torch.var_mean(grouped, dim=-1, correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    y = ((grouped - mean) * scale).reshape(x.shape)
    by_channel = (1, channels, *(1 for _ in x.shape[2:]))
    y = y if weight is None else y * weight.reshape(by_channel)
    y = y if bias is None else y + bias.reshape(by_channel)
    return y, mean.reshape(batch, groups), scale.reshape(batch, groups)


class _Writer:
    """A writer of an exported program as a document, with the nodes that the output needs."""

    def __init__(self, program: torch.export.ExportedProgram, named: Mapping[str, Tensor]) -> None:
        self.program, self.named = program, named
        self.tensors: dict[str, Tensor] = {}
        self.refs: dict[str, dict[str, str]] = {}  # name in the exported graph -> reference in the document
        self.targets = {spec.arg.name: spec for spec in program.graph_signature.input_specs}  # pyright: ignore

    def document(self) -> dict[str, Any]:
        nodes = []
        for node in self._needed():
            if node.op == "placeholder":
                self.refs[node.name] = self._input(node.name)
                continue
            op = self._operator(node)
            name = f"{op.split('.')[1].strip('_')}_{len(nodes)}"
            # All tensors here are strided and unpinned.
            kwargs = {k: self._argument(v) for k, v in node.kwargs.items() if k not in ("layout", "pin_memory")}
            nodes.append({"name": name, "op": op, "args": self._argument(node.args), "kwargs": kwargs})
            self.refs[node.name] = {"node": name}
        output = self.refs[self._output().name]
        if "node" not in output:
            raise GraphError("the output does not depend on the input")
        return {"nodes": nodes, "output": output["node"]}

    def _output(self) -> torch.fx.Node:
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        output = self.program.graph.output_node().args[0][kinds.index(OutputKind.USER_OUTPUT)]  # pyright: ignore
        if not isinstance(output, torch.fx.Node):
            raise GraphError("encode does not return a tensor")
        return output

    def _needed(self) -> list[torch.fx.Node]:
        needed = {self._output()}
        for node in reversed(self.program.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return [node for node in self.program.graph.nodes if node in needed]

    def _operator(self, node: torch.fx.Node) -> str:
        target: Any = node.target
        name = PYTHON_NAMES.get(target) or str(target)
        if name in OPERATORS or name in PYTHON_OPERATORS:
            return name
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise GraphError(f"encode is random ({name}): call .eval() before saving, and keep noise to training")
        hint = _HINTS.get(name, "OPERATORS in agent/lab/checkpoint/graph.py lists the allowed ones")
        raise GraphError(f"encode uses {name}, which a checkpoint may not hold: {hint}")

    def _input(self, name: str) -> dict[str, str]:
        spec = self.targets[name]
        if spec.kind == InputKind.USER_INPUT:
            return {"node": INPUT}
        tensor = self.program.state_dict.get(spec.target or "", self.program.constants.get(spec.target or ""))
        if not isinstance(tensor, Tensor):
            raise GraphError(f"encode reads {spec.target}, which is not a tensor")
        tensor = tensor.detach().cpu()
        for known, value in self.named.items():
            if value.dtype == tensor.dtype and torch.equal(value, tensor):
                return {"tensor": known}
        key = f"encode.{len(self.tensors)}"
        self.tensors[key] = tensor
        return {"tensor": key}

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.refs[value.name]
        if isinstance(value, list | tuple):
            return [self._argument(item) for item in value]
        if isinstance(value, torch.dtype | torch.memory_format):
            kind = "dtype" if isinstance(value, torch.dtype) else "memory_format"
            return {kind: str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": "here"}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        return {"mode": value} if isinstance(value, str) else value
