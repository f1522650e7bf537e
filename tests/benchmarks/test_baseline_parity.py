"""The comparison with SAELens' trainers: what its table says of differences, and a rehearsal at a small size."""

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import parity_table  # noqa: E402

METRIC = "explained_variance_centered"
NOISE = (0.001, -0.002, 0.0005, 0.002, -0.0015)


def runs(l0: float, shift: float = 0.0, noise: tuple[float, ...] = NOISE) -> list[dict[str, float]]:
    """Trainings on one line over log L0, but for noise and a shift."""
    return [{"l0": l0, METRIC: 0.5 + 0.1 * math.log(l0) + shift + error} for error in noise]


def test_sides_on_one_line_over_log_l0_do_not_differ():
    near = runs(14, noise=(0.0,)) + runs(20, noise=(0.0,))
    found = parity_table.compare(METRIC, runs(17), near, runs(16))
    assert found.ours == pytest.approx(found.theirs, abs=1e-4)
    assert found.noise == pytest.approx(0.0017, rel=0.05)
    assert found.within


def test_a_shift_by_twice_the_noise_is_beyond_it():
    near = runs(14, 0.004, (0.0,)) + runs(20, 0.004, (0.0,))
    found = parity_table.compare(METRIC, runs(17, 0.004), near, runs(16))
    assert found.of_noise == pytest.approx(2.35, abs=0.1)
    assert not found.within


@pytest.mark.slow
@pytest.mark.usefixtures("cache_dir")
def test_a_stopped_benchmark_goes_on_and_ends_with_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import baselines  # which imports torch and sae_lens

    out = tmp_path / "figures.json"
    arguments = [tmp_path / "work", "--kinds", "topk,relu", "--models", "synth2k", "--tokens", "2560", "--seeds", "2"]
    baselines.main([*map(str, arguments), "--sides", "ours,sae_lens_as_ours", "--out", str(out)])
    *_, topk, relu = capsys.readouterr().out.splitlines()
    assert topk.startswith("| synth2k | topk | 8 | 8.00 |")
    assert relu.startswith("| synth2k | relu | 2.3 |")
    assert [row["kind"] for row in json.loads(out.read_text())] == ["topk", "relu"]

    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    assert len(trained) == 2 * (2 + 2 + 2)
    lost, *kept = trained
    lost.unlink()
    baselines.main([*map(str, arguments), "--sides", "ours,sae_lens_as_ours", "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[-2:] == [topk, relu]
    assert all(path.stat().st_mtime_ns == trained[path] for path in kept)
    assert lost.exists()
