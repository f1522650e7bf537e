"""At many latents no idea needs a tensor of all pairs of them: training steps, and what they do now and then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import load
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agent import ideas

D_IN, D_SAE, BATCH = 32, 8192, 64
ALL_PAIRS = 4 * D_SAE**2  # bytes
NOTHING_DEAD = torch.empty(0, dtype=torch.long)


class PeakOfTensors(TorchDispatchMode):
    """The most bytes that the tensors made in a `with` take at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._live = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return made


def experiment(folder: Path, idea: str, step: str) -> Any:
    """Return the experiment of a step of an idea at this width, as a module."""
    loaded = ideas.load(idea)
    (chosen,) = [each for each in loaded.plan if each.name == step]
    fixed = ideas.Fixed(model="tiny-lm", hook_name="blocks.1.hook_resid_post", tokens=64_000, d_sae=D_SAE)
    (folder / "experiment.py").write_text(ideas.render_step(loaded, chosen, fixed))
    return load(folder / "experiment.py")


def trained(module: Any, sae: Any) -> tuple[torch.optim.Adam, torch.Tensor]:
    """Take a step; return the optimizer and the latents."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    loss, latents, _ = module.compute_loss(sae, torch.randn(BATCH, D_IN), NOTHING_DEAD)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer, latents.detach()


def hierarchical(module: Any) -> None:
    module.COMPOSED_OF = 128
    sae = module.TieredSAE(D_IN, D_SAE, torch.zeros(D_IN))
    optimizer, _ = trained(module, sae)
    module.follow_use(sae, optimizer, torch.rand(D_SAE))


def tree(module: Any) -> None:
    module.COUNTED, module.SORTED_WISHES = 512, 2**18
    sae = module.TreeSAE(D_IN, D_SAE, torch.zeros(D_IN))
    optimizer, latents = trained(module, sae)
    sae.observe(latents)
    module.fix_tree(sae, optimizer, sae.open.nonzero().flatten())
    module.adapt_ratios(sae, optimizer, torch.zeros(D_SAE))


def orthogonal(module: Any) -> None:
    module.GROUP_SWEEPS = 1
    sae = module.GroupedSAE(D_IN, D_SAE, torch.zeros(D_IN))
    trained(module, sae)
    module.coactivation_groups(torch.rand(256, D_SAE) < 0.01, sae.group, sae.groups)


def merging(module: Any) -> None:
    sae = module.ScheduledSAE(D_IN, D_SAE, torch.zeros(D_IN))
    optimizer, _ = trained(module, sae)
    with torch.no_grad():
        sae.W_dec[1::2] = sae.W_dec[::2]
    module.merge_duplicates(sae, optimizer, module.Usage(D_SAE, torch.device("cpu")))
    assert sae.merged == D_SAE / 2


@pytest.mark.parametrize(
    ("idea", "step", "work"),
    [
        ("hierarchical_sae", "automatic_tiers", hierarchical),
        ("tree_sae", "full", tree),
        ("adaptive_orthogonal_sae", "adaptive", orthogonal),
        ("absorption_prevention_sae", "full", merging),
    ],
)
def test_no_step_of_training_takes_all_pairs_of_latents(
    idea: str, step: str, work: Callable[[Any], None], tmp_path: Path
):
    module = experiment(tmp_path, idea, step)
    with PeakOfTensors() as tensors:
        work(module)
    assert 0 < tensors.peak < ALL_PAIRS / 2
