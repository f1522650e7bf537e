"""Whole studies of hub models by their official names, on small stand-ins, against a hub on this machine; one of them
on files of the user's own, the other on a dataset of the hub and scored on SAE-Bench's data."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import question_answerer
from loopback_hub import LoopbackHub, as_jsonl, as_parquet
from small_lab import CONTEXT, VOCABULARY, make_model
from transformers import Gemma2Config, GPTNeoXConfig

from agent.lab import results, text
from agent.lab.evaluation.published import CORE_DATASET

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from small_study import IDEA, Checkout, make_checkout  # after the path is known

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
PYTHIA = GPTNeoXConfig(**SIZES)
READ = ("24_headline_isiran", "41_truthqa_tf", "87_glue_cola", "95_toxic_is", "100_news_fake")
DATASET = "monology/pile-uncopyrighted"
SAE_BENCHS = f"datasets/{CORE_DATASET}"
GEMMA = Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=32)


def agent(checkout: Checkout, hub: LoopbackHub, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        "PYTHONPATH": str(checkout.root),
        "SAE_AGENT_CACHE": str(checkout.cache),
        "OMP_NUM_THREADS": "1",
        **hub.environment(checkout.root / "hub"),
    }
    command = [sys.executable, "-P", "-m", "agent", *arguments]
    return subprocess.run(
        command,
        cwd=checkout.root,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def documents(*names: str) -> list[str]:
    return [prompt for name in names for prompt in text.read_prompts(text.data_dir() / f"{name}.csv.zst")]


def write_corpus(folder: Path) -> Path:
    """Write a folder with files of all three kinds, and a name with a space in it."""
    folder.mkdir()
    read, third = documents(*READ), len(documents(*READ)) // 3
    (folder / "a.jsonl").write_bytes(as_jsonl(read[:third]))
    (folder / "b.txt").write_text("\n\n".join(read[third : 2 * third]))
    (folder / "c.parquet").write_bytes(as_parquet(read[2 * third :]))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two minutes, if nothing else runs
@pytest.mark.parametrize(
    ("name", "config", "data"),
    [("EleutherAI/pythia-70m-deduped", PYTHIA, "local"), ("google/gemma-2-2b", GEMMA, "sae-bench")],
    ids=["pythia", "gemma"],
)
def test_a_study_of_a_hub_model_comes_to_its_end(name: str, config: Any, data: str, tmp_path: Path):
    model = make_model(tmp_path / "model", config=config)
    checkout = make_checkout(tmp_path / "checkout", model)
    corpus = str(write_corpus(tmp_path / "my corpus")) if data == "local" else DATASET
    served = {f"datasets/{DATASET}": {"train.jsonl": as_jsonl(documents(*READ))}}
    served[SAE_BENCHS] = {"train.parquet": as_parquet(documents("105_click_bait", "110_aimade_humangpt3"))}
    with LoopbackHub({name: model, **served}) as hub:
        arguments = ("--model", name, "--text", corpus, "--evaluation-data", data)
        ended = agent(checkout, hub, "run", "--idea", IDEA, "--max-runs", "1", *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        fetched = {path.rpartition("/")[2] for path in hub.downloads if path.startswith(name)}
        assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        commit = hub.commit(name)
    assert checkout.study
    study, state = checkout.study
    assert state.started.fixed.model == name
    assert [run.verdict.name for run in state.runs if run.verdict] == ["ok", "ok"]
    notes = (study.notes / "notes.txt").read_text().replace("\n  ", " ")
    assert name in notes
    assert list((checkout.cache / "evaluation").glob(f"*{commit}*"))
    pinned = state.started.fixed.text
    assert pinned.startswith(f"{corpus}@")
    assert f'TEXT = "{pinned}"' in (study.run_dir(0) / "experiment.py").read_text()
    training = results.read(study.run_dir(0)).training
    assert training
    assert (training.text, training.passes) == (pinned, 1)
    assert f"Trained on {pinned}, " in notes
    assert "documents, 150,000 tokens, 1 pass." in notes
    assert (f"\n- core on {CORE_DATASET}@{hub.commit(SAE_BENCHS)}\n" in notes) == (data == "sae-bench")
    audit = agent(checkout, hub, "audit", str(study.notes / "notes.txt"), "--results", str(study.directory))
    assert audit.returncode == 0, audit.stdout
    shown = agent(checkout, hub, "show", str(study.directory))
    assert "documents, 150,000 tokens, 1 pass" in " ".join(shown.stdout.split())


SCORE = """
import json, sys
from pathlib import Path
from agent.lab.evaluation import doctor
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import unlearning

model, hook = "google/gemma-2-2b", "blocks.0.hook_resid_post"
assert not unlearning.unmet_requirements(doctor.eval_target(model, hook))
evaluator, out = Evaluator(model, hook), Path(sys.argv[1])
out.mkdir()
print(json.dumps(unlearning.score(evaluator, evaluator.random_sae(256, 8), out, "sae").metrics))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a minute and a half, if nothing else runs
def test_unlearning_runs_on_made_data_and_asks_the_model_tuned_on_instructions(tmp_path: Path):
    model = question_answerer.make_model(tmp_path / "model")
    question_answerer.write_corpus(tmp_path / "cache/unlearning/bio-forget-corpus.jsonl")
    names = ("google/gemma-2-2b", "google/gemma-2-2b-it")
    repositories = dict.fromkeys(names, model) | question_answerer.write_datasets(tmp_path / "datasets")
    environment = {"SAE_AGENT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    fetch = (
        "from agent.lab.evaluation.families.unlearning import DATASETS\n"
        "from datasets import load_dataset\nfor name in DATASETS: load_dataset(*name)"
    )
    with LoopbackHub(repositories) as hub:
        environment |= hub.environment(tmp_path / "home")
        for name in names:
            run_python("-P", "-m", "agent.lab.hub", name, **environment)
        run_python("-c", fetch, **environment, **online)
    printed = run_python("-c", SCORE, str(tmp_path / "out"), **environment)
    assert 0 <= json.loads(printed)["unlearning_score"] <= 1
    (answer,) = (tmp_path / "out").glob("*.json")
    assert json.loads(answer.read_text())["eval_config"]["model_name"] == "gemma-2-2b-it"


def run_python(*arguments: str, **environment: str) -> str:
    """Run Python to its end and return what it printed."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], env=os.environ | offline | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
