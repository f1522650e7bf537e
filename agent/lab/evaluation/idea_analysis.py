"""The interface of an idea's analysis.py: one checked SAE, and what the evaluator can measure of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab.checkpoint import Checkpoint
from agent.lab.defaults import is_world
from agent.lab.evaluation import ablation, idea_files, named_latents
from agent.lab.evaluation.sae_adapter import ROWS, BenchSAE, CheckpointSAE, PartSAE, rows_at_once

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator, HeldOut

ABLATED_WINDOWS = 32  # of held-out text, on which latents are ablated


@dataclass(frozen=True)
class Examination:
    """A checked SAE and the held-out text or samples that it is scored on.

    `out` is a folder for data that `draw` plots (see results.keep and Run.kept).
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
        """The held-out activations `[tokens, d_in]`, as the model has them (unscaled)."""
        return self.held_out.activations

    @property
    def has_loss(self) -> bool:
        """True for a language model; a world has no loss, so no probing, forgetting, ablation or gradient."""
        return not is_world(self.evaluator.model_name)

    @property
    def rows(self) -> int:
        """The activations that are encoded at once, at most ROWS."""
        return min(ROWS, rows_at_once(self.checkpoint.header.d_sae))

    def latents(self) -> Iterator[Tensor]:
        """Yield the latents of the held-out activations in batches `[at most rows, d_sae]`."""
        with torch.no_grad():
            for x in self.activations.split(self.rows):
                yield self.sae.encode(x)

    def name_latents(self, labels: Mapping[int, str], related: Mapping[int, Iterable[int]] | None = None) -> None:
        """Name latents that a person should look at, in addition to those named before: a line on each, and the latents
        that it is related to. Of all names those of the first 200 latents are kept. Raises ValueError for what is no
        latent."""
        named_latents.add(self.out, self.checkpoint.header.d_sae, labels, related or {})

    def part(self, start: int, end: int) -> PartSAE:
        """Return the SAE with the latents [start, end) alone."""
        return PartSAE(self.sae, start, end)

    def probing_accuracy(self, sae: BenchSAE, name: str) -> float:
        """Return the mean test accuracy of probing the top 5 latents, by sparse_probing_sae_probes.

        `name` must be new: it names a folder of `out`.
        """
        scores, _ = self.evaluator.probe(sae, self.out / name, name)
        return sum(by_k[5]["test_accuracy"] for by_k in scores.values()) / len(scores)

    def forgetting(self, sae: BenchSAE) -> float | None:
        """Return the score of families/forgetting.py, nats a token, or None if no latent ever fires."""
        from agent.lab.evaluation.families import forgetting

        with torch.no_grad():
            result = forgetting.sweep(self.evaluator, sae)
        return result.score if result else None

    def ablate(self, *groups: Sequence[Sequence[int]]) -> list[ablation.Effects]:
        """Return the effects on the model's loss and predictions of setting sets of latents to zero, set by set, for
        each group of sets."""
        return ablation.ablate(self.evaluator.model, self.evaluator.hook_name, self._windows, self.sae, groups)

    def loss_gradient(self) -> tuple[Tensor, Tensor]:
        """Return activations `[tokens, d_in]` of held-out text and the loss gradient by ablation.loss_gradient."""
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


def not_measured(path: Path, found: Checkpoint) -> dict[str, str]:
    """Return the NEEDS of an idea that a checkpoint lacks, each with what therefore is not measured."""
    needs: dict[str, str] = idea_files.run_file(idea_files.measures_file(path)).get("NEEDS", {})
    return {need: what for need, what in needs.items() if not _has(found, need)}


def _has(found: Checkpoint, need: str) -> bool:
    """Return True if a checkpoint has all of a need: "groups tier_0, tier_1" or "extra parent"."""
    kind, _, names = need.partition(" ")
    given = found.header.groups if kind == "groups" else found.extra
    return given.keys() >= set(names.split(", "))
