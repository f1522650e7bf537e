"""python -P -m agent.lab.evaluation.bench.hub_prompts FAMILY FOLDER: fetch the labelled prompts of SAE-Bench's own.

SAE-Bench's own functions choose them, with its own sizes and seed, and what they return is kept in FOLDER. On stdout
there is a JSON object: dataset -> "", or why it cannot be had. This is a process of its own because the `datasets`
library reads at its import whether it may use the network.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.lab import cache
from agent.lab.errors import describe

SEED = 42  # SAE-Bench's own
BATCH = 64  # prompts that a language model reads at once: SAE-Bench has no number of its own
PROGRAMS = ("codeparrot/github-code",)  # datasets that are programs of the hub's, none of which is run here
FAMILIES = ("sparse_probing", "tpp", "scr")

Pair = tuple[str, str]
Prompts = dict[str, list[str]]  # class -> prompts


def config(family: str) -> Any:
    """Return SAE-Bench's own settings of a family, but for the datasets that are programs."""
    if family == "sparse_probing":
        from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

        own = SparseProbingEvalConfig(random_seed=SEED, llm_batch_size=BATCH)
    else:
        from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

        own = ScrAndTppEvalConfig(random_seed=SEED, llm_batch_size=BATCH, perform_scr=family == "scr")
    return replace(own, dataset_names=[name for name in own.dataset_names if name not in PROGRAMS])


def pairs(settings: Any, dataset: str) -> list[Pair | None]:
    """Return the pairs of classes that a dataset is read for by SAE-Bench's settings; only scr has any."""
    return list(settings.column1_vals_lookup[dataset]) if getattr(settings, "perform_scr", False) else [None]


def path(folder: Path, family: str, dataset: str, pair: Pair | None) -> Path:
    """Return the file with the prompts of a dataset, and of a pair of classes."""
    return folder / f"{family}-{cache.slug(dataset)}{''.join(f'-{cache.slug(name)}' for name in pair or ())}.json"


@dataclass(frozen=True)
class Fetched:
    """The prompts of a family that were fetched into a folder."""

    family: str
    folder: Path

    def read(self, dataset: str, pair: Pair | None) -> tuple[Prompts, Prompts]:
        """Return the prompts to train and to test on."""
        train, test = json.loads(path(self.folder, self.family, dataset, pair).read_text())
        return train, test


def _choose(family: str, dataset: str) -> Iterator[tuple[Pair | None, Any]]:
    """Yield what SAE-Bench's own functions choose of a dataset, for each pair of classes."""
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.evals.scr_and_tpp.main import COLUMN2_VALS_LOOKUP
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    own, prefix = config(family), "probe_" if family == "sparse_probing" else ""
    sizes = (getattr(own, f"{prefix}train_set_size"), getattr(own, f"{prefix}test_set_size"))
    for pair in pairs(own, dataset):
        if pair:
            second = COLUMN2_VALS_LOOKUP[dataset]
            yield pair, dataset_creation.get_train_test_data(dataset, True, *sizes, SEED, pair, second)
        else:
            parts = dataset_utils.get_multi_label_train_test_data(dataset, *sizes, SEED)
            classes = dataset_info.chosen_classes_per_dataset[dataset]
            yield pair, [{name: part[name] for name in classes} for part in parts]


def main() -> None:
    family, folder = sys.argv[1], Path(sys.argv[2])
    report = {}
    for dataset in config(family).dataset_names:
        report[dataset] = ""
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                for pair, chosen in _choose(family, dataset):
                    path(folder, family, dataset, pair).write_text(json.dumps(chosen))
        except Exception as error:  # of the hub, of whichever library, or SAE-Bench's own checks of what it read
            report[dataset] = describe(error)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
