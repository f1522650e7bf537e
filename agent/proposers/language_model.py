"""The language model as proposer: it plans, edits experiment.py, says what came out, and concludes.

Every prompt is built from the state and the results, and every answer becomes an event or a proposal, so that a killed
study asks again what it would have asked.
"""

from collections.abc import Callable

from agent.comparison.curves import required_baselines
from agent.comparison.judgement import for_proposers, judgements
from agent.ideas import Idea
from agent.llm.client import ChatModel, LLMError
from agent.llm.transcript import Message
from agent.proposers import ObservedDirection, answers, edits
from agent.proposers.answers import BadAnswer, Experiment
from agent.proposers.edits import EditError
from agent.proposers.prompts import Prompts, first_planned, newest_seen, runs_after, runs_left
from agent.report import bare_figures, prose
from agent.report.prose import Facts
from agent.study.attempts import refused_by_person
from agent.study.events import AnswerSentBack, ConclusionDrawn, PlanMade, Remark, RunDescribed
from agent.study.outcomes import StudyDone
from agent.study.records import PlannedRun, Proposal
from agent.study.state import State
from agent.study.workspace import Study

MOST_SENT_BACK = 3  # answers to one question that cannot be used, before the last one has its consequence


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
        """Ask what came out of a run that counts; return None if it was asked, or the budget is spent.

        Raise LLMError if the model cannot be reached.
        """
        described = state.runs[run]
        if not _is_through(state, run):
            return None
        needed = run > 0 and not described.by_hand and described.described is None
        if not needed or not (described.verdict and described.verdict.ok):
            return None
        try:
            return self._findings(state, run)
        except StudyDone:
            return None

    def conclude(self, state: State) -> Remark | None:
        """Ask what the runs say of the hypothesis; return None if it was asked, no run counts, or the budget is spent.

        Raise LLMError if the model cannot be reached.
        """
        last = len(state.runs) - 1
        if (state.conclusion and state.conclusion.after_run >= last) or not any(run.counts for run in state.runs[1:]):
            return None
        try:
            return self._conclusion(state, last)
        except StudyDone:
            return None

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)

    def _plan(self, state: State, run: int) -> Remark:
        if len(unusable := _sent_back(state, "plan")) > MOST_SENT_BACK:
            why = unusable[-1].why.partition("\n")[0]
            raise StudyDone(f"none of {len(unusable)} plans by the model could be used ({why})")
        seen = newest_seen(state, run)
        facts, left, answer = self._facts(state, seen), runs_left(state, run - 1), ""
        counted = {each.number for each in facts.runs if each.counts}
        try:
            answer = self._ask(state, self.prompts.plan(state, run), "plan")
            plan = answers.parse_plan(answer, run, left, self._may_start(state, counted, run))
        except BadAnswer as error:
            return AnswerSentBack(purpose="plan", answer=answer, why=str(error))
        texts = [plan.reasoning, *(text for planned in plan.runs for text in (planned.title, planned.what))]
        if why := self._wrong_figures(state, "plan", texts, facts):
            return AnswerSentBack(purpose="plan", answer=answer, why=why, prose=True)
        runs = [
            PlannedRun(title=planned.title, what=_settled(planned.what, facts), start=planned.start)
            for planned in plan.runs
        ]
        return PlanMade(after_run=seen, runs=runs, reasoning=_settled(plan.reasoning, facts))

    def _may_start(self, state: State, counted: set[int], first: int) -> Callable[[int, int], bool]:
        """Return which run may start from the file of which other: one with a result, or with one by then."""
        return lambda run, start: start in counted or first <= start <= newest_seen(state, run)

    def _attempt(self, state: State, base: Proposal, number: int) -> Proposal | Remark:
        """Ask for edits to the file of `base`: another attempt at the same run, or the run that it starts from."""
        attempt = state.runs[number].attempt + 1 if number < len(state.runs) else 1
        proposal = Proposal(
            name=f"run_{number}_attempt_{attempt}",
            title=base.title,
            description=base.planned,
            why=base.why,
            predictions={},
            source=file_to_edit(state, base, number),
            planned=base.planned,
            start=base.start,
        )
        facts, answer = self._facts(state, newest_seen(state, number)), ""
        sent_back = _sent_back(state, "proposal")
        try:
            answer = self._ask(state, self.prompts.proposal(state, proposal, number, attempt), "proposal")
            experiment = answers.parse_experiment(answer, facts.headline)
        except BadAnswer as error:
            if len(sent_back) < MOST_SENT_BACK:
                return AnswerSentBack(purpose="proposal", answer=answer, why=str(error))
            return proposal.model_copy(update={"answer": answer, "unusable": str(error)})
        try:
            source = edits.apply(proposal.source, experiment.edits)
        except EditError as error:
            why = proposal.why or _settled(experiment.reasoning, facts, number)
            return proposal.model_copy(update={"why": why, "answer": answer, "unusable": str(error)})
        texts = [experiment.title, experiment.description, experiment.reasoning]
        if why := self._wrong_figures(state, "proposal", texts, facts, number):
            return AnswerSentBack(purpose="proposal", answer=answer, why=why, prose=True)
        return proposal.model_copy(update=_told(experiment, proposal, facts, number) | {"source": source})

    def _findings(self, state: State, run: int) -> Remark:
        facts, answer, text, why = self._facts(state, run), "", "", ""
        try:
            answer = self._ask(state, self.prompts.findings(state, run), "description")
            text = answers.parse_findings(answer)
            wrong = self._wrong_figures(state, "description", [text], facts)
        except BadAnswer as error:
            wrong, why = "", str(error)
        if wrong or (why and len(_sent_back(state, "description")) < MOST_SENT_BACK):
            return AnswerSentBack(purpose="description", answer=answer, why=wrong or why, prose=bool(wrong))
        return RunDescribed(run=run, text=_settled(text, facts, run=run))

    def _conclusion(self, state: State, last: int) -> Remark:
        facts, answer = self._facts(state, last), ""
        try:
            answer = self._ask(state, self.prompts.conclusion(state), "conclusion")
            concluded = answers.parse_conclusion(answer)
        except BadAnswer as error:
            if len(_sent_back(state, "conclusion")) < MOST_SENT_BACK:
                return AnswerSentBack(purpose="conclusion", answer=answer, why=str(error))
            return ConclusionDrawn(after_run=last, text="")
        if why := self._wrong_figures(state, "conclusion", [concluded.conclusion, concluded.next], facts):
            return AnswerSentBack(purpose="conclusion", answer=answer, why=why, prose=True)
        text, following = _settled(concluded.conclusion, facts), _settled(concluded.next, facts)
        return ConclusionDrawn(after_run=last, text=text, next=following)

    def _wrong_figures(
        self, state: State, purpose: str, texts: list[str], facts: Facts, pending: int | None = None
    ) -> str:
        """Tell the model, once a question, which of its placeholders stand for nothing; empty if all do for something.

        `pending`: the run that the texts are about, before it has a result.
        """
        reasons = [reason for text in texts for reason in prose.faults(text, facts, pending)]
        if not reasons or any(answer.prose for answer in _sent_back(state, purpose)):
            return ""
        return "\n".join(["These placeholders stand for nothing that was measured:", *reasons])

    def _ask(self, state: State, messages: list[Message], purpose: str) -> str:
        """Return the answer to a prompt that is followed by the earlier unusable answers and what was wrong with them,
        and by an example of a whole answer.

        Raise BadAnswer if the model refused or broke off, StudyDone if its budget is spent, LLMError if it cannot be
        reached.
        """
        for unusable in _sent_back(state, purpose):
            messages += [{"role": "assistant", "content": unusable.answer}] if unusable.answer else []
            again = self.prompts.again(state, purpose, unusable.why)
            messages.append({"role": "user", "content": again})
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
        return Facts.of(runs, for_proposers(judgements(runs, state)), state.started)


class SilentProposer:
    """Proposes nothing and asks no language model: for adding a run made by hand."""

    def propose(self, state: State, observed: ObservedDirection, run: int) -> Proposal:  # noqa: ARG002
        raise StudyDone("a run by hand was added, and nothing was proposed")

    def describe(self, state: State, run: int) -> None:
        pass

    def conclude(self, state: State) -> None:
        pass

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:  # noqa: ARG002
        return still_planned(state)


def still_planned(state: State) -> list[tuple[str, str]]:
    """Return title and reason of each planned run that was not started when the study ended."""
    if state.plan is None or state.ended is None:
        return []
    started = len(state.runs) - first_planned(state, state.plan)
    return [(planned.title, "still planned when the study ended") for planned in state.plan.runs[max(0, started) :]]


def file_to_edit(state: State, base: Proposal, run: int) -> str:
    """Return the file that an attempt starts from: as the last attempt left it, unless a person refused that change."""
    failed = state.runs[run] if run < len(state.runs) else None
    if failed is None or failed.verdict is None or not refused_by_person(failed.verdict):
        return base.source
    kept = [
        earlier.proposal.source for earlier in failed.failed_attempts.values() if not refused_by_person(earlier.verdict)
    ]
    return kept[-1] if kept else state.runs[base.start].proposal.source


def _told(experiment: Experiment, proposal: Proposal, facts: Facts, number: int) -> dict[str, object]:
    """Return what an answer says of the run; reasons after the first attempt are those of mending it."""
    reasoning = _settled(experiment.reasoning, facts, number)
    return {
        "title": experiment.title or proposal.title,
        "description": _settled(experiment.description, facts, number) or proposal.description,
        "why": proposal.why or reasoning,
        "mended": reasoning if proposal.why else "",
        "predictions": experiment.predictions,
    }


def _settled(text: str, facts: Facts, pending: int | None = None, run: int | None = None) -> str:
    """Return a text whose figures are all measured ones, or words that say that they are none.

    It is about a `run` that has its result, or about one that is `pending`.
    """
    return bare_figures.measured(prose.without_faults(text, facts, pending), facts, run)


def _is_through(state: State, run: int) -> bool:
    """Return True if all is known of a run and of those before it: each is done, and compared with every baseline that
    it needs. Of run 0: the noise is measured and the references are scored too."""
    before = state.runs[: run + 1]
    ready = all(each in state.baselines_tried for each in required_baselines(state.started.fixed))
    ready &= all(name in state.references_scored for name in state.started.references)
    return (
        ready and len(before) == run + 1 and all(each.stage == "done" and not each.awaits_comparison for each in before)
    )


def _sent_back(state: State, purpose: str) -> list[AnswerSentBack]:
    return [answer for answer in state.sent_back if answer.purpose == purpose]
