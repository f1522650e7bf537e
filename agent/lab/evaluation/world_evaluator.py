"""The evaluator of a synthetic world: samples in place of text, known features in place of a loss."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from agent.lab import models, worlds
from agent.lab.defaults import CONTEXT
from agent.lab.evaluation import ground_truth
from agent.lab.evaluation.bench import core, core_text
from agent.lab.evaluation.evaluator import Evaluator, HeldOut
from agent.lab.evaluation.requests import Split
from agent.lab.evaluation.sae_adapter import BenchSAE, Usage, measure_usage
from agent.lab.results import Core, Number


@dataclass(frozen=True)
class HeldOutSamples(HeldOut):
    """Held-out samples of a world; `ids [windows, CONTEXT]` are their row numbers."""

    features: list[Tensor] = field(
        kw_only=True
    )  # batches [batch, num_features], sparse, of the features in each sample


class WorldEvaluator(Evaluator):
    """The evaluator of one world. There is no text and no loss; metrics that need them are left out."""

    def load_model(self) -> None:
        worlds.check_hook(self.model_name, self.hook_name)
        self.world = worlds.load(self.model_name, models.device_config().device)

    @property
    def context(self) -> int:
        return CONTEXT

    def held_out(self, split: Split, windows: int | None = None) -> HeldOutSamples:
        """Return the samples of a split, or the first of them, in windows of CONTEXT."""
        windows = windows or core_text.WINDOWS
        if (split, windows) not in self._held_out:
            ids = torch.arange(windows * CONTEXT).view(windows, -1)
            rows, features = zip(*worlds.samples(self.world, ids.numel(), split), strict=True)
            x = torch.cat(rows)
            batch = x[: core_text.BATCH_WINDOWS * CONTEXT]
            self._held_out[split, windows] = HeldOutSamples(
                ids, x, x.mean(0), batch, features=[samples.to_sparse() for samples in features]
            )
        samples = self._held_out[split, windows]
        assert isinstance(samples, HeldOutSamples)
        return samples

    def score_core(self, sae: BenchSAE, held_out: HeldOut, out: Path, name: str) -> tuple[Core, Usage]:  # noqa: ARG002
        """Return SAE-Bench core's metrics of sparsity and reconstruction."""
        usage = measure_usage(sae, held_out.activations, held_out.mean)
        return core.run_core_on_rows(sae, held_out.activations, held_out.ids, usage), usage

    def sentinel_metrics(self, sae: BenchSAE, held_out: HeldOut, out: Path, name: str) -> dict[str, Number]:  # noqa: ARG002
        return self.ground_truth_metrics(sae, held_out)

    def ground_truth_metrics(self, sae: BenchSAE, held_out: HeldOut) -> dict[str, Number]:
        assert isinstance(held_out, HeldOutSamples)
        return ground_truth.measure(self.world, sae, held_out.features)[0].metrics
