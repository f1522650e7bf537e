"""SAE-Bench `absorption`: letters whose own latents fall silent where a more specific latent carries the letter.

Linear probes of the model's activations say which words it knows the first letter of, k-sparse probes of the SAE which
latents stand for a letter; a word whose letter the probe sees and those latents do not, though others point along the
probe, is absorbed (Chanin et al. 2024, arXiv 2409.14507). The model's side of it is in evaluation/spelling.py.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import patching, spelling
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.progress import notify
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from agent.lab.evaluation.bench.spelling import Spelling
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "letters whose latent falls silent where a more specific latent carries the letter"

ABLE_F1, ABLE_LETTERS = 0.6, 20  # SAE-Bench's: a letter counts above this F1, a model can spell from so many letters
METRICS = tuple(
    f"{figure}_{of}"
    for figure, of in (
        ("mean", "absorption_fraction_score"),
        ("mean", "full_absorption_score"),
        ("mean", "num_split_features"),
        ("std_dev", "absorption_fraction_score"),
        ("std_dev", "full_absorption_score"),
        ("std_dev", "num_split_features"),
    )
)


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    """What is missing. Whether the model can spell is measured, in another process, where it is not known yet."""
    if unmet := requirements.check_language_model(place):
        return unmet
    tokenizer = place.tokenizer()
    missing = _unfit(place.hook_name, tokenizer, place.config.get("max_position_embeddings"))
    if not (found := spelling.known(place.folder)):
        needed = spelling.space(len(spelling.words(tokenizer)), requirements.residual_width(place.config))
        missing += requirements.check_disk(place, needed / 1e6)
    return missing or _unable(found or _measured(place))


def _unfit(hook_name: str, tokenizer: Any, context: int | None) -> list[UnmetRequirement]:
    missing = []
    if not hook_name.endswith("hook_resid_post"):
        why = f"SAE-Bench reads the residual stream behind a layer, not {hook_name}"
        missing.append(UnmetRequirement(why, "use a hook like blocks.1.hook_resid_post"))
    return missing + [UnmetRequirement(*said) for said in spelling.unfit(tokenizer, context)]


def _unable(found: "Spelling") -> list[UnmetRequirement]:
    able = [letter for letter, f1 in found.letters.items() if f1 > ABLE_F1]
    if len(able) >= ABLE_LETTERS:
        return []
    best = sorted(found.letters.values())[-ABLE_LETTERS]
    return [
        UnmetRequirement(
            f"the model cannot spell: {len(able)} of 26 first letters can be read off its activations with an F1 above "
            f"{ABLE_F1}, and {ABLE_LETTERS} are needed (the 20th best: {best:.2f})",
            "use a larger model or a later layer; SAE-Bench advises 2B parameters",
        )
    ]


def _measured(place: EvalTarget) -> "Spelling":
    """The spelling of a model that no one has measured at this hook, by a process that loads the model."""
    notify(
        "absorption: can the model spell? Measured once for a model and hook: 20 s for tiny-lm, longer for larger ones"
    )
    command = [sys.executable, "-P", "-m", "agent.lab.evaluation.spelling", place.model, place.hook_name]
    subprocess.run(command, env=dict(place.environment), check=True)
    found = spelling.known(place.folder)
    assert found
    return found


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """SAE-Bench's absorption of one SAE, on the model's side that is already made. Raises EvaluationError.

    A dead SAE has no value: one of which no latent fires on any of the test words, or none of those that the k-sparse
    probes chose for the letters.
    """
    from sae_bench.evals.absorption import k_sparse_probing, main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    model = evaluator.model
    for lack in _unfit(evaluator.hook_name, model.tokenizer, model.cfg.n_ctx):
        raise EvaluationError(lack.reason)
    made = spelling.measure(evaluator)
    for lack in _unable(made):
        raise EvaluationError(lack.reason)
    speller = made.speller(model, evaluator.hook_name)
    sae = patching.UnitNorm(sae)
    fired = (sae.encode(made.test_activations(speller).to(sae.device)) != 0).any(0)
    if not fired.any():
        return _dead("no latent fires on any of the words")
    config = AbsorptionEvalConfig(
        model_name=sae.cfg.model_name,
        random_seed=spelling.SEED,
        prompt_template=spelling.TEMPLATE,
        prompt_token_pos=speller.position,
        precalc_k_sparse_probe_sae_acts=True,
    )
    tables: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory(dir=evaluator.folder) as scratch:
        k_sparse_dir, own_k_sparse = Path(scratch, "k_sparse"), main.run_k_sparse_probing_experiment

        def k_sparse(**asked: Any) -> "pd.DataFrame":
            tables.append(own_k_sparse(**asked, experiment_dir=k_sparse_dir, probes_dir=made.probes))
            return tables[0]

        absorbed = partial(
            main.run_feature_absortion_experiment,
            experiment_dir=Path(scratch, "absorption"),
            sparse_probing_experiment_dir=k_sparse_dir,
            probes_dir=made.probes,
        )
        lent = {
            "HookedTransformer": patching.PreloadedModel(speller),
            "run_k_sparse_probing_experiment": k_sparse,
            "run_feature_absortion_experiment": absorbed,
        }
        measures = patch.object(k_sparse_probing, "metrics", spelling.Measures)
        with measures, patching.isolated_sae_bench(main, Path(scratch), spelling.SEED, **lent):
            main.run_eval(config, [(name, sae)], str(sae.device), str(out.absolute()))  # type: ignore[list-item]
    speller.keep()
    return _scored(patching.answer(out, name), tables[0], fired)


def _scored(found: dict[str, Any], table: "pd.DataFrame", fired: "Tensor") -> FamilyScores:
    """SAE-Bench's answer with what its means hide: whether the SAE has latents for the letters at all.

    `fired [d_sae]` says which latents fire on any of the test words.
    """
    by_letter, details = table.set_index("letter"), {}
    for row in found["eval_result_details"]:
        letter = row.pop("first_letter")
        own = by_letter.loc[letter]
        split = list(own["split_feats"])
        details[letter] = row | {
            "probe_f1": own["f1_probe"],
            "split_f1": own[f"f1_sparse_sae_{len(split)}"],
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
    return FamilyScores(metrics=patching.metrics(found), details=details, remark=remark)


def _dead(why: str) -> FamilyScores:
    """SAE-Bench gives such an SAE a perfect 0.0."""
    return FamilyScores(metrics=dict.fromkeys(METRICS), not_applicable=dict.fromkeys(METRICS, why))
