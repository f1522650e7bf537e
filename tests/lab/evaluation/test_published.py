"""SAE-Bench's own data: the windows that SAE-Bench itself scores, or the local text where it cannot be had."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub, as_parquet, as_table
from small_lab import BATCH, HOOK, TOKENS, experiment, load, one_line, run, save, train

from agent.lab import activations
from agent.lab.errors import UserError
from agent.lab.evaluation import published, scoring
from agent.lab.evaluation.bench.core_text import BATCH_WINDOWS, RECONSTRUCTION_BATCHES
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import tpp
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.requests import Score
from agent.lab.rows import Manifest

CORE = f"datasets/{published.CORE_DATASET}"
DOCUMENTS = [
    f"document {number} has the words {number // 3} and {number % 7} and more of them" for number in range(9000)
]
PREPARE = ("-P", "-m", "agent.lab.prepare", "--hook_name", HOOK, "--tokens", str(TOKENS))

STOCK = """
import sys
from types import SimpleNamespace as Some
from agent.lab import models
import torch
from sae_lens import ActivationsStore

model = models.load(sys.argv[1])
metadata = Some(hook_name=sys.argv[2], hook_head_index=None, prepend_bos=True, seqpos_slice=None)
sae = Some(cfg=Some(d_in=model.cfg.d_model, metadata=metadata, normalize_activations="none", dtype="float32"))
store = ActivationsStore.from_sae(model, sae, context_size=model.cfg.n_ctx, dataset=sys.argv[3])
store.shuffle_input_dataset(seed=42)
torch.save(store.get_batch_tokens(int(sys.argv[4])), sys.argv[5])
"""


@pytest.fixture
def hub(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:  # noqa: ARG001
    """A hub that has the text of SAE-Bench's core in two files, and an empty cache."""
    files = {f"plain_text/train-{part:05d}-of-00002.parquet": as_parquet(DOCUMENTS[part::2]) for part in range(2)}
    with LoopbackHub({CORE: files}) as hub:
        settings = hub.environment(tmp_path / "hub") | {"SAE_AGENT_CACHE": str(tmp_path / "cache")}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SAE_AGENT_EVALUATION_DATA", "")  # so that it is as before after the test
        yield hub


@pytest.mark.slow
def test_core_is_scored_on_the_windows_that_sae_bench_takes(small_model: Path, tmp_path: Path, hub: LoopbackHub):
    used = published.use("sae-bench", ("core", "sparse_probing_sae_probes"), "")
    assert used == {"core": f"{published.CORE_DATASET}@{hub.commit(CORE)}"}
    evaluator = Evaluator(str(small_model), HOOK)
    ids = evaluator.held_out("dev").published
    assert ids is not None
    assert len(ids) > BATCH_WINDOWS * RECONSTRUCTION_BATCHES
    command = [sys.executable, "-P", "-c", STOCK, str(small_model), HOOK, published.CORE_DATASET]
    online = os.environ | {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    subprocess.run([*command, str(len(ids)), str(tmp_path / "stock.pt")], env=online, check=True, capture_output=True)
    assert torch.equal(ids, torch.load(tmp_path / "stock.pt"))
    test = evaluator.held_out("test").published
    assert test is not None
    assert not {tuple(row) for row in ids.tolist()} & {tuple(row) for row in test.tolist()}


@pytest.mark.slow
def test_the_figures_are_of_all_those_windows_and_of_every_ordinary_token(
    small_model: Path, harvest: tuple[Path, Manifest], tmp_path: Path, hub: LoopbackHub
):
    published.use("sae-bench", ("core",), "")
    evaluator = Evaluator(str(small_model), HOOK)
    module = load(experiment(tmp_path, small_model))
    sae = train(module, activations.stored_stream(*harvest, 20 * BATCH, BATCH, seed=0))
    run_dir = save(tmp_path / "run_0", sae, harvest[1])
    info = scoring.score(evaluator, Score(run_dir=run_dir, evals=("core",)))
    ids = evaluator.held_out("dev").published
    assert ids is not None
    assert info.core
    assert info.core.tokens == len(ids) * (ids.shape[1] - 1) - (ids[:, 1:] == ids[0, 0]).sum()
    assert info.outliers is None
    (answer,) = (run_dir / "eval").rglob("*_eval_results.json")
    settings = json.loads(answer.read_text())["eval_config"]
    assert settings["dataset"] == f"{published.CORE_DATASET}@{hub.commit(CORE)}"
    assert settings["n_eval_sparsity_variance_batches"] == len(ids) // BATCH_WINDOWS
    assert settings["n_eval_reconstruction_batches"] > RECONSTRUCTION_BATCHES


@pytest.mark.slow
def test_what_was_fetched_is_used_again_and_pinned(hub: LoopbackHub):
    pinned = published.pin("sae-bench", ("core",))
    served = hub.served_bytes
    hub.repositories = {CORE: {"train.parquet": as_parquet(DOCUMENTS[:99])}}  # another commit
    assert published.pin("sae-bench", ("core",)) == published.pin(pinned, ("core",)) == pinned
    assert hub.served_bytes == served
    for file in published._folder(pinned).iterdir():
        file.unlink()
    published._folder(pinned).rmdir()
    with pytest.raises(UserError, match=r"is no longer in the cache, and the hub gives sae-bench@.* today"):
        published.pin(pinned, ("core",))


def test_what_cannot_be_had_is_scored_on_its_local_counterpart(
    small_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    used = published.use("sae-bench", ("core",), "")
    assert used["core"].startswith("its local counterpart, as Skylion007/openwebtext is no file here, and the hub")
    offline = os.environ["SAE_AGENT_EVALUATION_DATA"]
    assert Evaluator(str(small_model), HOOK).held_out("dev").published is None
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert published.pin("sae-bench", ("core",)) != offline, "it is tried again"
    assert published.pin(offline, ("core",)) == offline, "a study goes on with what it began with"


def two_columns(first: tuple[str, set[int]], second: tuple[str, tuple[float, ...]], text: str, each: int) -> bytes:
    """Return a table of `each` texts for every pair of values of two columns, that name both."""
    rows = [(one, other, number) for one in sorted(first[1]) for other in second[1] for number in range(each)]
    texts = [f"text {number} is of kind {one} and of {other}" for one, other, number in rows]
    return as_table(**{first[0]: [row[0] for row in rows], second[0]: [row[1] for row in rows], text: texts})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_labelled_prompts_are_those_that_sae_bench_chooses(
    small_model: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    bios, reviews = {0, 1, 2, 6, 9, 11, 13, 21, 22, 25, 26}, {1, 2, 3, 5, 6, 11, 18, 24, 26, 30}
    hub.repositories = dict(hub.repositories) | {
        "datasets/LabHC/bias_in_bios": {
            f"data/{part}.parquet": two_columns(("profession", bios), ("gender", (0, 1)), "hard_text", each)
            for part, each in (("train", 2001), ("test", 501))
        },
        "datasets/canrager/amazon_reviews_mcauley_1and5": {
            f"data/{part}.parquet": two_columns(("category", reviews), ("rating", (1.0, 5.0)), "text", each)
            for part, each in (("train", 2001), ("test", 501))
        },
    }
    used = published.use("sae-bench", ("core", "sparse_probing", "tpp", "scr"), "")
    names = "LabHC/bias_in_bios_class_set1, canrager/amazon_reviews_mcauley_1and5@"
    assert used["tpp"].startswith(names)
    assert used["scr"].startswith(names)
    assert used["sparse_probing"].startswith("its local counterpart, as LabHC/bias_in_bios_class_set2 cannot be had (")
    evaluator = Evaluator(str(small_model), HOOK)
    assert evaluator.fetched_prompts("sparse_probing") is None
    fetched = evaluator.fetched_prompts("scr")
    assert fetched
    train, test = fetched.read("LabHC/bias_in_bios_class_set1", ("professor", "nurse"))
    assert {len(texts) for texts in train.values()} == {2000}
    assert {len(texts) for texts in test.values()} == {500}
    assert all(" of kind 21 " in text for text in train["male_professor / female_nurse"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # what was fetched suffices
    mean = torch.zeros(int(evaluator.model.cfg.d_model))
    sae = RandomSAE(evaluator.config(64, len(mean)), 4, mean)
    scores = tpp.score(evaluator, sae, tmp_path, "sae")
    assert len(scores.details) == 2
    (answer,) = tmp_path.rglob("*_eval_results.json")
    settings = json.loads(answer.read_text())["eval_config"]
    assert (settings["train_set_size"], settings["test_set_size"]) == (4000, 1000)


@pytest.mark.usefixtures("hub")
def test_mistakes_are_one_line(small_model: Path):
    wish = {"SAE_AGENT_EVALUATION_DATA": "sae-bench"}
    same = run(*PREPARE, "--model", small_model, "--text", published.CORE_DATASET, **wish)
    assert "SAE-Bench scores on Skylion007/openwebtext: train on another text" in one_line(same.stderr)
    with pytest.raises(UserError, match="give sae-bench@ and 16 hex digits"):
        published.pin("sae-bench@12", ("core",)) and published._open("sae-bench@12")
    with pytest.raises(UserError, match="is not in the cache"):
        published._open("sae-bench@0123456789abcdef")
