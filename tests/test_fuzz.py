"""Files that somebody changed by chance or by design: read, or refused in one line; never a traceback, never a hang.

Few mutations of each by default, 300 with `-m slow`.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import OK, PROPOSAL, STARTED, history, measured
from small_sae import Sae, activations, save

from agent import ideas
from agent.audit import audit, known_figures
from agent.commands.show import show
from agent.display.formatting import training_progress
from agent.ideas import Fixed
from agent.lab import checkpoint, results
from agent.lab.errors import UserError
from agent.lab.results import Comparison, MetricComparison
from agent.lab.verdicts import judge_metrics
from agent.llm import transcript
from agent.llm.limits import Limits, Spent
from agent.report import notes
from agent.study import ledger
from agent.study.events import (
    AttemptEnded,
    AttemptStarted,
    BaselineMeasured,
    EvaluationEnded,
    ProposalMade,
    RunCommitted,
    RunReserved,
    ScoredOnTest,
    StudyEnded,
)
from agent.study.ledger import Ledger
from agent.study.records import Baseline
from agent.study.workspace import Study, find_study

ROOT = Path(__file__).parent.parent
ODD = [
    *(0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.0, -0.0, 1e308, 5e-324, 0.1, float("nan"), float("inf"), True, None),
    *(
        "",
        "0",
        "nan",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "é" * 500,
        "../../etc/passwd",
        "{{ 1 }}",
        "run_1",
        "# Title",
    ),
    *([], [[]], [1, 2], {}, {"": {}}, {"a": [1]}),
]


def mutate_json(value: Any, chance: random.Random) -> Any:
    """Return a copy with one part replaced, removed, repeated or nested."""
    paths = list(_paths(value))
    if not paths:
        return chance.choice(ODD)
    value = json.loads(json.dumps(value))
    *above, last = chance.choice(paths)
    parent = value
    for key in above:
        parent = parent[key]
    match chance.randrange(5):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, list):
            parent.insert(last, parent[last])
        case 2 if isinstance(parent, dict):
            parent[chance.choice(["", "extra", "run", "\x1b"])] = parent[last]
        case 3 if isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
            parent[last] = -parent[last] if chance.random() < 0.5 else parent[last] + chance.choice([1, 1000])
        case _:
            parent[last] = chance.choice(ODD)
    return value


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*above, key)
        yield from _paths(part, (*above, key))


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a piece replaced, removed, repeated or moved."""
    start = chance.randrange(len(content) + 1)
    piece = content[start : start + chance.choice([1, 1, 2, 10, 100, 5000])]
    lines = content.split(b"\n")
    match chance.randrange(8):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + chance.randbytes(len(piece)) + content[start + len(piece) :]
        case 2:
            return content[:start] + content[start + len(piece) :]
        case 3:
            return content[:start] + piece * chance.choice([2, 50]) + content[start:]
        case 4:
            words = (
                b"{",
                b"}" * 99,
                b"[" * 3000,
                b"\n",
                b"\xff",
                b"\x00",
                b"9" * 400,
                b"\n# Run 9\n",
                b": ",
                b"'",
                b"|",
            )
            return content[:start] + chance.choice(words) + content[start:]
        case 5:
            chance.shuffle(lines)
        case 6:
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
        case 7:
            del lines[chance.randrange(len(lines))]
    return b"\n".join(lines)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of two runs with a comparison, a failed attempt's verdict, its figures and its notes."""
    root = tmp_path_factory.mktemp("fuzz")
    study = Study(root / "runs/study", root / "notes/study")
    study.directory.mkdir(parents=True)
    record = Ledger(study.ledger)
    record.append(STARTED.model_copy(update={"max_runs": 2}))
    compared = MetricComparison(
        value=0.96, reference=0.94, noise=0.001, standard_error=0.001, df=4, half_width=0.003, p=0.01
    )
    for number in (0, 1):
        info = measured(16.0, 0.8, 0.94 + 0.02 * number, 0.9, 0.7)
        if number:
            info.comparison = Comparison(levels=[15.0, 17.0], seeds=5, metrics={"ce_loss_score": compared})
        history(study.run_dir(number), info)
        results.write(study.run_dir(number), info)
        record.append(ProposalMade(run=number, proposal=PROPOSAL))
        record.append(RunReserved(run=number))
        record.append(AttemptStarted(run=number, attempt=1))
        record.append(AttemptEnded(run=number, attempt=1, verdict=None, seconds=3.0))
        record.append(EvaluationEnded(run=number, attempt=1, verdict=OK, seconds=3.0))
        record.append(RunCommitted(run=number, verdict=OK))
        if number == 0:
            for k, seed in ((16, 0), (16, 1), (15, 0), (17, 0)):
                figures: dict[str, float | None] = {
                    "l0": k + 0.1 * seed,
                    "ce_loss_score": 0.94 + 0.001 * (k - 16 + seed),
                }
                record.append(
                    BaselineMeasured(baseline=Baseline(k=k, seed=seed, figures=figures), verdict=OK, seconds=1.0)
                )
    record.append(ScoredOnTest(run=1, figures={"ce_loss_score": 0.9}))
    record.append(StudyEnded(why="done"))
    notes.write(study, record.state)
    return study


def copy(study: Study, directory: Path) -> Study:
    shutil.copytree(study.directory, directory / "runs/study")
    shutil.copytree(study.notes, directory / "notes/study")
    return Study(directory / "runs/study", directory / "notes/study")


def read_or_refused(read: Callable[[], object]) -> bool:
    """Return True if the file was read, False if it was refused in one line."""
    with suppress(UserError):
        read()
        return True
    return False


@pytest.fixture(params=[25, pytest.param(300, marks=pytest.mark.slow)], ids=["few", "many"])
def times(request: pytest.FixtureRequest) -> int:
    return request.param


def fuzz(times: int, seed: str, content: bytes, path: Path, read: Callable[[], object]) -> None:
    """Write mutations of a file and read each of them."""
    value = None
    with suppress(ValueError):
        value = json.loads(content)
    outcomes = set()
    for number in range(times):
        chance = random.Random(f"{seed} {number}")
        structured = value is not None and chance.random() < 0.7
        changed = dumped(mutate_json(value, chance)) if structured else mutate_bytes(content, chance)
        path.write_bytes(changed)
        outcomes.add(read_or_refused(read))
    assert False in outcomes, "no mutation was refused: the file is not read"


@pytest.mark.timeout(300)
def test_results(times: int, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copied = copy(study, tmp_path)
    path = copied.run_dir(1) / "final_info.json"

    def read() -> None:
        for directory in (copied.run_dir(1), copied.directory):
            read_or_refused(partial(show, directory))
            assert "\x1b" not in capsys.readouterr().out
        read_or_refused(lambda: known_figures.from_directory(copied.directory))
        results.read(path.parent)

    fuzz(times, "results", path.read_bytes(), path, read)


@pytest.mark.timeout(300)
def test_metrics(times: int, study: Study, tmp_path: Path):
    path = copy(study, tmp_path).run_dir(1) / "metrics.jsonl"
    lines = path.read_bytes().splitlines()[:3]

    def read() -> None:
        rows = results.read_metrics(path.parent)
        judge_metrics(rows)
        training_progress("run 1", rows, 1_000_000)

    for number in range(times):
        chance = random.Random(f"metrics {number}")
        changed = [*lines[:2], dumped(mutate_json(json.loads(lines[2]), chance))]
        content = b"\n".join(changed) + b"\n"
        path.write_bytes(mutate_bytes(content, chance) if number % 2 else content)
        read_or_refused(read)


def signed(bodies: list[Any]) -> bytes:
    """Return a ledger of these events, each line with the checksum that belongs to it."""
    check, lines = b"", []
    for body in bodies:
        if not isinstance(body, dict):
            body = {"event": body}
        content = dumped({name: value for name, value in body.items() if name != "check"})[:-1]
        check = ledger._checksum(check, content)
        lines.append(content + b',"check":"' + check + b'"}')
    return b"\n".join(lines) + b"\n"


def write_notes(study: Study) -> None:
    if found := find_study(study.directory):
        notes.write(*found)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["bytes", "signed anew"])
def test_ledger(times: int, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str):
    copied = copy(study, tmp_path)
    content = copied.ledger.read_bytes()
    bodies = [json.loads(line) for line in content.splitlines()]
    for number in range(times):
        chance = random.Random(f"ledger {kind} {number}")
        copied.ledger.write_bytes(
            mutate_bytes(content, chance) if kind == "bytes" else signed(mutate_json(bodies, chance))
        )
        read_or_refused(partial(show, copied.directory))
        assert "\x1b" not in capsys.readouterr().out
        if number % 5 == 0:  # figures take time
            read_or_refused(partial(write_notes, copied))


@pytest.mark.timeout(300)
def test_notes(times: int, study: Study, tmp_path: Path):
    copied = copy(study, tmp_path)
    path = copied.notes / "notes.txt"
    known = known_figures.from_directory(copied.directory)

    def read() -> None:
        audit.findings(audit.read(path))
        audit.findings(audit.read(path), known)

    content = path.read_bytes()
    for number in range(times):
        path.write_bytes(mutate_bytes(content, random.Random(f"notes {number}")))
        read_or_refused(read)


@pytest.mark.timeout(300)
def test_idea(times: int, tmp_path: Path):
    source = ROOT / "templates"
    shutil.copytree(source / "ideas/matryoshka_sae", tmp_path / "ideas/matryoshka_sae")
    shutil.copytree(source / "baselines", tmp_path / "baselines")
    path = tmp_path / "ideas/matryoshka_sae/idea.yaml"

    def read() -> None:
        idea = ideas.load("matryoshka_sae", tmp_path)
        for step in idea.plan:
            ideas.render_step(idea, step, Fixed(), tmp_path)

    fuzz(times, "idea", path.read_bytes(), path, read)


@pytest.mark.timeout(300)
def test_transcript(times: int, tmp_path: Path):
    path = tmp_path / "transcript.jsonl"
    recorded = (ROOT / "tests/fixtures/version_0_1/llm_study/transcript.jsonl").read_bytes().splitlines()[0]

    def read() -> None:
        exchanges = transcript.read(path)
        transcript.outcomes(exchanges)
        Spent.sum_of(exchanges, Limits())

    for number in range(times):
        chance = random.Random(f"transcript {number}")
        changed = dumped(mutate_json(json.loads(recorded), chance)) + b"\n"
        path.write_bytes(mutate_bytes(recorded + b"\n" + changed, chance) if number % 2 else changed)
        read_or_refused(read)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["header.json", "encode.json", "tensors.safetensors"])
def test_checkpoint(times: int, tmp_path: Path, name: str):
    sae = Sae()
    folder = save(tmp_path / "checkpoint", sae.row_topk, sae)

    def read() -> None:
        checkpoint.check_behaviour(checkpoint.load(folder), activations(64))

    fuzz(times, f"checkpoint {name}", (folder / name).read_bytes(), folder / name, read)
