"""What a study needs is reckoned before it starts, and what cannot fit is refused with the setting to change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.lab import estimates, models, needs
from agent.lab.activations import HarvestKey
from agent.lab.errors import UserError
from agent.lab.estimates import GB, Plan
from agent.lab.machine import Machine

HOOK = "blocks.1.hook_resid_post"
GEMMA = Plan(
    d_in=2304,
    d_sae=65_536,
    batch=4096,
    tokens=10_000_000,
    rows=10_000_000,
    parameters=2_614_341_888,
    itemsize=2,
    d_vocab=256_000,
    device="NVIDIA A100",
    threads="4",
    trainings=14,
)
LARGE = Machine(ram=int(200 * GB), gpu=int(80 * GB), cache=int(500 * GB), runs=int(500 * GB), one_disk=False)


def test_what_fits_is_described_beside_what_there_is():
    estimates.require_fit(GEMMA, LARGE)
    first, second = estimates.describe(GEMMA, LARGE, None)
    assert first.startswith("reckoned from shapes: a job needs about ")
    for what in ("GB of GPU memory (80.0 are free)", "GB of RAM (200 may be used)", "for 14 trainings (500 are free)"):
        assert what in first
    assert second.startswith("hours: not known before run 0")


@pytest.mark.parametrize(
    ("there", "plan", "says"),
    [
        ({"gpu": 10}, {}, "GPU memory needed, and there are 10.0: lower --d-sae"),
        ({"ram": 8}, {}, "of RAM needed, and there are 8.0: lower --d-sae"),
        ({"ram": 50}, {"jobs": 8}, "8 jobs at once (2,304 x 65,536 latents in batches of 4,096): about"),
        ({"ram": 50}, {"jobs": 8}, "lower --jobs"),
        ({"gpu": 60}, {"d_in": 64, "batch": 10**6}, "lower --d-sae or --batch"),
        ({"cache": 40}, {}, "the activations of 10,000,000 tokens: about"),
        ({"runs": 9}, {}, "14 trainings (2,304 x 65,536 latents in batches of 4,096): about"),
        ({"cache": 70, "runs": 70, "one_disk": True}, {}, "point SAE_AGENT_CACHE at another disk"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_setting_to_change(there: dict[str, int], plan: dict[str, int], says: str):
    sizes = {name: value if name == "one_disk" else int(value * GB) for name, value in there.items()}
    with pytest.raises(UserError) as refused:
        estimates.require_fit(replace(GEMMA, **plan), replace(LARGE, **sizes))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_more_of_anything_never_needs_less():
    for more in ({"d_sae": 131_072}, {"batch": 8192}, {"d_in": 4608}, {"parameters": 9 * 10**9}, {"device": "cpu"}):
        assert estimates.job_ram(replace(GEMMA, **more)) >= estimates.job_ram(GEMMA)
    assert estimates.job_gpu(replace(GEMMA, device="cpu")) == 0


def test_hours_follow_from_a_cached_baseline_of_the_same_width_batch_and_device(tmp_path: Path):
    shape = {
        "d_in": 2304,
        "d_sae": 65_536,
        "steps": 100,
        "tokens": 409_600,
        "seconds": 36.0,
        "settings": {"BATCH": 4096},
    }
    about = {"model": "m", "hook_name": HOOK, "layer": 1, "final_loss": 1.0, "learning_rate": 1e-3, "seed": 0}
    place = {"device": "NVIDIA A100", "threads": "4"}
    info = {"format_version": 1, "verdict": {"name": "ok", "evidence": "e"}, "training": shape | about}
    info |= {"evaluation_seconds": 120.0, "environment": place}
    folder = tmp_path / "gemma" / "k320_seed0"
    folder.mkdir(parents=True)
    (tmp_path / "gemma" / "k9_seed0").mkdir()
    (tmp_path / "gemma" / "k9_seed0" / "final_info.json").write_text("{")  # damaged: passed over
    (folder / "final_info.json").write_text(json.dumps(info))
    measured = estimates.measured_step(tmp_path, GEMMA)
    # 14 trainings of 2,442 steps of 0.36 s, and of 120 s of evaluation.
    assert estimates.hours(GEMMA, measured).startswith("hours: about 3.9 for 14 trainings, 1 at once")
    for other in ({"batch": 2048}, {"d_sae": 16_384}, {"device": "cpu"}, {"threads": "1"}):
        assert estimates.measured_step(tmp_path, replace(GEMMA, **other)) is None


def test_the_numbers_of_a_study_are_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_AGENT_CACHE", str(tmp_path))
    plan = needs.plan("tiny-lm", HOOK, tokens=1000)
    assert (plan.d_in, plan.d_sae, plan.batch, plan.rows, plan.d_vocab) == (192, 1024, 1024, 1000, 4096)
    stored = models.EMBEDDED["tiny-lm"] / "model.safetensors"
    assert plan.parameters * 2 == pytest.approx(stored.stat().st_size, rel=0.01), "in float16 on the disk"
    HarvestKey("tiny-lm", models.identity("tiny-lm"), HOOK, 1000).folder().mkdir(parents=True)
    assert needs.plan("tiny-lm", HOOK, tokens=1000, d_sae=64, batch=8).rows == 0
    assert needs.plan("tiny-lm", "blocks.1.mlp.hook_post", tokens=1000).d_in == 768
