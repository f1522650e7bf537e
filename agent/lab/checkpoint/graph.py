"""An encoder as data: its torch.export graph as JSON, restricted to a list of pure operators, and interpreted.

torch.export.save is no alternative: its archive holds pickled sample inputs and symbolic expressions that are parsed
as Python, and both ran planted code on loading. Here nothing is unpickled or evaluated, and a name that is not in
OPERATORS or PYTHON_OPERATORS is never looked up.

A document is {"nodes": [{"name", "op", "args", "kwargs"}, ...], "output": name}. Arguments are null, booleans,
numbers, lists of these, and objects with one key: {"node": name of an earlier node, or "x"}, {"tensor": name},
{"dtype": ...}, {"memory_format": ...}, {"mode": ...}, {"float": "inf"}, {"device": "here"}.
"""

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

INPUT = "x"
MAX_NODES = 10_000
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,99}")

# Pure functions of their arguments: nothing here writes in place, draws random numbers, reads uninitialised memory,
# or has an output whose shape depends on values (but for index with a mask). A test checks that.
_ATEN = """
abs.default add.Scalar add.Tensor addcdiv.default addcmul.default addmm.default alias.default all.default all.dim
all.dims amax.default amin.default any.default any.dim any.dims arange.default arange.start arange.start_step
argmax.default argmin.default argsort.default argsort.stable atan.default atan2.default baddbmm.default
bitwise_and.Scalar bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Tensor
bmm.default bucketize.Tensor cat.default _cdist_forward.default ceil.default clamp.Tensor clamp.default
clamp_max.default clamp_min.default clone.default constant_pad_nd.default convolution.default copy.default cos.default
cumprod.default cumsum.default detach.default diagonal.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode
elu.default embedding.default eq.Scalar eq.Tensor erf.default exp.default exp2.default expand.default expm1.default
eye.default flip.default floor.default fmod.Scalar fmod.Tensor full.default full_like.default gather.default ge.Scalar
ge.Tensor gelu.default gt.Scalar gt.Tensor hardtanh.default index.Tensor index_add.default index_put.default
index_select.default isinf.default isnan.default kthvalue.default le.Scalar le.Tensor leaky_relu.default lerp.Scalar
lerp.Tensor lift_fresh_copy.default linalg_cholesky_ex.default linalg_inv_ex.default _linalg_solve_ex.default
linalg_solve_triangular.default linalg_vector_norm.default linear.default log.default log1p.default log2.default
_log_softmax.default logical_and.default logical_not.default logical_or.default logical_xor.default logsumexp.default
lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor max.default max.dim maximum.default mean.default mean.dim
median.dim min.default min.dim minimum.default mm.default mul.Scalar mul.Tensor mv.default native_layer_norm.default
ne.Scalar ne.Tensor neg.default new_full.default new_ones.default new_zeros.default ones.default ones_like.default
permute.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod.default prod.dim_int reciprocal.default
relu.default remainder.Scalar remainder.Tensor repeat.default reshape.default roll.default round.default rsqrt.default
rsub.Scalar scalar_tensor.default scatter.src scatter.value scatter_add.default scatter_reduce.two searchsorted.Tensor
select.int select_scatter.default sigmoid.default sign.default silu.default sin.default slice.Tensor
slice_scatter.default _softmax.default softplus.default sort.default sort.stable split.Tensor split_with_sizes.default
sqrt.default squeeze.default squeeze.dim squeeze.dims stack.default sub.Scalar sub.Tensor sum.default sum.dim_IntList
sym_numel.default sym_size.int t.default tan.default tanh.default _to_copy.default topk.default transpose.int
tril.default triu.default trunc.default unbind.int unfold.default _unsafe_view.default unsqueeze.default var.correction
var.dim var_mean.correction view.default where.Scalar where.ScalarOther where.ScalarSelf where.self zeros.default
zeros_like.default
"""
OPERATORS = frozenset(f"aten.{name}" for name in _ATEN.split())
# Their results depend on the shape of the first argument alone, so no value flows through them.
_SHAPE_ONLY = frozenset(
    f"aten.{name}.default"
    for name in ("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "sym_numel", "zeros_like")
) | {"aten.sym_size.int"}

_DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
}
_MEMORY_FORMATS = {name: getattr(torch, name) for name in ("preserve_format", "contiguous_format")}
_MODES = frozenset({"none", "tanh", "floor", "trunc", "sum", "prod", "mean", "amax", "amin"})
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class GraphError(ValueError):
    """The error of a graph that a checkpoint may not hold; the message tells why."""


def _integers(function: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def call(a: int, b: int) -> int:
        if type(a) is not int or type(b) is not int:
            raise GraphError("an operator on sizes got an argument that is not an integer")
        result = function(a, b)
        if abs(result) >= 2**63:  # repeated squaring would otherwise fill the memory
            raise GraphError("a size is out of range")
        return result

    return call


def _getitem(values: Any, index: int) -> Any:
    if not isinstance(values, tuple | list) or type(index) is not int or not 0 <= index < len(values):
        raise GraphError("getitem got an argument that is not one of an operator's several results")
    return values[index]


PYTHON_NAMES = {
    operator.add: "int.add",
    operator.sub: "int.sub",
    operator.mul: "int.mul",
    operator.floordiv: "int.floordiv",
    operator.mod: "int.mod",
    operator.getitem: "tuple.getitem",
}
PYTHON_OPERATORS: dict[str, Callable[..., Any]] = {
    name: _getitem if name == "tuple.getitem" else _integers(function) for function, name in PYTHON_NAMES.items()
}


@dataclass(frozen=True)
class _Value:
    """A placeholder in an argument for the value of a node, of the input or of a tensor."""

    key: str


class _Here:
    """A placeholder in an argument for the device of the input."""


@dataclass(frozen=True)
class _Step:
    key: str
    call: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    spent: tuple[str, ...]  # values that no later step reads


@dataclass(frozen=True)
class Graph:
    """A checked graph: called with x `[batch, d_in]` and the tensors it names, it computes what the encoder did."""

    steps: tuple[_Step, ...]
    output: str
    tensor_names: frozenset[str]

    def __call__(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Interpret the graph. Raises GraphError, or what torch raises for arguments that do not fit an operator."""
        values: dict[str, Any] = {_tensor_key(name): tensors[name] for name in self.tensor_names}
        values[_node_key(INPUT)] = x
        for step in self.steps:
            args = _fill(step.args, values, x.device)
            values[step.key] = step.call(*args, **_fill(step.kwargs, values, x.device))
            for key in step.spent:
                del values[key]
        return values[self.output]


def _fill(template: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(template, _Value):
        return values[template.key]
    if isinstance(template, list):
        return [_fill(item, values, device) for item in template]
    if isinstance(template, dict):
        return {name: _fill(item, values, device) for name, item in template.items()}
    return device if isinstance(template, _Here) else template


def _node_key(name: str) -> str:
    return f"node {name}"


def _tensor_key(name: str) -> str:
    return f"tensor {name}"


def parse(document: Any, tensor_names: Collection[str]) -> Graph:
    """Check a document against the format and the allowed operators. Raises GraphError. Runs nothing."""
    if (
        not isinstance(document, dict)
        or set(document) != {"nodes", "output"}
        or not isinstance(document["nodes"], list)
    ):
        raise GraphError("the graph is not an object with nodes and output")
    if not 0 < len(document["nodes"]) <= MAX_NODES:
        raise GraphError(f"the graph has {len(document['nodes'])} nodes; between 1 and {MAX_NODES} are allowed")
    known, live, steps = {_node_key(INPUT)}, {_node_key(INPUT)}, []
    for node in document["nodes"]:
        step = _parse_node(node, known, tensor_names)
        steps.append(step)
        known.add(step.key)
        if node["op"] not in _SHAPE_ONLY and live & _values_read(step):
            live.add(step.key)
    output = document["output"]
    if not isinstance(output, str) or _node_key(output) not in known:
        raise GraphError("the output is not a node of the graph")
    if _node_key(output) not in live:
        raise GraphError("the output does not depend on the input")
    return _with_spent(steps, _node_key(output))


def _parse_node(node: Any, known: set[str], tensor_names: Collection[str]) -> _Step:
    if not isinstance(node, dict) or set(node) != {"name", "op", "args", "kwargs"}:
        raise GraphError("a node is not an object with name, op, args and kwargs")
    name, op, args, kwargs = node["name"], node["op"], node["args"], node["kwargs"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _node_key(name) in known:
        raise GraphError(f"a node is named {_shorten(name)}, which is not a valid name, or already taken")
    if not isinstance(op, str) or (op not in OPERATORS and op not in PYTHON_OPERATORS):
        raise GraphError(f"node {name}: operator {_shorten(op)} is not allowed")
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise GraphError(f"node {name}: args is not a list or kwargs is not an object")
    call, accepted = _look_up(op)
    if unknown := set(kwargs) - accepted:
        raise GraphError(f"node {name}: {op} has no argument {_shorten(min(unknown))}")
    read = _Reader(name, known, tensor_names)
    return _Step(_node_key(name), call, read(args), {key: read(value) for key, value in kwargs.items()}, ())


def _look_up(op: str) -> tuple[Callable[..., Any], set[str]]:
    if op in PYTHON_OPERATORS:
        return PYTHON_OPERATORS[op], set()
    _, base, overload = op.split(".")
    try:
        function = getattr(getattr(torch.ops.aten, base), overload)
    except AttributeError:
        raise GraphError(f"operator {op} does not exist in torch {torch.__version__}") from None
    return function, {argument.name for argument in function._schema.arguments}


@dataclass(frozen=True)
class _Reader:
    """A converter of the arguments of a node into templates for _fill."""

    node: str
    known: set[str]
    tensor_names: Collection[str]

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, list) and depth < 3:
            return [self(item, depth + 1) for item in value]
        if isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
            if isinstance(content, str):
                return self._named(kind, content)
        if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            return value
        raise GraphError(f"node {self.node}: {_shorten(value)} is not an argument a graph may hold")

    def _named(self, kind: str, content: str) -> Any:
        if kind == "node":
            if _node_key(content) not in self.known:
                raise GraphError(f"node {self.node} refers to {_shorten(content)}, which is not an earlier node")
            return _Value(_node_key(content))
        if kind == "tensor" and content in self.tensor_names:
            return _Value(_tensor_key(content))
        if kind == "device" and content == "here":
            return _Here()
        if kind == "mode" and content in _MODES:
            return content
        for name, table in (("dtype", _DTYPES), ("memory_format", _MEMORY_FORMATS), ("float", _FLOATS)):
            if kind == name and content in table:
                return table[content]
        raise GraphError(f"node {self.node}: there is no {_shorten(kind)} {_shorten(content)}")


def _values_read(step: _Step) -> set[str]:
    """Return the keys of the values that the arguments of a step refer to."""
    keys: set[str] = set()
    pending: list[Any] = [step.args, step.kwargs]
    while pending:
        item = pending.pop()
        if isinstance(item, _Value):
            keys.add(item.key)
        elif isinstance(item, list | dict):
            pending.extend(item.values() if isinstance(item, dict) else item)
    return keys


def _with_spent(steps: list[_Step], output: str) -> Graph:
    """Build the graph, with the step after which a value is spent, so that memory holds only what is still read."""
    needed, kept, tensor_names = {output}, [], set()
    for step in reversed(steps):
        reads = _values_read(step)
        spent = (reads | {step.key}) - needed
        needed |= reads
        tensor_names |= {key.removeprefix("tensor ") for key in reads if key.startswith("tensor ")}
        kept.append(replace(step, spent=tuple(sorted(spent))))
    return Graph(tuple(reversed(kept)), output, frozenset(tensor_names))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
