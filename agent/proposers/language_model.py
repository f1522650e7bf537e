"""The language model as proposer: it plans, edits experiment.py, and describes the results.

Every prompt is built from the state and the results, and every answer becomes an event or a proposal, so that a killed
study asks again what it would have asked.
"""

from collections.abc import Sequence

from agent.comparison.judgement import for_proposers, judgements
from agent.ideas import Idea
from agent.llm.client import ChatModel, LLMError
from agent.llm.transcript import Message
from agent.proposers import ObservedDirection, answers, edits
from agent.proposers.answers import BadAnswer
from agent.proposers.edits import EditError
from agent.proposers.prompts import Prompts, fenced
from agent.report import prose
from agent.report.prose import Facts, Fault
from agent.study.events import AnswerSentBack, PlanMade, Remark, RunDescribed
from agent.study.outcomes import StudyDone
from agent.study.records import PlannedRun, Proposal
from agent.study.state import RunState, State
from agent.study.workspace import Study

MAX_PLANS = 4  # unusable plans in a row, after which the study ends


class LLMProposer:
    """Proposes what a language model plans and edits, within the limits of the study."""

    def __init__(self, study: Study, idea: Idea, llm: ChatModel) -> None:
        self.study, self.llm = study, llm
        self.prompts = Prompts(study, idea, llm.window)

    def propose(self, state: State, observed: ObservedDirection) -> Proposal | Remark:  # noqa: ARG002
        """Ask once: for a plan if a run has finished since the last one, else for the next run or another attempt.

        Raise StudyDone if nothing is left to plan or the model's budget is spent, LLMError if it cannot be reached.
        """
        newest, plan = state.runs[-1], state.plan
        if newest.stage != "done":
            return self._attempt(state, newest)
        if plan is None or plan.after_run < newest.number:
            return self._plan(state)
        if not plan.runs:
            raise StudyDone(f"the model ended its plan ({answers.ALL_COMPLETED})")
        return self._attempt(state, None)

    def describe(self, state: State, run: int) -> Remark | None:
        """Ask for a paragraph on a run that counts and has none; return None if none is needed or the budget is spent.

        Raise LLMError if the model cannot be reached.
        """
        described = state.runs[run]
        needed = run > 0 and not described.by_hand and described.described is None
        if not needed or not (described.verdict and described.verdict.ok):
            return None
        try:
            return self._description(state, run)
        except StudyDone:
            return None

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)

    def _plan(self, state: State) -> Remark:
        if len(unusable := _sent_back(state, "plan")) >= MAX_PLANS:
            why = unusable[-1].why.partition("\n")[0]
            raise StudyDone(f"none of {MAX_PLANS} plans by the model could be used ({why})")
        facts = self._facts(state)
        left = state.started.max_runs - state.runs_used
        answer = ""
        try:
            answer = self._ask(state, self.prompts.plan(state), "plan")
            runs = answers.parse_plan(answer, left, {run.number for run in facts.runs if run.counts})
        except BadAnswer as error:
            return AnswerSentBack(purpose="plan", answer=answer, why=str(error))
        faults = [
            fault
            for planned in runs
            for text in (planned.title, planned.what)
            for fault in prose.find_faults(text, facts, experiment=state.runs[planned.start].proposal.source)
        ]
        if faults and not any(rejected.prose for rejected in unusable):
            return AnswerSentBack(purpose="plan", answer=answer, why=_why(faults), prose=True)
        runs = [
            PlannedRun(
                title=prose.remove_sentences(run.title, faults, "") or f"Run {state.runs[-1].number + number}",
                what=prose.remove_sentences(run.what, faults, prose.REMOVED_BEFORE_RUN),
                start=run.start,
            )
            for number, run in enumerate(runs, 1)
        ]
        return PlanMade(after_run=state.runs[-1].number, runs=runs)

    def _attempt(self, state: State, failed: RunState | None) -> Proposal | Remark:
        assert state.plan
        planned = state.plan.runs[0]
        number, attempt = (failed.number, failed.attempt + 1) if failed else (len(state.runs), 1)
        base = failed.proposal.source if failed else state.runs[planned.start].proposal.source
        proposal = Proposal(
            name=f"run_{number}_attempt_{attempt}",
            title=planned.title,
            description=planned.what,
            why="",
            predictions={},
            source=base,
            start=planned.start,
        )
        facts, answer = self._facts(state), ""
        try:
            answer = self._ask(state, self.prompts.proposal(state, proposal, number, attempt), "proposal")
            experiment = answers.parse_experiment(answer, facts.headline)
            source = edits.apply(base, experiment.edits)
        except (BadAnswer, EditError) as error:
            return proposal.model_copy(update={"answer": answer, "unusable": str(error)})
        texts = (experiment.description, experiment.reasoning)
        faults = [fault for text in texts for fault in prose.find_faults(text, facts, experiment=base + source)]
        if faults and not _sent_back(state, "proposal"):
            return AnswerSentBack(purpose="proposal", answer=answer, why=_why(faults), prose=True)
        description, why = (prose.remove_sentences(text, faults, prose.REMOVED_BEFORE_RUN) for text in texts)
        changes = {"description": description, "why": why, "predictions": experiment.predictions, "source": source}
        return proposal.model_copy(update=changes)

    def _description(self, state: State, run: int) -> Remark:
        facts, answer, text = self._facts(state), "", ""
        try:
            answer = self._ask(state, self.prompts.description(state, run), "description")
            text = answers.parse_description(answer)
            faults = prose.find_faults(text, facts)
            why = _why(faults)
        except BadAnswer as error:
            faults, why = [], str(error)
        if why and not _sent_back(state, "description"):
            return AnswerSentBack(purpose="description", answer=answer, why=why, prose=bool(faults))
        measured = f"{{{{struck run_{run}}}}}"
        return RunDescribed(run=run, text=prose.remove_sentences(text, faults, measured) or measured)

    def _ask(self, state: State, messages: list[Message], purpose: str) -> str:
        """Return the answer to a prompt that is followed by the earlier unusable answers and what was wrong with them.

        Raise BadAnswer if the model refused or broke off, StudyDone if its budget is spent, LLMError if it cannot be
        reached.
        """
        for unusable in _sent_back(state, purpose):
            messages += [{"role": "assistant", "content": unusable.answer}] if unusable.answer else []
            messages.append({"role": "user", "content": f"{unusable.why}\n\nSend the whole answer again."})
        try:
            return self.llm.ask(messages, purpose)
        except LLMError as error:
            if error.kind == "budget":
                raise StudyDone(f"the model's budget is spent ({self.llm.spent.tokens:,} tokens)") from None
            if error.answered:
                raise BadAnswer(str(error)) from None
            raise

    def _facts(self, state: State) -> Facts:
        runs = self.study.load_runs(state)
        return Facts(runs, for_proposers(judgements(runs, state)), state.started.primary_metric)


class SilentProposer:
    """Proposes nothing and asks no language model: for adding a run made by hand."""

    def propose(self, state: State, observed: ObservedDirection) -> Proposal:  # noqa: ARG002
        raise StudyDone("a run by hand was added, and nothing was proposed")

    def describe(self, state: State, run: int) -> None:
        pass

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)


def still_planned(state: State) -> list[tuple[str, str]]:
    """Return title and reason of each planned run that was not started when the study ended."""
    if state.plan is None or state.ended is None:
        return []
    first_started = len(state.runs) - 1 > state.plan.after_run
    return [(planned.title, "still planned when the study ended") for planned in state.plan.runs[first_started:]]


def _sent_back(state: State, purpose: str) -> list[AnswerSentBack]:
    return [answer for answer in state.sent_back if answer.purpose == purpose]


def _why(faults: Sequence[Fault]) -> str:
    """Tell the model which of its sentences are not allowed; return an empty string if all are."""
    if not faults:
        return ""
    quoted = "\n".join(f"- {' '.join(fault.sentence.split())}\n  {fault.why}" for fault in faults)
    claims = "These sentences claim what only results can show"
    return f"{claims}:\n{fenced(quoted)}\nWrite them with placeholders, or leave them out."
