"""A stand-in for the evaluator: turns the header left by a stand-in experiment into results."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from agent.lab import cache, features, results, verdicts
from agent.lab.evaluation import requests
from agent.lab.features import Features
from agent.lab.files import write_atomically
from agent.lab.results import (
    Core,
    Expectation,
    FamilyScores,
    FinalInfo,
    Floor,
    Imported,
    Latents,
    Probe,
    Probing,
    Sentinels,
    Training,
)
from agent.lab.verdicts import Verdict

TEST_IS_HARDER = 0.003  # so much lower is each CE-loss score on the test text
TPP = FamilyScores(
    metrics={"tpp_threshold_20_total_metric": 0.031}, remark="TPP is unreliable at its canonical settings."
)


def main() -> None:
    folder = cache.root() / "evaluation/stand-in"
    folder.mkdir(parents=True, exist_ok=True)
    for line in sys.stdin:
        request = requests.parse_request(line)
        print("evaluating", flush=True)
        run_dir = request.run_dir
        if not (run_dir / "checkpoint" / "header.json").exists():
            sys.exit("error: the evaluator broke")
        header = json.loads((run_dir / "checkpoint" / "header.json").read_text())
        if isinstance(request, requests.KeepFeatures):
            keep_features(run_dir)
            continue
        if isinstance(request, requests.TrySentinels):
            if (Path.home() / "mute").exists():
                sys.exit("error: the sentinels were too much")
            if (Path.home() / "killed").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            held = not (Path.home() / "broken").exists()
            permuted = Expectation(
                sentinel="permuted decoder",
                metric="explained_variance_centered",
                expected="below 0",
                found=-1.2,
                held=held,
            )
            answer = Sentinels(expectations=[permuted], errors=failing()).model_dump_json()
        else:
            (run_dir / "eval").mkdir(exist_ok=True)
            if fresh_seed(run_dir) in map(fresh_seed, request.strangers) and fresh_seed(run_dir):
                sys.exit("error: a run of the same seed is taken for a stranger")
            if request.split == "test":
                header["score"] -= TEST_IS_HARDER + header["only_on_dev"]
            answer = score(header, request.evals).model_dump_json()
        for artefact in ("tokens-dev.safetensors", f"floor-{header['l0']:.0f}.json"):
            if not (folder / artefact).exists():
                (folder / artefact).write_text("made by the evaluator")
        write_atomically(run_dir / request.out, answer)


def fresh_seed(run_dir: Path) -> str:
    return run_dir.name.partition("_seed_")[2]


def keep_features(run_dir: Path) -> None:
    """Write features without latents, or end as the tests ask for in the home directory."""
    if (Path.home() / "featureless").exists():
        sys.exit("error: the latents were too much")
    if (Path.home() / "features_killed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    features.write(run_dir, Features(text="text", tokens=1000, d_sae=8, alive=4, sampled=[], features=[]))


def failing() -> dict[str, str]:
    """Return the families that fail: the tests name them in the home directory."""
    return {path.suffix[1:]: "TypeError: no such dtype" for path in Path.home().glob("without.*")}


def score(header: dict, evals: tuple[str, ...]) -> FinalInfo:  # type: ignore[type-arg]
    if header["deadly"]:
        sys.exit("error: the evaluator died of it")
    if header["slow"]:
        time.sleep(60)
    auc = {1: 0.61, 5: 0.671}
    probe = {
        "auc": auc,
        "accuracy": {1: 0.6, 5: 0.65},
        "random_auc": {1: 0.6, 5: 0.672},
        "llm_auc": 0.8,
        "llm_accuracy": 0.7,
    }
    core = dict.fromkeys(Core.model_fields, 0.9) | {
        "l0": header["l0"],
        "ce_loss_score": header["score"],
        "explained_variance_centered": header["score"] - 0.1,
        "tokens": 1000,
    }
    imported = header.get("imported")
    warnings = ["only 40% of the latents are alive"]
    if imported and (doubt := verdicts.l0_warning(header["l0"], imported["declared_l0"])):
        warnings.append(doubt)
    errors = {family: reason for family, reason in failing().items() if family in evals}
    return FinalInfo(
        errors=errors,
        verdict=Verdict(name="ok", evidence="above the floor", warnings=warnings),
        imported=Imported.model_validate(imported) if imported else None,
        training=None
        if imported
        else Training(
            model=header["model"],
            hook_name=header["hook_name"],
            layer=1,
            d_in=64,
            d_sae=header["d_sae"],
            steps=10,
            tokens=header["tokens"],
            final_loss=0.2,
            seconds=1.0,
            learning_rate=1e-3,
            seed=header["seed"],
            settings={},
        ),
        core=Core.model_validate(core),
        latents=Latents.model_validate(dict.fromkeys(Latents.model_fields, 0.4)),
        probing=None
        if "sparse_probing_sae_probes" not in evals or "sparse_probing_sae_probes" in errors
        else Probing.model_validate(probe | {"datasets": [Probe.model_validate(probe | {"dataset": "news"})]}),
        evaluations={"tpp": TPP} if "tpp" in evals and "tpp" not in errors else {},
        floor=Floor(k=16, explained_variance_centered=0.1, ce_loss_score=0.2),
        environment={"checkpoint": hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]},
    )


if __name__ == "__main__":
    assert results.FORMAT_VERSION == 1
    main()
