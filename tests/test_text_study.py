"""Whole studies of a small model on a text of the user's own: files, and a dataset of a hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, as_jsonl, as_parquet

from agent.lab import results, text
from agent.lab.evaluation.published import CORE_DATASET

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from small_study import IDEA, Checkout, make_checkout, make_model  # after the path is known

NAMES = ("24_headline_isiran", "41_truthqa_tf", "87_glue_cola", "95_toxic_is", "100_news_fake")
HUB_NAME = "monology/pile-uncopyrighted"
SAE_BENCHS = f"datasets/{CORE_DATASET}"
SCORED_NAMES = ("105_click_bait", "110_aimade_humangpt3")


def documents(*names: str) -> list[str]:
    return [prompt for name in names for prompt in text.read_prompts(text.data_dir() / f"{name}.csv.zst")]


def agent(checkout: Checkout, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {"PYTHONPATH": str(checkout.root), "SAE_AGENT_CACHE": str(checkout.cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "agent", *arguments]
    env = os.environ | settings | environment
    return subprocess.run(command, cwd=checkout.root, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["files", "hub"])
def test_a_study_on_a_text_of_the_users_own_comes_to_its_end(kind: str, tmp_path: Path):
    read = documents(*NAMES)
    third = len(read) // 3
    folder = tmp_path / "my corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(as_jsonl(read[:third]))
    (folder / "b.txt").write_text("\n\n".join(read[third : 2 * third]))
    (folder / "c.parquet").write_bytes(as_parquet(read[2 * third :]))
    checkout = make_checkout(tmp_path / "checkout", make_model(tmp_path / "model"))
    scored_on = {"train.parquet": as_parquet(documents(*SCORED_NAMES))}
    with LoopbackHub({f"datasets/{HUB_NAME}": {"train.jsonl": as_jsonl(read)}, SAE_BENCHS: scored_on}) as hub:
        name, data = (str(folder), "local") if kind == "files" else (HUB_NAME, "sae-bench")
        arguments = ["run", "--idea", IDEA, "--max-runs", "1", "--evals", "core", "--model", str(checkout.model)]
        arguments += ["--text", name, "--evaluation-data", data]
        ended = agent(checkout, *arguments, **hub.environment(tmp_path / "hub"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert checkout.study
    study, state = checkout.study
    pinned = state.started.fixed.text
    assert pinned.startswith(f"{name}@")
    assert [run.verdict.name for run in state.runs if run.verdict] == ["ok", "ok"]
    assert f'TEXT = "{pinned}"' in (study.run_dir(0) / "experiment.py").read_text()
    training = results.read(study.run_dir(0)).training
    assert training
    assert (training.text, training.passes) == (pinned, 1)
    notes = (study.notes / "notes.txt").read_text()
    assert f"Trained on {pinned}, " in notes
    assert "documents, 150,000 tokens, 1 pass." in notes
    assert (f"\n- core on {CORE_DATASET}@{hub.commit(SAE_BENCHS)}\n" in notes) == (data == "sae-bench")
    audit = agent(checkout, "audit", str(study.notes / "notes.txt"), "--results", str(study.directory))
    assert audit.returncode == 0, audit.stdout
    shown = agent(checkout, "show", str(study.directory))
    assert "documents, 150,000 tokens, 1 pass" in " ".join(shown.stdout.split())
