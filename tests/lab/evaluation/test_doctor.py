"""Unmet requirements of evaluations are reported before any time is spent."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_lab import HOOK, TOKENS, one_line, run

from agent.lab import text
from agent.lab.errors import UserError
from agent.lab.evaluation import doctor, families
from agent.lab.evaluation.catalogue import EvalTarget


@pytest.fixture(scope="module")
def target(small_model: Path) -> EvalTarget:
    return doctor.eval_target(str(small_model), HOOK)


def unmet(target: EvalTarget, family: str = "core") -> list[str]:
    return [f"{each.reason}: {each.remedy}" for each in families.load(family).unmet_requirements(target)]


def test_a_small_model_meets_the_requirements_of_the_quick_tier(target: EvalTarget):
    assert doctor.resolve_families(target, "quick") == (("core", "sparse_probing_sae_probes"), {})
    assert unmet(target, "forgetting") == []
    assert len(target.tokenizer()) == 512


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("blocks.2.hook_resid_post", "the model has no hook blocks.2.hook_resid_post: its layers are 0 to 1"),
        (
            "blocks.0.attn.hook_pattern",
            "hook blocks.0.attn.hook_pattern has no per-token activation vector: use one like ",
        ),
    ],
)
def test_a_hook_that_does_not_fit_is_reported(target: EvalTarget, hook: str, message: str):
    (line,) = unmet(replace(target, hook_name=hook))
    assert line.startswith(message)


def test_a_world_runs_the_families_that_need_no_text(target: EvalTarget):
    world = replace(target, world=True, hook_name="activations")
    everything = ("core", "meta_structure", "synthetic")  # sparsity and reconstruction are measured there too
    assert doctor.resolve_families(world, "full") == (everything, {})
    assert doctor.resolve_families(world, "standard") == (("core", "synthetic"), {})
    for name in ("sparse_probing_sae_probes", "forgetting", "absorption"):
        message = f"{name} cannot run: a synthetic world has no text and no language model: use --evals synthetic"
        with pytest.raises(UserError, match=message):
            doctor.resolve_families(world, f"core,{name}")
    with pytest.raises(UserError, match="the true features of a language model are not known"):
        doctor.resolve_families(target, "synthetic")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, a file system without room")
def test_a_full_disk_is_reported(target: EvalTarget):
    (line,) = unmet(replace(target, folder=Path("/proc/sae-agent/evaluation")))
    assert line.startswith("50 MB are needed and 0 MB are free in ")
    assert line.endswith("free some space or point SAE_AGENT_CACHE at another disk")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_dataset_is_reported_with_the_remedy(tmp_path: Path, damage: str):
    package = text.data_dir().parent.parent
    copied = tmp_path / package.name
    shutil.copytree(
        package, copied, symlinks=True, copy_function=lambda source, target: Path(target).symlink_to(source)
    )
    (metadata,) = package.parent.glob("sae_probes-*.dist-info")
    shutil.copytree(metadata, tmp_path / metadata.name)
    dataset = copied / "data/cleaned_data/96_spam_is.csv.zst"
    whole = dataset.read_bytes()
    dataset.unlink()
    if damage == "truncated":
        dataset.write_bytes(whole[:1000])
    ended = run("-P", "-c", "from agent.lab import text; text.check_datasets()", PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert f"{dataset} differs from its packaged checksum: pip install --force-reinstall sae-probes" in ended.stderr


def test_a_hub_model_that_cannot_be_reached_is_reported():
    (line,) = unmet(doctor.eval_target("gpt2", HOOK))
    assert line.startswith("gpt2 is not stored on this machine and the hub cannot be reached")


def test_a_family_that_cannot_run_is_left_out_of_a_tier_and_refused_by_name(target: EvalTarget):
    evals, left_out = doctor.resolve_families(target, "full", "core")
    assert evals[0] == "core"
    assert "forgetting" in evals
    assert left_out["unlearning"]
    assert not set(evals) & set(left_out)
    with pytest.raises(UserError, match=r"^unlearning cannot run: "):
        doctor.resolve_families(target, "forgetting,unlearning", "core")
    with pytest.raises(UserError, match=r"^unlearning cannot run: "):
        doctor.resolve_families(target, "quick", "unlearning")
    beyond = replace(target, hook_name="blocks.2.hook_resid_post")
    with pytest.raises(UserError, match=r"^core, forgetting cannot run: the model has no hook"):
        doctor.resolve_families(beyond, "forgetting", "core")


@pytest.mark.slow
def test_families_that_cannot_run_are_reported_before_the_harvest(small_model: Path, harvest: Any, tmp_path: Path):  # noqa: ARG001
    report = tmp_path / "found.json"
    command = (
        "-P",
        "-m",
        "agent.lab.prepare",
        "--model",
        small_model,
        "--tokens",
        str(TOKENS),
        "--fingerprint",
        report,
    )
    ended = run(*command, "--hook_name", HOOK, "--evals", "full")
    assert ended.returncode == 0, ended.stderr
    left_out = json.loads(report.read_text())["left_out"]
    assert left_out["unlearning"]
    assert "synthetic" not in left_out  # it does not suit a language model, and the tier only offers it
    for name, reason in left_out.items():
        assert f"left out of full: {name}: {reason}\n" in ended.stdout
    assert ended.stdout.index("left out") < ended.stdout.index("activations:")
    refused = run(*command, "--hook_name", "blocks.0.hook_resid_post", "--evals", "unlearning")
    assert refused.returncode == 2
    assert one_line(refused.stderr).startswith("error: unlearning cannot run: ")


@pytest.mark.slow
def test_agent_doctor_prints_a_table_and_exits_1_if_a_family_cannot_run(cache_dir: Path):  # noqa: ARG001
    sound = run("-m", "agent", "doctor", "--evals", "sparse_probing_sae_probes,forgetting")
    assert sound.returncode == 0, sound.stderr
    rows = [line.split()[:2] for line in sound.stdout.splitlines()]
    for name in ("core", "sparse_probing_sae_probes", "forgetting"):
        assert [name, "yes"] in rows
    assert "text: 155 datasets, whole" in sound.stdout
    world = run("-m", "agent", "doctor", "--model", "synth2k")
    assert world.returncode == 0, world.stderr  # a family that does not suit a world is no failure
    rows = [line.split()[:2] for line in world.stdout.splitlines()]
    assert [row[0] for row in rows if row[1:] == ["yes"]] == ["core", "meta_structure", "synthetic"]
    assert (
        "left out, as a synthetic world has no text and no language model: sparse_probing_sae_probes, " in world.stdout
    )
    unsound = run("-m", "agent", "doctor", "--evals", "quick", "--hook", "blocks.4.hook_resid_post")
    assert unsound.returncode == 1
    assert "its layers are 0 to 3" in unsound.stdout
