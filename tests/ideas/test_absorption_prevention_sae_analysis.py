"""absorption_prevention_sae measures correctly on checkpoints made by hand, and its figures are legible."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from builders import failed, measured, run
from figure_checks import is_brief, overlapping
from safetensors.numpy import save_file
from small_lab import examination, load_of_idea
from small_sae import header

from agent import TEMPLATES
from agent.lab import checkpoint
from agent.lab.evaluation import idea_analysis
from agent.lab.results import FamilyScores, FinalInfo, Probe, Probing
from agent.report import figure_style
from agent.study.runs import Run

PATH = TEMPLATES / "ideas/absorption_prevention_sae/analysis.py"
NAMES = ["metrics_comparison.png", "absorption_rates.png", "probing_accuracy.png"]
TITLES = (
    "Baseline",
    "A dense start",
    "Resampling with windows of their own",
    "Merging",
    "Everything",
    "No dense start",
)


@pytest.fixture(scope="module")
def drawing() -> Any:
    return load_of_idea("absorption_prevention_sae", "figures.py")


def figures(folder: Path, rows: list[list[float]], **extra: torch.Tensor) -> tuple[dict[str, float | None], Path]:
    """Return the figures of an SAE with these decoder rows, whose latents are its inputs; the last is always 0."""
    W_dec = torch.tensor(rows)
    n = len(W_dec)
    training = header().training.model_copy(update={"d_in": n, "d_sae": n})
    described = header(d_in=n, d_sae=n, scale=1.0, training=training)
    checkpoint.save(folder / "checkpoint", lambda x: x.relu(), W_dec, torch.zeros(n), described, extra=extra)
    x = torch.rand(5000, n) + 0.1
    x[:, -1] = 0.0
    return dict(idea_analysis.measure(PATH, examination(folder / "checkpoint", x, folder / "out"))), folder / "out"


ROWS = [
    [1.0, 0.0, 0.0, 0.0, 0.0],
    [0.95, 0.3122499, 0.0, 0.0, 0.0],  # a duplicate of the first: their cosine is 0.95
    [0.0, 0.0, 1.0, 0.0, 0.0],
    [0.0, 0.0, 0.6, 0.8, 0.0],
    [0.0, 0.0, 0.0, 1.0, 0.0],  # never fires; its cosine of 0.8 with the one before does not count
]


def test_the_figures_are_right(tmp_path: Path):
    found, out = figures(tmp_path, ROWS, merged=torch.tensor(3.0), resampled=torch.tensor(7.0))
    random = found.pop("nearest_cosine_random")
    assert found == pytest.approx(
        {
            "dead_fraction": 1 / 5,
            "duplicate_pairs": 1,
            "nearest_cosine": (0.95 + 0.95 + 0.6 + 0.6) / 4,
            "duplicates_merged": 3,
            "latents_resampled": 7,
        },
        rel=1e-5,
    )
    assert random is not None
    assert -1 < random < 1
    assert json.loads((out / "alive.json").read_text()) == {"alive": [0, 1, 2, 3]}


def test_a_baseline_has_no_figures_of_merging_and_resampling(tmp_path: Path):
    found, _ = figures(tmp_path, ROWS)
    assert set(found) == {"dead_fraction", "duplicate_pairs", "nearest_cosine", "nearest_cosine_random"}


# Stability


def test_the_same_features_are_found_again_in_any_order_and_norm(drawing: Any):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 64))
    found, shuffled = drawing.matched_cosine(rows, 3 * rows[rng.permutation(40)])
    assert found == pytest.approx(1)
    assert shuffled < 0.5


def test_each_row_has_at_most_one_partner(drawing: Any):
    """Two rows equal one row of the other SAE: the second must take the row that is left."""
    a, b = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    assert drawing.matched_cosine(a, b)[0] == pytest.approx(0.5)


def test_unrelated_features_match_no_better_than_shuffled_ones(drawing: Any):
    rng = np.random.default_rng(0)
    found, shuffled = drawing.matched_cosine(rng.standard_normal((60, 32)), rng.standard_normal((50, 32)))
    assert found == pytest.approx(shuffled, abs=0.05)


# Figures


def world(number: int) -> FinalInfo:
    metrics = {"f1": 0.6 + 0.02 * number, "precision": 0.6, "recall": 0.9 - 0.01 * number}
    scored = FamilyScores(metrics={**metrics, "absorption": 0.03 - 0.003 * number, "absorption_parents": 10.0})
    info = measured(8.0, 0.8, 0.9, 0.99, 0.5).model_copy(update={"probing": None, "evaluations": {"synthetic": scored}})
    return info.model_copy(update={"analysis": own(number)})


def language(number: int) -> FinalInfo:
    datasets = [
        Probe(
            dataset=f"d{i}",
            auc={5: 0.7},
            accuracy={1: 0.6 + 0.01 * i, 5: 0.7 + 0.01 * i},
            random_auc={5: 0.5},
            llm_auc=0.9,
            llm_accuracy=0.9,
        )
        for i in range(5)
    ]
    probing = Probing(
        auc={5: 0.7},
        accuracy={1: 0.62, 5: 0.72 + 0.01 * number},
        random_auc={5: 0.5},
        llm_auc=0.9,
        llm_accuracy=0.9,
        datasets=datasets,
    )
    info = measured(16.0, 0.84 + 0.001 * number, 0.96, 0.98, 0.7)
    return info.model_copy(update={"probing": probing, "analysis": own(number)})


def own(number: int) -> dict[str, float | None]:
    found = {
        "dead_fraction": 0.01 * number,
        "duplicate_pairs": float(number % 3),
        "nearest_cosine": 0.3 - 0.01 * number,
    }
    counted = {"duplicates_merged": 2.0 * number, "latents_resampled": 5.0 * number} if number else {}
    return {**found, "nearest_cosine_random": 0.27, **counted}


def decoder(directory: Path, rows: np.ndarray) -> None:
    (directory / "checkpoint").mkdir(parents=True)
    save_file({"W_dec": rows.astype(np.float32)}, directory / "checkpoint/tensors.safetensors")


def study(directory: Path, result: Any, count: int) -> list[Run]:
    return [run(directory, number, TITLES[number % len(TITLES)], result(number)) for number in range(count)]


def draw(drawing: Any, directory: Path, runs: list[Run]) -> dict[str, figure_style.Figure]:
    with matplotlib.rc_context(figure_style.STYLE):
        return {figure.name: figure for figure in drawing.draw(directory, runs)}


class Rows:
    """What a panel, found by its title, shows in the row of each run."""

    def __init__(self, figure: figure_style.Figure, title: str) -> None:
        assert figure.drawing
        (self.panel,) = [panel for panel in figure.drawing.axes if panel.get_title(loc="left") == title]

    @property
    def values(self) -> list[str]:
        """The value that stands beside each row."""
        return [text.get_text() for text in self.panel.texts]

    @property
    def ticks(self) -> dict[int, float]:
        """The place of the grey tick, by row."""
        return {row: x for row, (x,) in self._places("|").items()}

    @property
    def points(self) -> dict[int, list[float]]:
        """The places of the grey points, by row."""
        return self._places(".")

    def _places(self, marker: str) -> dict[int, list[float]]:
        drawn = [np.array(line.get_data()) for line in self.panel.lines if line.get_marker() == marker]
        return {round(float(y.mean())): list(x) for x, y in drawn if len(x)}


def test_on_a_world_the_figures_show_true_absorption_and_each_parents(drawing: Any, tmp_path: Path):
    runs = study(tmp_path, world, 6)
    record = {"absorption": {"rate": 0.02, "parents": {"4": {"absorbed": 0.64}, "7": {"absorbed": 0.05}}}}
    synthetic = runs[1].directory / "eval/synthetic"
    synthetic.mkdir(parents=True)
    (synthetic / "sae_synthetic.json").write_text(json.dumps(record))
    written = draw(drawing, tmp_path, runs)
    assert list(written) == NAMES
    for name, figure in written.items():
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert overlapping(figure) == [], name
    rates = written["absorption_rates.png"]
    assert Rows(rates, "true absorption").values[:2] == ["0.0300", "0.0270"]
    assert Rows(rates, "each parent feature, highest marked").values == ["–", "0.64", "–", "–", "–", "–"]
    assert Rows(rates, "each parent feature, highest marked").points == {1: [0.64, 0.05]}
    assert "a world has no labelled text" in written["probing_accuracy.png"].description
    assert Rows(written["probing_accuracy.png"], "F1").values[:2] == ["0.600", "0.620"]
    merged = Rows(written["metrics_comparison.png"], "duplicates merged")
    assert merged.values[:2] == ["–", "2"]
    assert merged.ticks == {0: 0, 1: 1, 2: 2, 3: 0, 4: 1, 5: 2}
    assert "No run has another seed" in written["metrics_comparison.png"].description


def test_missing_absorption_is_named_in_the_figures(drawing: Any, tmp_path: Path):
    written = draw(drawing, tmp_path, study(tmp_path, language, 3))
    for name, figure in written.items():
        assert overlapping(figure) == [], name
    for name in ("metrics_comparison.png", "absorption_rates.png"):
        assert "absorption was not measured" in written[name].description
    nearest = Rows(written["absorption_rates.png"], "absorption: not measured; nearest decoder cosine")
    assert (nearest.values, nearest.ticks) == (["0.300", "0.290", "0.280"], {0: 0.27, 1: 0.27, 2: 0.27})
    probed = Rows(written["probing_accuracy.png"], "top 5 latents")
    assert (probed.values, probed.ticks) == (["0.720", "0.730", "0.740"], {0: 0.9, 1: 0.9, 2: 0.9})


def test_absorption_of_a_model_that_can_spell_is_sae_benchs(drawing: Any, tmp_path: Path):
    details: dict[str, dict[str, float | None]] = {
        "a": {"mean_absorption_fraction": 0.4},
        "b": {"mean_absorption_fraction": 0.05},
    }
    runs = study(tmp_path, language, 2)
    assert runs[1].info
    scored = FamilyScores(metrics={"mean_absorption_fraction_score": 0.225}, details=details)
    runs[1].info.evaluations["absorption"] = scored
    rates = draw(drawing, tmp_path, runs)["absorption_rates.png"]
    assert Rows(rates, "absorption").values == ["–", "0.2250"]
    assert Rows(rates, "each letter, highest marked").values == ["–", "0.40"]
    assert Rows(rates, "each letter, highest marked").points == {1: [0.4, 0.05]}


def test_stability_is_reported_for_runs_with_other_seeds(drawing: Any, tmp_path: Path):
    runs = study(tmp_path, world, 3)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 32))
    decoder(runs[1].directory, rows)
    for seed in (1000, 1001):
        decoder(tmp_path / f"run_1_seed_{seed}", rows[::-1].copy())
    comparison = draw(drawing, tmp_path, runs)["metrics_comparison.png"]
    found = Rows(comparison, "features found again")
    assert found.values == ["–", "1.000", "–"]
    assert list(found.ticks) == [1]
    assert 0 < found.ticks[1] < 0.9
    assert "Features found again is the mean cosine" in comparison.description
    assert is_brief(comparison.description), comparison.description


def test_only_live_latents_count_for_stability(drawing: Any, tmp_path: Path):
    runs = study(tmp_path, world, 2)
    rows = np.random.default_rng(0).standard_normal((20, 32))
    other = rows.copy()
    other[10:] = np.random.default_rng(1).standard_normal((10, 32))
    decoder(runs[1].directory, rows)
    decoder(tmp_path / "run_1_seed_1000", other)
    assert drawing.stability(runs[1])[0] < 0.8
    kept = runs[1].directory / "eval/analysis"
    kept.mkdir(parents=True)
    (kept / "alive.json").write_text(json.dumps({"alive": list(range(10))}))
    assert drawing.stability(runs[1])[0] == pytest.approx(1)


def test_the_baselines_other_seeds_are_its_noise_runs(drawing: Any, tmp_path: Path):
    info = world(0).model_copy(
        update={"training": header().training.model_copy(update={"seed": 0, "settings": {"K": 8}})}
    )
    baseline = run(tmp_path, 0, "Baseline", info)
    rows, half, other = np.random.default_rng(0).standard_normal((3, 20, 32))
    half[:10] = rows[:10]
    decoder(baseline.directory, rows)
    assert drawing.stability(baseline) is None
    decoder(tmp_path / "baseline_k8_seed1", rows)
    decoder(tmp_path / "baseline_k8_seed2", half)
    for name in ("baseline_k8_seed0", "baseline_k8.5_seed1"):  # its own seed, and another K
        decoder(tmp_path / name, other)
    of_half, _ = drawing.matched_cosine(*(each.astype(np.float32) for each in (rows, half)))
    assert drawing.stability(baseline)[0] == pytest.approx((1 + of_half) / 2)


@pytest.mark.parametrize("count", [1, 8])
def test_the_figures_fit_few_and_many_runs_and_name_failed_ones(drawing: Any, tmp_path: Path, count: int):
    timed_out = failed("timed_out", "60 s")
    for result in (world, language):
        runs = [*study(tmp_path, result, count), run(tmp_path, count, "Died", timed_out)]
        for name, figure in draw(drawing, tmp_path, runs).items():
            assert overlapping(figure) == [], name
            assert is_brief(figure.description), figure.description
            assert f"Not shown: run {count} has no result (timed_out)." in figure.description


def test_without_results_nothing_is_drawn(drawing: Any, tmp_path: Path):
    assert draw(drawing, tmp_path, [run(tmp_path, 0, "Baseline", None)]) == {}
