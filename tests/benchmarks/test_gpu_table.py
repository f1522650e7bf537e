"""The table that benchmarks/gpu.sh writes: rehearsed on the CPU, at small sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from gpu_parts import machine, steps, study  # noqa: E402
from step import Size  # noqa: E402

from agent.study import ledger  # noqa: E402


def rehearsed(tmp_path: Path, *parts: str) -> list[list[str]]:
    """The cells of the rows that a rehearsal of some parts prints; its file holds the same."""
    ended = subprocess.run(
        [ROOT / "benchmarks/gpu.sh", "--rehearse", "--parts", ",".join(parts), tmp_path / "table.md"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "table.md").read_text() == ended.stdout
    head, rule, *rows = [[cell.strip() for cell in line.split(" | ")] for line in ended.stdout.splitlines()]
    assert {len(row) for row in rows} == {len(head)} == {len(rule)} == {4}
    assert [row[0].strip("| ") for row in rows if row[1] == "the whole part"] == list(parts)
    assert "NOT COMPLETE" not in ended.stdout
    return rows


def test_the_machine_is_described_with_its_rates(tmp_path: Path):
    figures = {what: figure for _, what, figure, _ in rehearsed(tmp_path, "machine")}
    assert float(figures["matrix product, tf32"].removesuffix(" TFLOP/s")) > 0
    assert float(figures["copy on the device"].removesuffix(" TB/s")) > 0


def test_a_part_that_takes_too_long_is_a_row_and_not_the_end(tmp_path: Path):
    *_, whole, last = gpu.carry_out("machine", 0.2, tmp_path / "log", rehearse=True)
    assert whole.what == "the whole part"
    assert (last.what, last.figure) == ("NOT COMPLETE", "stopped after 0 s")


def test_the_floor_is_that_of_the_slower_of_products_and_memory():
    size = Size(2304, 65_536, 320, rounds=1, steps=1, batch=4096)
    rates = machine.Rates(bfloat16=8e14, tf32=4e14, float32=5e13, memory=4e12)
    milliseconds, _ = steps.floor_of(size, rates)
    assert milliseconds == pytest.approx(5 * 2 * 4096 * 2304 * 65_536 / 4e14 * 1000)
    values = 23 * 2304 * 65_536 + 7 * 4096 * 65_536
    slow = machine.Rates(bfloat16=8e14, tf32=4e14, float32=5e13, memory=1e11)
    assert steps.floor_of(size, slow)[0] == pytest.approx(4 * values / 1e11 * 1000)


def test_a_study_is_told_from_its_ledger():
    events = ledger.read(ROOT / "tests/fixtures/version_0_1/llm_study/events.jsonl")
    rows = study.rows_of(events, events[0].time)
    assert any(re.fullmatch(r"run 1 done", row.what) for row in rows)
    assert rows[-1].what == "the study ended"
    assert all(re.fullmatch(r"after \d+ s", row.figure) for row in rows)


@pytest.mark.slow
def test_steps_harvest_and_tests_are_rehearsed(tmp_path: Path):
    rows = rehearsed(tmp_path, "steps", "harvest", "tests")
    named = " ".join(row[1] for row in rows)
    for expected in ("ours (TF32)", "SAELens' BatchTopK", "the floor", "ours: backward", "a harvest"):
        assert expected in named
    assert any(re.match(r"\d+ passed", row[2]) for row in rows)
