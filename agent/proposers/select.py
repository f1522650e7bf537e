"""Which proposer a study has: as the user says, and as its ledger says afterwards."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from agent.ideas import Fixed, Idea
from agent.lab.errors import UserError
from agent.llm import transcript
from agent.llm.client import Client, Limits
from agent.llm.replay import Replay
from agent.proposers import Proposer
from agent.proposers.template import TemplateProposer
from agent.study.events import LanguageModel, StudyStarted

if TYPE_CHECKING:
    from agent.study.workspace import Study

LIMITS = {
    "max_tokens": "--max-llm-tokens",
    "max_cost": "--max-cost",
    "prices": "--price-in",
    "window": "--llm-window",
}
OWN_PLAN = "proposals: the idea's own plan (--llm MODEL, with OPENAI_API_KEY set, has a language model propose)"


def prices(price_in: float | None, price_out: float | None) -> tuple[float, float] | None:
    """Dollars per million tokens, read and written; None where they are not known. Raises UserError."""
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise UserError("--price-in and --price-out go together: give both")
    return price_in, price_out


def language_model(proposer: str | None, model: str | None, **options: object) -> LanguageModel | None:
    """What was asked for on the command line; None: the idea's own plan. Raises UserError, BadTranscript."""
    replay = options.get("replay")
    if proposer not in (None, "template", "llm"):
        raise UserError(f"--proposer {proposer}: give template or llm")
    if proposer == "template" and (model or replay):
        raise UserError("--llm and --replay are of --proposer llm, not of template: leave one of them out")
    if model is not None and not model.strip():
        raise UserError("--llm is empty: give the name of a model, or leave it out")
    if isinstance(replay, Path):
        if not (exchanges := transcript.read(replay)):
            raise UserError(f"--replay {replay}: it holds no exchange with a language model")
        model = exchanges[0].model
    if proposer == "llm" and not model:
        raise UserError("--proposer llm needs the name of a model: give --llm MODEL")
    if not model and (given := [LIMITS[name] for name, value in options.items() if value is not None]):
        raise UserError(f"{given[0]} is of a language model, and none is asked: give --llm MODEL too, or leave it out")
    if not model:
        return None
    return LanguageModel.model_validate({"model": model} | options)


def check(idea: Idea, fixed: Fixed, model: LanguageModel | None) -> None:
    """Raises what is wrong with a proposer before any time is spent: BadIdea, UserError."""
    if model is None:
        TemplateProposer(idea, fixed)
    elif not model.replay:
        _client(model, idea.folder / "transcript.jsonl")  # which is never written, as nothing is asked


def of_new_study(study: "Study", started: StudyStarted, idea: Idea) -> Proposer:
    """Likewise, with the transcript to be replayed, if there is one, as the study's own from now on."""
    if started.language_model and started.language_model.replay:
        shutil.copyfile(started.language_model.replay, study.transcript)
    return of_study(study, started, idea)


def of_study(study: "Study", started: StudyStarted, idea: Idea, asking: bool = True) -> Proposer:
    """The proposer that a study began with. Raises BadIdea, LLMError where there is no key."""
    model = started.language_model
    if model is None:
        return TemplateProposer(idea, started.fixed)
    from agent.proposers.language_model import LLMProposer, Silent  # here because notes and plots come with it

    if not asking:
        return Silent()
    asker = Replay(study.transcript) if model.replay else _client(model, study.transcript)
    return LLMProposer(study, idea, asker)


def spent(study: "Study") -> str:
    """What a language model cost a study, in one line; empty where none was asked."""
    exchanges = transcript.read(study.transcript) if study.transcript.exists() else []
    if not exchanges:
        return ""
    tokens_in, tokens_out = (sum(getattr(each.usage, f"tokens_{way}") for each in exchanges) for way in ("in", "out"))
    costs = [each.cost for each in exchanges if each.cost is not None]
    dollars = f", ${sum(costs):.2f}" if len(costs) == len(exchanges) else ""
    return f"the model: {len(exchanges)} requests, {tokens_in:,} tokens read, {tokens_out:,} written{dollars}"


def _client(model: LanguageModel, path: Path) -> Client:
    return Client(model.model, path, Limits(model.max_tokens, model.max_cost, model.prices), window=model.window)
