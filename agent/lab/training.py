"""The parts that all trainings share: the guard that watches them, metrics.jsonl, and finish()."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from agent.lab import checkpoint, models, precision, state, verdicts
from agent.lab.activations import Stream
from agent.lab.defaults import SOCKET_VARIABLE, is_world
from agent.lab.errors import UserError
from agent.lab.progress import notify, progress_bar
from agent.lab.results import Training
from agent.lab.verdicts import MetricsRow, Verdict

ROWS = 100  # lines in metrics.jsonl over a whole training; the host waits for the device once a line
COMPARED_VALUES = 4096  # of each parameter, to tell if it changed during the training


def constants(names: dict[str, Any]) -> dict[str, Any]:
    """Return the experiment's constants among its globals: upper-case names of plain values."""
    plain = (bool, int, float, str, list, tuple)
    return {name: value for name, value in names.items() if name.isupper() and isinstance(value, plain)}


class TrainingStopped(Exception):
    """The guard ended the training; carries the verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"{verdict.name}: {verdict.evidence}")
        self.verdict = verdict


class TrainingGuard:
    """A guard that writes metrics.jsonl and stops a training that cannot become a result.

    It checks that the parameters of `sae` change. `settings` are the experiment's constants, recorded with the results.
    """

    def __init__(
        self, out_dir: Path, sae: nn.Module, stream: Stream, *, model: str, hook_name: str, settings: dict[str, Any]
    ) -> None:
        if settings.get("K", 0) > settings.get("D_SAE", math.inf):
            raise UserError(f"K {settings['K']} is more than D_SAE {settings['D_SAE']}: lower K or raise D_SAE")
        self.out_dir, self.sae, self.stream = out_dir, sae, stream
        self.model, self.hook_name, self.settings = models.canonical_name(model), hook_name, settings
        self.steps = self.tokens = 0
        self.rows: list[MetricsRow] = []
        self._log_every = max(stream.steps // ROWS, 1)
        precision.allow_tf32(stream.device.type == "cuda")
        self._sums: Tensor | None = None
        self._own: dict[str, Tensor] = {}
        self._pending = 0
        self._learning_rate = 0.0
        self._initial = self._sample()
        self._file: TextIO = (out_dir / "metrics.jsonl").open("w")
        self._bar = progress_bar("training", stream.total, "tokens")
        self._started = time.monotonic()
        self._saved: state.SavedTraining | None = None

    def resumes(self, variables: Callable[[], Any]) -> None:
        """Declare what changes during the training, as `lambda: (sae, optimizer, ...)`, just before its loop.

        The variables that the lambda names are saved every state.SAVE_MINUTES between two steps: of modules and objects
        all attributes, tensors, numbers, lists and dicts. If the training was cut short and is started again, they get
        their values back here, `steps` is the number of steps that were done, and the stream goes on after those. A
        variable that is needed and not named would start anew. Raises BadState for a saved state of another training.
        """
        self._saved = state.SavedTraining(self.out_dir, self.stream, variables)
        if figures := self._saved.restore():
            self._take_up(figures)
        self.stream.before_batch = self._save_if_due

    def step(
        self,
        *,
        tokens: int,
        loss: Tensor,
        l0: Tensor,
        mse: Tensor,
        alive_fraction: Tensor,
        grad_norm: Tensor,
        learning_rate: float,
        own: dict[str, Tensor] | None = None,
    ) -> None:
        """Record one optimizer step. The scalar tensors stay on their device until the next line is written.

        `own` holds further metrics of the experiment, under the same names at every step.
        Raises TrainingStopped on a non-finite loss, gradient norm or parameter, or a loss above the ceiling.
        """
        self._own = own or {}
        metrics = (loss, l0, mse, alive_fraction, grad_norm, *self._own.values())
        values = torch.stack([t.detach().float() for t in metrics])
        self._sums = values if self._sums is None else self._sums + values
        self._pending += 1
        self._learning_rate = learning_rate
        self.steps += 1
        self.tokens += tokens
        self._bar.update(tokens)
        if self.steps % self._log_every == 0:
            self._write_row()

    def close(self, d_sae: int) -> Training:
        """End the training and return its record. Raises TrainingStopped if it cannot become a result."""
        if self._pending:
            self._write_row()
        self._bar.close()
        self._file.close()
        self._saved = None  # it holds the optimizer
        seconds = time.monotonic() - self._started
        if verdict := verdicts.judge_training(self.rows, self.steps, self.any_parameter_changed):
            raise TrainingStopped(verdict)
        return Training(
            model=self.model,
            hook_name=self.hook_name,
            layer=models.layer_of(self.hook_name),
            d_in=self.stream.d_in,
            d_sae=d_sae,
            steps=self.steps,
            tokens=self.stream.budget.served,  # whatever the experiment reported
            final_loss=self.rows[-1].loss,
            seconds=round(seconds, 2),
            learning_rate=max(row.learning_rate for row in self.rows),
            seed=self.stream.seed,
            settings=self.settings,
            text=self.stream.manifest.text,
            passes=round(self.stream.manifest.passes(self.stream.budget.served), 3),
            context=self.stream.manifest.context or (None if is_world(self.model) else models.most_context()),
            final_l0=self.rows[-1].l0,
        )

    @property
    def any_parameter_changed(self) -> bool:
        """True if a compared parameter differs from its value before the first step."""
        return any(not torch.equal(a, b) for a, b in zip(self._initial, self._sample(), strict=True))

    def _save_if_due(self) -> None:
        if self._saved and self.steps and self._saved.is_due():
            self._saved.save(
                {
                    "steps": self.steps,
                    "tokens": self.tokens,
                    "seconds": time.monotonic() - self._started,
                    "rows": [row.model_dump() for row in self.rows],
                    "sums": self._sums,
                    "pending": self._pending,
                }
            )

    def _take_up(self, figures: dict[str, Any]) -> None:
        """Go on from the figures of a saved state; lines that were written after it are dropped."""
        self.steps, self.tokens = figures["steps"], figures["tokens"]
        self._sums, self._pending = figures["sums"], figures["pending"]
        self._started = time.monotonic() - figures["seconds"]
        self.rows = [MetricsRow.model_validate(row) for row in figures["rows"]]
        self._file.writelines(row.model_dump_json() + "\n" for row in self.rows)
        self._file.flush()
        self._bar.update(self.tokens)
        notify(f"going on after {self.steps:,} steps, from the saved state")

    def _sample(self) -> list[Tensor]:
        return [p.detach().flatten()[:COMPARED_VALUES].clone() for p in self.sae.parameters()]

    def _write_row(self) -> None:
        assert self._sums is not None
        means = [m if math.isfinite(m) else None for m in (self._sums / self._pending).tolist()]
        loss, l0, mse, alive_fraction, grad_norm, *own = means
        row = MetricsRow(
            step=self.steps,
            tokens=self.tokens,
            loss=loss,
            l0=l0,
            mse=mse,
            alive_fraction=alive_fraction,
            learning_rate=self._learning_rate,
            grad_norm=grad_norm,
            seconds=round(time.monotonic() - self._started, 2),
            own=dict(zip(self._own, own, strict=True)),
        )
        self.rows.append(row)
        self._file.write(row.model_dump_json() + "\n")
        self._file.flush()
        self._sums, self._pending = None, 0
        if verdict := verdicts.judge_metrics([row]):
            raise TrainingStopped(verdict)
        if not all(bool(p.isfinite().all()) for p in self.sae.parameters()):
            raise TrainingStopped(Verdict(name="nan", evidence=f"a parameter was not finite at step {self.steps}"))


def finish(
    guard: TrainingGuard,
    encode: Any,
    *,
    W_dec: Tensor,
    b_dec: Tensor,
    W_enc: Tensor | None = None,
    b_enc: Tensor | None = None,
    threshold: Tensor | None = None,
    architecture: str | None = None,
    groups: dict[str, tuple[int, int]] | None = None,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Judge the training and save the checkpoint: the last line of an experiment. Its scores come from another process.

    `encode` maps scaled activations `[batch, d_in]` to latents `[batch, d_sae]`, each row alone. The decoder is data:
    `W_dec [d_sae, d_in]`, `b_dec [d_in]`. Give `W_enc [d_in, d_sae]`, `b_enc [d_sae]` and `threshold [d_sae]` if the
    encoder is `where(pre > threshold, pre, 0)` of an affine `pre`; then ../sae_lens is written too. Give `architecture`
    in place of the threshold if it is relu, topk (the K largest of each row) or matching_pursuit (K times the row of
    W_dec that fits best is taken away from x - b_dec), or with it if it is gated. `groups` names ranges of latents,
    `extra` holds tensors that an analysis needs.

    Raises TrainingStopped, or CheckpointError for a checkpoint that would not load.
    """
    training = guard.close(d_sae=W_dec.shape[0])
    precision.allow_tf32(False)  # a checkpoint's graph is compared with what it was traced from
    header = checkpoint.Header(
        model=guard.model,
        hook_name=guard.hook_name,
        layer=training.layer,
        d_in=training.d_in,
        d_sae=training.d_sae,
        scale=guard.stream.manifest.scale,
        groups=groups or {},
        training=training,
        any_parameter_changed=guard.any_parameter_changed,
        architecture=architecture or ("jumprelu" if threshold is not None else None),
    )
    folder = guard.out_dir / "checkpoint"
    checkpoint.save(folder, encode, W_dec, b_dec, header, W_enc=W_enc, b_enc=b_enc, threshold=threshold, extra=extra)
    if SOCKET_VARIABLE not in os.environ:  # else the driver has taken them
        state.discard(guard.out_dir)
    for key in ("steps", "tokens", "passes", "final_loss", "seconds"):
        print(f"{key}: {getattr(training, key)}")
    print(f"checkpoint: {folder}", flush=True)
