"""What an idea's analysis.py may ask of the evaluator about one SAE."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab.checkpoint import Checkpoint
from agent.lab.defaults import is_world
from agent.lab.evaluation import ablation, idea_files
from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE, PartSAE

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator, HeldOut

ROWS = 4096  # activations encoded at once
ABLATED_WINDOWS = 32  # of held-out text, on which latents are ablated


@dataclass(frozen=True)
class Examination:
    """A checked SAE, the held-out text or samples it is scored on, and what the evaluator can find out about it.

    `out` is a folder for what `draw` is to show and is more than a figure: see Run.kept.
    """

    evaluator: "Evaluator"
    sae: CheckpointSAE
    held_out: "HeldOut"
    out: Path

    @property
    def checkpoint(self) -> Checkpoint:
        return self.sae.checkpoint

    @property
    def activations(self) -> Tensor:
        """[tokens, d_in], the model's own (unscaled)."""
        return self.held_out.activations

    @property
    def has_loss(self) -> bool:
        """Whether there is a language model: without one there is no probing, forgetting, ablation, or gradient."""
        return not is_world(self.evaluator.model_name)

    def latents(self) -> Iterator[Tensor]:
        """All latents on the held-out activations, in batches `[at most ROWS, d_sae]`."""
        with torch.no_grad():
            for x in self.activations.split(ROWS):
                yield self.sae.encode(x)

    def part(self, start: int, end: int) -> PartSAE:
        """The SAE with the latents [start, end) alone."""
        return PartSAE(self.sae, start, end)

    def probing_accuracy(self, sae: BenchSAE, name: str) -> float:
        """Mean test accuracy of sparse probing on the top 5 latents, as sparse_probing_sae_probes measures it.

        Each `name` is used once.
        """
        scores, _ = self.evaluator.probe(sae, self.out / name, name)
        return sum(by_k[5]["test_accuracy"] for by_k in scores.values()) / len(scores)

    def forgetting(self, sae: BenchSAE) -> float | None:
        """The forgetting score (families/forgetting.py), nats a token; None where no latent ever fires."""
        from agent.lab.evaluation.families import forgetting

        with torch.no_grad():
            found = forgetting.sweep(self.evaluator, sae)
        return found.score if found else None

    def ablate(self, *sets: Sequence[int]) -> ablation.Effects:
        """What setting each set of latents to zero does to the model's loss and predictions on some held-out text."""
        return ablation.ablate(self.evaluator.model, self.evaluator.hook_name, self._windows, self.sae, sets)

    def loss_gradient(self) -> tuple[Tensor, Tensor]:
        """Held-out activations `[tokens, d_in]` and the gradient of the loss by them; see ablation.loss_gradient."""
        return ablation.loss_gradient(self.evaluator.model, self.evaluator.hook_name, self._windows)

    @cached_property
    def _windows(self) -> ablation.Windows:
        return ablation.read_windows(
            self.evaluator.model, self.evaluator.hook_name, self.held_out.ids[:ABLATED_WINDOWS]
        )


def measure(path: Path, exam: Examination) -> dict[str, float]:
    """Return the figures of `measure(exam)` in the analysis.py at `path`.

    Raise LookupError for a figure that MEASURES does not name, and whatever the file raises.
    """
    analysis, table = idea_files.run_file(path), idea_files.measures_file(path)
    measures = analysis if table == path else idea_files.run_file(table)
    figures = analysis["measure"](exam)
    if unknown := sorted(set(figures) - set(measures["MEASURES"])):
        raise LookupError(f"{path}: measure() returned {unknown[0]!r}, which is not in MEASURES of {table.name}")
    return {name: float(figure) for name, figure in figures.items()}
