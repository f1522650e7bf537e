"""The language model as proposer: it plans, edits experiment.py, and describes the results.

Every prompt is built from the state and the results, and every answer becomes an event or a proposal, so that a killed
study asks again what it would have asked.
"""

from collections.abc import Sequence

from agent.comparison.baselines import required_baselines
from agent.comparison.judgement import for_proposers, judgements
from agent.ideas import Idea
from agent.llm.client import ChatModel, LLMError
from agent.llm.transcript import Message
from agent.proposers import ObservedDirection, answers, edits
from agent.proposers.answers import BadAnswer
from agent.proposers.edits import EditError
from agent.proposers.prompts import Prompts, fenced, first_planned, newest_seen, runs_after, runs_left
from agent.report import prose
from agent.report.prose import Facts, Fault
from agent.study.events import AnswerSentBack, PlanMade, Remark, RunDescribed
from agent.study.outcomes import StudyDone
from agent.study.records import PlannedRun, Proposal
from agent.study.state import State
from agent.study.workspace import Study

MAX_PLANS = 4  # unusable plans in a row, after which the study ends


class LLMProposer:
    """Proposes what a language model plans and edits, within the limits of the study."""

    def __init__(self, study: Study, idea: Idea, llm: ChatModel) -> None:
        self.study, self.llm = study, llm
        self.prompts = Prompts(study, idea, llm.window)

    def propose(self, state: State, observed: ObservedDirection, run: int) -> Proposal | Remark | None:  # noqa: ARG002
        """Ask once: for a plan if a run has finished since the last one, else for the run or another attempt at it.

        The model is told of the runs that were through when this one could be asked for, of as many as are trained at
        once before it that they are in flight, and of nothing else: so what it is asked does not depend on which run
        was faster. Return None until it can be told. Raise StudyDone if nothing is left to plan or the model's budget
        is spent, LLMError if it cannot be reached.
        """
        seen, plan = newest_seen(state, run), state.plan
        if not _is_through(state, seen):
            return None
        if run < len(state.runs):
            return self._attempt(state, state.runs[run].proposal, run)
        if plan is None or plan.after_run < seen:
            return self._plan(state, run)
        if not plan.runs:
            raise StudyDone(f"the model ended its plan ({answers.ALL_COMPLETED})")
        place = run - first_planned(state, plan)
        if place >= len(plan.runs):
            return None  # the plan is revised once another run is through
        planned = plan.runs[place]
        proposal = Proposal(
            name="",
            title=planned.title,
            description=planned.what,
            why="",
            predictions={},
            source=state.runs[planned.start].proposal.source,
            planned=planned.what,
            start=planned.start,
        )
        return self._attempt(state, proposal, run)

    def describe(self, state: State, run: int) -> Remark | None:
        """Ask for a paragraph on a run that counts and has none; return None if none is needed or the budget is spent.

        Raise LLMError if the model cannot be reached.
        """
        described = state.runs[run]
        if not _is_through(state, run):
            return None
        needed = run > 0 and not described.by_hand and described.described is None
        if not needed or not (described.verdict and described.verdict.ok):
            return None
        try:
            return self._description(state, run)
        except StudyDone:
            return None

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)

    def _plan(self, state: State, run: int) -> Remark:
        if len(unusable := _sent_back(state, "plan")) >= MAX_PLANS:
            why = unusable[-1].why.partition("\n")[0]
            raise StudyDone(f"none of {MAX_PLANS} plans by the model could be used ({why})")
        seen = newest_seen(state, run)
        facts, left, answer = self._facts(state, seen), runs_left(state, run - 1), ""
        try:
            answer = self._ask(state, self.prompts.plan(state, run), "plan")
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
                title=prose.remove_sentences(planned.title, faults, "") or f"Run {number}",
                what=prose.remove_sentences(planned.what, faults, prose.REMOVED_BEFORE_RUN),
                start=planned.start,
            )
            for number, planned in enumerate(runs, run)
        ]
        return PlanMade(after_run=seen, runs=runs)

    def _attempt(self, state: State, base: Proposal, number: int) -> Proposal | Remark:
        """Ask for edits to the file of `base`: another attempt at the same run, or the run that it starts from."""
        attempt = state.runs[number].attempt + 1 if number < len(state.runs) else 1
        proposal = Proposal(
            name=f"run_{number}_attempt_{attempt}",
            title=base.title,
            description=base.planned,
            why="",
            predictions={},
            source=base.source,
            planned=base.planned,
            start=base.start,
        )
        facts, answer = self._facts(state, newest_seen(state, number)), ""
        try:
            answer = self._ask(state, self.prompts.proposal(state, proposal, number, attempt), "proposal")
            experiment = answers.parse_experiment(answer, facts.headline)
            source = edits.apply(base.source, experiment.edits)
        except (BadAnswer, EditError) as error:
            return proposal.model_copy(update={"answer": answer, "unusable": str(error)})
        texts = (experiment.description, experiment.reasoning)
        faults = [fault for text in texts for fault in prose.find_faults(text, facts, experiment=base.source + source)]
        if faults and not _sent_back(state, "proposal"):
            return AnswerSentBack(purpose="proposal", answer=answer, why=_why(faults), prose=True)
        description, why = (prose.remove_sentences(text, faults, prose.REMOVED_BEFORE_RUN) for text in texts)
        changes = {"description": description, "why": why, "predictions": experiment.predictions, "source": source}
        return proposal.model_copy(update=changes)

    def _description(self, state: State, run: int) -> Remark:
        facts, answer, text = self._facts(state, run), "", ""
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
                raise StudyDone(f"the model's budget is spent ({self.llm.spent.in_words})") from None
            if error.answered:
                raise BadAnswer(str(error)) from None
            raise

    def _facts(self, state: State, seen: int) -> Facts:
        runs = self.study.load_runs(state, hidden=runs_after(state, seen))
        return Facts(runs, for_proposers(judgements(runs, state)), state.started.primary_metric)


class SilentProposer:
    """Proposes nothing and asks no language model: for adding a run made by hand."""

    def propose(self, state: State, observed: ObservedDirection, run: int) -> Proposal:  # noqa: ARG002
        raise StudyDone("a run by hand was added, and nothing was proposed")

    def describe(self, state: State, run: int) -> None:
        pass

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)


def still_planned(state: State) -> list[tuple[str, str]]:
    """Return title and reason of each planned run that was not started when the study ended."""
    if state.plan is None or state.ended is None:
        return []
    started = len(state.runs) - first_planned(state, state.plan)
    return [(planned.title, "still planned when the study ended") for planned in state.plan.runs[max(0, started) :]]


def _is_through(state: State, run: int) -> bool:
    """Return True if all is known of a run and of those before it: each is done, and compared with every baseline that
    it needs. Of run 0: the noise is measured too."""
    before = state.runs[: run + 1]
    ready = all(each in state.baselines_tried for each in required_baselines(state.started.fixed))
    return (
        ready and len(before) == run + 1 and all(each.stage == "done" and not each.awaits_comparison for each in before)
    )


def _sent_back(state: State, purpose: str) -> list[AnswerSentBack]:
    return [answer for answer in state.sent_back if answer.purpose == purpose]


def _why(faults: Sequence[Fault]) -> str:
    """Tell the model which of its sentences are not allowed; return an empty string if all are."""
    if not faults:
        return ""
    quoted = "\n".join(f"- {' '.join(fault.sentence.split())}\n  {fault.why}" for fault in faults)
    claims = "These sentences claim what only results can show"
    return f"{claims}:\n{fenced(quoted)}\nWrite them with placeholders, or leave them out."
