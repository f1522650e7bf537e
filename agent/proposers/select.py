"""Select a study's proposer: from the command line's options at first, from its ledger afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from agent.ideas import Fixed, Idea
from agent.lab.errors import UserError
from agent.lab.files import write_atomically
from agent.lab.visible import one_line
from agent.llm import transcript
from agent.llm.client import Asked, Client, sleep_aloud
from agent.llm.command import Command
from agent.llm.limits import Limits
from agent.llm.replay import Replay
from agent.llm.server import server
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
    "answer": "--llm-answer",
    "stream": "--llm-stream",
}
OF_SERVERS = ("answer", "stream")
IDEAS_PLAN = "the idea's own plan (--llm MODEL, with OPENAI_API_KEY set, has a language model propose)"


def price_pair(price_in: float | None, price_out: float | None) -> tuple[float, float] | None:
    """Return dollars per million tokens read and written, or None if not given. Raise UserError if one is missing."""
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise UserError("--price-in and --price-out go together: give both")
    return price_in, price_out


def requested_model(
    proposer: str | None, model: str | None, command: str | None, **options: object
) -> LanguageModel | None:
    """Return the language model that the options ask for, or None for the idea's own plan.

    Raise UserError for options that do not fit together or limits that cannot be kept, BadTranscript for a --replay
    file that cannot be read.
    """
    replay, options = options.get("replay"), {name: value for name, value in options.items() if value is not None}
    if proposer not in (None, "template", "llm"):
        raise UserError(f"--proposer {proposer}: give template or llm")
    if proposer == "template" and (model or command or replay):
        raise UserError(
            "--llm, --llm-command and --replay belong to --proposer llm, not to template: leave one of them out"
        )
    if model and command:
        raise UserError("--llm asks a server, and --llm-command a program: give one of them")
    if command is not None and (given := [LIMITS[name] for name in OF_SERVERS if options.get(name)]):
        raise UserError(f"{given[0]} is for a server, and --llm-command asks a program: leave it out")
    if model is not None and not model.strip():
        raise UserError("--llm is empty: give the name of a model, or leave it out")
    if command is not None and not command.strip():
        raise UserError("--llm-command is empty: give a program with its arguments, or leave it out")
    if isinstance(replay, Path):
        if not (exchanges := transcript.read(replay)):
            raise UserError(f"--replay {replay}: it holds no exchange with a language model")
        model, command = exchanges[0].model, None
    model = model or command
    if proposer == "llm" and not model:
        raise UserError("--proposer llm needs --llm MODEL")
    if not model and (given := [LIMITS[name] for name in options]):
        raise UserError(f"{given[0]} needs --llm MODEL")
    if not model:
        return None
    requested = LanguageModel.model_validate({"model": model, "command": command} | options)
    _limits(requested)
    return requested


def where_from(model: LanguageModel | None) -> str:
    """Return in one line where the proposals of a study come from."""
    if model is None:
        return f"proposals: {IDEAS_PLAN}"
    return f"proposals: {model.model}" + f", replayed from {model.replay}" * bool(model.replay)


def proposer_for(idea: Idea, fixed: Fixed, model: LanguageModel | None) -> Callable[[Study, Fixed, Idea], Proposer]:
    """Return what makes the proposer of a new study, once the study has a directory, its text is pinned, and an idea
    from outside is copied.

    A language model is asked for a word. Raise what can be known to be wrong before the study: BadIdea for a plan that
    cannot be rendered, LLMError for a missing key or a model that does not answer, UserError for an unknown program.
    """
    if model is None:
        TemplateProposer(idea, fixed)
        return lambda _, pinned, kept: TemplateProposer(kept, pinned)
    if recorded := model.replay:

        def replayed(study: Study, _: Fixed, kept: Idea) -> Proposer:
            shutil.copyfile(recorded, study.transcript)
            return LLMProposer(study, kept, Replay(study.transcript))

        return replayed
    asked = _asked(model)
    with TemporaryDirectory() as folder:
        checked = _check(asked, model, Path(folder, "transcript.jsonl"))

    def make(study: Study, _: Fixed, kept: Idea) -> Proposer:
        write_atomically(study.transcript, checked)
        return LLMProposer(study, kept, _client(asked, model, study.transcript))

    return make


def proposer_of(study: Study, started: StudyStarted, idea: Idea) -> Proposer:
    """Return the proposer that a study began with, after a word from its language model.

    Raise BadIdea, or LLMError if there is no key or the model does not answer.
    """
    model = started.language_model
    if model is None:
        return TemplateProposer(idea, started.fixed)
    if model.replay:
        return LLMProposer(study, idea, Replay(study.transcript))
    asked = _asked(model)
    _check(asked, model, study.transcript)
    return LLMProposer(study, idea, _client(asked, model, study.transcript))


def silent_proposer_of(started: StudyStarted, idea: Idea) -> Proposer:
    """Return a proposer that asks no language model, for adding a run made by hand."""
    return SilentProposer() if started.language_model else TemplateProposer(idea, started.fixed)


def _asked(model: LanguageModel) -> Asked:
    return Command(model.command) if model.command else server(model.model, stream=model.stream)


def _client(asked: Asked, model: LanguageModel, path: Path) -> Client:
    return Client(asked, path, _limits(model), window=model.window, answer=model.answer, sleep=sleep_aloud)


def _limits(model: LanguageModel) -> Limits:
    """Return the limits of a language model. Raise UserError if they cannot be kept."""
    return Limits(model.max_tokens, model.max_cost, model.prices)


def _check(asked: Asked, model: LanguageModel, path: Path) -> bytes:
    """Ask for a word, and return what the transcript at `path` then holds. Raise LLMError if none comes."""
    print(one_line(f"asking {model.model} for a word"), flush=True)
    _client(asked, model, path).check()
    return path.read_bytes() if path.exists() else b""
