"""Studies for the tests of the review page: made by hand, with hostile text wherever somebody else writes."""

import base64
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from builders import OK, PROPOSAL, STARTED, history, measured

from agent.comparison import matching
from agent.comparison.brackets import Brackets
from agent.comparison.matching import all_metrics
from agent.lab import features, results
from agent.lab.features import Context, Feature, Features, Neighbour, TrueFeature, Turnover
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.llm.transcript import Exchange
from agent.study import digests, ledger
from agent.study.events import (
    AttemptEnded,
    AttemptStarted,
    BaselineMeasured,
    Event,
    LanguageModel,
    ProposalMade,
    RunCommitted,
    RunCompared,
    RunReserved,
    StudyEnded,
    StudyStarted,
)
from agent.study.ledger import Ledger
from agent.study.records import Baseline, Proposal
from agent.study.workspace import Study

RUN_SCRIPT = "<script>window.hacked = 'title'</script>"
HOSTILE = (
    "<img src=x onerror=\"window.hacked='img'\">",
    "</script><script>window.hacked = 'token'</script>",
    "<!--<script>",
    "{{ 7*7 }}{% raw %}",
    "\u202egnp.exe",
    "\x1b[2J\x1b]0;owned\x07",
    "javascript:alert(1)",
)
TITLES = ("Baseline", f"Tiers {RUN_SCRIPT}", "Slower {{ 7*7 }}", "Longer \u202edesrever", "Crashing")
FIGURES = (
    (16.29, 0.8445, 0.9623, 0.98, 0.671),
    (16.27, 0.8418, 0.9607, 0.98, 0.674),
    (16.25, 0.7928, 0.9437, 0.70, 0.672),
    (16.17, 0.8825, 0.9780, 0.95, 0.660),
)
LATENTS, D_IN = 40, 16
TOKENS = (" the", " river", " bank", "\n", " king", *(f" {text}" for text in HOSTILE))
BASELINE_SOURCE = '"""An experiment."""\n\nK = 16\nSPEED = 1  # "</script>"\n'


def make_study(root: Path, name: str = "study", **changes: object) -> Study:
    """Make a study of four runs that count and one that crashed, with features and without a language model."""
    study = Study(root / "runs" / name, root / "notes" / name)
    study.directory.mkdir(parents=True)
    events: list[Event] = [STARTED.model_copy(update={"title": f"A study {RUN_SCRIPT}", "max_runs": 4, **changes})]
    baselines = [
        baseline(k, seed) for k, seed in ((8, 0), (15, 0), (17, 0), (32, 0), *((16, seed) for seed in range(5)))
    ]
    events += [BaselineMeasured(baseline=each, verdict=OK, seconds=1) for each in baselines]
    for number, figures in enumerate(FIGURES):
        events += finished_run(study, number, measured(*figures), baselines)
        features.write(study.run_dir(number), some_features(number))
    events += crashed_run(study, len(FIGURES))
    write_ledger(study, [*events, StudyEnded(why="the budget of 4 runs is spent")])
    return study


def many_runs(root: Path, count: int) -> Study:
    """Make a study of very many runs with features."""
    study = Study(root / "runs/many", root / "notes/many")
    study.directory.mkdir(parents=True)
    baselines = [baseline(k, seed) for k, seed in ((15, 0), (17, 0), *((16, seed) for seed in range(5)))]
    events: list[Event] = [STARTED.model_copy(update={"max_runs": count - 1})]
    events += [BaselineMeasured(baseline=each, verdict=OK, seconds=1) for each in baselines]
    for number in range(count):
        events += finished_run(study, number, measured(*FIGURES[number % len(FIGURES)]), baselines)
        features.write(study.run_dir(number), some_features(number))
    write_ledger(study, events)
    return study


def write_ledger(study: Study, events: Sequence[Event]) -> None:
    study.directory.mkdir(parents=True, exist_ok=True)
    record = Ledger(study.ledger)
    for event in events:
        record.append(event)


def baseline(k: int, seed: int) -> Baseline:
    noise, doublings = (0.0, 0.7, -1.2, 1.1, -0.6)[seed], (k - 16) / 16
    info = measured(1.018 * k, 0.8445 + 0.05 * doublings + 0.0005 * noise, 0.9623 + 0.0003 * noise, 0.98, 0.671)
    return Baseline(k=k, seed=seed, figures=all_metrics(info))


def proposal(number: int) -> Proposal:
    source = BASELINE_SOURCE if number == 0 else BASELINE_SOURCE.replace("SPEED = 1", f"SPEED = {number + 1}")
    told = {"name": f"p{number}", "title": TITLES[number % len(TITLES)], "source": source}
    return PROPOSAL.model_copy(update={**told, "why": f"Why {HOSTILE[0]}", "description": f"What {HOSTILE[3]}"})


def finished_run(study: Study, number: int, info: FinalInfo, baselines: Sequence[Baseline]) -> list[Event]:
    """Write the files of a run that counts, and return its events."""
    directory = study.run_dir(number)
    history(directory, info)
    info = info.model_copy(update={"analysis": {"tier_0_l0_share": 0.5, "made_up": 0.25}} if number else {})
    results.write(directory, info)
    events: list[Event] = [
        ProposalMade(run=number, proposal=proposal(number)),
        RunReserved(run=number),
        AttemptStarted(run=number, attempt=1),
        AttemptEnded(run=number, attempt=1, verdict=None, seconds=60),
        RunCommitted(run=number, verdict=OK, digests=recorded(study, number)),
    ]
    comparison = matching.compare(info, Brackets(baselines))
    return events if number == 0 else [*events, RunCompared(run=number, comparison=comparison)]


def crashed_run(study: Study, number: int) -> list[Event]:
    """Write a run that crashed twice, with logs of many megabytes."""
    verdict, events = Verdict(name="crashed", evidence=f"ValueError: {HOSTILE[0]}"), []
    events.append(ProposalMade(run=number, proposal=proposal(number)))
    events.append(RunReserved(run=number))
    for attempt, directory in ((1, study.attempt_dir(number, 1)), (2, study.run_dir(number))):
        directory.mkdir()
        (directory / "stderr.log").write_text("noise\n" * 200_000 * attempt + "".join(f"{each}\n" for each in HOSTILE))
        events.append(AttemptStarted(run=number, attempt=attempt))
        events.append(AttemptEnded(run=number, attempt=attempt, verdict=verdict, seconds=1))
        events += [ProposalMade(run=number, proposal=proposal(number))] if attempt == 1 else []
    results.write(study.run_dir(number), FinalInfo(verdict=verdict))
    return [*events, RunCommitted(run=number, verdict=verdict, digests=recorded(study, number))]


def recorded(study: Study, number: int) -> dict[str, str]:
    names = [f"run_{number}/{name}" for name in ("final_info.json", "metrics.jsonl")]
    return {name: digest for name in names if (digest := digests.of_file(study.directory / name))}


def some_features(number: int) -> Features:
    """Return 40 latents whose decoder rows are those of run 0, reordered; the first ten of other runs are new."""
    chance, base = random.Random(number), np.random.default_rng(0).standard_normal((LATENTS, D_IN))
    rows = base / np.linalg.norm(base, axis=1, keepdims=True)
    if number:
        rows = rows[::-1].copy()
        rows[:10] = np.random.default_rng(number).standard_normal((10, D_IN))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(
        text="the dev split",
        tokens=64_000,
        d_sae=1024,
        alive=900,
        sampled=list(range(0, 2 * LATENTS, 2)),
        features=[_feature(number, place, chance) for place in range(LATENTS)],
        W_dec=base64.b64encode(rows.astype("<f2").tobytes()).decode(),
        turnover=[
            Turnover(of=f"run {number} and the baseline", compared=40, appeared=0.43, lost=0.41),
            Turnover(of="two seeds of the baseline", compared=40, appeared=0.38, lost=0.39),
        ]
        if number
        else [],
    )


def _feature(number: int, place: int, chance: random.Random) -> Feature:
    fired, most = (3, 1.5) if place == 5 else (50 + place, 10.0 - place / 10)
    target = TOKENS[place % len(TOKENS)]

    def context(strength: float) -> Context:
        tokens = [chance.choice(TOKENS) for _ in range(12)]
        tokens[6] = target
        return Context(tokens=tokens, activations=[0.0] * 5 + [strength / 3, strength] + [0.0] * 5, peak=6)

    counterpart = Neighbour(latent=2 * (LATENTS - 1 - place), value=1.0)  # the rows of run 0 are turned round
    if place < 10:
        counterpart = Neighbour(latent=777, value=0.3)  # new here, and its closest in run 0 was not kept
    return Feature(
        latent=2 * place,
        labels=[f"tier 1 {HOSTILE[0]}", "composed of 4"] if place == 7 else [],
        related=[4] if place == 7 else [],
        fired=fired,
        density=fired / 64_000,
        max_activation=most,
        histogram=[20, 10, 5, 1],
        top=[context(most), context(most / 1.1)],
        spread=[context(most / 4)],
        promoted=[(target, 2.5)],
        suppressed=[(" not", -1.0)],
        near=[Neighbour(latent=2, value=0.8), Neighbour(latent=999, value=0.5)],
        fires_with=[Neighbour(latent=4, value=0.3)],
        true_feature=TrueFeature(feature=11, cosine=0.9, f1=0.8, parents=[3, 1]) if place == 1 else None,
        in_baseline=counterpart if number else None,
    )


def converse(study: Study) -> None:
    """Give a study a language model and the exchanges that led to its runs, in a ledger written anew."""
    started, *others = ledger.read(study.ledger)
    assert isinstance(started, StudyStarted)
    study.ledger.unlink()
    model = LanguageModel(model="scripted", prices=(1, 2))
    write_ledger(study, [started.model_copy(update={"language_model": model, "seq": 0})])
    time, lines = datetime.now(UTC) - timedelta(days=1), []
    system = {"role": "system", "content": "You study SAEs. " + "Long. " * 500}
    for number, purpose in enumerate(("plan", "proposal", "description")):
        answer = "\n".join(["## Reasoning", *HOSTILE, "[a](javascript:alert(1)) ![b](http://example.org/x.png)"])
        answer += "\n\n## Edits\n<<<<<<< SEARCH\nSPEED = 1\n=======\nSPEED = 2\n>>>>>>> REPLACE\n"
        messages = [system, {"role": "user", "content": f"Request {number} <b>bold</b>"}]
        told = {"seq": number, "time": time, "purpose": purpose, "model": "scripted", "window": 1000}
        usage = {"tokens_in": 1000, "tokens_out": 50}
        exchange = Exchange.model_validate(
            {**told, "messages": messages, "answer": answer, "usage": usage, "cost": 0.25}
        )
        lines.append(exchange.model_dump_json(exclude_none=True) + "\n")
    study.transcript.write_text("".join(lines))
    write_ledger(study, [event.model_copy(update={"seq": 0}) for event in others])
