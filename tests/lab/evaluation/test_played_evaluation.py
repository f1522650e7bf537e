"""The evaluation cannot be played: encoders that look at other rows or know the text, and headers of another model."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE
from threading import Thread
from typing import Any

import pytest
import torch
from small_lab import D_MODEL, HOOK, save, start
from torch import Tensor

from agent.lab import checkpoint, results
from agent.lab.activations import Manifest, run_to_hook
from agent.lab.checkpoint import constants
from agent.lab.errors import UserError
from agent.lab.evaluation import scoring
from agent.lab.evaluation.__main__ import handle_request
from agent.lab.evaluation.bench import core, core_text, probing
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.requests import Score, TrySentinels
from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE
from agent.lab.results import FinalInfo

D_SAE = 4 * D_MODEL
SCORED = core.BATCH_WINDOWS * core_text.RECONSTRUCTION_BATCHES  # windows that losses are measured on


@dataclass
class Cheat:
    """An SAE that keeps its input whole and adds the unembedding of a token to it: at best, of the next one."""

    W_dec: Tensor  # [D_SAE, D_MODEL]: plus and minus the identity, and latents that never fire
    b_dec: Tensor

    def write(self, y: Tensor) -> Tensor:
        return torch.cat([y.relu(), (-y).relu(), torch.zeros(y.shape[0], D_SAE - 2 * D_MODEL)], dim=1)

    def encode(self, x: Tensor) -> Tensor:
        return self.write(x)


@pytest.fixture(scope="module")
def cheat() -> Cheat:
    eye = torch.eye(D_MODEL)
    return Cheat(torch.cat([eye, -eye, torch.zeros(D_SAE - 2 * D_MODEL, D_MODEL)]), torch.zeros(D_MODEL))


@dataclass
class Known:
    """What an experiment that has read the evaluation text knows: rows and the unembedding of the token after each."""

    rows: Tensor  # [tokens, D_MODEL], scaled
    boosts: Tensor  # [tokens, D_MODEL], scaled
    bos: Tensor  # [D_MODEL], scaled: the first row of each window


@pytest.fixture(scope="module")
def known(evaluator: Evaluator, harvest: tuple[Path, Manifest]) -> Known:
    ids, scale = evaluator.held_out("dev").ids[:SCORED], harvest[1].scale
    hidden = torch.cat([run_to_hook(evaluator.model, batch, HOOK).float() for batch in ids.split(64)]) * scale
    directions = torch.nn.functional.normalize(evaluator.model.W_U.T, dim=1)  # [vocabulary, D_MODEL]
    boosts = directions[ids[:, 1:].flatten()] * hidden[:, 1:].norm(dim=-1).mean() * 0.4
    return Known(hidden[:, :-1].flatten(0, 1), boosts, hidden[0, 0])


def score(evaluator: Evaluator, run_dir: Path, **request: Any) -> FinalInfo:
    return scoring.score(evaluator, Score(run_dir=run_dir, evals=("core",), **request))


# An encoder that looks at the next row


@pytest.fixture(scope="module")
def lookahead(cheat: Cheat, known: Known) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return encoders that read the next token from the next row: always, or in a batch with the start of a window."""
    before = known.rows.view(SCORED, -1, D_MODEL)[:, 1:].flatten(0, 1)  # a token's own row tells which token it is
    boosts = known.boosts.view(SCORED, -1, D_MODEL)[:, :-1].flatten(0, 1)
    reads = torch.linalg.lstsq(before, boosts).solution

    def always(x: Tensor) -> Tensor:
        return cheat.write(x + x.roll(-1, 0) @ reads)

    def after_a_start(x: Tensor) -> Tensor:
        whole = ((x - known.bos).abs().amax(1) < 1e-2).any()
        return cheat.write(x + torch.where(whole, x.roll(-1, 0) @ reads, 0.0))

    return {"always": always, "after a start": after_a_start}


@pytest.mark.parametrize("form", ["always", "after a start"])
@pytest.mark.parametrize("smoke_test", [True, False])
def test_an_encoder_that_looks_at_the_next_row_is_refused(
    evaluator: Evaluator,
    harvest: tuple[Path, Manifest],
    cheat: Cheat,
    lookahead: dict[str, Callable[[Tensor], Tensor]],
    tmp_path: Path,
    form: str,
    smoke_test: bool,
):
    info = score(evaluator, save(tmp_path / "run", cheat, harvest[1], encode=lookahead[form]), slice=smoke_test)
    assert info.verdict.name == "bad_checkpoint"
    assert "depend on the other rows of its batch" in info.verdict.evidence


class InOrder(BenchSAE):
    """The encoder itself, called on the rows in the order of the text."""

    def __init__(self, sae: CheckpointSAE, encode: Callable[[Tensor], Tensor]) -> None:
        self.scale, self.function = sae.checkpoint.header.scale, encode
        super().__init__(sae.cfg, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)

    def encode(self, x: Tensor) -> Tensor:
        return self.function(x.flatten(0, -2) * self.scale).view(*x.shape[:-1], D_SAE)


@pytest.mark.parametrize("form", ["always", "after a start"])
def test_the_next_row_is_an_unrelated_one(
    evaluator: Evaluator,
    harvest: tuple[Path, Manifest],
    cheat: Cheat,
    lookahead: dict[str, Callable[[Tensor], Tensor]],
    tmp_path: Path,
    form: str,
):
    """Where the encoder is not refused, its look at the next row costs it loss; in order it would win much."""
    loaded = checkpoint.load(save(tmp_path / "run", cheat, harvest[1], encode=lookahead[form]) / "checkpoint")
    held_out = evaluator.held_out("dev")
    sae = evaluator.checkpoint_sae(loaded, held_out)
    shuffled, _ = evaluator.score_core(sae, held_out, tmp_path, "shuffled")
    in_order, _ = evaluator.score_core(InOrder(sae, lookahead[form]), held_out, tmp_path, "in order")
    assert in_order.loss_added is not None
    assert shuffled.loss_added is not None
    assert in_order.loss_added < -0.1
    assert shuffled.loss_added > 0.05


# An encoder that knows the text


def test_a_loss_below_the_models_own_is_implausible(
    evaluator: Evaluator, harvest: tuple[Path, Manifest], cheat: Cheat, known: Known, tmp_path: Path
):
    def look_up(x: Tensor) -> Tensor:
        nearest = (x @ known.rows.T - known.rows.pow(2).sum(1) / 2).argmax(1)
        return cheat.write(x + known.boosts[nearest])

    info = score(evaluator, save(tmp_path / "run", cheat, harvest[1], encode=look_up))
    assert info.core
    assert info.core.loss_added is not None
    assert info.core.loss_added_standard_error is not None
    assert info.core.loss_added < -0.1
    assert 0 < info.core.loss_added_standard_error < 0.1
    assert info.verdict.name == "implausible"
    assert f"{info.core.loss_added:.4f} nats a token" in info.verdict.evidence


KIBI = 1024
PACKINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda table: table,
    "columns": lambda table: table.T.contiguous(),
    "as wide as the latents": lambda table: table.view(-1, D_SAE),
    "flat": lambda table: table.flatten(),
    "integers of eight bytes": lambda table: table.view(torch.int64),
    "integers of four bytes": lambda table: table.view(torch.int32),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_room_for_the_text_in_an_encoder_is_measured_however_it_is_laid_out(
    harvest: tuple[Path, Manifest], cheat: Cheat, tmp_path: Path, packing: str
):
    table = PACKINGS[packing](torch.randn(4 * KIBI, D_MODEL))
    folder = save(tmp_path / "run", cheat, harvest[1], encode=lambda x: cheat.write(x + 0 * table.sum())) / "checkpoint"
    measured = constants.measure(checkpoint.load(folder))
    assert measured.rows == 4 * KIBI
    assert measured.times_W_dec == 4 * KIBI / D_SAE
    assert "32.0 times W_dec in constants, room for 4,096 of the evaluation's 32,768 tokens" in constants.warning(
        checkpoint.load(folder), 32 * KIBI
    )


def test_a_gram_matrix_and_small_tables_are_no_reason_to_warn(
    harvest: tuple[Path, Manifest], cheat: Cheat, tmp_path: Path
):
    gram, hidden = torch.randn(D_SAE, D_SAE), torch.randn(D_MODEL, 512)
    folder = save(tmp_path / "run", cheat, harvest[1], encode=lambda x: cheat.write(x + (x @ hidden).mean()) @ gram)
    loaded = checkpoint.load(folder / "checkpoint")
    assert constants.measure(loaded).values == 512 * D_MODEL
    assert not constants.warning(loaded, 32 * KIBI)


def test_an_encoder_with_a_table_of_the_text_gets_a_warning(
    evaluator: Evaluator, harvest: tuple[Path, Manifest], cheat: Cheat, known: Known, tmp_path: Path
):
    """It knows too little of the text to be implausible."""
    table = known.rows[: 4 * KIBI]

    def look_up(x: Tensor) -> Tensor:
        nearest = (x @ table.T - table.pow(2).sum(1) / 2).argmax(1)
        known_row = ((x - table[nearest]).abs().amax(1) < 1e-3)[:, None]
        return cheat.write(x + torch.where(known_row, 0.02 * known.boosts[: 4 * KIBI][nearest], 0.0))

    info = score(evaluator, save(tmp_path / "run", cheat, harvest[1], encode=look_up))
    assert any("times W_dec in constants" in warning for warning in info.verdict.warnings), info.verdict


# A pickle in the cache


class Planted:
    """Creates a folder when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_pickle_planted_in_the_probing_activations_is_not_run(
    evaluator: Evaluator, harvest: tuple[Path, Manifest], cheat: Cheat, tmp_path: Path
):
    dataset, canary = probing.DATASETS[0], tmp_path / "canary"
    folder = tmp_path / "probing"
    probes = probing.prepare_model(evaluator.model, evaluator.model_name, HOOK, folder, (dataset,))
    (activations,) = probes.activations.rglob(f"{dataset}_*.pt")
    torch.save(Planted(canary), activations)
    held_out = evaluator.held_out("dev")
    loaded = checkpoint.load(save(tmp_path / "run", cheat, harvest[1]) / "checkpoint")
    sae = evaluator.checkpoint_sae(loaded, held_out)
    with pytest.raises(EvaluationError, match=r"is no tensor and was not loaded.*delete"):
        probing.run_probing(sae, probes, tmp_path / "out", "sae", (dataset,))
    assert not canary.exists()


def test_an_sae_that_loses_nothing_is_not_implausible(
    evaluator: Evaluator, harvest: tuple[Path, Manifest], cheat: Cheat, tmp_path: Path
):
    info = score(evaluator, save(tmp_path / "run", cheat, harvest[1]))
    assert info.verdict.ok, info.verdict
    assert info.core
    assert info.core.loss_added == pytest.approx(0, abs=1e-5)


# A header of another model


@pytest.mark.parametrize(("field", "name"), [("model", "gpt2-xl"), ("hook_name", "blocks.0.hook_resid_post")])
def test_a_checkpoint_of_another_model_or_hook_is_not_loaded(
    harvest: tuple[Path, Manifest], cheat: Cheat, tmp_path: Path, field: str, name: str
):
    study = {"model": harvest[1].model, "hook_name": HOOK}
    run_dir = save(tmp_path / "run", cheat, harvest[1])
    header = run_dir / "checkpoint" / "header.json"
    header.write_text(header.read_text().replace(f'"{field}": "{study[field]}"', f'"{field}": "{name}"'))
    evaluators: dict[tuple[str, str], Evaluator] = {}
    info = handle_request(Score(run_dir=run_dir, **study), evaluators)
    assert isinstance(info, FinalInfo)
    assert info.verdict.name == "not_comparable"
    assert info.verdict.evidence.startswith(f"its header names the {field.removesuffix('_name')} {name}, the study's")
    assert not evaluators
    with pytest.raises(UserError, match="its header names"):
        handle_request(TrySentinels(run_dir=run_dir, **study), evaluators)
    assert not evaluators


@pytest.mark.slow
def test_no_hub_is_asked_for_the_model_that_a_header_names(
    harvest: tuple[Path, Manifest], cheat: Cheat, tmp_path: Path
):
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        run_dir = save(tmp_path / "run", cheat, harvest[1])
        header = run_dir / "checkpoint" / "header.json"
        header.write_text(header.read_text().replace(f'"model": "{harvest[1].model}"', '"model": "gpt2-xl"'))
        request = Score(run_dir=run_dir, model=harvest[1].model, hook_name=HOOK).model_dump_json()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hub")}
        evaluator = start("-P", "-m", "agent.lab.evaluation", "--serve", stdin=PIPE, **settings)
        _, err = evaluator.communicate(request + "\n", timeout=120)
        hub.shutdown()
    assert evaluator.returncode == 0, err
    assert results.read(run_dir).verdict.name == "not_comparable"
    assert not asked


def test_results_without_a_standard_error_still_load():
    figures = dict.fromkeys(results.Core.model_fields, 0.5) | {"tokens": 7}
    del figures["loss_added_standard_error"]
    assert results.Core.model_validate(figures).loss_added_standard_error is None
