"""What an idea's measures need from a checkpoint: NEEDS says it, and a checkpoint without it is said to lack it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from small_lab import examination, load_of_idea
from small_sae import header
from torch import Tensor

from agent import TEMPLATES
from agent.lab import checkpoint
from agent.lab.evaluation import idea_analysis
from agent.lab.evaluation.idea_analysis import Examination

D = 12  # latents, which are their inputs


@dataclass(frozen=True)
class Given:
    """What finish() is given for an idea, and the measures that need a language model's loss or a world's features."""

    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    of_the_model: str = "$^"  # a pattern
    without: frozenset[str] = frozenset()  # what is measured of any checkpoint
    sampled_by: str = "synth2k"


THREE = [(0, 6), (6, 10), (10, 12)]
OPEN = torch.tensor([True] * 10 + [False] * 2)
IDEAS = {
    "absorption_prevention_sae": Given(
        extra={"merged": torch.tensor(3), "resampled": torch.tensor(4)},
        without=frozenset({"dead_fraction", "duplicate_pairs", "nearest_cosine", "nearest_cosine_random"}),
    ),
    "adaptive_orthogonal_sae": Given(
        extra={"group": torch.arange(D) // 4},
        of_the_model="forgetting_score",
        without=frozenset(
            (
                *("decoder_cosine_mean", "decoder_cosine_largest", "decoder_cosine_max", "across_group_cosine"),
                *("within_group_cosine", "condition_number", "condition_number_max", "condition_number_random"),
            )
        ),
    ),
    "hierarchical_sae": Given(
        groups={f"tier_{i}": group for i, group in enumerate(THREE)},
        extra={"composition_0": torch.rand(6, 4), "composition_1": torch.rand(4, 2)},
        of_the_model="tier_._forgetting|causal_.*",
    ),
    "matryoshka_sae": Given(
        groups={f"prefix_{i}": group for i, group in enumerate([*THREE[:2], (10, 11), (11, 12)])},
        of_the_model="parents_.*|prefix_4_.*|prefix_3_random_.*",  # the whole SAE has no random counterpart
        sampled_by="tiny-lm",
    ),
    "use_sorted_matryoshka_sae": Given(
        groups={f"prefix_{i}": group for i, group in enumerate(THREE)},
        of_the_model="frequent_.*",
        sampled_by="tiny-lm",
    ),
    "tree_sae": Given(
        groups={f"level_{i}": group for i, group in enumerate(THREE)},
        extra={
            "parent": torch.tensor([6, 6, 7, 7, 8, 9, 10, 10, 11, 11, -1, -1]),
            "projections": 0.5 * OPEN,
            "open": OPEN,
        },
        of_the_model="level_._probing_accuracy|path_attribution.*",
    ),
}


def examined(directory: Path, given: Given) -> Examination:
    """Return the examination of an SAE that gives what it is given, whose even and whose odd latents fire together."""
    training = header().training.model_copy(update={"d_in": D, "d_sae": D})
    described = header(d_in=D, d_sae=D, scale=1.0, training=training, groups=dict(given.groups))
    W_dec = torch.eye(D) + 0.1 * torch.rand(D, D, generator=torch.Generator().manual_seed(0))
    checkpoint.save(
        directory / "checkpoint", lambda x: x.relu(), W_dec, torch.zeros(D), described, extra=dict(given.extra)
    )
    generator = torch.Generator().manual_seed(0)
    fires = (torch.rand(10_000, 2, generator=generator) < 0.3).repeat(1, D // 2)
    rows = fires * (1 + torch.rand(10_000, D, generator=generator))
    exam = examination(directory / "checkpoint", rows, directory / "out")
    exam.evaluator.model_name = given.sampled_by
    return exam


def analysis(idea: str) -> Path:
    return TEMPLATES / "ideas" / idea / "analysis.py"


@pytest.mark.parametrize("idea", IDEAS)
def test_a_checkpoint_that_gives_what_is_needed_has_every_measure(idea: str, tmp_path: Path):
    given, table = IDEAS[idea], load_of_idea(idea, "measures.py")
    exam = examined(tmp_path, given)
    expected = {name for name in table.MEASURES if not re.fullmatch(given.of_the_model, name)}
    assert idea_analysis.measure(analysis(idea), exam).keys() == expected
    assert idea_analysis.not_measured(analysis(idea), exam.checkpoint) == {}


@pytest.mark.parametrize("idea", IDEAS)
def test_of_a_checkpoint_without_it_nothing_of_the_mechanism_is_measured_and_that_is_said(idea: str, tmp_path: Path):
    given, table = IDEAS[idea], load_of_idea(idea, "measures.py")
    bare = Given(sampled_by=given.sampled_by)
    exam = examined(tmp_path, bare)
    assert idea_analysis.measure(analysis(idea), exam).keys() == given.without
    assert idea_analysis.not_measured(analysis(idea), exam.checkpoint) == table.NEEDS


def test_every_idea_is_tried():
    assert {path.parent.name for path in TEMPLATES.glob("ideas/*/analysis.py")} == IDEAS.keys()


def test_groups_and_tensors_of_other_names_are_not_taken_for_them(tmp_path: Path):
    groups = {"first": (0, 6), "second": (6, 12)}
    exam = examined(tmp_path, Given(groups=groups, extra={"map": torch.rand(6, 6)}))
    path = analysis("hierarchical_sae")
    assert idea_analysis.measure(path, exam) == {}
    assert list(idea_analysis.not_measured(path, exam.checkpoint)) == ["groups tier_0, tier_1", "extra composition_0"]
