"""What a language model is asked: templates/prompts, filled from the ledger and the results and from nothing else.

No clock and no path of this machine goes in, so that the same study asks the same questions again. A prompt that does
not fit the model's window gets shorter by whole parts: the oldest runs lose their paragraphs and keep their line in the
table, then the oldest attempts their output, then the oldest runs their line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import ROOT, TEMPLATES
from agent.comparison.judgement import judgements, observed_direction
from agent.display.formatting import format_difference, format_value
from agent.ideas import Idea, strict_templates
from agent.lab.chat import rough_prompt_tokens
from agent.lab.metrics import METRICS
from agent.lab.verdicts import Verdict
from agent.llm.client import LONGEST_ANSWER, LLMError
from agent.llm.redact import redact
from agent.llm.transcript import Message
from agent.proposers.answers import ALL_COMPLETED
from agent.report import notes, prose
from agent.report.prose import Facts
from agent.running import preflight, process
from agent.study.attempts import ATTEMPTS
from agent.study.records import Proposal
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

LINES = 15  # of what a failed run said last
_TIMES = re.compile(r"0x[0-9a-f]{6,}")  # where an object lay in memory


@dataclass(frozen=True)
class Level:
    """How much of a study a prompt tells."""

    detailed: int  # newest runs that have paragraphs
    outputs: int  # newest failed attempts that are shown with what they printed
    listed: int  # newest runs that have a line in the table


class Prompts:
    """The prompts of one study, as long as the window of its model allows."""

    def __init__(self, study: Study, idea: Idea, window: int, templates: Path = TEMPLATES) -> None:
        """`window`: tokens, the answer's included."""
        self.study, self.idea, self.window = study, idea, window
        self.environment = strict_templates(templates / "prompts")

    def plan(self, state: State) -> list[Message]:
        counted = [run.number for run in self.study.load_runs(state) if run.counts]
        source = state.runs[counted[-1]].proposal.source
        return self._fitting("plan.j2", state, plan=state.plan, start=counted[-1], **_quoted(source))

    def proposal(self, state: State, base: Proposal, number: int, attempt: int) -> list[Message]:
        """`base` holds the file to be edited; it is the failed attempt before this one, where there was one."""
        failed = state.runs[number] if number < len(state.runs) else None
        stands = f"that of {_run(base.start)}" if failed is None else f"as attempt {attempt - 1} left it"
        return self._fitting(
            "proposal.j2",
            state,
            number=number,
            attempt=attempt,
            title=base.title,
            what=base.description,
            failed=[*failed.failed_attempts.items(), (failed.attempt, failed)] if failed else [],
            stands=stands,
            **_quoted(base.source),
        )

    def description(self, state: State, number: int) -> list[Message]:
        proposal = state.runs[number].proposal
        return self._fitting("description.j2", state, number=number, title=proposal.title, written=proposal.description)

    def _fitting(self, template: str, state: State, **task: Any) -> list[Message]:
        """The longest of the prompts that leaves room for an answer. Raises LLMError where none does."""
        runs, failed = self.study.load_runs(state), task.pop("failed", [])
        begun = sum(not run.by_hand for run in state.runs[1:]) + (task.get("number") == len(runs))
        left, longest = state.started.max_runs - begun, self.window - min(LONGEST_ANSWER, self.window // 4)
        for level in _levels(len([run for run in runs if run.info]), len(failed)):
            failures = self._failures(failed, task.get("number", 0), level)
            told = self._told(state, runs, level) | {"failures": failures, "runs_left": left} | task
            messages = [self._message("system", "system.j2", told), self._message("user", template, told)]
            if rough_prompt_tokens(messages) <= longest:
                return messages
        raise LLMError(
            "request",
            f"experiment.py and the shortest account of the study need about {rough_prompt_tokens(messages):,} tokens, "
            f"and the model's window of {self.window:,} leaves {longest:,}: begin a study with a larger --llm-window",
        )

    def _message(self, role: str, template: str, told: dict[str, Any]) -> Message:
        return {"role": role, "content": redact(self.environment.get_template(template).render(told))}

    def _told(self, state: State, runs: list[Run], level: Level) -> dict[str, Any]:
        """What every prompt may name."""
        judged = judgements(runs, state)
        facts = Facts(runs, judged, state.started.primary_metric)
        done = [run for run in runs if run.info]
        listed = [*done[:1], *done[1:][len(done[1:]) - level.listed :]] if len(done) > level.listed else done
        return {
            "started": state.started,
            "steps": [(step.title, notes.flow(step.description)) for step in self.idea.plan],
            "primary": {"name": state.started.primary_metric, "title": METRICS[state.started.primary_metric].title},
            "width": len("{{run_3 vs baseline }}") + len(state.started.primary_metric),
            "smallest_effect": state.started.smallest_effect,
            "headline": [
                METRICS[name].model_dump(include={"title", "better", "decides"}) | {"name": name}
                for name in facts.headline
            ],
            "protected": preflight.PROTECTED,
            "fixed": preflight.fixed_constants(state.started.fixed),
            "allowed": preflight.ALLOWED,
            "runs_text": sorted(preflight.RUNS_TEXT),
            "columns": ["run", "title", "verdict", *(METRICS[name].title for name in facts.headline)],
            "rows": [_row(run, facts) for run in listed],
            "unlisted": len(done) - len(listed),
            "detailed": [
                self._detailed(run, state, facts) for run in done[1:][max(len(done) - 1 - level.detailed, 0) :]
            ],
            "attempts": ATTEMPTS,
            "all_completed": ALL_COMPLETED,
        }

    def _detailed(self, run: Run, state: State, facts: Facts) -> dict[str, Any]:
        assert run.info
        proposal, judgement = run.state.proposal, facts.judged.get(run.number)
        summary = notes.describe(run, state, judgement, {})
        return {
            "number": run.number,
            "title": proposal.title,
            "start": _run(proposal.start),
            "description": prose.render(run.state.described or proposal.description, facts),
            "why": prose.render(proposal.why, facts),
            "judged": summary.outcome,
            "compared": summary.comparisons,
            "verdict": _said(run.info.verdict),
            "own": ", ".join(f"{name} {value:.3f}" for name, value in run.info.analysis.items() if value is not None),
            "warnings": run.info.verdict.warnings,
        }

    def _failures(self, failed: Sequence[tuple[int, Any]], run: int, level: Level) -> list[dict[str, Any]]:
        """The failed attempts at a run, the newest ones with what they printed or what had been answered."""
        told = []
        for place, (attempt, failure) in enumerate(failed, 1):
            newest, shown = place == len(failed), len(failed) - place < level.outputs
            directory = self.study.run_dir(run) if newest else self.study.attempt_dir(run, attempt)
            output = [] if failure.proposal.unusable else process.last_lines(directory / "stderr.log", LINES)
            told.append(
                {
                    "attempt": attempt,
                    "verdict": _said(failure.verdict),
                    "told": failure.proposal.unusable if shown else "",
                    "output": fenced(shortened("\n".join(output), self.study)) if output and shown else "",
                    "answer": fenced(failure.proposal.answer) if failure.proposal.answer and shown else "",
                }
            )
        return told


def _levels(runs: int, attempts: int) -> Iterator[Level]:
    """From everything to the least that is worth asking with."""
    for detailed in range(runs, -1, -1):
        yield Level(detailed, attempts, runs)
    for outputs in range(attempts - 1, 0, -1):
        yield Level(0, outputs, runs)
    for listed in range(runs - 1, -1, -1):
        yield Level(0, 1, listed)


def _quoted(source: str) -> dict[str, str]:
    return {"source": source if source.endswith("\n") else source + "\n", "fence": _fence(source)}


def _fence(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def fenced(text: str) -> str:
    """Text that is data: between fences that nothing in it can close."""
    fence = _fence(text)
    return f"{fence}\n{text}\n{fence}"


def shortened(text: str, study: Study) -> str:
    """What a program printed, without the paths of this machine and what differs from one start to the next."""
    text = text.replace(f"{study.directory}/", "").replace(f"{ROOT}/", "")
    text = re.sub(r"(?<![\w.])/[^\s\"']*/(site-packages|lib/python3\.\d+)/", "", text)
    return _TIMES.sub("0x...", text.replace(str(Path.home()), "~"))


def _run(number: int) -> str:
    return f"run {number}" if number else "the baseline"


def _said(verdict: Verdict) -> str:
    return f"{verdict.name} ({verdict.evidence})"


def _row(run: Run, facts: Facts) -> list[str]:
    """A run in one line of the table."""
    assert run.info
    verdict, compared = run.info.verdict.name, run.info.comparison.metrics if run.info.comparison else {}
    if judgement := facts.judged.get(run.number):
        verdict = judgement.outcome
    cells = []
    for name in facts.headline:
        cell = format_value(name, run.info.metric(name)) if run.counts else "-"
        if run.counts and name in compared:
            cell += f" ({format_difference(name, compared[name])}"
            cell += ", noise)" if observed_direction(compared[name]) == "same" else ")"
        cells.append(cell)
    title = run.state.proposal.title.replace("|", "/")
    return [str(run.number), title, verdict, *cells]
