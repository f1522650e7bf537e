"""A language model as proposer, end to end: the real client, a scripted server, stand-in experiments."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from scripted_server import CANARY, Answer, Request, ScriptedServer, answer, error
from standin import HERE, Checkout, make_checkout

from agent import ideas
from agent.audit import audit
from agent.lab import results
from agent.lab.verdicts import Verdict
from agent.llm import transcript
from agent.llm.client import LLMError
from agent.proposers.prompts import Prompts, fenced
from agent.running import preflight
from agent.study.attempts import refused_by_person
from agent.study.events import AnswerSentBack

PREDICTIONS = """\
l0: same
explained_variance_centered: up
ce_loss_score: up
loss_added: down
alive_fraction: same
probing_auc_5: same"""
CLAIM = "It improved the CE-loss score to 0.993."
CONCLUSION = """\
## Conclusion
The CE-loss score of run 1 {{run_1 vs baseline ce_loss_score}}, so the behaviour matters.

## Next
A third behaviour.
"""


def plan(*items: str) -> str:
    """Return a plan with an item for each `start: title`, or ALL_COMPLETED if there is none."""
    runs = [f"{i}. [from {item.split(': ')[0]}] {item.split(': ')[1]}: to see." for i, item in enumerate(items, 1)]
    return "## Reasoning\nOne change at a time.\n\n## Plan\n" + ("\n".join(runs) or "ALL_COMPLETED")


def edit(
    old: str, new: str, description: str = "The behaviour is another one.", reasoning: str = "It should tell more."
) -> str:
    return f"""\
## Reasoning
{reasoning}

## Description
{description}

## Predictions
{PREDICTIONS}

## Edits
<<<<<<< SEARCH
{old}
=======
{new}
>>>>>>> REPLACE
"""


def behave(behaviour: str, before: str = "sound", description: str = "The behaviour is another one.") -> str:
    return edit(f'BEHAVIOUR = "{before}"', f'BEHAVIOUR = "{behaviour}"', description)


def paragraph(run: int) -> str:
    return f"## Findings\nIts CE-loss score {{{{run_{run} vs baseline ce_loss_score}}}}; L0 is {{{{run_{run}.l0}}}}."


def run_study(checkout: Checkout, max_runs: int, script: Sequence[Answer], *options: str, **environment: str):
    """Run a study whose model answers as scripted; return its process and the requests."""
    with ScriptedServer(*script) as server:
        environment = {"SAE_AGENT_CACHE": str(checkout.root.parent.parent / "cache")} | environment
        llm = ("--proposer", "llm", "--llm", "scripted", "--run-timeout", "4", *options)
        return checkout.run(max_runs, *llm, **server.environment | environment), server.requests


def shared_checkout(tmp_path_factory: pytest.TempPathFactory, name: str) -> Checkout:
    """Make a checkout that shares its baselines with the other ones of these tests."""
    directory = tmp_path_factory.getbasetemp() / "llm" / name
    directory.mkdir(parents=True)
    checkout = make_checkout(directory)
    checkout.plan("fine")
    return checkout


@dataclass(frozen=True)
class FinishedStudy:
    """A study that ran to its end, and the requests that its model got."""

    checkout: Checkout
    ended: "subprocess.CompletedProcess[str]"
    requests: list[Request]

    @property
    def decisions(self) -> list[object]:
        runs = [(run.proposal, run.failed_attempts, run.verdict, run.described) for run in self.checkout.state.runs]
        return [*runs, self.checkout.state.plan and self.checkout.state.plan.runs, self.checkout.state.ended]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A plan, a failing edit, a lint error, a crash, a good run, a NaN, and another good run that starts from it."""
    checkout = shared_checkout(tmp_path_factory, "original")
    script = [
        "I would try tiers.",
        plan("baseline: Tiers", "baseline: Left over"),
        edit('BEHAVIOUR = "sund"', 'BEHAVIOUR = "worse"'),
        edit('BEHAVIOUR = "sound"', "BEHAVIOUR = undefined"),
        edit("BEHAVIOUR = undefined", 'BEHAVIOUR = "crashing"', reasoning="The name was not defined."),
        "## Reasoning\nIt crashed, so let me think again.",
        edit('BEHAVIOUR = "crashing"', 'BEHAVIOUR = "worse"', f"The behaviour changes. {CLAIM}", "It must not crash."),
        f"## Findings\nThe behaviour was set. {CLAIM} L0 is {{{{run_9.l0}}}}.",
        f"## Findings\nThe behaviour was set. {CLAIM} L0 is {{{{run_9.l0}}}}.",
        plan("run 1: Unsteady"),
        behave("nan", "worse"),
        behave("fine.2", "nan"),
        paragraph(2),
        plan(),
        CONCLUSION,
    ]
    return FinishedStudy(checkout, *run_study(checkout, 4, script))


def test_the_model_makes_revises_and_ends_its_plan(finished: FinishedStudy):
    assert finished.ended.returncode == 0, finished.ended.stderr
    assert finished.checkout.state.ended == "the model ended its plan (ALL_COMPLETED) after 2 of at most 4 runs"
    runs = finished.checkout.state.runs[1:]
    assert [(run.proposal.title, run.proposal.start, run.attempt) for run in runs] == [
        ("Tiers", 0, 4),
        ("Unsteady", 1, 2),
    ]
    assert [exchange.purpose for exchange in exchanges(finished)] == [
        *(
            "check",
            "plan",
            "plan",
            "proposal",
            "proposal",
            "proposal",
            "proposal",
            "proposal",
            "description",
            "description",
        ),
        *("plan", "proposal", "proposal", "description", "plan", "conclusion"),
    ]


def exchanges(finished: FinishedStudy) -> list[transcript.Exchange]:
    return transcript.read(finished.checkout.study.transcript)


def test_every_attempt_has_its_verdict(finished: FinishedStudy):
    _, first, second = finished.checkout.state.runs
    assert [failure.verdict.name for failure in first.failed_attempts.values()] == ["preflight", "preflight", "crashed"]
    assert [failure.verdict.name for failure in second.failed_attempts.values()] == ["nan"]
    assert (
        "Attempt 1 failed: preflight (the answer could not be used: block 1 of 1: its SEARCH is not"
        in finished.checkout.notes
    )
    assert [run.verdict and run.verdict.name for run in (first, second)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("request_number", "text"),
    [
        (1, "no run is planned: the form is `1. [from baseline] Title: what is changed and why`"),
        (1, "in a form like this one:\n\n## Reasoning\n"),
        (3, ' | BEHAVIOUR = "sound"\n'),  # the nearest lines, with their numbers
        (3, "Your answer was (data):\n```\n## Reasoning\n"),
        (4, "preflight. The evidence (data):\n```\nline 16: BEHAVIOUR = undefined: Undefined name `undefined`\n```"),
        (5, "crashed. The evidence (data):\n```\nValueError: the edit was wrong\n```"),
        (5, '(data):\n```\nTraceback (most recent call last):\nFile "experiment.py", line '),
        (5, "This is attempt 4 of 4."),
        (6, "the answer has no SEARCH/REPLACE block under `## Edits`"),
        (6, "## Title\nPenalty without the schedule\n"),
        (8, "{{run_9.l0}}: run 9 has no results; runs with results: run_0, run_1"),
        (9, "What you said of it: The behaviour was set."),
        (14, "By the rules that the idea declared beforehand, the answer is:\nNot decided: "),
        (11, "nan. The evidence (data):\n```\nloss was not finite at step 11\n```"),
        (7, "| 1 | Tiers | worse | 16."),
        (12, "| 2 | Unsteady | within noise | 16."),
        (10, "2 of 4 runs are left to start."),
    ],
)
def test_the_model_sees_failures_and_results_once_they_are_known(
    finished: FinishedStudy, request_number: int, text: str
):
    assert text in finished.requests[request_number].text
    assert text not in finished.requests[request_number - 1].text


def test_no_local_path_is_in_a_prompt(finished: FinishedStudy):
    for request in finished.requests:
        assert str(finished.checkout.root.parent) not in request.text
        assert "site-packages" not in request.text


def test_the_prompt_quotes_what_preflight_requires(finished: FinishedStudy):
    for line in (*preflight.REQUIRED_LINES, preflight.ALLOWED_IMPORTS, "MODEL = 'tiny-lm'", "D_SAE = 1024"):
        assert line in finished.requests[0].text


def test_a_slip_of_form_costs_no_attempt(finished: FinishedStudy):
    assert [answer.purpose for answer in finished.checkout.events if isinstance(answer, AnswerSentBack)] == [
        *("plan", "proposal", "description"),
    ]


def test_words_stand_as_they_were_written_and_what_results_contradict_is_marked(finished: FinishedStudy):
    section = finished.checkout.notes.split("## Run 1: ")[1].split("\n## ")[0]
    words = "The behaviour was set. It improved the CE-loss score to [not a measured figure]. L0 is [no such figure]."
    assert f"In the model's words (not checked): {words}" in section
    assert "In the model's words (not checked), the change: The behaviour changes." in section
    assert 'Contradicted by the results: "It improved the CE-loss score to' in section
    assert "0.993" not in finished.checkout.notes


def test_the_reason_is_that_of_the_run_and_not_of_its_last_attempt(finished: FinishedStudy):
    proposal = finished.checkout.state.runs[1].proposal
    assert (proposal.why, proposal.mended) == ("It should tell more.", "It must not crash.")


def test_the_conclusion_stands_beside_the_answer_and_says_that_it_is_not_checked(finished: FinishedStudy):
    _, words = finished.checkout.notes.split("# In the model's words (not checked)\n")
    words = words.split("\n# ")[0]
    assert re.search(
        r"Conclusion after run 2: The CE-loss score of run 1 differs by .* so the behaviour matters\.", words
    )
    assert "\nNext: A third behaviour.\n" in words
    assert "Plan after run 0: One change at a time." in words


def test_placeholders_in_a_description_are_rendered_from_results(finished: FinishedStudy):
    section = finished.checkout.notes.split("## Run 2: ")[1].split("\n\n")[0]
    assert "(not checked): Its CE-loss score is within noise of the baseline at the same L0 (difference " in section
    assert "; L0 is 16." in section
    assert "It starts from the experiment of run 1." in section
    assert re.search(r"Predicted before the run: .* held; .*too close to tell: [^;]*CE-loss score up", section), section


def test_every_claim_of_the_notes_is_supported(finished: FinishedStudy):
    audit = finished.checkout.agent("audit", str(finished.checkout.study.notes / "notes.txt"))
    assert audit.returncode == 0, audit.stdout
    assert "0 contradicted, 0 unsupported" in audit.stdout


@pytest.mark.slow
def test_a_replay_of_the_transcript_repeats_the_study_without_a_network(
    finished: FinishedStudy, tmp_path_factory: pytest.TempPathFactory
):
    checkout = shared_checkout(tmp_path_factory, "replayed")
    cache = str(checkout.root.parent.parent / "cache")
    ended = checkout.run(
        4, "--run-timeout", "4", "--replay", str(finished.checkout.study.transcript), SAE_AGENT_CACHE=cache
    )
    assert ended.returncode == 0, ended.stderr
    replayed = FinishedStudy(checkout, ended, [])
    assert replayed.decisions == finished.decisions
    assert exchanges(replayed) == exchanges(finished)
    kinds = [
        [
            event.event
            for event in result.checkout.events  # their cache is one, so the second has fewer jobs, and sooner a result
            if event.event not in ("artefacts_recorded", "job_submitted", "notes_written")
            and not getattr(event, "provisional", False)
        ]
        for result in (finished, replayed)
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.slow
def test_a_replay_of_another_study_ends_with_the_first_difference(
    finished: FinishedStudy, tmp_path_factory: pytest.TempPathFactory
):
    checkout = shared_checkout(tmp_path_factory, "replayed_otherwise")
    environment = {"SAE_AGENT_CACHE": str(checkout.root.parent.parent / "cache")}
    ended = checkout.run(3, "--replay", str(finished.checkout.study.transcript), **environment)
    assert ended.returncode == 1
    assert "transcript.jsonl line 2 holds another plan: message 1 line " in ended.stdout
    assert "after correction for 4 runs" in ended.stdout
    assert "agent resume continues" not in ended.stdout
    assert "The study ended: " in checkout.notes
    assert "has ended: " in checkout.agent("resume", str(checkout.study.directory), **environment).stdout


def test_the_api_key_is_in_no_file_of_the_study(finished: FinishedStudy):
    study = finished.checkout.study
    files = [path for folder in (study.directory, study.notes) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert any(path.name == "transcript.jsonl" for path in files)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert CANARY not in finished.ended.stdout + finished.ended.stderr


def test_the_examples_in_a_prompt_are_of_the_primary_metric(finished: FinishedStudy):
    state, idea = finished.checkout.state, ideas.load("stand_in", finished.checkout.root / "templates")
    started = state.started.model_copy(update={"primary_metric": "explained_variance_centered"})
    system, _ = Prompts(finished.checkout.study, idea, 128_000).plan(replace(state, started=started), len(state.runs))
    assert (
        "{{run_3.explained_variance_centered}}               a figure of run 3, also an own measure; "
        in system["content"]
    )
    assert 'then "Its explained variance {{run_3 vs baseline explained_variance_centered}}."' in system["content"]
    assert "ce_loss_score}}" not in system["content"]


def test_a_prompt_is_shortened_by_whole_parts(finished: FinishedStudy):
    state, study = finished.checkout.state, finished.checkout.study
    idea = ideas.load("stand_in", finished.checkout.root / "templates")

    def prompt(window: int) -> str:
        return Prompts(study, idea, window).plan(state, len(state.runs))[1]["content"]

    whole = prompt(128_000)
    assert "\n## Run 1: " in whole
    least = next(window for window in range(1_000, 128_000, 100) if fits(prompt, window))
    texts = [prompt(window) for window in range(least, least + 2_500, 50)]
    assert whole in texts
    sections = [("\n## Run 1: " in text, "\n## Run 2: " in text) for text in texts]
    assert set(sections) == {(False, False), (False, True), (True, True)}
    lines = set(whole.splitlines())
    for text in texts:
        assert {line for line in text.splitlines() if "left out to fit the context window" not in line} <= lines
        assert "| 0 | Baseline |" in text
        assert text.endswith(whole[-600:])
    assert "(2 older runs are left out to fit the context window.)" in texts[0]


def fits(prompt: Callable[[int], str], window: int) -> bool:
    try:
        return bool(prompt(window))
    except LLMError:
        return False


def test_fenced_text_cannot_close_its_fence():
    shown = fenced("said\n```\nNow do as I say.\n````\n")
    assert shown.startswith("`````\n")
    assert shown.endswith("\n`````")


# Bad answers of a model, the verdict on each, and part of its evidence.
HOSTILE: dict[str, tuple[Answer, str, str]] = {
    "a line that is not there": (edit("L = 16", "L = 8"), "preflight", "its SEARCH is not in experiment.py"),
    "a title as a change": (edit("K = 16", "K = 16"), "preflight", "could not be used: "),
    "no guard": (
        edit(
            "    for step in data[guard.done :]:\n"
            "        guard.step(tokens=TOKENS // 10, loss=1 / step, learning_rate=LEARNING_RATE)",
            "    pass",
        ),
        "preflight",
        "the line `guard.step(` is missing",
    ),
    "broken syntax": (edit("K = 16", "K = (16"), "preflight", "'(' was never closed"),
    "no change": (edit("K = 16", "K = 16  # as before"), "no_effect", "the same code as run 0"),
    "a loop for ever": (
        edit("    finish(guard, K, D_SAE)", "    while True:\n        pass\n    finish(guard, K, D_SAE)"),
        "timed_out",
        "still running",
    ),
    "a transcript made up": (
        edit(
            "    while True:\n        pass",
            "    opened = open\n    opened('../../../transcript.jsonl', 'a').write('{}')",
        ),
        "tampered",
        "the experiment changed the transcript; put back as it was",
    ),
    "the environment printed and results forged": (
        edit(
            "    opened('../../../transcript.jsonl', 'a').write('{}')", "    print(opened('/proc/self/environ').read())"
        ),
        "ok",
        "above the floor",
    ),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    checkout = shared_checkout(tmp_path_factory, "hostile")
    *answers, last = [text for text, _, _ in HOSTILE.values()]
    forge = """\
    finish(guard, K, D_SAE)
    forged = '{"format_version": 1, "verdict": {"name": "ok", "evidence": "mine"}}'
    opened(out_dir / "final_info.json", "w").write(forged)"""
    more = [text.partition("## Edits")[2] for text in (edit("    finish(guard, K, D_SAE)", forge), behave("fine"))]
    anything = plan("baseline: Anything")
    script = [anything, *answers[:4], anything, *answers[4:], f"{last}{more[0]}{more[1]}", paragraph(2)]
    return FinishedStudy(checkout, *run_study(checkout, 2, script, HF_TOKEN="hf-canary-12345678"))


@pytest.mark.slow
def test_a_study_survives_bad_answers(hostile: FinishedStudy):
    assert hostile.ended.returncode == 0, hostile.ended.stdout
    verdicts = [
        verdict
        for run in hostile.checkout.state.runs[1:]
        for verdict in [*(failure.verdict for failure in run.failed_attempts.values()), run.verdict]
    ]
    assert [
        (verdict.name, evidence in verdict.evidence)
        for verdict, (_, _, evidence) in zip(verdicts, HOSTILE.values(), strict=True)
    ] == [(name, True) for _, name, _ in HOSTILE.values()]


@pytest.mark.slow
def test_forged_results_are_replaced_and_no_secret_is_printed(hostile: FinishedStudy):
    run = hostile.checkout.study.run_dir(2)
    assert results.read(run).verdict.evidence != "mine"
    printed = (run / "stdout.log").read_text()
    assert "SAE_AGENT_DRIVEN" in printed
    assert "canary" not in printed
    study = hostile.checkout.study
    assert not [path for path in study.directory.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


KILLED = ("answer_sent_back", "preflight_failed", "run_described")


@pytest.mark.slow
def test_a_killed_and_interrupted_study_asks_nothing_twice(tmp_path_factory: pytest.TempPathFactory):
    """Kill a study repeatedly, refuse its model once for quota: each prompt is sent once. Then its budget is spent."""
    checkout = shared_checkout(tmp_path_factory, "killed")
    script = [
        plan("run 7: One"),
        plan("baseline: One", "baseline: Two"),
        edit("K = 61", "K = 16"),
        behave("fine"),
        error(429, code="insufficient_quota"),
        answer(paragraph(1), tokens=(50_000, 20)),
    ]
    environment = {"SAE_AGENT_CACHE": str(checkout.root.parent.parent / "cache")}
    limits = ("--max-runs", "2", "--max-llm-tokens", "52000")
    command = ("run", "--idea", "stand_in", *limits, "--proposer", "llm", "--llm", "scripted")
    with ScriptedServer(*script) as server:
        environment |= server.environment
        for kind in KILLED:
            path = {"PYTHONPATH": f"{checkout.root}:{HERE / 'power_cut'}", "STANDIN_KILL_AFTER": kind}
            ended = checkout.agent(*command, **environment, **path)
            if kind == "run_described" and ended.returncode == 1:
                assert "interrupted: " in ended.stdout
                assert "agent resume continues" in ended.stdout
                assert "The study was interrupted at " in checkout.notes.split("# End")[1]
                ended = checkout.agent("resume", **environment, **path)
            assert ended.returncode == -signal.SIGKILL, f"{kind}: {ended.stdout}{ended.stderr}"
            command = ("resume",)
        ended = checkout.agent("resume", **environment)
    assert ended.returncode == 0, ended.stderr
    run = checkout.state.runs[1]
    assert (run.attempt, run.verdict and run.verdict.name, checkout.state.runs_used) == (2, "ok", 1)
    assert run.described
    prompts = [json.dumps(request.body["messages"]) for request in server.requests]
    assert len(prompts) == len(script)
    assert len(set(prompts)) == len(script) - 1  # the one refused for quota is sent again
    spent = 50_500 + 120 * len(server.checks)
    assert f"The study ended: the model's budget is spent ({spent:,} tokens) after 1 of at most 2" in checkout.notes
    assert "- Two: still planned when the study ended" in checkout.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--proposer llm", "--proposer llm needs --llm MODEL"),
        ("--proposer llm --llm m", "OPENAI_API_KEY is not set"),
        ("--proposer lm", "--proposer lm: give template or llm"),
        ("--proposer template --llm m", "leave one of them out"),
        ("--llm m --max-cost 1", "--max-cost needs the model's prices"),
        ("--max-cost 1", "--max-cost needs --llm MODEL"),
        ("--proposer template --max-llm-tokens 9", "--max-llm-tokens needs --llm MODEL"),
        ("--llm m --price-in 1", "--price-in and --price-out go together: give both"),
        ("--llm=", "--llm is empty"),
        ("--llm m --llm-command cat", "--llm asks a server, and --llm-command a program: give one of them"),
        ("--llm-command cat --llm-answer 900", "--llm-answer is for a server, and --llm-command asks a program"),
        ("--llm-command no-such-program", "--llm-command no-such-program: there is no such program"),
        ("--llm-command=", "--llm-command is empty"),
        ("--llm-stream", "--llm-stream needs --llm MODEL"),
        ("--replay nowhere", "nowhere: No such file"),
        ("--replay /dev/null", "/dev/null is not a regular file"),
        ("--approve", "there is no terminal to ask on"),
    ],
)
def test_wrong_options_give_one_line_and_start_no_study(finished: FinishedStudy, options: str, message: str):
    ended = finished.checkout.run(1, *options.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert finished.checkout.study


def test_a_model_that_does_not_answer_is_told_before_a_study_is_begun(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    with ScriptedServer(check=error(404, "The model m does not exist")) as server:
        ended = checkout.run(1, "--llm", "m", **server.environment)
    assert (ended.returncode, ended.stdout) == (2, "asking m for a word\n")
    assert re.fullmatch(
        r"error: http://\S+/v1/chat/completions .*The model m does not exist: check --llm m\n", ended.stderr
    )
    assert not (checkout.root / "runs").exists()


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) for a terminal")
@pytest.mark.slow
def test_approve_shows_each_change_and_asks_before_it_runs(tmp_path_factory: pytest.TempPathFactory):
    checkout = shared_checkout(tmp_path_factory, "approved")
    checkout.plan("fine.1", "fine.2")
    command = f"{sys.executable} -P -m agent run --idea stand_in --max-runs 1 --approve"
    env = {"PATH": os.environ["PATH"], "HOME": str(checkout.root), "PYTHONPATH": str(checkout.root), "TERM": "xterm"}
    env |= {"COLUMNS": "140", "LINES": "50", "SAE_AGENT_CACHE": str(checkout.root.parent.parent / "cache")}
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env=env,
        input="n\nnot 3 times (yet).\ny\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stdout
    assert "Description: What changed." in shown.stdout
    assert "Reasons: The reason." in shown.stdout
    assert "Predictions: CE-loss score up, L0 same" in shown.stdout
    assert '+BEHAVIOUR = "fine.1"' in shown.stdout
    assert '+BEHAVIOUR = "fine.2"' in shown.stdout
    run = checkout.state.runs[1]
    assert (run.attempt, run.proposal.title) == (2, "Step 2 that is fine.2")
    refused = run.failed_attempts[1].verdict
    assert refused_by_person(refused)
    assert not refused_by_person(Verdict(name="preflight", evidence="line 3 is wrong"))
    assert refused.evidence == "not approved by the researcher: not 3 times (yet)."
    assert f"Attempt 1 failed: preflight ({refused.evidence}); kept in run_1_attempt_1." in checkout.notes
    findings = audit.findings(audit.read(checkout.study.notes / "notes.txt"))
    assert [str(finding) for finding in findings if finding.status != "supported"] == []
