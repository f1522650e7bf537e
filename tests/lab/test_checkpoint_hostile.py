"""Damaged and hostile checkpoints: each is refused in one line, and nothing in them is run."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_sae import D_IN, D_SAE, Sae, save
from torch import Tensor

from agent.lab import checkpoint
from agent.lab.checkpoint import Checkpoint, CheckpointError, graph


@pytest.fixture(scope="module")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sae = Sae()
    return save(tmp_path_factory.mktemp("saved") / "checkpoint", sae.row_topk, sae)


@pytest.fixture
def saved(_saved: Path, tmp_path: Path) -> Path:
    """A sound checkpoint that a test may damage."""
    return Path(shutil.copytree(_saved, tmp_path / "checkpoint"))


def document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "encode.json").read_text())


def load_with(folder: Path, **changes: Any) -> Checkpoint:
    """Load a checkpoint after changing encode.json."""
    (folder / "encode.json").write_text(json.dumps(document(folder) | changes))
    return checkpoint.load(folder)


@pytest.mark.parametrize("name", ["header.json", "encode.json", "tensors.safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_file(name: str, kept: float, saved: Path) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "checkpoint")


def test_a_missing_member(saved: Path) -> None:
    (saved / "encode.json").unlink()
    with pytest.raises(CheckpointError, match=r"encode\.json is missing"):
        checkpoint.load(saved)


def test_an_extra_member(saved: Path) -> None:
    (saved / "model.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"'model\.pt' does not belong"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["header.json", "encode.json", "tensors.safetensors"])
def test_a_linked_member(name: str, saved: Path) -> None:
    (saved / name).rename(saved.parent / name)
    (saved / name).symlink_to(saved.parent / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        checkpoint.load(saved)


def test_a_linked_folder(saved: Path) -> None:
    (saved.parent / "link").symlink_to(saved)
    with pytest.raises(CheckpointError, match="a file or a link"):
        checkpoint.load(saved.parent / "link")


def test_a_pipe_is_not_waited_for(saved: Path) -> None:
    (saved / "header.json").unlink()
    os.mkfifo(saved / "header.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        checkpoint.load(saved)


def test_a_file_too_large_is_not_read(saved: Path) -> None:
    os.truncate(saved / "tensors.safetensors", 2**36)  # sparse: no space is used
    with pytest.raises(CheckpointError, match="at most"):
        checkpoint.load(saved)


class Planted:
    """Creates a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["header.json", "encode.json", "tensors.safetensors"])
@pytest.mark.parametrize("archive", [False, True])
def test_a_planted_pickle_is_not_run(name: str, archive: bool, saved: Path) -> None:
    canary = saved.parent / "canary"
    if archive:
        torch.save(Planted(canary), saved / name)
    else:
        (saved / name).write_bytes(pickle.dumps(Planted(canary)))
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved)
    assert not canary.exists()


def test_another_version_is_named(saved: Path) -> None:
    data = json.loads((saved / "header.json").read_text())
    (saved / "header.json").write_text(json.dumps(data | {"format_version": 2}))
    with pytest.raises(CheckpointError, match="version 2 and this program reads version 1; evaluate it with"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "change", [{"d_sae": 2**21}, {"scale": 0}, {"groups": {"a": [3, 99]}}, {"surprise": 1}, {"d_in": "x"}]
)
def test_a_wrong_header(change: dict[str, Any], saved: Path) -> None:
    data = json.loads((saved / "header.json").read_text())
    (saved / "header.json").write_text(json.dumps(data | change))
    with pytest.raises(CheckpointError, match=r"header\.json: "):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("W_dec", torch.zeros(D_IN, D_SAE), "W_dec is transposed"),
        ("W_dec", torch.zeros(D_SAE, D_IN, dtype=torch.float16), "F16, which is not allowed"),
        ("b_dec", None, "b_dec is missing"),
        ("encode.0", None, "there is no 'tensor' 'encode.0'"),
        ("surplus", torch.zeros(3), "tensor 'surplus' .* does not belong there"),
        ("encode.0", torch.zeros(3, 3), "its encoder fails"),
    ],
)
def test_wrong_tensors(name: str, tensor: Tensor | None, reason: str, saved: Path) -> None:
    tensors = load_file(saved / "tensors.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if tensor is None else {name: tensor}), saved / "tensors.safetensors")
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "op",
    [
        "aten.rand_like.default",
        "aten.bernoulli.default",
        "aten.native_dropout.default",
        "aten.relu_.default",
        "aten.add_.Tensor",
        "aten.add.out",
        "aten.index_put_.default",
        "aten.empty.memory_format",
        "aten.as_strided.default",
        "aten.from_file.default",
        "aten.native_group_norm.default",
        "aten._native_batch_norm_legit_no_training.default",
        "aten.__class__",
        "aten.mm",
        "aten.mm.__class__",
        "aten..",
        "prim.device.default",
        "prims.add.default",
        "profiler._record_function_enter_new.default",
        "higher_order.cond",
        "os.system",
        "builtins.eval",
        "int.pow",
        "",
        None,
        ["aten.mm.default"],
    ],
)
def test_an_operator_that_is_not_allowed(op: Any, saved: Path) -> None:
    nodes = document(saved)["nodes"]
    nodes[0]["op"] = op
    with pytest.raises(CheckpointError, match="is not allowed"):
        load_with(saved, nodes=nodes)


def test_the_allowed_operators_are_pure() -> None:
    tags = torch.Tag
    unwanted = {tags.nondeterministic_seeded, tags.data_dependent_output, tags.dynamic_output_shape, tags.inplace_view}
    for op in graph.OPERATORS - {"aten.index.Tensor"}:  # whose shape depends on values only when given a mask
        _, name, overload = op.split(".")
        function = getattr(getattr(torch.ops.aten, name), overload)
        assert not function._schema.is_mutable, op
        assert not unwanted & set(function.tags), op
        assert not any(argument.is_out for argument in function._schema.arguments), op


CODE = "__import__('os').mkdir('{canary}')"


@pytest.mark.parametrize(
    "argument",
    [
        CODE,
        {"sym": CODE},
        {"node": CODE},
        {"tensor": CODE},
        {"dtype": CODE},
        {"mode": CODE},
        {"float": CODE},
        {"device": CODE},
        {"as_expr": CODE, "hint": 4},
        [[[[[1]]]]],
        2**63,
    ],
)
def test_a_planted_argument_is_not_run(argument: Any, saved: Path) -> None:
    canary = saved.parent / "canary"
    planted = json.loads(json.dumps(argument).replace("{canary}", str(canary)))
    nodes = document(saved)["nodes"]
    assert "sym_size_0" in json.dumps(nodes)  # a size that torch.export.save would have written as an expression
    for node in nodes:
        for i, value in enumerate(node["args"]):
            if value == [{"node": "sym_size_0"}, D_SAE]:
                node["args"][i] = [planted, D_SAE]
    with pytest.raises(CheckpointError, match=r"not an argument a graph may hold|there is no|not an earlier node"):
        load_with(saved, nodes=nodes)
    assert not canary.exists()


def test_references_run_backwards_only(saved: Path) -> None:
    nodes = document(saved)["nodes"]
    for target in (nodes[-1]["name"], nodes[0]["name"]):
        changed = json.loads(json.dumps(nodes))
        changed[0]["args"][0] = {"node": target}
        with pytest.raises(CheckpointError, match="not an earlier node"):
            load_with(saved, nodes=changed)


def test_names_are_names_and_used_once(saved: Path) -> None:
    for name in ("x", document(saved)["nodes"][0]["name"], "a b", "__class__.x", 3):
        nodes = document(saved)["nodes"]
        nodes[1]["name"] = name
        with pytest.raises(CheckpointError, match="not a valid name, or already taken"):
            load_with(saved, nodes=nodes)


def test_too_many_nodes(saved: Path) -> None:
    node = {"op": "aten.relu.default", "args": [{"node": "x"}], "kwargs": {}}
    with pytest.raises(CheckpointError, match="10001 nodes"):
        load_with(saved, nodes=[node | {"name": f"n{i}"} for i in range(10_001)])


def test_sizes_cannot_be_squared_for_ever(saved: Path) -> None:
    nodes = [{"name": "s0", "op": "aten.sym_size.int", "args": [{"node": "x"}, 0], "kwargs": {}}]
    for i in range(100):
        args = [{"node": f"s{i}"}, {"node": f"s{i}"}]
        nodes.append({"name": f"s{i + 1}", "op": "int.mul", "args": args, "kwargs": {}})
    nodes += document(saved)["nodes"]
    with pytest.raises(CheckpointError, match="size is out of range"):
        load_with(saved, nodes=nodes)


@pytest.mark.parametrize("output", [None, "nowhere", {"node": "x"}])
def test_a_wrong_output(output: Any, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="the output is not a node"):
        load_with(saved, output=output)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        ("topk", r"gives \w+ in place of \[3, 40\]"),
        ("getitem", r"gives torch\.\w+ \[3, 5\] in place of \[3, 40\]"),
        ("sym_size", "does not depend on the input"),
        ("full", "does not depend on the input"),  # zeros, of the latents' shape
    ],
)
def test_an_output_that_is_no_latents(op: str, reason: str, saved: Path) -> None:
    name = next(node["name"] for node in document(saved)["nodes"] if node["name"].startswith(op))
    with pytest.raises(CheckpointError, match=reason):
        load_with(saved, output=name)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"nodes": NaN}', "[]", "null", '{"nodes": {}, "output": "x"}', "\xff"]
)
def test_encode_json_of_another_kind(text: str, saved: Path) -> None:
    (saved / "encode.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"encode\.json|nodes and output"):
        checkpoint.load(saved)


def test_an_unknown_keyword(saved: Path) -> None:
    nodes = document(saved)["nodes"]
    nodes[0]["kwargs"] = {"out": {"tensor": "W_dec"}}
    with pytest.raises(CheckpointError, match="has no argument 'out'"):
        load_with(saved, nodes=nodes)
