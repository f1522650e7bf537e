"""Labelled text for SAE-Bench's own evaluations, from the installed probing datasets.

Only datasets of text.HELD_OUT are used: neither tiny-lm nor any SAE was trained on one of their prompts. Each prompt is
used once: a quarter of some files are repetitions, which would be in training and test alike.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

from agent.lab import text
from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench.hub_prompts import Fetched
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement

Texts = dict[str, list[str]]  # class -> prompts

CONTEXT = 64  # tokens; the prompts' median is 7 to 78 on tiny-lm's vocabulary


@dataclass(frozen=True)
class Labelled:
    """The prompts of one file, with labels from it or from another file of the same prompts."""

    prompts: str
    labels: str
    classes: dict[str, str]  # class -> its label in the file


@dataclass(frozen=True)
class Confounded:
    """Two files of different kinds of text, labelled by the same question."""

    kinds: dict[str, Labelled]  # kind of text -> its prompts, in the two classes
    classes: tuple[str, str]

    @property
    def pair(self) -> tuple[str, str]:
        one, other = self.kinds
        return one, other


def _two_way(name: str, **classes: str) -> Labelled:
    return Labelled(name, name, classes)


# Held-out binary datasets that sparse_probing_sae_probes does not use, and on which a probe of tiny-lm's mean
# activations is right about more than three prompts in four: 0.99, 0.83, 0.78, 0.83.
TWO_WAY = {
    "sae-probes/click_bait": _two_way("105_click_bait", clickbait="clickbait", factual="factual"),
    "sae-probes/credit_card": _two_way("68_credit-card", bigram="bigram", other="not_bigram"),
    "sae-probes/written_by": _two_way("110_aimade_humangpt3", machine="1", human="0"),
    "sae-probes/clinical_trials": _two_way("84_clinical-trials", bigram="bigram", other="not_bigram"),
}

# TPP measures whether the latents of one class leave the others alone, so it needs more than two. The held-out files
# say only "Politics or not"; the other classes are in the file from which they were drawn.
MANY_WAY = {
    "sae-probes/news": Labelled(
        "139_news_class_Politics",
        "97_news_class",
        {name: name for name in ("Politics", "Technology", "Entertainment", "Sport")},
    ),
    "sae-probes/places": Labelled(
        "125_world_country_Italy",
        "17_world_country",
        {name: name for name in ("Italy", "Australia", "United_Kingdom", "India", "United_States")},
    ),
}

# The label is spuriously tied to the kind of text; see families/scr.py.
CONFOUNDED = {
    "sae-probes/lure": Confounded(
        {
            "headline": _two_way("105_click_bait", lure="clickbait", plain="factual"),
            "message": _two_way("96_spam_is", lure="1", plain="0"),
        },
        ("lure", "plain"),
    ),
    "sae-probes/politics": Confounded(
        {
            "article": _two_way("139_news_class_Politics", political="1", other="0"),
            "headline": _two_way("22_headline_isobama", political="True", other="False"),
        },
        ("political", "other"),
    ),
}


@cache
def _frame(name: str) -> Any:
    import pandas as pd

    frame = pd.read_csv(text.data_dir() / f"{name}.csv.zst", compression="zstd", dtype=str)
    frame["key"] = frame["prompt"].fillna("").map(text.normalise)
    return frame[(frame["key"] != "") & ~frame["key"].duplicated()].set_index("key")


def texts(labelled: Labelled) -> Texts:
    """Return the distinct prompts of each class, in the file's order."""
    frame = _frame(labelled.prompts)
    labels = frame["target"] if labelled.labels == labelled.prompts else _frame(labelled.labels)["target"]
    labels = labels.reindex(frame.index)
    return {name: frame["prompt"][labels == label].tolist() for name, label in labelled.classes.items()}


def split(texts: Texts, train: int, test: int, seed: int) -> tuple[Texts, Texts]:
    """Draw `train` and `test` prompts of each class by the seed. Raise ValueError if a class has fewer."""
    rng = np.random.default_rng(seed)
    parts: tuple[Texts, Texts] = ({}, {})
    for name, prompts in texts.items():
        if len(prompts) < train + test:
            raise ValueError(f"class {name} has {len(prompts)} prompts of {train + test}")
        drawn = [prompts[i] for i in rng.permutation(len(prompts))[: train + test]]
        parts[0][name], parts[1][name] = drawn[:train], drawn[train:]
    return parts


def multi_label(dataset: str, train: int, test: int, seed: int) -> tuple[Texts, Texts]:
    """Replace SAE-Bench's `get_multi_label_train_test_data`: as there, sizes count both sides of a probe."""
    return split(texts((TWO_WAY | MANY_WAY)[dataset]), train // 2, test // 2, seed)


def train_test(
    dataset: str,
    spurious: bool,
    train: int,
    test: int,
    seed: int,
    column1: tuple[str, str] | None = None,
    column2: tuple[str, str] | None = None,
) -> tuple[Texts, Texts]:
    """Replace SAE-Bench's `get_train_test_data`, with its own `get_spurious_corr_data` on our tables."""
    import pandas as pd
    from sae_bench.evals.scr_and_tpp.dataset_creation import get_spurious_corr_data

    if not spurious:
        return multi_label(dataset, train, test, seed)
    assert column1
    assert column2
    confounded, rows = CONFOUNDED[dataset], ([], [])
    for kind, labelled in confounded.kinds.items():
        # SAE-Bench needs more than half of `train` of the two combinations that agree, and a quarter of the others.
        for part, drawn in zip(rows, split(texts(labelled), train // 2 + 1, test // 2 + 1, seed), strict=True):
            part += [{"text": prompt, "kind": kind, "label": label} for label, some in drawn.items() for prompt in some]
    parts = [
        get_spurious_corr_data(pd.DataFrame(part), column1, column2, dataset, size // 4, seed)
        for part, size in zip(rows, (train, test), strict=True)
    ]
    return parts[0], parts[1]


@contextmanager
def datasets_installed(fetched: Fetched | None = None) -> Iterator[None]:
    """Make SAE-Bench read the prompts that were fetched or, without any, our datasets, for the time of a `with`."""
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    if fetched:

        def read(dataset: str, spurious: bool, *sizes_seed_and_classes: Any) -> tuple[Texts, Texts]:
            return fetched.read(dataset, sizes_seed_and_classes[3] if spurious else None)

        with (
            patch.object(dataset_utils, "get_multi_label_train_test_data", lambda name, *_: fetched.read(name, None)),
            patch.object(dataset_creation, "get_train_test_data", read),
        ):
            yield
        return
    classes = {name: list(labelled.classes) for name, labelled in (TWO_WAY | MANY_WAY).items()}
    columns = {
        name: {
            "text_column_name": "text",
            "column1_name": "kind",
            "column2_name": "label",
            "column1_mapping": {kind: kind for kind in confounded.kinds},
            "column2_mapping": {label: label for label in confounded.classes},
        }
        for name, confounded in CONFOUNDED.items()
    }
    labels = {name: confounded.classes for name, confounded in CONFOUNDED.items()} | dict.fromkeys(MANY_WAY, ("", ""))
    with ExitStack() as stack:
        stack.enter_context(patch.dict(dataset_info.chosen_classes_per_dataset, classes))
        stack.enter_context(patch.dict(dataset_info.dataset_metadata, columns))
        stack.enter_context(patch.dict(scr_and_tpp.COLUMN2_VALS_LOOKUP, labels))
        stack.enter_context(patch.object(dataset_utils, "get_multi_label_train_test_data", multi_label))
        stack.enter_context(patch.object(dataset_creation, "get_train_test_data", train_test))
        yield


def unmet_requirements(target: EvalTarget, used: list[Labelled], per_class: int) -> list[UnmetRequirement]:
    """Check an evaluation that needs `per_class` prompts of each class and disk space for the activations on them."""
    tokens = CONTEXT * per_class * sum(len(labelled.classes) for labelled in used)
    megabytes = 3 * tokens * requirements.residual_width(target.config) * 4 / 1e6
    if missing := requirements.check_language_model(target, megabytes):
        return missing
    short = {
        f"{labelled.prompts}: {len(prompts)} prompts are labelled {labelled.classes[name]} and {per_class} are needed"
        for labelled in used
        for name, prompts in texts(labelled).items()
        if len(prompts) < per_class
    }
    remedy = "install sae-probes 0.4.2 again: the labels are of that version"
    return [UnmetRequirement(reason, remedy) for reason in sorted(short)]
