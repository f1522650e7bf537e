"""`agent export`: a folder for another library, with a card."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import small_sae
import torch
from builders import OK
from page_study import HOSTILE, make_study, some_features
from sae_lens import SAE
from small_lab import one_line, run
from small_sae import D_IN, D_SAE, SCALE, Sae

from agent.commands.export import export
from agent.lab import features, results
from agent.lab.errors import UserError
from agent.lab.results import FinalInfo
from agent.report import model_card
from agent.report.model_card import Subject
from agent.study.workspace import Study


def add_checkpoint(run_dir: Path, architecture: str | None = "jumprelu", **changes: Any) -> Path:
    sae = Sae()
    threshold = sae.threshold.expand(D_SAE).clone()
    run_dir.mkdir(exist_ok=True)
    small_sae.save(
        run_dir / "checkpoint",
        sae.thresholded,
        sae,
        {"architecture": architecture, **changes},
        W_enc=sae.W_enc,
        b_enc=sae.b_enc,
        threshold=threshold,
    )
    return run_dir


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study whose run 2 has a checkpoint."""
    made = make_study(tmp_path)
    add_checkpoint(made.run_dir(2))
    made.commit("results")
    return made


def of_the_program(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return run("-P", "-m", "agent", "export", *arguments)


def test_a_run_of_a_study_for_sae_lens(study: Study, tmp_path: Path):
    out = tmp_path / "an SAE"
    ended = of_the_program(study.run_dir(2), "--to", "saelens", out)
    assert ended.returncode == 0, ended.stderr
    assert f"{out}: README.md, cfg.json, sae_weights.safetensors" in ended.stdout
    assert SAE.load_from_disk(out).cfg.d_sae == D_SAE
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: saelens\n")
    assert f"run_2 of the study {study.name} of sae-agent" in card
    assert f"| commit of the study | {study.head()} |" in card
    assert study.head()
    assert f"| width | {D_IN} to {D_SAE} latents |" in card
    (score,) = (line for line in card.splitlines() if line.startswith("| CE-loss score"))
    _, title, value, reference, difference, _ = (cell.strip() for cell in score.split("|"))
    assert (title, value, reference) == ("CE-loss score", "0.9437", "0.9623")
    assert difference.startswith("-0.0186 ± 0.00")
    assert 'SAE.load_from_disk("an SAE")' in card


def test_latents_that_are_kept_are_dashboards_for_neuronpedia(tmp_path: Path):
    run_dir = add_checkpoint(tmp_path / "run_7")
    training = small_sae.header().training
    results.write(run_dir, FinalInfo(verdict=OK, training=training))
    kept = some_features(1)
    kept.features = kept.features[: D_SAE // 2]  # it has every other latent
    features.write(run_dir, kept)
    assert export(run_dir, "neuronpedia", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "batch-0.json", "cfg.json", "sae_weights.safetensors")
    ]
    batch = json.loads((tmp_path / "out/batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], len(batch["features"])) == ("tiny-lm", 1, D_SAE // 2)
    folded = SAE.load_from_disk(tmp_path / "out")
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(D_SAE))  # as SAEDashboard has it
    for feature, shown in zip(kept.features, batch["features"], strict=True):
        larger = Sae().W_dec[feature.latent].norm().item() / SCALE
        strongest = max(value for each in shown["activations"] for value in each["values"])
        assert strongest == pytest.approx(larger * feature.max_activation, abs=1e-3)
    card = (tmp_path / "out/README.md").read_text()
    for option in ("--saedashboard-output-dir=out", "--layer-num=1", "--hook-point=hook_resid_post"):
        assert option in card
    assert "| training | 100 tokens, 10 steps |" in card
    assert "| data | the text that comes with sae-agent |" in card
    assert "k = 5" in card


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path):
    run_dir, full = add_checkpoint(tmp_path / "run_1", architecture=None), tmp_path / "full"
    results.write(run_dir, FinalInfo(verdict=OK))
    full.mkdir()
    (full / "mine").write_text("mine")
    for place, message in (
        (full, "is not empty: give a new directory"),
        (full / "mine", "is a file"),
        (tmp_path / "no/where", "does not exist: make it"),
    ):
        with pytest.raises(UserError, match=message):
            export(run_dir, "saelens", place)
    with pytest.raises(UserError, match="holds no checkpoint"):
        export(full, "saelens", tmp_path / "out")
    ended = of_the_program(run_dir, "--to", "saelens", tmp_path / "out")
    assert ended.returncode == 2
    assert "cannot be exported to saelens: architecture None is not one of relu, jumprelu" in one_line(ended.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run_1"]


def test_a_run_that_was_changed_is_not_exported(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    info = results.read(study.run_dir(2))
    results.write(study.run_dir(2), info.model_copy(update={"evaluation_seconds": 1.0}))
    assert export(study.run_dir(2), "saelens", tmp_path / "out") == 1
    assert "run_2/final_info.json" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_card_shows_hostile_text_as_text(tmp_path: Path):
    told = Subject("me/my-model", "blocks.1.hook_resid_post", D_IN, D_SAE, "topk", ["ae.pt"], [])
    training = small_sae.header().training
    assert training
    training = training.model_copy(update={"text": f"/home/{HOSTILE[0]}/{HOSTILE[4]}.txt@{'a' * 16}"})
    model_card.write(tmp_path, "dictionary_learning", told, FinalInfo(verdict=OK, training=training), None, "out")
    card = (tmp_path / "README.md").read_text()
    assert "base_model: me/my-model" in card
    assert "load_dictionary" in card
    assert "hf upload" not in card
    assert "\u202e" not in card
    assert "/home/" not in card
