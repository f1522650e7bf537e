"""The text that latents are looked at on, in its order, with the model's activations on it.

First comes the dev text, then training text; never the test text. Running a model over a million tokens takes a minute
on a CPU, so the activations are kept in parts in the evaluator's folder, where they are small enough, for every run and
study with the same model, hook and text.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import activations, cache, corpus, files, models, worlds
from agent.lab.defaults import CONTEXT
from agent.lab.evaluation.bench import core_text
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.locks import waiting_lock

PART_WINDOWS = 256
PART_SAMPLES = 32 * worlds.BATCH
KEPT_BYTES = 2**30  # of activations; if they are larger, the model is run for each SAE


@dataclass(frozen=True)
class Part:
    """A stretch of the text."""

    rows: Tensor  # [tokens, d_in], float16: the activations on the tokens that are scored, as divided by `scale`
    places: Tensor  # [tokens], where they are in the text: window * context + position


class FeatureText:
    """At least `tokens` ordinary tokens, or as many as there are, in parts; a world's samples are windows of one."""

    def __init__(self, evaluator: Evaluator, tokens: int) -> None:
        self.evaluator, self.tokens = evaluator, tokens
        self.is_world = isinstance(evaluator, WorldEvaluator)
        self.folder = evaluator.folder / f"looked_at-{tokens}-{cache.slug(corpus.version(evaluator.text))}"

    @cached_property
    def ids(self) -> Tensor:
        """The token ids `[windows, context]`: of dev text, then of training text; a world's are `[samples, 1]`, 0."""
        if self.is_world:
            return torch.zeros(self.tokens, 1, dtype=torch.long)
        dev = self.evaluator.token_windows("dev")[: core_text.WINDOWS]
        ids = torch.cat([dev, self._training_windows()])
        counts = activations.ordinary_mask(self.evaluator.model, ids).sum(1).cumsum(0)
        return ids[: int((counts < self.tokens).sum()) + 1]

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.ids.shape[1]

    @property
    def dev_places(self) -> int:
        """Places of the dev text, which come first."""
        if self.is_world:
            return core_text.WINDOWS * CONTEXT
        return min(len(self.evaluator.token_windows("dev")), core_text.WINDOWS) * self.context

    @cached_property
    def scale(self) -> float:
        """What activations are divided by, so that float16 holds them: the median norm of one."""
        return 1.0 if self.is_world else self.evaluator.median_norm or 1.0

    def parts(self, seconds: float) -> Iterator[Part]:
        """Yield the parts of the text, the first whatever it takes, the others until `seconds` have passed."""
        end = time.monotonic() + seconds
        size = PART_SAMPLES if self.is_world else PART_WINDOWS
        for number, start in enumerate(range(0, len(self.ids), size)):
            if number and time.monotonic() >= end:
                return
            yield self._part(number, range(start, min(start + size, len(self.ids))))

    def unscaled(self, rows: Tensor) -> Tensor:
        """Return a part's rows as the model has them, float32, on the device of the computation."""
        return rows.to(models.device_config().device).float() * self.scale

    def strings(self, ids: list[int]) -> list[str]:
        """Return the text of each token by itself, with the space that it begins with."""
        return [self._string(i) for i in ids]

    def _string(self, number: int) -> str:
        if number not in self._strings:
            tokenizer = self.evaluator.model.tokenizer
            assert tokenizer is not None
            text, piece = str(tokenizer.decode([number])), str(tokenizer.convert_ids_to_tokens(number))
            if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character
                text = piece
            self._strings[number] = f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text
        return self._strings[number]

    @cached_property
    def _strings(self) -> dict[int, str]:
        return {}

    def _training_windows(self) -> Tensor:
        """Return windows of the training text; of a user's own those that were kept when it was read."""
        evaluator = self.evaluator
        if evaluator.text:
            return corpus.kept_training_windows(evaluator.text, evaluator.model_name, evaluator.folder)
        path = evaluator.folder / f"tokens-train-{self.tokens}-{cache.slug(corpus.version(''))}.safetensors"
        with waiting_lock(path.with_suffix(".lock"), "another process reads the same text"):
            if not path.exists():
                ids = activations.training_windows(evaluator.model, evaluator.model_name, "", self.tokens)
                with files.atomic_path(path) as partial:
                    save_file({"ids": ids.int().contiguous()}, partial)
        return load_file(path)["ids"].long()

    def _part(self, number: int, windows: range) -> Part:
        """Return a part, from the evaluator's folder if it is kept there."""
        path = self.folder / f"part_{number:04d}.safetensors"
        if not self._is_kept:
            return self._computed(windows)
        self.folder.mkdir(exist_ok=True)
        with waiting_lock(path.with_suffix(".lock"), "another process reads the same text"):
            if not path.exists():
                part = self._computed(windows)
                with files.atomic_path(path) as partial:
                    save_file({"rows": part.rows.cpu(), "places": part.places.cpu().int()}, partial)
        return Part(**load_file(path))

    @property
    def _is_kept(self) -> bool:
        width = self.evaluator.held_out("dev", core_text.BATCH_WINDOWS).activations.shape[1]
        return 2 * self.ids.numel() * width <= KEPT_BYTES

    @torch.no_grad()
    def _computed(self, windows: range) -> Part:
        if isinstance(self.evaluator, WorldEvaluator):
            rows = torch.cat([x.half() for x in self._samples(self.evaluator, windows)])
            return Part(rows, torch.arange(windows.start, windows.start + len(rows)))
        model, hook = self.evaluator.model, self.evaluator.hook_name
        parts, masks = [], []
        for ids in self.ids[windows.start : windows.stop].split(core_text.BATCH_WINDOWS):
            hidden = activations.run_to_hook(model, ids, hook)
            ordinary = activations.ordinary_mask(model, ids)
            masks.append((ordinary & ~activations.is_outlier(hidden, self.evaluator.median_norm)).cpu())
            parts.append((hidden[masks[-1].to(hidden.device)].float() / self.scale).half())
        places = windows.start * self.context + torch.cat(masks).flatten().nonzero().flatten()
        return Part(torch.cat(parts), places)

    def _samples(self, evaluator: WorldEvaluator, windows: range) -> Iterator[Tensor]:
        """Yield the activations of samples `windows` of the text: the dev samples, then those of training."""
        dev = min(self.dev_places, windows.stop)
        if windows.start < dev:
            yield from (x for x, _ in worlds.samples(evaluator.world, dev, "dev", windows.start))
        first = max(windows.start, self.dev_places) - self.dev_places
        if first < windows.stop - self.dev_places:
            stop = windows.stop - self.dev_places
            yield from (x for x, _ in worlds.samples(evaluator.world, stop, "sae", first))
