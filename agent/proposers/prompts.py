"""The prompts for a language model: templates/prompts, filled from the ledger and the results only.

No clock and no local path goes in, so that the same study gives the same prompts again. A prompt that does not fit the
model's window is shortened by whole parts: first the oldest runs lose their paragraphs but keep their row in the table,
then the oldest attempts lose their output, then the oldest runs their row.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import ROOT, TEMPLATES, constants
from agent.comparison.judgement import for_proposers, judgements, observed_direction
from agent.display.formatting import format_difference, format_value
from agent.ideas import Fixed, Idea, render_baseline
from agent.lab.chat import rough_prompt_tokens
from agent.lab.defaults import is_world
from agent.lab.metrics import METRICS
from agent.lab.results import headline
from agent.llm.client import LONGEST_ANSWER, LLMError
from agent.llm.redact import redact
from agent.llm.transcript import Message
from agent.proposers import lab_reference
from agent.proposers.answers import ALL_COMPLETED
from agent.proposers.explained import EXPLAINED, setting
from agent.rendering import strict_templates
from agent.report import prose, references, sentences
from agent.report.answer import answer
from agent.report.layout import flow
from agent.report.outcome import outcome_sentence
from agent.report.prose import Facts
from agent.report.run_section import compared_lines
from agent.running import preflight, process
from agent.study.attempts import ATTEMPTS, refused_by_person
from agent.study.events import PlanMade
from agent.study.records import Proposal
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

OUTPUT_LINES = 15  # the last ones of a failed run
_ADDRESSES = re.compile(r"0x[0-9a-f]{6,}")  # of objects in memory; they differ from one start to the next


@dataclass(frozen=True)
class Detail:
    """How much of a study a prompt tells."""

    paragraphs: int  # newest runs that have paragraphs
    outputs: int  # newest failed attempts that are shown with their output
    rows: int  # newest runs that have a row in the table


class Prompts:
    """The prompts of one study, each as long as the model's window allows."""

    def __init__(self, study: Study, idea: Idea, window: int, templates: Path = TEMPLATES) -> None:
        """Set up the prompts for a model with a context window of `window` tokens, prompt plus answer."""
        self.study, self.idea, self.window = study, idea, window
        self.environment = strict_templates(templates / "prompts")

    def plan(self, state: State, run: int) -> list[Message]:
        """Ask for a plan of the runs from `run` on; the newest run that counts shows its experiment.py."""
        seen = newest_seen(state, run)
        counted = [each.number for each in self.study.load_runs(state, runs_after(state, seen)) if each.counts]
        source = state.runs[counted[-1]].proposal.source
        above = f", or from run {run} on, planned above it" if (state.started.jobs or 1) == 1 else ""
        told = {"runs_left": runs_left(state, run - 1), "plan": state.plan, "start": counted[-1], "first": run}
        return self._fit("plan.j2", state, seen, run, **told, starts_above=above, **_fenced_source(source))

    def proposal(self, state: State, base: Proposal, number: int, attempt: int) -> list[Message]:
        """Ask for edits to the file of `base`: the previous attempt at this run, or the run that it starts from."""
        failed = state.runs[number] if number < len(state.runs) else None
        origin = f"from {_run_name(base.start)}" if failed is None else f"as left by attempt {attempt - 1}"
        if failed and failed.verdict and refused_by_person(failed.verdict):
            origin = f"as it was before attempt {attempt - 1}"
        return self._fit(
            "proposal.j2",
            state,
            newest_seen(state, number),
            number,
            runs_left=runs_left(state, number),
            number=number,
            attempt=attempt,
            title=base.title,
            what=base.description,
            failed=[*failed.failed_attempts.items(), (failed.attempt, failed)] if failed else [],
            origin=origin,
            **_fenced_source(base.source),
        )

    def findings(self, state: State, number: int) -> list[Message]:
        """Ask what came out of a run that has its result, and what it means."""
        told = {"number": number, "title": state.runs[number].proposal.title, "runs_left": runs_left(state, number)}
        return self._fit("findings.j2", state, number, number + 1, **told)

    def conclusion(self, state: State) -> list[Message]:
        """Ask what the runs say of the hypothesis, once no more are tried."""
        last = len(state.runs) - 1
        runs = self.study.load_runs(state)
        ruled = answer(state, runs, for_proposers(judgements(runs, state)), state.started.measures)
        return self._fit("conclusion.j2", state, last, last + 1, runs_left=runs_left(state, last), ruled=ruled)

    def again(self, state: State, purpose: str, why: str) -> str:
        """Return what follows an answer that could not be used: the reason, and an example of a whole answer."""
        names = headline(run.info for run in self.study.load_runs(state)[:1] if run.info)
        example = self.environment.get_template("example.j2").render(purpose=purpose, headline=names)
        return f"{why}\n\nSend the whole answer again, in a form like this one:\n\n{example}"

    def _fit(self, template: str, state: State, seen: int, before: int, **task: Any) -> list[Message]:
        """Return the longest prompt that leaves room for an answer. Raise LLMError if even the shortest does not.

        It tells of the runs up to `seen`, and that those between it and `before` are in flight.
        """
        runs, failed = self.study.load_runs(state, runs_after(state, seen)), task.pop("failed", [])
        longest = self.window - min(LONGEST_ANSWER, self.window // 4)
        task["in_flight"] = [(run.number, run.proposal) for run in state.runs[seen + 1 : before]]
        for detail in _details(len([run for run in runs if run.info]), len(failed)):
            failures = self._failures(failed, task.get("number", 0), detail)
            variables = self._variables(state, runs, detail) | {"failures": failures} | task
            messages = [self._message("system", "system.j2", variables), self._message("user", template, variables)]
            if rough_prompt_tokens(messages) <= longest:
                return messages
        raise LLMError(
            "request",
            f"the shortest prompt of this study has about {rough_prompt_tokens(messages):,} tokens, "
            f"but the model's window of {self.window:,} leaves {longest:,}: start a study with a larger --llm-window",
        )

    def _message(self, role: str, template: str, variables: dict[str, Any]) -> Message:
        return {"role": role, "content": redact(self.environment.get_template(template).render(variables))}

    def _variables(self, state: State, runs: list[Run], detail: Detail) -> dict[str, Any]:
        """Return what every template may use."""
        judged = for_proposers(judgements(runs, state))
        facts = Facts.of(runs, judged, state.started)
        done = [run for run in runs if run.info]
        listed = [*done[:1], *done[1:][len(done[1:]) - detail.rows :]] if len(done) > detail.rows else done
        return {
            "started": state.started,
            "steps": [(step.title, flow(step.description)) for step in self.idea.plan],
            "primary": {"name": state.started.primary_metric, "title": METRICS[state.started.primary_metric].title},
            "width": len("{{run_3 vs baseline }}") + len(state.started.primary_metric),
            "smallest_effect": state.started.smallest_effect,
            "headline": [
                METRICS[name].model_dump(include={"title", "better", "decides"}) | {"name": name}
                for name in facts.headline
            ],
            "explained": EXPLAINED,
            "setting": setting(state, runs),
            "world": is_world(state.started.fixed.model),
            "signatures": lab_reference.signatures(),
            "operators": lab_reference.operators(),
            "needs": state.started.needs,
            "own_measures": [(name, measure) for name, measure in state.started.measures.items() if measure.main],
            "conclusion": state.conclusion,
            "required_lines": preflight.REQUIRED_LINES,
            **_fixed_constants(state.started.fixed),
            "allowed_imports": preflight.ALLOWED_IMPORTS,
            "forbidden_calls": sorted(preflight.FORBIDDEN_CALLS),
            "columns": ["run", "title", "verdict", *(METRICS[name].title for name in facts.headline)],
            "rows": [_row(run, facts) for run in listed],
            "references": [_reference_row(each, facts) for each in references.shown(state)],
            "unlisted": len(done) - len(listed),
            "detailed": [
                self._detailed(run, state, facts) for run in done[1:][max(len(done) - 1 - detail.paragraphs, 0) :]
            ],
            "attempts": ATTEMPTS,
            "all_completed": ALL_COMPLETED,
        }

    def _detailed(self, run: Run, state: State, facts: Facts) -> dict[str, Any]:
        assert run.info
        proposal, judgement = run.state.proposal, facts.judged.get(run.number)
        return {
            "number": run.number,
            "title": proposal.title,
            "start": _run_name(proposal.start),
            "description": prose.render(proposal.description, facts),
            "why": prose.render(proposal.why, facts),
            "described": prose.render(run.state.described or "", facts),
            "judged": outcome_sentence(run, state, judgement) if run.counts else "",
            "beside": _beside(run, facts),
            "beside_run": proposal.start,
            "compared": compared_lines(run, state.started.primary_metric, judgement),
            "verdict": run.info.verdict.name,
            "evidence": fenced(run.info.verdict.evidence),
            "own": ", ".join(f"{name} {value:.3f}" for name, value in run.info.analysis.items() if value is not None),
            "lacks": [
                sentences.NEED_LACKS.render(need=need, what=what) for need, what in run.info.not_measured.items()
            ],
            "warnings": fenced("\n".join(run.info.verdict.warnings)) if run.info.verdict.warnings else "",
        }

    def _failures(self, failed: Sequence[tuple[int, Any]], run: int, detail: Detail) -> list[dict[str, Any]]:
        """Describe the failed attempts at a run, the newest ones with their output or the model's answer."""
        failures = []
        for place, (attempt, failure) in enumerate(failed, 1):
            newest, shown = place == len(failed), len(failed) - place < detail.outputs
            directory = self.study.run_dir(run) if newest else self.study.attempt_dir(run, attempt)
            output = [] if failure.proposal.unusable else process.last_lines(directory / "stderr.log", OUTPUT_LINES)
            failures.append(
                {
                    "attempt": attempt,
                    "verdict": failure.verdict.name,
                    "evidence": fenced(failure.verdict.evidence),
                    "error": failure.proposal.unusable if shown else "",
                    "output": fenced(_reproducible("\n".join(output), self.study)) if output and shown else "",
                    "answer": fenced(failure.proposal.answer) if failure.proposal.answer and shown else "",
                }
            )
        return failures


def newest_seen(state: State, run: int) -> int:
    """Return the newest run of which a language model is told when it is asked for `run`: those after it may still be
    trained, as many as the study has jobs at once."""
    return max(0, run - (state.started.jobs or 1))


def first_planned(state: State, plan: PlanMade) -> int:
    """Return the run that is the first of a plan."""
    return plan.after_run + (state.started.jobs or 1) if plan.after_run else 1


def runs_after(state: State, seen: int) -> list[str]:
    """Return the results of runs after `seen`, which are not to be shown."""
    return [f"run_{run.number}/final_info.json" for run in state.runs[seen + 1 :]]


def runs_left(state: State, run: int) -> int:
    """Return the runs that may be started after `run`; those by hand do not count."""
    return state.started.max_runs - run + sum(each.by_hand for each in state.runs[1 : run + 1])


def _details(runs: int, attempts: int) -> Iterator[Detail]:
    """Yield from everything to the least that a useful prompt needs."""
    for paragraphs in range(runs, -1, -1):
        yield Detail(paragraphs, attempts, runs)
    for outputs in range(attempts - 1, 0, -1):
        yield Detail(0, outputs, runs)
    for rows in range(runs - 1, -1, -1):
        yield Detail(0, 1, rows)


def _fenced_source(source: str) -> dict[str, str]:
    return {"source": source if source.endswith("\n") else source + "\n", "fence": _fence(source)}


def _fence(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def fenced(text: str) -> str:
    """Put text between fences that nothing in it can close."""
    fence = _fence(text)
    return f"{fence}\n{text}\n{fence}"


def _reproducible(text: str, study: Study) -> str:
    """Remove local paths and memory addresses from the output of a program."""
    text = text.replace(f"{study.directory}/", "").replace(f"{ROOT}/", "")
    text = re.sub(r"(?<![\w.])/[^\s\"']*/(site-packages|lib/python3\.\d+)/", "", text)
    return _ADDRESSES.sub("0x...", text.replace(str(Path.home()), "~"))


def _beside(run: Run, facts: Facts) -> list[str]:
    """Compare a run with the one that it starts from, if both count."""
    start = run.state.proposal.start
    if not (start and run.counts and facts.runs[start].counts):
        return []
    return [f"{METRICS[name].title} {facts.compare(run.number, name, start)}" for name in facts.headline]


def _fixed_constants(fixed: Fixed) -> dict[str, dict[str, str]]:
    """Return the constants that every file assigns, and those that hold where a file has them, as they are written."""
    written = {name: repr(value) for name, value in preflight.fixed_constants(fixed).items()}
    baseline = constants.assigned(render_baseline(fixed))
    return {
        "fixed": {name: value for name, value in written.items() if name in baseline},
        "fixed_if_there": {name: value for name, value in written.items() if name not in baseline},
    }


def _run_name(number: int) -> str:
    return f"run {number}" if number else "the baseline"


def _row(run: Run, facts: Facts) -> list[str]:
    """Return a run's row of the table."""
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


def _reference_row(each: references.Shown, facts: Facts) -> list[str]:
    """Return the row of an SAE that was trained elsewhere."""
    cells = [format_value(name, each.figure(name)) for name in facts.headline]
    return ["-", each.in_words, each.outcome, *cells]
