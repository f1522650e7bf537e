"""`--track wandb`: each run that has ended is logged once, by the driver, and a study never fails of it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import Checkout, make_checkout

from agent.lab import results
from agent.lab.errors import UserError
from agent.report import track
from agent.study.events import RunTracked

BLOCK, HEAD = 32768, 7  # bytes of a block of wandb's log, and of what stands before it and before each part
LAST_PARTS = (1, 4)  # a record that is whole, and the last part of one that is not


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def records(folder: Path) -> Iterator[Any]:
    """Yield the records of the file that wandb leaves of a run: LevelDB's log format, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    content, at, whole = file.read_bytes(), HEAD, b""
    while at + HEAD <= len(content):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole, at = whole + content[at + HEAD : at + HEAD + length], at + HEAD + length
        if kind in LAST_PARTS:
            yield Record.FromString(whole)
            whole = b""


def items(record: Any) -> dict[str, Any]:
    names = ["/".join(item.nested_key) or getattr(item, "key", "") for item in record]
    return {name: json.loads(item.value_json) for name, item in zip(names, record, strict=True)}


def logged(checkout: Checkout) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]]:
    """Return config, history and summary of each run, by wandb's id."""
    found = {}
    for folder in sorted(checkout.study.directory.glob("wandb/offline-run-*")):
        config, history, summary, name = {}, [], {}, ""
        for record in records(folder):
            match record.WhichOneof("record_type"):
                case "run":
                    name, config = record.run.run_id, config | items(record.run.config.update)
                    assert record.run.run_group == checkout.study.name
                case "history":
                    history.append(items(record.history.item))
                case "summary":
                    summary |= items(record.summary.update)
        assert name not in found
        found[name] = config, history, summary
    return found


@pytest.mark.slow
def test_each_run_is_logged_once_with_the_figures_that_the_study_has(checkout: Checkout):
    checkout.plan("fine", "denser", "nan")
    ended = checkout.agent(
        *("run", "--idea", "stand_in", "--max-runs", "2", "--baseline-seeds", "1", "--track", "wandb"),
        WANDB_MODE="offline",
    )
    assert ended.returncode == 0, ended.stderr
    found, name = logged(checkout), checkout.study.name
    assert list(found) == [f"{name}-run_{number}" for number in range(3)]
    for number, (config, history, summary) in enumerate(found.values()):
        info, rows = results.read(checkout.study.run_dir(number)), results.read_metrics(checkout.study.run_dir(number))
        assert [row.get("loss") for row in history] == [row.loss for row in rows]
        assert [row["_step"] for row in history] == [row.step for row in rows]
        assert summary.get("final/ce_loss_score") == info.metric("ce_loss_score")
        assert config["tokens"] == checkout.state.started.fixed.tokens
        assert config["title"] == checkout.state.runs[number].proposal.title
    assert [config["outcome"] for config, *_ in found.values()] == ["baseline", "not comparable", "not comparable"]
    events = [event for event in checkout.events if isinstance(event, RunTracked)]
    assert [event.run for event in events] == [0, 1, 2]

    ended = checkout.agent("resume", str(checkout.study.directory), "--max-runs", "3", WANDB_MODE="offline")
    assert ended.returncode == 0, ended.stderr
    found = logged(checkout)
    assert list(found) == [f"{name}-run_{number}" for number in range(4)]
    assert found[f"{name}-run_3"][0]["outcome"] == "nan"
    assert not found[f"{name}-run_3"][2].keys() & {"final/l0", "final/ce_loss_score"}


@pytest.mark.slow
def test_a_tracker_that_fails_costs_a_study_one_line(checkout: Checkout):
    checkout.plan("fine")
    run = ("run", "--idea", "stand_in", "--max-runs", "1", "--baseline-seeds", "1", "--track", "wandb")
    ended = checkout.agent(*run, WANDB_MODE="nonsense")
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if "the study goes on" in line]
    assert lines
    assert lines[-1].startswith("wandb has not logged run 0, 1, the study goes on: ")
    assert not checkout.state.tracked

    ended = checkout.agent("resume", str(checkout.study.directory), "--max-runs", "2", WANDB_MODE="offline")
    assert len(logged(checkout)) == 2


def test_without_wandb_it_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch):
    track.require(None)
    track.require("wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"^--track wandb: wandb is not installed: pip install -e '\.\[track\]'"):
        track.require("wandb")
