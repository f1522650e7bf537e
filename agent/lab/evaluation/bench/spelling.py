"""Whether a model can say a word's first letter, and the probes that show it: the model's side of absorption.

The task is SAE-Bench's (Chanin et al. 2024, arXiv 2409.14507): "{word} has the first letter:" after ten words with
their answers, for every word of letters that is one token. Linear probes of the activations on the word say which
letters the model knows. They are trained once for a model and hook, with SAE-Bench's own code.

python -P -m agent.lab.evaluation.spelling MODEL HOOK
"""

import json
import math
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import rankdata
from torch import Tensor

from agent.lab import cache, files, models
from agent.lab.evaluation.bench import patching
from agent.lab.exits import one_line_errors
from agent.lab.files import waiting_lock
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
    """The vocabulary's words of letters, with and without a space before them, in an order that is the same each time.

    SAE-Bench takes them as the tokenizer gives them, in an order that differs from call to call.
    """
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    return sorted(get_alpha_tokens(tokenizer))


def position(tokenizer: Any) -> int:
    """Where the word stands, from the end of its prompt: -6 where the words after it are a token each."""
    return -1 - len(tokenizer(TAIL, add_special_tokens=False).input_ids)


def unfit(tokenizer: Any, context: int | None) -> list[tuple[str, str]]:
    """What is wrong with a vocabulary and context for this task, and what to do about it."""
    vocabulary, found = words(tokenizer), []
    shuffled = random.Random(SEED).sample(vocabulary, len(vocabulary))
    learnt = Counter(word.strip()[0].lower() for word in shuffled[: int(TRAINED_ON * len(vocabulary))])
    if unknown := [letter for letter in LETTERS if letter not in learnt]:
        why = f"no word of its vocabulary that probes would learn from begins with {', '.join(unknown)}"
        found.append((why, "use a model with a larger vocabulary"))
    lines = tokenizer([f"\n{TEMPLATE.format(word=word)} A" for word in vocabulary], add_special_tokens=False).input_ids
    lengths = Counter(map(len, lines))
    if len(lengths) > 1:
        odd = len(vocabulary) - max(lengths.values())
        found.append((f"{odd} of its {len(vocabulary):,} words are not one token in the prompt", "use another model"))
    needed = (EXAMPLES + 1) * max(lengths, default=0)
    if context and needed > context:
        found.append((f"a prompt with ten examples is {needed} tokens, its context {context}", "use another model"))
    return found


@dataclass(frozen=True)
class Spelling:
    """What was measured of a model at a hook, and where its probes lie."""

    folder: Path
    letters: dict[str, float]  # F1 of each letter's probe on words it did not learn from
    seconds: float

    @property
    def probes(self) -> Path:
        return self.folder / "probes"

    def speller(self, model: "HookedTransformer", hook_name: str) -> "Speller":
        """The model, with its activations on the words that were made before."""
        return Speller(model, hook_name, self.folder)

    def test_activations(self, speller: "Speller") -> Tensor:
        """The hook's activations on the words that the probes did not learn from, `[words, d_in]`."""
        from sae_bench.evals.absorption import common

        layer = models.layer_of(speller.hook_name)
        rows, _ = common.load_probe_data_split(speller, layer, "test", self.probes)  # type: ignore[arg-type]
        return rows.float()


def kept_in(folder: Path) -> Path:
    """Where the spelling of a model and hook is kept, under the folder of its evaluation artefacts."""
    return folder / f"spelling-v{FORMAT}-seed{SEED}"


def known(folder: Path) -> Spelling | None:
    """What was measured before; None where it was not."""
    verdict = kept_in(folder) / "spelling.json"
    return Spelling(verdict.parent, **json.loads(verdict.read_text())) if verdict.exists() else None


def measure(evaluator: "Evaluator") -> Spelling:
    """Train the probes, or read what was made before. Whole or not at all: a kill leaves nothing that is taken for it.

    Raises UserError where the disk is too full.
    """
    folder, making = evaluator.folder, evaluator.folder / "spelling.making"
    with waiting_lock(folder / "spelling.lock", "another process measures the spelling of the same model"):
        if not (found := known(folder)):
            started, vocabulary = time.monotonic(), words(evaluator.model.tokenizer)
            cache.require_space(folder, space(len(vocabulary), evaluator.model.cfg.d_model), "activations on words")
            notify(f"measuring whether {evaluator.model_name} can spell, once for this model and hook")
            shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
            making.mkdir()
            letters = _train(evaluator, vocabulary, making / "probes")
            verdict = {"letters": letters, "seconds": round(time.monotonic() - started, 1)}
            files.write_atomically(making / "spelling.json", json.dumps(verdict, indent=2))
            making.rename(kept_in(folder))
            found = known(folder)
            assert found
        return found


def space(count: int, d_model: int) -> int:
    """Bytes on the disk while the probes are trained on `count` words: their activations, twice."""
    return 2 * 4 * count * d_model


def _train(evaluator: "Evaluator", vocabulary: list[str], probes: Path) -> dict[str, float]:
    """Train the probes and leave them with their data; the F1 of each, as SAE-Bench takes it."""
    from sae_bench.evals.absorption import common
    from sae_bench.evals.absorption.prompting import first_letter_formatter

    model, layer = evaluator.model, models.layer_of(evaluator.hook_name)
    with (
        progress_bar("spelling", len(vocabulary), "words") as shown,
        patching.isolated_sae_bench(common, evaluator.folder, SEED),
    ):
        common.create_and_train_probe(
            model=_Counted(model, layer, shown),  # type: ignore[arg-type]
            formatter=first_letter_formatter(),
            hook_point=evaluator.hook_name,
            probes_dir=probes,
            vocab=vocabulary,
            batch_size=64,
            num_epochs=50,
            lr=1e-2,
            device=torch.device(models.compute().device),
            base_template=TEMPLATE,
            pos_idx=position(model.tokenizer),
        )
        for left_over in probes.rglob("*.dat"):  # the same activations once more
            left_over.unlink()
        probe = common.load_probe(model.cfg.model_name, layer, probes)
        rows, labels = common.load_probe_data_split(model, layer, "test", probes)
        with torch.inference_mode():
            found = (probe(rows) > 0).cpu().numpy()
        truth = np.array([label for _, label in labels])
        return {letter: Measures.f1_score(truth == i, found[:, i]) for i, letter in enumerate(LETTERS)}


class _Counted:
    """A model that stops behind the hook, and shows how many prompts have been through it."""

    def __init__(self, model: "HookedTransformer", layer: int, shown: Any) -> None:
        self.model, self.cfg, self.layer, self.shown = model, model.cfg, layer, shown

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> Any:
        self.shown.update(len(prompts))
        return self.model.run_with_cache(prompts, names_filter=names_filter, stop_at_layer=self.layer + 1)


class Speller:
    """The model as SAE-Bench's absorption sees it: its activations on the prompts, which are the same for every SAE.

    They are made when they are first asked for and kept; of each prompt only the word's.
    """

    def __init__(self, model: "HookedTransformer", hook_name: str, folder: Path) -> None:
        self.model, self.hook_name, self.cfg = model, hook_name, model.cfg
        self.tokenizer = Words(model.tokenizer)
        self.position = position(model.tokenizer)
        self.path = folder / "words.safetensors"
        self.made: dict[str, Tensor] = {}  # prompt -> [d_in]
        self.kept = 0
        if self.path.exists():
            with safe_open(self.path, "pt") as file:
                prompts = json.loads(file.metadata()["prompts"])
                self.made = dict(zip(prompts, file.get_tensor("activations"), strict=True))
            self.kept = len(self.made)

    def to_tokens(self, *_: str) -> Tensor:
        """Of one length for every prompt: that all have the same was seen before anything was trained."""
        return torch.empty(1, -self.position)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, Tensor]]:
        """Activations `[prompts, -position, d_in]` that are the word's at every position."""
        if missing := [prompt for prompt in prompts if prompt not in self.made]:
            stop = models.layer_of(self.hook_name) + 1
            _, found = self.model.run_with_cache(missing, names_filter=names_filter, stop_at_layer=stop)
            self.made |= zip(missing, found[self.hook_name][:, self.position].float().cpu(), strict=True)
        rows = torch.stack([self.made[prompt] for prompt in prompts]).to(models.compute().device)
        return None, {self.hook_name: rows[:, None].expand(-1, -self.position, -1)}

    def keep(self) -> None:
        """Write what was made since the file was read."""
        if len(self.made) > self.kept:
            rows = torch.stack(list(self.made.values()))
            with files.atomic_path(self.path) as partial:
                save_file({"activations": rows}, partial, metadata={"prompts": json.dumps(list(self.made))})
            self.kept = len(self.made)


class Words:
    """A tokenizer as SAE-Bench's absorption sees it: its vocabulary in an order that is the same each time."""

    def __init__(self, tokenizer: Any) -> None:
        self.vocab = dict(sorted(tokenizer.get_vocab().items()))
        self.convert_tokens_to_string = tokenizer.convert_tokens_to_string


class Measures:
    """The four of sklearn.metrics that SAE-Bench asks 84 times a letter, of two classes and arrays that are sound.

    The same figures; sklearn's checks of its arguments took two thirds of an SAE's absorption on a small model.
    """

    @staticmethod
    def precision_score(truth: np.ndarray, found: np.ndarray) -> float:
        return _share((truth & found).sum(), found.sum())

    @staticmethod
    def recall_score(truth: np.ndarray, found: np.ndarray) -> float:
        return _share((truth & found).sum(), truth.sum())

    @staticmethod
    def f1_score(truth: np.ndarray, found: np.ndarray) -> float:
        return _share(2 * (truth & found).sum(), truth.sum() + found.sum())

    @staticmethod
    def roc_auc_score(truth: np.ndarray, scores: np.ndarray) -> float:
        """By the rank-sum statistic, ties at their mean rank; NaN where there is one class."""
        positive, negative = truth.sum(), (~truth).sum()
        if not positive or not negative:
            return math.nan
        return (rankdata(scores)[truth].sum() - positive * (positive + 1) / 2) / (positive * negative)


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


def main() -> None:
    from agent.lab.evaluation.evaluator import Evaluator

    model, hook_name = sys.argv[1:]
    with one_line_errors("nothing half-measured is kept"):
        measure(Evaluator(model, hook_name))


if __name__ == "__main__":
    main()
