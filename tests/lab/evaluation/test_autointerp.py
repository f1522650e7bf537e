"""Autointerp and its judge: SAE-Bench's own figures, an endpoint that fails, and a key that stays where it is."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import Endpoint, Step, completion, serving
from small_lab import D_SAE, HOOK, K

from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.bench.judge import Judge, JudgeError
from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import autointerp
from agent.lab.results import Scored

KEY = "sk-this-is-the-key-of-a-test"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with serving() as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("SAE_AGENT_JUDGE", "a-local-judge")
        yield endpoint


def score(evaluator: Evaluator, out: Path) -> Scored:
    out.mkdir()
    return autointerp.score(evaluator, evaluator.random_sae(D_SAE, K), out, "sae")


def place(**environment: str) -> EvalTarget:
    return EvalTarget("a-model", HOOK, False, {}, lambda: None, Path(), environment)


def test_the_figures_are_sae_benchs_own(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig

    ours = score(evaluator, tmp_path / "ours")
    assert {asked["model"] for asked in endpoint.asked} == {"a-local-judge"}
    written = json.loads((tmp_path / "ours" / "sae_custom_sae_eval_results.json").read_text())

    config = AutoInterpEvalConfig(**written["eval_config"] | {"n_latents": None})
    ids = evaluator.held_out("dev").ids
    folder = tmp_path / "artifacts" / "autointerp"
    folder.mkdir(parents=True)
    torch.save(ids, folder / f"{config.model_name}_{ids.numel()}_tokens_{ids.shape[1]}_ctx.pt")
    sae: Any = evaluator.random_sae(D_SAE, K)
    with patching.isolated_sae_bench(main, tmp_path, 0, HookedTransformer=patching.PreloadedModel(evaluator.model)):
        theirs = main.run_eval(config, [("sae", sae)], "cpu", KEY, str(tmp_path / "theirs"))["sae_custom_sae"]
    assert {asked["model"] for asked in endpoint.asked} == {"a-local-judge", "gpt-4o-mini"}
    figures = theirs["eval_result_metrics"]["autointerp"]
    assert {name: ours.metrics[name] for name in figures} == pytest.approx(figures, abs=1e-4)
    assert 0.5 < figures["autointerp_score"] < 1
    latents = theirs["eval_result_unstructured"]
    assert {f"latent {i}": said["score"] for i, said in latents.items()} == {
        name: row["score"] for name, row in ours.details.items()
    }
    assert len(latents) == autointerp.LATENTS


def test_a_judge_that_always_says_none_scores_the_floor(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    endpoint.judge = lambda _: "None"
    scored = score(evaluator, tmp_path / "out")
    assert scored.metrics["autointerp_score"] == pytest.approx(scored.metrics["always_none_score"])
    assert scored.metrics["always_none_score"] == pytest.approx(10 / 14, abs=0.01)
    assert "always saying none scores 0.71" in scored.remark


def test_a_judge_that_is_busy_is_asked_again(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    endpoint.script = [Step(429, {"error": {"message": "slow down"}}), Step(500, "oops"), Step(503, "<html>")]
    assert len(score(evaluator, tmp_path / "out").details) == autointerp.LATENTS
    assert len(endpoint.asked) == 2 * autointerp.LATENTS + 3


@pytest.mark.parametrize(
    ("said", "why", "tries"),
    [
        (Step(500, "oops"), "answered 500", 3),
        (Step(429, {"error": {"message": "slow down"}}), "answered 429: .*slow down", 3),
        (Step(429, {"error": {"message": "no money", "code": "insufficient_quota"}}), "answered 429: .*no money", 1),
        (Step(429, {"error": {"message": "later"}}, {"Retry-After": "300"}), "answered 429: .*later", 1),
        (Step(401, {"error": {"message": f"bad key {KEY}"}}), "answered 401: .*bad key <key>", 1),
        (Step(body="<html>welcome</html>"), "text that is no completion", 1),
        (Step(body="{torn"), "gave no completion", 1),
        (Step(body=completion([])), "without a choice", 1),
        (Step(body=completion(None)), "without a choice", 1),
        (Step(body=completion([{"index": 0, "message": {"role": "assistant", "content": None}}])), "without text", 1),
    ],
    ids=["500", "429", "quota", "wait 300 s", "401", "html", "json", "empty", "null", "no content"],
)
def test_what_a_judge_says_instead_of_an_answer_is_told(endpoint: Endpoint, said: Step, why: str, tries: int):
    endpoint.always = said
    judge = Judge("a-local-judge", endpoint.url, KEY, waits=(5, 5))  # not waited: the endpoint says how long
    for _ in range(2):  # given up, it is not asked again
        with pytest.raises(JudgeError, match=why) as raised:
            judge.ask([{"role": "user", "content": "?"}], 5)
        assert "a-local-judge at 127.0.0.1" in str(raised.value)
        assert KEY not in str(raised.value)
        assert len(endpoint.asked) == tries


def test_an_endpoint_that_fails_is_the_rows_error(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    endpoint.always = Step(500, "oops")
    with pytest.raises(EvaluationError, match="answered 500"):
        score(evaluator, tmp_path / "out")


def test_a_judge_of_no_use_is_the_rows_error(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    endpoint.judge = lambda _: "I would rather not say"
    with pytest.raises(EvaluationError, match="with neither numbers nor None on any of 20 latents"):
        score(evaluator, tmp_path / "out")


def test_the_key_is_in_no_file(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    endpoint.judge = lambda messages: f"on {KEY}" if "<<" in messages[1]["content"] else "1, 2"
    score(evaluator, tmp_path / "out")
    assert {asked["authorization"] for asked in endpoint.asked} == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(KEY.encode() in content for content in written)


def test_what_is_missing_is_known_before(endpoint: Endpoint):
    def lack(**environment: str) -> str:
        (found,) = autointerp.unmet_requirements(place(**environment))
        return f"{found.reason} -> {found.remedy}"

    named = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
    assert autointerp.unmet_requirements(place(**named)) == []
    assert "OPENAI_API_KEY is not set -> set OPENAI_API_KEY" in lack(OPENAI_BASE_URL=endpoint.url)
    endpoint.script = [Step(401, {"error": {"message": f"wrong key {KEY}"}})]
    assert "answered 401" in (said := lack(**named))
    assert KEY not in said
    endpoint.script = [Step(404, {"error": {"message": "no such model"}})]
    assert "set SAE_AGENT_JUDGE" in lack(**named)
    endpoint.script = [Step(body="<html>")]
    assert "see whether OPENAI_BASE_URL" in lack(**named)
    assert "cannot be reached" in lack(OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_API_KEY=KEY)


def test_a_judge_that_does_not_answer_is_not_waited_for(endpoint: Endpoint):
    held = threading.Event()
    endpoint.judge = lambda _: str(held.wait(10))
    with pytest.raises(JudgeError, match="gave no answer in 0 s"):
        Judge("judge", endpoint.url, KEY, timeout=0.3, waits=()).ask([{"role": "user", "content": "?"}], 5)
    held.set()


def test_latents_that_fire_too_rarely_are_not_judged(evaluator: Evaluator, endpoint: Endpoint, tmp_path: Path):
    sae = evaluator.random_sae(D_SAE, K)
    alive = sae.encode
    sae.encode = lambda x: alive(x) * 0  # type: ignore[method-assign]
    (tmp_path / "out").mkdir()
    scored = autointerp.score(evaluator, sae, tmp_path / "out", "dead")
    assert scored.not_applicable == dict.fromkeys(autointerp.METRICS, "no latent fires enough")
    assert not endpoint.asked
