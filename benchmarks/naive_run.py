"""Train and score one SAE as one would without sae-agent: by SAELens, SAE-Bench and sae-probes alone, keeping nothing.

    python benchmarks/naive_run.py FOLDER SEED TOKENS

FOLDER holds tiny-lm/ (the model), train/train.jsonl and held_out/train.jsonl (the text), as naive_loop.py writes them.
The last line of the output is a JSON object: the seconds of each stage, and what came out.

All is stock and no function is replaced. To run without a hub it takes three lines, each where a comment says so: the
model's name on TransformerLens' list, activations for sae-probes on prompts as short as the model's context, and no
torchvision.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MODEL, HOOK_NAME, D_IN = "tiny-lm", "blocks.1.hook_resid_post", 192
D_SAE, K, BATCH, CONTEXT = 1024, 16, 1024, 128
LEARNING_RATE = 0.003  # SAELens' 0.0003 is for longer trainings
BATCH_WINDOWS, RECONSTRUCTION_BATCHES, VARIANCE_BATCHES = 16, 8, 32  # of core
PROBED = [
    "135_context_type_Event_duration",
    "125_world_country_Italy",
    "96_spam_is",
    "22_headline_isobama",
    "139_news_class_Politics",
    "42_temp_sense",
]
PROBE_KS = [1, 2, 5]
N_CTX = 256  # of the model; sae-probes reads prompts up to 1,024 tokens, whatever the model's context is


SECONDS: dict[str, float] = {}  # of each stage


@contextmanager
def stage(name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    SECONDS[name] = time.monotonic() - started


def timed(store: Iterator[Any]) -> Iterator[Any]:
    """Yield what a store of activations yields, and count the time spent in it: SAELens harvests while it trains."""
    SECONDS["harvest"] = 0.0
    while True:
        started = time.monotonic()
        batch = next(store)
        SECONDS["harvest"] += time.monotonic() - started
        yield batch


def load_model() -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    OFFICIAL_MODEL_NAMES.append(MODEL)  # a directory in the working directory; other names are refused
    return HookedTransformer.from_pretrained_no_processing(MODEL, device="cpu")


def train(model: Any, seed: int, tokens: int, out: str) -> Any:
    """Train SAELens' BatchTopK by its own trainer; return it as SAELens saves it for inference."""
    import sae_lens
    import torch
    from sae_lens.training.activations_store import ActivationsStore

    torch.manual_seed(seed)
    steps = tokens // BATCH
    cfg = sae_lens.LanguageModelSAERunnerConfig(
        sae=sae_lens.BatchTopKTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, k=K, normalize_activations="expected_average_only_in"
        ),
        model_name=MODEL,
        hook_name=HOOK_NAME,
        dataset_path="train",
        is_dataset_tokenized=False,
        context_size=CONTEXT,
        exclude_special_tokens=True,
        training_tokens=tokens,
        train_batch_size_tokens=BATCH,
        n_batches_for_norm_estimate=10,
        lr=LEARNING_RATE,
        lr_warm_up_steps=steps // 50,
        lr_decay_steps=steps * 3 // 10,
        dead_feature_window=steps // 20,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        verbose=False,
    )
    data = timed(ActivationsStore.from_config(model, cfg))
    sae = sae_lens.BatchTopKTrainingSAE(cfg.sae)
    for name in ("model_name", "hook_name", "context_size", "prepend_bos"):  # what SAE-Bench reads
        setattr(sae.cfg.metadata, name, getattr(cfg, name))
    sae_lens.SAETrainer(cfg.to_sae_trainer_config(), sae, data).fit()
    sae.save_inference_model(out)
    return sae_lens.SAE.load_from_disk(out)


def run_core(sae: Any, out: str) -> dict[str, Any]:
    """Return the figures of SAE-Bench core, which loads the model itself."""
    from sae_bench.evals.core.main import multiple_evals

    (result,) = multiple_evals(
        [("naive", sae)],
        RECONSTRUCTION_BATCHES,
        VARIANCE_BATCHES,
        eval_batch_size_prompts=BATCH_WINDOWS,
        compute_featurewise_density_statistics=True,  # it saves nothing without these two
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset="held_out",
        context_size=CONTEXT,
        output_folder=out,
        device="cpu",
    )
    return result["metrics"]


def probe_model(model: Any, out: str) -> None:
    """Have sae-probes compute the model's activations on the prompts and fit probes on them."""
    from sae_probes import run_baseline_evals
    from sae_probes.generate_model_activations import ensure_dataset_activations

    # run_eval would do both, on prompts longer than the model's context.
    ensure_dataset_activations(MODEL, PROBED, [HOOK_NAME], f"{out}/activations", "cpu", N_CTX, model=model)
    run_baseline_evals(
        MODEL,
        HOOK_NAME,
        "normal",
        results_path=f"{out}/probes",
        model_cache_path=f"{out}/activations",
        datasets=PROBED,
        device="cpu",
    )


def probe_sae(sae: Any, out: str) -> dict[str, Any]:
    """Return the figures of SAE-Bench's sparse probing with sae-probes."""
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig
    from sae_bench.evals.sparse_probing_sae_probes.main import run_eval

    config = SparseProbingSaeProbesEvalConfig(
        model_name=MODEL,
        dataset_names=PROBED,
        ks=PROBE_KS,
        results_path=f"{out}/probes",
        model_cache_path=f"{out}/activations",
    )
    return run_eval(config, [("naive", sae)], "cpu", f"{out}/probing")["naive_custom_sae"]["eval_result_metrics"]


def main(folder: str, seed: int, tokens: int) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
    os.chdir(folder)
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # it breaks transformers beside a CPU build of torch
    with stage("imports"):
        import sae_bench.evals.core.main
        import sae_bench.evals.sparse_probing_sae_probes.main  # noqa: F401
    with stage("model"):
        model = load_model()
    with tempfile.TemporaryDirectory(dir=".") as out:
        with stage("training"):
            sae = train(model, seed, tokens, f"{out}/sae")
        SECONDS["training"] -= SECONDS["harvest"]
        with stage("core"):
            core = run_core(sae, f"{out}/core")
        with stage("probing the model"):
            probe_model(model, out)
        with stage("probing the SAE"):
            probing = probe_sae(sae, out)
    figures = {
        "l0": core["sparsity"]["l0"],
        "ce_loss_score": core["model_performance_preservation"]["ce_loss_score"],
        "probing_auc_5": probing["sae"]["sae_top_5_test_auc"],
    }
    print("\n" + json.dumps({"seconds": SECONDS, "figures": figures}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
