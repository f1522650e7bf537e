"""Select a study's proposer: from the command line's options at first, from its ledger afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path

from agent.ideas import Fixed, Idea
from agent.lab.errors import UserError
from agent.llm import transcript
from agent.llm.client import Client, Limits
from agent.llm.replay import Replay
from agent.proposers import Proposer
from agent.proposers.language_model import LLMProposer, SilentProposer
from agent.proposers.template import TemplateProposer
from agent.study.events import LanguageModel, StudyStarted
from agent.study.workspace import Study

LIMITS = {
    "max_tokens": "--max-llm-tokens",
    "max_cost": "--max-cost",
    "prices": "--price-in",
    "window": "--llm-window",
}
IDEAS_PLAN = "proposals: the idea's own plan (--llm MODEL, with OPENAI_API_KEY set, has a language model propose)"


def price_pair(price_in: float | None, price_out: float | None) -> tuple[float, float] | None:
    """Return dollars per million tokens read and written, or None if not given. Raise UserError if one is missing."""
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise UserError("--price-in and --price-out go together: give both")
    return price_in, price_out


def requested_model(proposer: str | None, model: str | None, **options: object) -> LanguageModel | None:
    """Return the language model that the options ask for, or None for the idea's own plan.

    Raise UserError for options that do not fit together, BadTranscript for a --replay file that cannot be read.
    """
    replay = options.get("replay")
    if proposer not in (None, "template", "llm"):
        raise UserError(f"--proposer {proposer}: give template or llm")
    if proposer == "template" and (model or replay):
        raise UserError("--llm and --replay belong to --proposer llm, not to template: leave one of them out")
    if model is not None and not model.strip():
        raise UserError("--llm is empty: give the name of a model, or leave it out")
    if isinstance(replay, Path):
        if not (exchanges := transcript.read(replay)):
            raise UserError(f"--replay {replay}: it holds no exchange with a language model")
        model = exchanges[0].model
    if proposer == "llm" and not model:
        raise UserError("--proposer llm needs --llm MODEL")
    if not model and (given := [LIMITS[name] for name, value in options.items() if value is not None]):
        raise UserError(f"{given[0]} needs --llm MODEL")
    if not model:
        return None
    return LanguageModel.model_validate({"model": model} | options)


def proposer_for(idea: Idea, fixed: Fixed, model: LanguageModel | None) -> Callable[[Study, Fixed], Proposer]:
    """Return what makes the proposer of a new study, once the study has a directory and its text is pinned.

    Raise what can be known to be wrong before that: BadIdea for a plan that cannot be rendered, LLMError for a missing
    key, UserError for limits that cannot be kept.
    """
    if model is None:
        TemplateProposer(idea, fixed)
        return lambda _, pinned: TemplateProposer(idea, pinned)
    if model.replay is None:
        _client(model, idea.folder / "transcript.jsonl")  # checks key and limits; nothing is asked, so nothing written

    def make(study: Study, _: Fixed) -> Proposer:
        if model.replay:
            shutil.copyfile(model.replay, study.transcript)
        return _language_model(study, idea, model)

    return make


def proposer_of(study: Study, started: StudyStarted, idea: Idea) -> Proposer:
    """Return the proposer that a study began with. Raise BadIdea, or LLMError if there is no key."""
    if started.language_model is None:
        return TemplateProposer(idea, started.fixed)
    return _language_model(study, idea, started.language_model)


def silent_proposer_of(started: StudyStarted, idea: Idea) -> Proposer:
    """Return a proposer that asks no language model, for adding a run made by hand."""
    return SilentProposer() if started.language_model else TemplateProposer(idea, started.fixed)


def _language_model(study: Study, idea: Idea, model: LanguageModel) -> Proposer:
    asker = Replay(study.transcript) if model.replay else _client(model, study.transcript)
    return LLMProposer(study, idea, asker)


def _client(model: LanguageModel, path: Path) -> Client:
    return Client(model.model, path, Limits(model.max_tokens, model.max_cost, model.prices), window=model.window)
