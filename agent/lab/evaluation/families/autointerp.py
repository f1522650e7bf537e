"""SAE-Bench `autointerp`: whether a language model's explanation of a latent predicts where the latent fires.

The judge is shown text on which a latent fires, explains it in a sentence, and is then asked on which of 14 other
pieces of text it fires. The score is the share of right answers. A judge that always answers "none" gets 10 of 14, so
0.714 is reported with the score. That is two questions a latent, on the development text that core is scored on.
"""

import contextlib
import io
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.bench.core import BATCH_WINDOWS, EvaluationError
from agent.lab.evaluation.bench.judge import Judge, JudgeError
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
    from transformer_lens import HookedTransformer

    from agent.lab.evaluation.evaluator import Evaluator, HeldOut
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "how well a language model that has seen where a latent fires can tell where else it does"

SEED, LATENTS = 42, 20  # SAE-Bench's own number of latents is 1,000
METRICS = ("autointerp_score", "autointerp_std_dev")
SECONDS = 5  # for the one question that shows whether the judge answers


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    """Return what is missing. The judge is asked for one word."""
    try:
        Judge(target.environment, timeout=SECONDS, pauses=()).ask([{"role": "user", "content": "Say: yes"}], 5)
    except JudgeError as error:
        return [UnmetRequirement(str(error), error.remedy)]
    return []


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Run SAE-Bench's autointerp on a few latents, by the judge that the environment names.

    Raises JudgeError if the judge fails, EvaluationError if none of its answers can be read.
    """
    from sae_bench.evals.autointerp import main

    judge, text = Judge(os.environ), Text(evaluator.model, evaluator.held_out("dev"))
    config = _eval_config(sae, text)
    chosen = config.latents = config.override_latents = choose_latents(sae, text, config)
    if not chosen:
        return FamilyScores(
            metrics=dict.fromkeys(METRICS), not_applicable=dict.fromkeys(METRICS, "no latent fires enough")
        )

    class Judged(main.AutoInterp):
        def get_api_response(self, messages: Any, max_tokens: int, n_completions: int = 1) -> tuple[list[str], str]:  # noqa: ARG002
            reply = judge.ask(messages, max_tokens)
            return [reply], "\n".join(message["content"] for message in messages) + f"\n{reply}"

        async def run_single_feature(self, *arguments: Any) -> dict[str, Any] | None:
            with contextlib.suppress(JudgeError):  # judge.failed keeps it; asyncio would print it for every latent
                return await super().run_single_feature(*arguments)

    with tempfile.TemporaryDirectory() as scratch:
        tokens = f"{config.model_name}_{config.total_tokens}_tokens_{config.llm_context_size}_ctx.pt"
        tokens_path = Path(scratch, "artifacts", "autointerp", tokens)
        tokens_path.parent.mkdir(parents=True)
        torch.save(text.ids, tokens_path)
        with patching.isolated_sae_bench(
            main, Path(scratch), SEED, HookedTransformer=patching.PreloadedModel(text), AutoInterp=Judged
        ):
            device, saes = str(sae.device), [(name, sae)]
            main.run_eval(config, saes, device, "unused", str(out.absolute()))  # type: ignore[arg-type]
    answer = patching.read_answer(out, name)
    if judge.failed:  # the answer holds only the latents before
        raise judge.failed
    return _family_scores(answer, len(chosen), config.n_ex_for_scoring, judge.model)


def choose_latents(sae: "BenchSAE", text: "Text", config: "AutoInterpEvalConfig") -> list[int]:
    """Draw latents, by the seed, from those that fire often enough to be explained and asked about.

    SAE-Bench draws 12 of the places where a latent fires most and 7 of the weaker ones. If there are fewer, it fails
    with torch's "not enough non-negative category to sample".
    """
    from sae_bench.sae_bench_utils.activation_collection import collect_sae_activations
    from sae_bench.sae_bench_utils.indexing_utils import get_k_largest_indices

    order = random.Random(SEED).sample(range(sae.cfg.d_sae), sae.cfg.d_sae)
    chosen, inner = [], slice(config.buffer, -config.buffer)
    for start in range(0, len(order), 4 * LATENTS):
        drawn = order[start : start + 4 * LATENTS]
        with contextlib.redirect_stderr(io.StringIO()):  # SAE-Bench's progress bar
            fired = collect_sae_activations(
                text.ids,
                text,  # type: ignore[arg-type]
                sae,
                config.llm_batch_size,
                0,
                sae.cfg.hook_name,
                mask_bos_pad_eos_tokens=True,
                selected_latents=drawn,
                activation_dtype=torch.bfloat16,
            )
        for latent, values in zip(drawn, fired.unbind(-1), strict=True):
            top = get_k_largest_indices(values, config.n_top_ex, config.buffer, config.no_overlap)
            weaker = values[:, inner] < values[top[:, 0], top[:, 1]].min()
            if (weaker & (values[:, inner] > 0)).sum() >= config.n_iw_sampled_ex:
                chosen.append(latent)
        if len(chosen) >= LATENTS:
            break
    return chosen[:LATENTS]


def _eval_config(sae: "BenchSAE", text: "Text") -> "AutoInterpEvalConfig":
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig

    return AutoInterpEvalConfig(
        model_name=sae.cfg.model_name,
        n_latents=None,
        override_latents=[],
        random_seed=SEED,
        dataset_name="sae-agent held-out text",
        llm_context_size=text.ids.shape[1],
        llm_batch_size=BATCH_WINDOWS,
        llm_dtype="float32",
        total_tokens=text.ids.numel(),
    )


def _family_scores(answer: dict[str, Any], latents: int, shown: int, judge: str) -> FamilyScores:
    """Return SAE-Bench's answer, and the score of a judge that always answers none of the `shown` pieces of text."""
    answers = answer["eval_result_unstructured"]
    if not answers:
        raise EvaluationError(f"the judge {judge} answered with neither numbers nor None on any of {latents} latents")
    always_none = {latent: 1 - len(judged["correct seqs"]) / shown for latent, judged in answers.items()}
    floor = statistics.mean(always_none.values())
    unread = f"; its answer on {latents - len(answers)} of them is not a list of numbers" * (len(answers) < latents)
    return FamilyScores(
        metrics=patching.metrics(answer) | {"always_none_score": floor},
        details={
            f"latent {latent}": {"score": answers[latent]["score"], "always_none": always_none[latent]}
            for latent in sorted(answers, key=int)
        },
        remark=f"always saying none scores {floor:.3f} here; judged by {judge} on {latents} latents{unread}",
    )


class Text:
    """The model as SAE-Bench's autointerp needs it: its activations on the held-out text, computed before."""

    def __init__(self, model: "HookedTransformer", held_out: "HeldOut") -> None:
        self.tokenizer, self.to_str_tokens = model.tokenizer, model.to_str_tokens
        self.ids = held_out.ids.to(held_out.activations.device)
        ordinary = held_out.scored  # SAE-Bench ignores the other tokens
        assert ordinary is not None
        self.activations = held_out.activations.new_zeros(*ordinary.shape, held_out.activations.shape[1])
        self.activations[ordinary] = held_out.activations
        self.row = {tuple(ids): row for row, ids in enumerate(held_out.ids.tolist())}

    def run_with_cache(self, ids: Tensor, stop_at_layer: int, names_filter: str) -> tuple[None, dict[str, Tensor]]:  # noqa: ARG002
        """Return the activations `[windows, context, d_in]` on windows of the held-out text."""
        return None, {names_filter: self.activations[[self.row[tuple(window)] for window in ids.tolist()]]}
