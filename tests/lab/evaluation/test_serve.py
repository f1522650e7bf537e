"""The evaluator as the driver uses it: one process, one request a line, one result file a request."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_lab import HOOK, TOKENS, experiment, load, one_line, run, save, start, train

from agent.lab import activations, results
from agent.lab.results import FinalInfo, Sentinels

pytestmark = pytest.mark.slow

SERVE = ("-P", "-m", "agent.lab.evaluation", "--serve")


class Server:
    """An evaluator process that waits for requests."""

    def __init__(self) -> None:
        self.process: Any = start(*SERVE, stdin=subprocess.PIPE)

    def ask(self, run_dir: Path, out: str, **request: Any) -> Path:
        """Send a request and return its result file."""
        line = {"task": "score", "run_dir": str(run_dir), "out": out} | request
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        result, limit = run_dir / out, time.monotonic() + 200
        while not result.exists():
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.02)
        return result

    def score(self, run_dir: Path, out: str = "final_info.json", **request: Any) -> FinalInfo:
        return results.read(run_dir, self.ask(run_dir, out, **request).name)


@pytest.fixture(scope="module")
def runs(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return runs with a sound SAE, a hardly trained one, sick ones, and without a checkpoint."""
    directory = tmp_path_factory.mktemp("served")
    module, manifest = load(experiment(directory, small_model)), harvest[1]
    data = activations.stream(str(small_model), HOOK, tokens=TOKENS, batch=module.BATCH, seed=0)
    sae = train(module, data).requires_grad_(False)
    young = train(module, data, steps=20).requires_grad_(False)
    (directory / "missing").mkdir()
    return {
        "sound": save(directory / "sound", sae, manifest),
        "again": save(directory / "again", sae, manifest),
        "young": save(directory / "young", young, manifest),
        "dense": save(directory / "dense", sae, manifest, encode=sae.pre_activations),
        "dead": save(directory / "dead", sae, manifest, encode=lambda x: (sae.pre_activations(x) - 1e9).relu()),
        "huge": save(directory / "huge", sae, manifest, W_dec=sae.W_dec * 3e38),
        "nan": save(directory / "nan", sae, manifest, W_dec=sae.W_dec * float("nan")),
        "unmoved": save(directory / "unmoved", sae, manifest, changed=False),
        "missing": directory / "missing",
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.process.stdin.close()
    assert served.process.wait(timeout=60) == 0, served.process.stderr.read()


def figures(info: FinalInfo) -> dict[str, Any]:
    return info.model_dump(exclude={"evaluation_seconds"})


def test_the_same_checkpoint_gets_the_same_figures_twice(server: Server, runs: dict[str, Path]):
    first, second = server.score(runs["sound"]), server.score(runs["again"])
    assert first.verdict.ok, first
    assert first.probing
    assert figures(first) == figures(second)


def test_scores_on_the_test_text_differ_and_are_marked(server: Server, runs: dict[str, Path]):
    dev = server.score(runs["sound"], "dev_info.json", evals=("core",))
    kept = sorted(path.name for path in (runs["sound"] / "eval").iterdir())
    test = server.score(runs["sound"], "test_info.json", split="test", evals=("core",))
    assert (dev.split, test.split) == ("dev", "test")
    assert test.verdict.ok, test
    assert test.probing is None
    assert test.core
    assert dev.core
    assert test.core.ce_loss_without_sae != dev.core.ce_loss_without_sae
    assert test.floor
    assert dev.floor
    assert test.floor.ce_loss_score != dev.floor.ce_loss_score
    assert sorted(path.name for path in (runs["sound"] / "eval").iterdir()) == kept


@pytest.mark.parametrize(
    ("name", "verdict", "evidence"),
    [
        ("sound", "ok", "smoke test: loaded, encoded, decoded"),
        ("young", "ok", "smoke test"),
        ("dense", "ok", "smoke test"),
        ("dead", "degenerate", "L0 is 0.000"),
        ("huge", "degenerate", "not finite"),
        ("nan", "nan", "not finite"),
        ("unmoved", "zero_steps", "no parameter moved"),
        ("missing", "bad_checkpoint", "checkpoint"),
    ],
)
def test_the_smoke_test_tells_working_saes_from_broken_ones(
    server: Server, runs: dict[str, Path], name: str, verdict: str, evidence: str
):
    info = server.score(runs[name], "slice.json", slice=True)
    assert info.verdict.name == verdict, info
    assert evidence in info.verdict.evidence
    assert (info.floor, info.probing) == (None, None)


def test_the_sentinels_hold(server: Server, runs: dict[str, Path]):
    sentinels = Sentinels.model_validate_json(server.ask(runs["sound"], "sentinels.json", task="sentinels").read_text())
    assert {expectation.sentinel for expectation in sentinels.expectations} == {
        "permuted decoder",
        "identity",
        "random",
    }
    assert not [expectation for expectation in sentinels.expectations if not expectation.held]


def test_a_link_planted_in_place_of_the_evaluation_folder_is_not_followed(
    server: Server, runs: dict[str, Path], tmp_path: Path
):
    (tmp_path / "mine").touch()
    planted = runs["young"] / "eval_test"
    planted.symlink_to(tmp_path)
    server.score(runs["young"], "linked.json", slice=True, split="test")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert not planted.is_symlink()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("score run_0", "not a request: score run_0"),
        ('{"task": "praise", "run_dir": "/"}', "'praise'"),
        ('{"task": "score", "run_dir": "/", "out": "../final_info.json"}', "score.out"),
        ('{"task": "score", "run_dir": "/", "speed": 2}', "score.speed"),
        ('{"task": "score", "run_dir": "/no/such/run"}', "/no/such/run is not a run directory"),
    ],
)
def test_an_invalid_request_ends_the_evaluator_with_one_line(line: str, message: str):
    process = start(*SERVE, stdin=subprocess.PIPE)
    _, err = process.communicate(line + "\n", timeout=60)
    assert process.returncode == 2
    assert message in one_line(err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_evaluator(number: signal.Signals, code: int, runs: dict[str, Path]):
    server = Server()
    server.score(runs["missing"], f"{number.name}.json")  # it is running
    server.process.send_signal(number)
    assert server.process.wait(timeout=60) == code
    assert "Traceback" not in server.process.stderr.read()


def test_run_directories_and_serve_exclude_each_other(tmp_path: Path):
    for arguments in ([], ["--serve", str(tmp_path)]):
        ended = run("-P", "-m", "agent.lab.evaluation", *arguments)
        assert ended.returncode == 2
        assert "give run directories, or --serve and none" in ended.stderr


def test_a_named_family_that_cannot_run_is_refused_before_anything_is_scored(runs: dict[str, Path]):
    before = sorted(runs["again"].rglob("*"))
    ended = run("-P", "-m", "agent.lab.evaluation", runs["again"], "--evals", "core,unlearning")
    assert ended.returncode == 2
    assert one_line(ended.stderr).startswith("error: unlearning cannot run: ")
    assert sorted(runs["again"].rglob("*")) == before


def test_the_driver_can_build_requests_without_torch():
    ended = run("-c", "import sys, agent.lab.evaluation.requests; sys.exit('torch' in sys.modules)")
    assert ended.returncode == 0, ended.stderr
