"""What changes in a training, as JSON with tensors beside it, and back."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agent.lab.packing import Packer, Restorer, Unkeepable


def there_and_back(value: Any, now: Any = None) -> Any:
    packer = Packer()
    packed = json.loads(json.dumps(packer.pack(value)))
    return Restorer(packer.tensors.__getitem__, torch.device("cpu")).restore(packed, now)


class Usage:
    def __init__(self, value: float = 0.0) -> None:
        self.value, self.device, self.itself = value, torch.device("cpu"), self


class Counting(nn.Linear):
    seen: torch.Tensor
    late: torch.Tensor

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.steps, self.sizes = 0, [1]
        self.register_buffer("seen", torch.zeros(2))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 0.1 + 0.2, float("inf"), "words", [1, [2.5]], (1, ("a", None)), {"a": 1, 2: [True]}),
        *([], {}, random.Random(3).getstate()),
    ],
)
def test_plain_values_come_back_as_they_were(value: Any):
    found = there_and_back(value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.arange(6).view(2, 3), torch.rand(4, 5).T, torch.rand(3)[:0], torch.tensor(2.0), torch.rand(2, 1)),
        *(torch.tensor([True]), torch.rand(4).bfloat16(), torch.rand(4, 4)[:, ::2], torch.rand(1, 3).expand(4, 3)),
    ],
)
def test_tensors_come_back_with_the_order_of_their_axes_in_memory(tensor: torch.Tensor):
    found = there_and_back(tensor)
    assert torch.equal(found, tensor)
    assert found.dtype == tensor.dtype
    if tensor.is_contiguous() or tensor.T.is_contiguous():
        assert found.stride() == tensor.stride()


def test_a_module_comes_back_in_place_with_all_its_attributes():
    trained, fresh = Counting(), Counting()
    trained.steps, trained.sizes, trained.seen = 7, [4, 5], torch.ones(2)
    trained.late = torch.arange(3)
    weight = fresh.weight
    assert there_and_back(trained, fresh) is fresh
    assert fresh.weight is weight
    assert torch.equal(fresh.weight, trained.weight)
    assert (fresh.steps, fresh.sizes, fresh.seen.tolist(), fresh.late.tolist()) == (7, [4, 5], [1.0, 1.0], [0, 1, 2])


def test_an_optimizer_goes_on_with_its_moments():
    def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).pow(2).sum().backward()
            optimizer.step()

    one, other = Counting(), Counting()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1, fused=True) for model in (one, other)]
    stepped(one, optimizers[0], 3)
    there_and_back({"model": one, "optimizer": optimizers[0]}, {"model": other, "optimizer": optimizers[1]})
    stepped(one, optimizers[0], 3)
    stepped(other, optimizers[1], 3)
    assert torch.equal(one.weight, other.weight)


def test_what_stands_in_two_places_still_does():
    shared = torch.zeros(2)
    found = there_and_back({"a": [shared], "b": shared})
    found["b"] += 1
    assert found["a"][0].tolist() == [1.0, 1.0]


def test_objects_arrays_and_generators_come_back():
    now = Usage()
    assert there_and_back(Usage(2.5), now) is now
    assert (now.value, now.itself, now.device) == (2.5, now, torch.device("cpu"))
    array = np.arange(4, dtype=np.uint32)
    assert there_and_back(array).tolist() == array.tolist()
    generator, fresh = torch.Generator().manual_seed(3), torch.Generator()
    torch.rand(5, generator=generator)
    there_and_back(generator, fresh)
    assert torch.equal(torch.rand(2, generator=fresh), torch.rand(2, generator=generator))
    dice, others = random.Random(1), random.Random(2)
    there_and_back(dice, others)
    assert dice.random() == others.random()


@pytest.mark.parametrize("value", [iter([]), {1, 2}, torch.zeros(1).to_sparse(), b"x", np.array([object()])])
def test_what_cannot_be_kept_is_named(value: Any):
    with pytest.raises(Unkeepable, match="among its variables cannot be kept"):
        there_and_back([value])


def test_an_object_that_is_not_there_is_not_made_up():
    with pytest.raises(Unkeepable, match="a Usage that was made during the training cannot be made again"):
        there_and_back(Usage())
