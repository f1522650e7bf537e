"""A model's knowledge of first letters, and the probes that show it: the model's part of absorption.

The task is SAE-Bench's (Chanin et al. 2024, arXiv 2409.14507): "{word} has the first letter:" after ten words with
their answers, for every word of letters that is one token. Linear probes of the activations on the word say which
letters the model knows. They are trained once for a model and hook, with SAE-Bench's own code.

python -P -m agent.lab.evaluation.bench.spelling MODEL HOOK TEXT
"""

import contextlib
import json
import math
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import rankdata
from torch import Tensor

from agent.lab import cache, files, models
from agent.lab.evaluation.bench import patching
from agent.lab.exits import one_line_errors
from agent.lab.locks import waiting_lock
from agent.lab.progress import notify, progress_bar

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from agent.lab.evaluation.evaluator import Evaluator

FORMAT, SEED = 1, 42
TAIL = " has the first letter:"
TEMPLATE = "{word}" + TAIL
EXAMPLES = 10  # words with their answers before the one that is asked
TRAINED_ON = 0.8  # share of the words that the probes learn from
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(tokenizer: Any) -> list[str]:
    """Return the vocabulary's words of letters, with and without a space before them, sorted.

    SAE-Bench takes them in the tokenizer's order, which differs from call to call.
    """
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    return sorted(get_alpha_tokens(tokenizer))


def position(tokenizer: Any) -> int:
    """Return the word's position from the end of its prompt: -6 if the words after it are a token each."""
    return -1 - len(tokenizer(TAIL, add_special_tokens=False).input_ids)


def find_problems(tokenizer: Any, context: int | None) -> list[tuple[str, str]]:
    """Return the reasons why a vocabulary or context does not suit this task, with remedies."""
    vocabulary, problems = words(tokenizer), []
    shuffled = random.Random(SEED).sample(vocabulary, len(vocabulary))
    learnt = Counter(word.strip()[0].lower() for word in shuffled[: int(TRAINED_ON * len(vocabulary))])
    if unknown := [letter for letter in LETTERS if letter not in learnt]:
        reason = f"no word of its vocabulary that probes would learn from begins with {', '.join(unknown)}"
        problems.append((reason, "use a model with a larger vocabulary"))
    lines = tokenizer([f"\n{TEMPLATE.format(word=word)} A" for word in vocabulary], add_special_tokens=False).input_ids
    lengths = Counter(map(len, lines))
    if len(lengths) > 1:
        odd = len(vocabulary) - max(lengths.values())
        problems.append(
            (f"{odd} of its {len(vocabulary):,} words are not one token in the prompt", "use another model")
        )
    needed = (EXAMPLES + 1) * max(lengths, default=0)
    if context and needed > context:
        problems.append((f"a prompt with ten examples is {needed} tokens, its context {context}", "use another model"))
    return problems


@dataclass(frozen=True)
class Spelling:
    """The results of a model at a hook, and the folder of its probes."""

    folder: Path
    letters: dict[str, float]  # F1 of each letter's probe on test words
    seconds: float

    @property
    def probes(self) -> Path:
        return self.folder / "probes"

    def speller(self, model: "HookedTransformer", hook_name: str) -> "Speller":
        """Return the model with its cached activations on words."""
        return Speller(model, hook_name, self.folder)

    def test_activations(self, speller: "Speller") -> Tensor:
        """Return the hook's activations on the test words, `[words, d_in]`."""
        from sae_bench.evals.absorption import common

        layer = models.layer_of(speller.hook_name)
        rows, _ = common.load_probe_data_split(speller, layer, "test", self.probes, **_computation())  # type: ignore[arg-type]
        return rows


def spelling_dir(folder: Path) -> Path:
    """Return the folder of a model and hook's spelling, under that of its evaluation artefacts."""
    return folder / f"spelling-v{FORMAT}-seed{SEED}"


def cached_spelling(folder: Path) -> Spelling | None:
    """Return an earlier result, or None."""
    path = spelling_dir(folder) / "spelling.json"
    return Spelling(path.parent, **json.loads(path.read_text())) if path.exists() else None


def measure(evaluator: "Evaluator") -> Spelling:
    """Train the probes, or return an earlier result. A killed process leaves nothing that counts as one.

    Raise UserError if the disk is too full.
    """
    folder, making = evaluator.folder, evaluator.folder / "spelling.making"
    with waiting_lock(folder / "spelling.lock", "another process measures the spelling of the same model"):
        if not (spelling := cached_spelling(folder)):
            started, vocabulary = time.monotonic(), words(evaluator.model.tokenizer)
            needed = required_bytes(len(vocabulary), evaluator.model.cfg.d_model)
            cache.require_space(folder, needed, "activations on words")
            notify(f"measuring whether {evaluator.model_name} can spell, once for this model and hook")
            shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
            making.mkdir()
            letters = _train(evaluator, vocabulary, making / "probes")
            result = {"letters": letters, "seconds": round(time.monotonic() - started, 1)}
            files.write_atomically(making / "spelling.json", json.dumps(result, indent=2))
            making.rename(spelling_dir(folder))
            spelling = cached_spelling(folder)
            assert spelling
        return spelling


def required_bytes(count: int, d_model: int) -> int:
    """Return the bytes on the disk while probes are trained on `count` words: their activations, twice."""
    return 2 * 4 * count * d_model


def _computation() -> dict[str, Any]:
    """Return dtype and device for SAE-Bench's functions: its own are bfloat16 and the GPU where there is one."""
    return {"dtype": torch.float32, "device": models.device_config().device}


def _train(evaluator: "Evaluator", vocabulary: list[str], probes: Path) -> dict[str, float]:
    """Train the probes, keep them with their data, and return SAE-Bench's F1 of each."""
    from sae_bench.evals.absorption import common
    from sae_bench.evals.absorption.prompting import first_letter_formatter

    model, layer = evaluator.model, models.layer_of(evaluator.hook_name)
    with (
        progress_bar("spelling", len(vocabulary), "words") as shown,
        patching.isolated_sae_bench(common, evaluator.folder, SEED),
    ):
        common.create_and_train_probe(
            model=_CountingModel(model, layer, shown),  # type: ignore[arg-type]
            formatter=first_letter_formatter(),
            hook_point=evaluator.hook_name,
            probes_dir=probes,
            vocab=vocabulary,
            batch_size=64,
            num_epochs=50,
            lr=1e-2,
            device=torch.device(models.device_config().device),
            base_template=TEMPLATE,
            pos_idx=position(model.tokenizer),
        )
        for left_over in probes.rglob("*.dat"):  # a second copy of the activations
            left_over.unlink()
        probe = common.load_probe(model.cfg.model_name, layer, probes, **_computation())
        rows, labels = common.load_probe_data_split(model, layer, "test", probes, **_computation())
        with torch.inference_mode():
            predicted = (probe(rows) > 0).cpu().numpy()
        truth = np.array([label for _, label in labels])
        return {letter: FastMetrics.f1_score(truth == i, predicted[:, i]) for i, letter in enumerate(LETTERS)}


class _CountingModel:
    """A model that stops after the hook, and shows on a progress bar how many prompts it has run."""

    def __init__(self, model: "HookedTransformer", layer: int, shown: Any) -> None:
        self.model, self.cfg, self.layer, self.shown = model, model.cfg, layer, shown

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> Any:
        self.shown.update(len(prompts))
        return self.model.run_with_cache(prompts, names_filter=names_filter, stop_at_layer=self.layer + 1)


class Speller:
    """The model for SAE-Bench's absorption: its activations on the word of each prompt, the same for every SAE.

    They are computed on first use and cached.
    """

    def __init__(self, model: "HookedTransformer", hook_name: str, folder: Path) -> None:
        self.model, self.hook_name, self.cfg = model, hook_name, model.cfg
        self.tokenizer = Words(model.tokenizer)
        self.position = position(model.tokenizer)
        self.path = folder / "words.safetensors"
        self.activations: dict[str, Tensor] = {}  # prompt -> [d_in]
        self.saved = 0
        if self.path.exists():
            with safe_open(self.path, "pt") as file:
                prompts = json.loads(file.metadata()["prompts"])
                self.activations = dict(zip(prompts, file.get_tensor("activations"), strict=True))
            self.saved = len(self.activations)

    def to_tokens(self, *_: str) -> Tensor:
        """Return tokens of one length for every prompt: find_problems has checked that all have the same."""
        return torch.empty(1, -self.position)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, Tensor]]:
        """Return activations `[prompts, -position, d_in]`: the word's, at every position."""
        if missing := [prompt for prompt in prompts if prompt not in self.activations]:
            stop = models.layer_of(self.hook_name) + 1
            _, cached = self.model.run_with_cache(missing, names_filter=names_filter, stop_at_layer=stop)
            self.activations |= zip(missing, cached[self.hook_name][:, self.position].float().cpu(), strict=True)
        rows = torch.stack([self.activations[prompt] for prompt in prompts]).to(models.device_config().device)
        return None, {self.hook_name: rows[:, None].expand(-1, -self.position, -1)}

    def save(self) -> None:
        """Write the activations computed since the file was read or written."""
        if len(self.activations) > self.saved:
            rows, prompts = torch.stack(list(self.activations.values())), json.dumps(list(self.activations))
            with (
                waiting_lock(self.path.with_suffix(".lock"), "another process saves the same activations"),
                files.atomic_path(self.path) as partial,
            ):
                save_file({"activations": rows}, partial, metadata={"prompts": prompts})
            self.saved = len(self.activations)


class Words:
    """A tokenizer for SAE-Bench's absorption, with a sorted vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self.vocab = dict(sorted(tokenizer.get_vocab().items()))
        self.convert_tokens_to_string = tokenizer.convert_tokens_to_string


@contextlib.contextmanager
def probes_in_float32() -> Iterator[None]:
    """Have SAE-Bench read its probes, and the activations that they learn from, in float32.

    Its default is bfloat16 on a machine that has a GPU, which neither numpy nor an SAE in float32 takes.
    """
    from sae_bench.evals.absorption import common, feature_absorption, k_sparse_probing

    with contextlib.ExitStack() as stack:
        for module, name in (
            (k_sparse_probing, "load_or_train_probe"),
            (k_sparse_probing, "load_probe_data_split_or_train"),
            (feature_absorption, "load_probe"),
        ):
            read = partial(getattr(common, name), dtype=torch.float32)
            stack.enter_context(patch.object(module, name, read))
        yield


def fast_metrics() -> Any:
    """Have SAE-Bench's k-sparse probing compute its metrics by FastMetrics."""
    from sae_bench.evals.absorption import k_sparse_probing

    return patch.object(k_sparse_probing, "metrics", FastMetrics)


class FastMetrics:
    """The four functions of sklearn.metrics that SAE-Bench calls 84 times a letter, for two classes.

    The figures are the same without sklearn's checks of arguments, two thirds of the time on a small model.
    """

    @staticmethod
    def precision_score(truth: np.ndarray, predicted: np.ndarray) -> float:
        return _share((truth & predicted).sum(), predicted.sum())

    @staticmethod
    def recall_score(truth: np.ndarray, predicted: np.ndarray) -> float:
        return _share((truth & predicted).sum(), truth.sum())

    @staticmethod
    def f1_score(truth: np.ndarray, predicted: np.ndarray) -> float:
        return _share(2 * (truth & predicted).sum(), truth.sum() + predicted.sum())

    @staticmethod
    def roc_auc_score(truth: np.ndarray, scores: np.ndarray) -> float:
        """Return the area by the rank-sum statistic, ties at their mean rank, or NaN if there is one class."""
        positive, negative = truth.sum(), (~truth).sum()
        if not positive or not negative:
            return math.nan
        return (rankdata(scores)[truth].sum() - positive * (positive + 1) / 2) / (positive * negative)


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


def main() -> None:
    from agent.lab.evaluation.evaluator import Evaluator

    with one_line_errors("nothing half-measured is kept"):
        measure(Evaluator(*sys.argv[1:]))


if __name__ == "__main__":
    main()
