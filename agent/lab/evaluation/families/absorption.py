"""SAE-Bench `absorption`: letters whose own latents fall silent where a more specific latent carries the letter.

Linear probes show the first letters that can be read off the model's activations, k-sparse probes the latents that
represent a letter. A word is absorbed if the linear probe detects its letter and those latents do not, while other
latents point along the probe (Chanin et al. 2024, arXiv 2409.14507). bench/spelling.py has the model's side.
"""

import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agent.lab import start
from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import patching, spelling
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.evaluation.sae_adapter import rows_at_once
from agent.lab.progress import notify
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from agent.lab.evaluation.bench.spelling import Spelling
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "letters whose latent falls silent where a more specific latent carries the letter"

ABLE_F1, ABLE_LETTERS = 0.6, 20  # SAE-Bench's: the F1 above which a letter counts, the letters that a model must know
KEPT_BYTES = 2**31  # of latents on the words that SAE-Bench's k-sparse probes learn from
METRICS = tuple(
    f"{statistic}_{quantity}"
    for statistic, quantity in (
        ("mean", "absorption_fraction_score"),
        ("mean", "full_absorption_score"),
        ("mean", "num_split_features"),
        ("std_dev", "absorption_fraction_score"),
        ("std_dev", "full_absorption_score"),
        ("std_dev", "num_split_features"),
    )
)


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    """Return what is missing. If it is not cached whether the model can spell, another process measures it."""
    if unmet := requirements.check_language_model(target):
        return unmet
    tokenizer = target.tokenizer()
    missing = _check_model(target.hook_name, tokenizer, target.config.get("max_position_embeddings"))
    if not (cached := spelling.cached_spelling(target.folder)):
        needed = spelling.required_bytes(len(spelling.words(tokenizer)), requirements.residual_width(target.config))
        missing += requirements.check_disk(target, needed / 1e6)
    return missing or _check_spelling(cached or _measure_spelling(target))


def _check_model(hook_name: str, tokenizer: Any, context: int | None) -> list[UnmetRequirement]:
    missing = []
    if not hook_name.endswith("hook_resid_post"):
        reason = f"SAE-Bench reads the residual stream after a layer, not {hook_name}"
        missing.append(UnmetRequirement(reason, "use a hook like blocks.1.hook_resid_post"))
    return missing + [UnmetRequirement(*problem) for problem in spelling.find_problems(tokenizer, context)]


def _check_spelling(model: "Spelling") -> list[UnmetRequirement]:
    able = [letter for letter, f1 in model.letters.items() if f1 > ABLE_F1]
    if len(able) >= ABLE_LETTERS:
        return []
    best = sorted(model.letters.values())[-ABLE_LETTERS]
    return [
        UnmetRequirement(
            f"the model cannot spell: {len(able)} of 26 first letters can be read off its activations with an F1 above "
            f"{ABLE_F1}, and {ABLE_LETTERS} are needed (the 20th best: {best:.2f})",
            "use a larger model or a later layer; SAE-Bench advises 2B parameters",
        )
    ]


def _measure_spelling(target: EvalTarget) -> "Spelling":
    """Measure a model's spelling at this hook, in a process that loads the model."""
    notify(
        "absorption: measuring whether the model can spell, once for a model and hook: 20 s for tiny-lm, longer for "
        "larger models"
    )
    module = "agent.lab.evaluation.bench.spelling"
    command = start.command(module, target.model, target.hook_name, target.text)
    subprocess.run(command, env=dict(target.environment), check=True)
    measured = spelling.cached_spelling(target.folder)
    assert measured
    return measured


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Run SAE-Bench's absorption on one SAE, with the cached model's side. Raises EvaluationError.

    An SAE of which no latent fires on the test words, or no latent that the k-sparse probes chose for the letters, has
    no value.
    """
    from sae_bench.evals.absorption import main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    model = evaluator.model
    for unmet in _check_model(evaluator.hook_name, model.tokenizer, model.cfg.n_ctx):
        raise EvaluationError(unmet.reason)
    model_side = spelling.measure(evaluator)
    for unmet in _check_spelling(model_side):
        raise EvaluationError(unmet.reason)
    speller = model_side.speller(model, evaluator.hook_name)
    sae = patching.UnitNorm(sae)
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    for x in model_side.test_activations(speller).split(rows_at_once(sae.cfg.d_sae)):
        fired |= (sae.encode(x.to(sae.device)) != 0).any(0)
    if not fired.any():
        return _dead("no latent fires on any of the words")
    config = AbsorptionEvalConfig(
        model_name=sae.cfg.model_name,
        random_seed=spelling.SEED,
        prompt_template=spelling.TEMPLATE,
        prompt_token_pos=speller.position,
        precalc_k_sparse_probe_sae_acts=fits_in_memory(len(spelling.words(model.tokenizer)), sae.cfg.d_sae),
    )
    with tempfile.TemporaryDirectory(dir=evaluator.folder) as scratch:
        experiments, tables = _experiments(Path(scratch), model_side.probes)
        replacements = experiments | {"HookedTransformer": patching.PreloadedModel(speller)}
        isolated = patching.isolated_sae_bench(main, Path(scratch), spelling.SEED, **replacements)
        with isolated, spelling.probes_in_float32(), spelling.fast_metrics():
            main.run_eval(config, [(name, sae)], str(sae.device), str(out.absolute()))  # type: ignore[list-item]
    speller.save()
    return _family_scores(patching.read_answer(out, name), tables[0], fired)


def _experiments(scratch: Path, probes: Path) -> tuple[dict[str, Callable[..., Any]], list["pd.DataFrame"]]:
    """Return SAE-Bench's two experiments by name, with our folders and the cached probes, and a list that then holds
    the table of the k-sparse probes."""
    from sae_bench.evals.absorption import main

    k_sparse_dir, run_k_sparse = scratch / "k_sparse", main.run_k_sparse_probing_experiment
    tables: list[pd.DataFrame] = []

    def k_sparse(**arguments: Any) -> "pd.DataFrame":
        tables.append(run_k_sparse(**arguments, experiment_dir=k_sparse_dir, probes_dir=probes))
        return tables[0]

    absorbed = partial(
        main.run_feature_absortion_experiment,
        experiment_dir=scratch / "absorption",
        sparse_probing_experiment_dir=k_sparse_dir,
        probes_dir=probes,
    )
    return {"run_k_sparse_probing_experiment": k_sparse, "run_feature_absortion_experiment": absorbed}, tables


def fits_in_memory(words: int, d_sae: int) -> bool:
    """Return True if the latents of so many words are kept while probes learn from them; otherwise every batch is
    encoded anew each time that it is read, some 300 times."""
    return 4 * words * d_sae <= KEPT_BYTES


def _family_scores(answer: dict[str, Any], table: "pd.DataFrame", fired: "Tensor") -> FamilyScores:
    """Return SAE-Bench's answer with what its means hide: whether the SAE has latents for the letters at all.

    `fired [d_sae]` marks the latents that fire on any of the test words.
    """
    by_letter, details = table.set_index("letter"), {}
    for row in answer["eval_result_details"]:
        letter = row.pop("first_letter")
        probe = by_letter.loc[letter]
        split = list(probe["split_feats"])
        details[letter] = row | {
            "probe_f1": probe["f1_probe"],
            "split_f1": probe[f"f1_sparse_sae_{len(split)}"],
            "split_alive": fired[split].float().mean().item(),
        }
    if not any(row["split_alive"] for row in details.values()):
        return _dead("the latents chosen for the letters fire on none of the words")
    probe_f1, split_f1 = (sum(row[key] for row in details.values()) / len(details) for key in ("probe_f1", "split_f1"))
    remark = ""
    if split_f1 < ABLE_F1:
        remark = (
            f"undertrained for this: the latents chosen for the letters find them with a mean F1 of {split_f1:.2f}, "
            f"the model's own probes with {probe_f1:.2f}; where an SAE has no latent for a letter, none is absorbed"
        )
    return FamilyScores(metrics=patching.metrics(answer), details=details, remark=remark)


def _dead(reason: str) -> FamilyScores:
    """Return no values, where SAE-Bench scores a perfect 0.0."""
    return FamilyScores(metrics=dict.fromkeys(METRICS), not_applicable=dict.fromkeys(METRICS, reason))
