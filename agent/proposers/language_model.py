"""The language model as proposer: it plans, edits experiment.py, and describes what came out.

Every question is built from the state and the results, and what comes of its answer is an event or a proposal, so that
a study that was killed asks what it would have asked.
"""

from collections.abc import Sequence

from agent.comparison.judgement import judgements
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

ANSWERS = 4  # tries at a plan before the study ends without one


class BudgetSpent(Exception):
    """The limits of tokens or dollars allow no further question. The message is a clause."""


class LLMProposer:
    """Proposes what a language model thinks of, within the form and the limits of the study."""

    def __init__(self, study: Study, idea: Idea, asker: ChatModel) -> None:
        self.study, self.asker = study, asker
        self.prompts = Prompts(study, idea, asker.window)

    def propose(self, state: State, observed: ObservedDirection) -> Proposal | Remark:  # noqa: ARG002
        """Asks at most once: for a plan where a result has come since the last one, else for the plan's next run, or
        for another attempt at it. Raises LLMError where nobody answers."""
        newest, plan = state.runs[-1], state.plan
        try:
            if newest.stage != "done":
                return self._attempt(state, newest)
            if plan is None or plan.after_run < newest.number:
                return self._plan(state)
            if not plan.runs:
                raise StudyDone(f"the model ended its plan ({answers.ALL_COMPLETED})")
            return self._attempt(state, None)
        except BudgetSpent as spent:
            raise StudyDone(str(spent)) from None

    def describe(self, state: State, run: int) -> Remark | None:
        """Asks for a paragraph on a run that counts, unless there is one. Raises LLMError where nobody answers."""
        told = state.runs[run]
        if run == 0 or told.by_hand or told.described is not None or not (told.verdict and told.verdict.ok):
            return None
        try:
            return self._description(state, run)
        except BudgetSpent:
            return None

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)

    def _plan(self, state: State) -> Remark:
        if len(sent := _sent_back(state, "plan")) >= ANSWERS:
            why = sent[-1].why.partition("\n")[0]
            raise StudyDone(f"the model gave no plan that can be used in {ANSWERS} answers ({why})")
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
        if faults and not any(each.prose for each in sent):
            return AnswerSentBack(purpose="plan", answer=answer, why=_why(faults), prose=True)
        struck = [
            PlannedRun(
                title=prose.remove_sentences(run.title, faults, "") or f"Run {state.runs[-1].number + number}",
                what=prose.remove_sentences(run.what, faults, prose.REMOVED_BEFORE_RUN),
                start=run.start,
            )
            for number, run in enumerate(runs, 1)
        ]
        return PlanMade(after_run=state.runs[-1].number, runs=struck)

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
        said = {"description": description, "why": why, "predictions": experiment.predictions, "source": source}
        return proposal.model_copy(update=said)

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
        """The answer to a prompt and what was sent back after it. Raises BadAnswer where it lies with the model that
        there is none, BudgetSpent, LLMError."""
        for sent in _sent_back(state, purpose):
            messages += [{"role": "assistant", "content": sent.answer}] if sent.answer else []
            messages.append({"role": "user", "content": f"{sent.why}\n\nSend the whole answer again."})
        try:
            return self.asker.ask(messages, purpose)
        except LLMError as error:
            if error.kind == "budget":
                raise BudgetSpent(f"the model's budget is spent ({self.asker.spent.tokens:,} tokens)") from None
            if error.answered:
                raise BadAnswer(str(error)) from None
            raise

    def _facts(self, state: State) -> Facts:
        runs = self.study.load_runs(state)
        return Facts(runs, judgements(runs, state), state.started.primary_metric)


class Silent:
    """In the place of a language model where nothing is asked, as when a run by hand is taken in."""

    def propose(self, state: State, observed: ObservedDirection) -> Proposal:  # noqa: ARG002
        raise StudyDone("a run by hand was added, and nothing was proposed")

    def describe(self, state: State, run: int) -> None:
        pass

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)


def still_planned(state: State) -> list[tuple[str, str]]:
    """What the plan held when the study ended, for the notes."""
    if state.plan is None or state.ended is None:
        return []
    begun = len(state.runs) - 1 > state.plan.after_run
    return [(planned.title, "still planned when the study ended") for planned in state.plan.runs[begun:]]


def _sent_back(state: State, purpose: str) -> list[AnswerSentBack]:
    return [sent for sent in state.sent_back if sent.purpose == purpose]


def _why(faults: Sequence[Fault]) -> str:
    """What the model is told of its sentences; empty where nothing is wrong with them."""
    if not faults:
        return ""
    quoted = "\n".join(f"- {' '.join(fault.sentence.split())}\n  {fault.why}" for fault in faults)
    what = "These sentences say what only results may say"
    return f"{what}:\n{fenced(quoted)}\nWrite them with placeholders, or leave them out."
