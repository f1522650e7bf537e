"""`agent ideas new`: have a language model turn a sentence into an idea with a plan, for the user to approve."""

import math
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from agent import ROOT, ideas
from agent.commands.ideas import print_idea
from agent.idea_folder import require_name
from agent.ideas import BadIdea, Fixed, Idea
from agent.lab.defaults import is_world
from agent.lab.errors import UserError
from agent.lab.evaluation.catalogue import measurable, parse_evals
from agent.lab.files import MIB, BadFile, exists, locate, read_plain, write_atomically
from agent.lab.metrics import HEADLINE, METRICS, family_of
from agent.llm.client import ChatModel, Client, sleep_aloud
from agent.llm.command import Command
from agent.llm.limits import Limits
from agent.llm.server import server
from agent.llm.transcript import Message
from agent.proposers.sections import without_thinking
from agent.rendering import strict_templates
from agent.running import preflight
from agent.study import workspace

MAX_ANSWERS = 4
MAX_ERRORS = 10  # of one answer, sent back to the model
WIDTH = 110  # characters in a line of a paragraph in idea.yaml
MIN_SIMILARITY = 0.3  # from which an idea is reported as similar
MAX_COMMON_WORDS = 8  # shown of those that two ideas share
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def new(
    sentence: str, model: str | None, root: Path = ROOT, *, command: str | None = None, to: Path | None = None
) -> None:
    """Request an idea of a server's `model` or of a program, show it with similar ones, and write it to the folder `to`
    or to templates/ideas if the user approves.

    The transcript and the draft are kept in a directory of runs/ in any case. Raise UserError, or LLMError if the model
    cannot be reached.
    """
    if not sentence.strip():
        raise UserError("the sentence is empty: describe the idea in one sentence")
    folder = _new_folder(to) if to else None
    draft_dir = root / "runs" / f"{datetime.now():%Y%m%d_%H%M%S}_new_idea"
    asked = Command(command) if command else server(model or "")
    client = Client(asked, draft_dir / "transcript.jsonl", Limits(), sleep=sleep_aloud)
    draft_dir.mkdir(parents=True)
    print(f"asking {asked.model}; transcript in {draft_dir}", flush=True)
    idea = request_idea(sentence, client, root / "templates")
    idea = idea.model_copy(update={"folder": folder}) if folder else idea
    print(f"{client.spent.in_words} in {client.spent.calls} call{'s' * (client.spent.calls > 1)}\n")
    draft = draft_dir / "idea.yaml"
    write_atomically(draft, as_yaml(idea))
    print_idea(idea)
    for other in similar_ideas(idea, root):
        common = ", ".join(other.common_words[:MAX_COMMON_WORDS])
        print(f"\nsimilar to {other.source}, {other.title!r} (similarity {other.similarity:.2f}); in common: {common}")
    if not _approved(idea, draft):
        print(f"not approved; draft saved to {draft}")
        return
    idea.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(idea.folder / "idea.yaml", as_yaml(idea))
    runs = len(idea.plan)
    option = f"--llm-command {shlex.quote(command)}" if command else f"--llm {model}"
    name = shlex.quote(str(folder)) if folder else idea.name
    print(f"written; study it with: agent run --idea {name} --max-runs {runs} --proposer llm {option}")


def _new_folder(to: Path) -> Path:
    """Return the whole path of a user's folder for an idea. Raise UserError if it holds something, or none may be
    there."""
    folder = locate(str(to)).resolve()
    require_name(folder)
    if exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {to}: there is something already: give an empty folder, or one that does not exist")
    return folder


def request_idea(sentence: str, llm: ChatModel, templates: Path) -> Idea:
    """Ask for a valid idea, sending errors back to the model. Raise UserError after MAX_ANSWERS invalid answers."""
    messages: list[Message] = [{"role": "user", "content": _prompt(sentence, _valid_ideas(templates), templates)}]
    problem = ""
    for _ in range(MAX_ANSWERS):
        answer = llm.ask(messages, "idea")
        try:
            idea = parse_answer(answer)
        except BadIdea as error:
            problem = str(error)
            request = f"This is not a valid idea: {problem}\nSend the whole YAML again with these errors corrected."
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": request}]
        else:
            return idea.model_copy(update={"folder": _free_folder(idea.title, templates)})
    raise UserError(
        f"none of {MAX_ANSWERS} answers was a valid idea; the last: {problem}; try another model or sentence"
    )


def parse_answer(answer: str) -> Idea:
    """Parse the longest fenced block of an answer, or all of it if none is fenced. Raise BadIdea if it is invalid."""
    answer = without_thinking(answer)
    text = max(FENCED.findall(answer), key=len, default=answer)
    idea = ideas.parse(text, Path("idea.yaml"), MAX_ERRORS)
    if errors := list(_errors_without_template(idea)):
        raise BadIdea(f"idea.yaml {'; '.join(errors)}")
    return idea


def _errors_without_template(idea: Idea) -> Iterator[str]:
    """Yield what the schema allows, but not in an idea without a template."""
    if idea.model_fields_set & {"fixed", "defaults"} or any(
        "parameters" in step.model_fields_set for step in idea.plan
    ):
        yield "fixed, defaults, parameters: leave them out; put settings into the description of a step"
    if idea.primary_metric not in (allowed := _primary_metrics()):
        yield f"primary_metric: expected {' or '.join(allowed)}, found {idea.primary_metric!r}"
    worth = METRICS[idea.primary_metric].worth
    if idea.smallest_effect < worth:
        yield f"smallest_effect: expected at least {worth:g}, found {idea.smallest_effect:g}"
    for number, step in enumerate(idea.plan):
        if idea.primary_metric not in step.predictions:
            yield f"plan.{number}.predictions: expected the primary metric, {idea.primary_metric}, among them"


def _prompt(sentence: str, existing: Iterable[Idea], templates: Path) -> str:
    environment = strict_templates(templates)
    environment.filters["one_line"] = _one_line
    return environment.get_template("prompts/new_idea.j2").render(
        sentence=_one_line(sentence),
        source=ideas.render_baseline(Fixed(), templates=templates),
        allowed_imports=preflight.ALLOWED_IMPORTS,
        headline={name: METRICS[name] for name in _default_metrics()},
        primary_metrics=_primary_metrics(),
        existing=list(existing),
    )


def _default_metrics() -> list[str]:
    """Return the headline metrics that a study measures by default."""
    fixed = Fixed()
    families = parse_evals(fixed.evals)
    world = is_world(fixed.model)
    return [name for name in HEADLINE if family_of(name) in families and measurable(name, world)]


def _primary_metrics() -> list[str]:
    """Return the default metrics that can be a primary metric."""
    return [name for name in _default_metrics() if METRICS[name].decides and METRICS[name].better != "none"]


def _free_folder(title: str, templates: Path) -> Path:
    """Return a new folder named after the first words of a title, numbered if the name is taken."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    short = "_".join(words[:5]) or "idea"
    names = (short if count == 1 else f"{short}_{count}" for count in range(1, 1000))
    return next(folder for name in names if not (folder := templates / "ideas" / name).exists())


def as_yaml(idea: Idea) -> str:
    """Return the text of idea.yaml."""
    fields = ("title", "description", "hypothesis", "primary_metric", "smallest_effect")
    steps = [step.model_dump(by_alias=True, exclude={"parameters"}, exclude_none=True) for step in idea.plan]
    content: dict[str, Any] = {name: getattr(idea, name) for name in fields} | {"plan": steps}
    if idea.answer:
        content["answer"] = idea.answer.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes long text as a wrapped block."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if len(text) <= WIDTH - 30 and "\n" not in text.strip():
        return dumper.represent_scalar("tag:yaml.org,2002:str", text.strip())
    return dumper.represent_scalar("tag:yaml.org,2002:str", textwrap.fill(_one_line(text), WIDTH) + "\n", style="|")


_Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True)
class SimilarIdea:
    """An existing idea, study or notes.txt that resembles a new idea."""

    source: str
    title: str
    similarity: float  # from 0 to 1; 1: the same words
    common_words: list[str]  # the longest first


def similar_ideas(idea: Idea, root: Path) -> list[SimilarIdea]:
    """Return existing ideas and studies that resemble this one, the most similar first.

    The similarity of two sets of words A and B is |A and B| / sqrt(|A| |B|) (Ochiai 1957), without the words of the
    prompt, its baseline and its metrics, which every idea uses. The same idea in other words is not recognised.
    """
    usual_words = _words(_prompt("", (), root / "templates"))
    words = _words(_full_text(idea)) - usual_words
    similar = []
    for source, title, text in _existing(root):
        other_words = _words(f"{title} {text}") - usual_words
        common = sorted(words & other_words, key=lambda word: (-len(word), word))
        similarity = len(common) / math.sqrt(max(len(words) * len(other_words), 1))
        if similarity >= MIN_SIMILARITY:
            similar.append(SimilarIdea(source, title, similarity, common))
    return sorted(similar, key=lambda other: -other.similarity)


def _existing(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the source, title and text of every idea, study and notes.txt."""
    for idea in _valid_ideas(root / "templates"):
        yield f"the idea {idea.name}", idea.title, _full_text(idea)
    for directory in sorted((root / "runs").glob("*/")):
        try:
            study_and_state = workspace.find_study(directory)
        except BadFile:
            continue
        if study_and_state:
            _, state = study_and_state
            plan = [f"{run.proposal.title} {run.proposal.description}" for run in state.runs]
            text = " ".join([state.started.description, state.started.hypothesis, *plan])
            yield f"the study {directory.name}", state.started.title, text
    for notes in sorted((root / "notes").glob("*/notes.txt")):
        if not (root / "runs" / notes.parent.name).exists():  # a study of which only the notes were kept
            try:
                text = read_plain(notes, 16 * MIB).decode(errors="replace")
            except BadFile:
                continue
            yield f"the notes {notes}", text.removeprefix("# Title\n").partition("\n")[0], text


def _valid_ideas(templates: Path) -> Iterator[Idea]:
    for name in ideas.idea_names(templates):
        try:
            yield ideas.load(name, templates)
        except BadIdea:
            continue  # `agent ideas` reports what is wrong with it


def _full_text(idea: Idea) -> str:
    steps = [f"{step.title} {step.description} {step.why}" for step in idea.plan]
    return " ".join([idea.title, idea.description, idea.hypothesis, *steps])


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]{4,}", text.lower())}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _approved(idea: Idea, draft: Path) -> bool:
    try:
        answer = input(f"\nwrite it to {idea.folder}? [y/N] ")
    except EOFError:
        print()
        raise UserError(f"cannot ask for approval without a terminal; draft saved to {draft}") from None
    return answer.strip().lower() in ("y", "yes")
