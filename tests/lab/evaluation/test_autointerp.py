"""Autointerp and its judge: SAE-Bench's own figures, a server that fails, and a key that leaks nowhere."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_judge import by_rule
from scripted_server import CANARY, ScriptedServer, Step, answer, completion, error
from small_lab import D_SAE, HOOK, K

from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.bench.judge import Judge, JudgeError
from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import autointerp
from agent.lab.results import FamilyScores

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "?"}]


def soon(step: Step) -> Step:
    """Ask for a retry after 10 ms."""
    return replace(step, headers={"Retry-After": "0.01"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    with ScriptedServer(otherwise=by_rule) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SAE_AGENT_JUDGE", "a-local-judge")
        yield server


def models_asked(server: ScriptedServer) -> set[str]:
    return {request.body["model"] for request in server.requests}


def score(evaluator: Evaluator, out: Path) -> FamilyScores:
    out.mkdir()
    return autointerp.score(evaluator, evaluator.random_sae(D_SAE, K), out, "sae")


def target(**environment: str) -> EvalTarget:
    return EvalTarget("a-model", HOOK, False, {}, lambda: None, Path(), environment)


def test_the_figures_are_sae_benchs_own(evaluator: Evaluator, server: ScriptedServer, tmp_path: Path):
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig

    ours = score(evaluator, tmp_path / "ours")
    assert models_asked(server) == {"a-local-judge"}
    written = json.loads((tmp_path / "ours" / "sae_custom_sae_eval_results.json").read_text())

    config = AutoInterpEvalConfig(**written["eval_config"] | {"n_latents": None})
    ids = evaluator.held_out("dev").ids
    folder = tmp_path / "artifacts" / "autointerp"
    folder.mkdir(parents=True)
    torch.save(ids, folder / f"{config.model_name}_{ids.numel()}_tokens_{ids.shape[1]}_ctx.pt")
    sae: Any = evaluator.random_sae(D_SAE, K)
    with patching.isolated_sae_bench(main, tmp_path, 0, HookedTransformer=patching.PreloadedModel(evaluator.model)):
        theirs = main.run_eval(config, [("sae", sae)], "cpu", CANARY, str(tmp_path / "theirs"))["sae_custom_sae"]
    assert models_asked(server) == {"a-local-judge", "gpt-4o-mini"}
    figures = theirs["eval_result_metrics"]["autointerp"]
    assert {name: ours.metrics[name] for name in figures} == pytest.approx(figures, abs=1e-4)
    assert 0.5 < figures["autointerp_score"] < 1
    latents = theirs["eval_result_unstructured"]
    assert {f"latent {i}": row["score"] for i, row in latents.items()} == {
        name: row["score"] for name, row in ours.details.items()
    }
    assert len(latents) == autointerp.LATENTS


def test_a_judge_that_always_says_none_scores_the_floor(evaluator: Evaluator, server: ScriptedServer, tmp_path: Path):
    server.otherwise = "None"
    scored = score(evaluator, tmp_path / "out")
    assert scored.metrics["autointerp_score"] == pytest.approx(scored.metrics["always_none_score"])
    assert scored.metrics["always_none_score"] == pytest.approx(10 / 14, abs=0.01)
    assert "always saying none scores 0.71" in scored.remark


def test_a_busy_judge_is_retried(evaluator: Evaluator, server: ScriptedServer, tmp_path: Path):
    server.script = [soon(error(429, "slow down")), soon(Step(b"oops", 500)), soon(Step(b"<html>", 503))]
    assert len(score(evaluator, tmp_path / "out").details) == autointerp.LATENTS
    assert len(server.requests) == 2 * autointerp.LATENTS + 3


@pytest.mark.parametrize(
    ("step", "reason", "requests"),
    [
        (soon(Step(b"oops", 500)), "(status 500)", 3),
        (soon(error(429, "slow down")), "(status 429): slow down", 3),
        (error(429, "no money", "insufficient_quota"), "has nothing left: no money", 1),
        (error(429, "later", Retry_After="300"), "asks to wait 300 s: later", 1),
        (error(401, f"bad key {CANARY}"), "does not accept OPENAI_API_KEY (status 401)", 1),
        (error(404, f"no model for {CANARY}"), "(status 404): no model for <key>", 1),
        (Step(b"<html>welcome</html>"), "is no completion: '<html>welcome", 1),
        (Step(b"{torn"), "is no completion: '{torn'", 1),
        (completion(choices=[]), "has no choice", 1),
        (completion(choices=None), "is no completion", 1),
        (answer(None), "the answer is empty", 1),
        (answer(None, refusal="I cannot."), "the model refused: I cannot.", 1),
    ],
    ids=["500", "429", "quota", "wait 300 s", "401", "404", "html", "json", "empty", "null", "no content", "refusal"],
)
def test_a_failing_judge_is_given_up_with_its_reason(server: ScriptedServer, step: Step, reason: str, requests: int):
    server.otherwise = step
    judge = Judge(os.environ, pauses=(5, 5))  # not waited: the server asks for its own
    for _ in range(2):
        with pytest.raises(JudgeError, match="the judge a-local-judge failed: ") as raised:
            judge.ask(QUESTION, 5)
        assert reason in str(raised.value)
        assert raised.value.remedy
        assert CANARY not in str(raised.value)
        assert len(server.requests) == requests


def test_a_judge_is_named_without_the_password_of_its_url(server: ScriptedServer):
    server.otherwise = error(404)
    url = server.environment["OPENAI_BASE_URL"]
    judge = Judge({**os.environ, "OPENAI_BASE_URL": url.replace("//", "//me:hush-hush@")})
    with pytest.raises(JudgeError, match=r"//127\.0\.0\.1:\d+/v1/chat/completions \(status 404\)") as raised:
        judge.ask(QUESTION, 5)
    assert "hush" not in str(raised.value)


def test_a_judge_asked_from_several_threads_is_given_up_once(server: ScriptedServer):
    server.otherwise = error(401)
    judge, threads = Judge(os.environ), 4

    def failure(_: int) -> str:
        with pytest.raises(JudgeError) as raised:
            judge.ask(QUESTION, 5)
        return str(raised.value)

    with ThreadPoolExecutor(threads) as pool:
        assert len(set(pool.map(failure, range(10 * threads)))) == 1
    assert len(server.requests) <= threads


def test_an_explanation_that_is_cut_off_is_still_one(server: ScriptedServer):
    server.otherwise = answer(" on the first words of", "length")
    assert Judge(os.environ).ask(QUESTION, 5) == "on the first words of"


def test_a_failing_server_is_an_evaluation_error(evaluator: Evaluator, server: ScriptedServer, tmp_path: Path):
    server.otherwise = soon(Step(b"oops", 500))
    with pytest.raises(EvaluationError, match="status 500"):
        score(evaluator, tmp_path / "out")


def test_a_judge_without_readable_answers_is_an_evaluation_error(
    evaluator: Evaluator, server: ScriptedServer, tmp_path: Path
):
    server.otherwise = "I would rather not say"
    with pytest.raises(EvaluationError, match="with neither numbers nor None on any of 20 latents"):
        score(evaluator, tmp_path / "out")


def test_the_key_is_in_no_file(evaluator: Evaluator, server: ScriptedServer, tmp_path: Path):
    server.otherwise = lambda request: f"on {CANARY}" if "<<" in request.text else "1, 2"
    score(evaluator, tmp_path / "out")
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {CANARY}"}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(CANARY.encode() in content for content in written)


def test_unmet_requirements_name_the_remedy(server: ScriptedServer):
    def unmet(**environment: str) -> str:
        (requirement,) = autointerp.unmet_requirements(target(**environment))
        return f"{requirement.reason} -> {requirement.remedy}"

    environment = server.environment
    assert autointerp.unmet_requirements(target(**environment)) == []
    no_key = unmet(OPENAI_BASE_URL=environment["OPENAI_BASE_URL"])
    assert "OPENAI_API_KEY is not set -> set it to your key" in no_key
    assert "SAE_AGENT_JUDGE if it is not gpt-4o-mini" in no_key
    assert "no key has -> set it to your key" in unmet(**environment | {"OPENAI_API_KEY": "two words"})
    server.script = [error(401, f"wrong key {CANARY}")]
    assert "(status 401) -> set the right one" in (text := unmet(**environment))
    assert CANARY not in text
    server.script = [error(404, "no such model")]
    assert "-> check SAE_AGENT_JUDGE=gpt-4o-mini and OPENAI_BASE_URL" in unmet(**environment)
    server.script = [Step(b"<html>")]
    assert "-> does OPENAI_BASE_URL end in /v1?" in unmet(**environment)
    assert "no answer from 127.0.0.1:9" in unmet(**environment | {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"})


def test_a_judge_that_does_not_answer_times_out(server: ScriptedServer):
    server.otherwise = replace(answer("late"), delay=2)
    with pytest.raises(JudgeError, match=r"no whole answer from .* within 0\.3 s"):
        Judge(os.environ, timeout=0.3, pauses=()).ask(QUESTION, 5)


def test_latents_that_fire_too_rarely_are_not_judged(evaluator: Evaluator, server: ScriptedServer, tmp_path: Path):
    sae = evaluator.random_sae(D_SAE, K)
    alive = sae.encode
    sae.encode = lambda x: alive(x) * 0  # type: ignore[method-assign]
    (tmp_path / "out").mkdir()
    scored = autointerp.score(evaluator, sae, tmp_path / "out", "dead")
    assert scored.not_applicable == dict.fromkeys(autointerp.METRICS, "no latent fires enough")
    assert not server.requests
