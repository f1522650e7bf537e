"""`agent ideas new`: a sentence becomes an idea with a plan, by a language model and with the user's approval."""

import math
import re
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from agent import ROOT, ideas
from agent.commands.ideas import print_idea
from agent.ideas import BadIdea, Fixed, Idea
from agent.lab.defaults import is_world
from agent.lab.errors import UserError
from agent.lab.evaluation.catalogue import measurable, parse_evals
from agent.lab.files import write_atomically
from agent.lab.metrics import HEADLINE, METRICS, family_of
from agent.llm.client import ChatModel, Client, Limits
from agent.llm.transcript import Message
from agent.running import preflight
from agent.study import workspace
from agent.study.ledger import BadLedger

TRIES = 4  # answers of the model
MOST_ERRORS = 10  # of one answer that go back to it
WIDTH = 110  # of the lines of paragraphs in a written idea.yaml
ALIKE = 0.3  # similarity from which one idea is said to resemble another
COMMON = 8  # words that are shown of what two ideas have in common
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def new(sentence: str, model: str, root: Path = ROOT) -> None:
    """Ask for an idea, show it with what it resembles, and write it to templates/ideas if the user says yes.

    What was said, and the idea also where the user says no, is kept in a directory of runs/. Raises UserError or
    LLMError.
    """
    if not sentence.strip():
        raise UserError("there is nothing to work out: give the idea in one sentence")
    kept = root / "runs" / f"{datetime.now():%Y%m%d_%H%M%S}_new_idea"
    client = Client(model, kept / "transcript.jsonl", Limits(), sleep=_wait)
    kept.mkdir(parents=True)
    print(f"asking {model}; what is said is kept in {kept}", flush=True)
    idea = ask(sentence, client, root / "templates")
    print(f"{client.spent.tokens:,} tokens in {client.spent.calls} call{'s' * (client.spent.calls > 1)}\n")
    write_atomically(kept / "idea.yaml", as_yaml(idea))
    print_idea(idea)
    for other in resembling(idea, root):
        common = ", ".join(other.common[:COMMON])
        print(f"\nresembles {other.what}, {other.title!r} (similarity {other.similarity:.2f}); in common: {common}")
    if not _approved(idea, kept):
        print(f"nothing was written; the idea lies in {kept / 'idea.yaml'}")
        return
    idea.folder.mkdir(parents=True)
    write_atomically(idea.folder / "idea.yaml", as_yaml(idea))
    runs = len(idea.plan)
    print(f"written; investigate it with: agent run --idea {idea.name} --max-runs {runs} --proposer llm --llm {model}")


def ask(sentence: str, asker: ChatModel, templates: Path) -> Idea:
    """A sound idea for the sentence; what is wrong with one goes back to the model. Raises UserError after 4 tries."""
    messages: list[Message] = [{"role": "user", "content": _prompt(sentence, _sound_ideas(templates), templates)}]
    problem = ""
    for _ in range(TRIES):
        answer = asker.ask(messages, "idea")
        try:
            idea = read(answer)
        except BadIdea as error:
            problem = str(error)
            mend = f"This breaks the schema: {problem}\nAnswer with the whole YAML again, with this mended."
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": mend}]
        else:
            return idea.model_copy(update={"folder": _free_folder(idea.title, templates)})
    raise UserError(f"none of {TRIES} answers was a sound idea; the last: {problem}; try another model or sentence")


def read(answer: str) -> Idea:
    """The idea in a model's answer: what stands between its fences, or all of it. Raises BadIdea."""
    text = max(FENCED.findall(answer), key=len, default=answer)
    idea = ideas.parse(text, Path("idea.yaml"), MOST_ERRORS)
    if wrong := list(_unfit(idea)):
        raise BadIdea(f"idea.yaml {'; '.join(wrong)}")
    return idea


def _unfit(idea: Idea) -> Iterator[str]:
    """What the schema allows, and an idea without a template cannot have."""
    if idea.model_fields_set & {"fixed", "defaults"} or any(
        "parameters" in step.model_fields_set for step in idea.plan
    ):
        yield "fixed, defaults, parameters: leave them out; settings stand in the description of a step"
    if idea.primary_metric not in (deciding := _deciding()):
        yield f"primary_metric: expected {' or '.join(deciding)}, found {idea.primary_metric!r}"
    worth = METRICS[idea.primary_metric].worth
    if idea.smallest_effect < worth:
        yield f"smallest_effect: expected at least {worth:g}, found {idea.smallest_effect:g}"
    for number, step in enumerate(idea.plan):
        if idea.primary_metric not in step.predictions:
            yield f"plan.{number}.predictions: expected the primary metric, {idea.primary_metric}, among them"


def _prompt(sentence: str, there: Iterable[Idea], templates: Path) -> str:
    environment = ideas.strict_templates(templates)
    environment.filters["flow"] = _flow
    return environment.get_template("prompts/new_idea.j2").render(
        sentence=_flow(sentence),
        source=ideas.render_baseline(Fixed(), templates=templates),
        allowed=preflight.ALLOWED,
        headline={name: METRICS[name] for name in _measured()},
        deciding=_deciding(),
        there=list(there),
    )


def _measured() -> list[str]:
    """The headline metrics that every study measures, if nothing else is asked for."""
    fixed = Fixed()
    families = parse_evals(fixed.evals)
    world = is_world(fixed.model)
    return [name for name in HEADLINE if family_of(name) in families and measurable(name, world)]


def _deciding() -> list[str]:
    """Those of them that can be a primary metric."""
    return [name for name in _measured() if METRICS[name].decides and METRICS[name].better != "none"]


def _free_folder(title: str, templates: Path) -> Path:
    """Where an idea of this title goes: named by its first words, and numbered where the name is taken."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    short = "_".join(words[:5]) or "idea"
    names = (short if count == 1 else f"{short}_{count}" for count in range(1, 1000))
    return next(folder for name in names if not (folder := templates / "ideas" / name).exists())


def as_yaml(idea: Idea) -> str:
    """The text of idea.yaml."""
    fields = ("title", "description", "hypothesis", "primary_metric", "smallest_effect")
    steps = [step.model_dump(exclude={"parameters"}, exclude_none=True) for step in idea.plan]
    content: dict[str, Any] = {name: getattr(idea, name) for name in fields} | {"plan": steps}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """Writes paragraphs as people do."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if len(text) <= WIDTH - 30 and "\n" not in text.strip():
        return dumper.represent_scalar("tag:yaml.org,2002:str", text.strip())
    return dumper.represent_scalar("tag:yaml.org,2002:str", textwrap.fill(_flow(text), WIDTH) + "\n", style="|")


_Dumper.add_representer(str, _text)


@dataclass(frozen=True)
class Other:
    """An idea or a study at hand that is like another idea."""

    what: str
    title: str
    similarity: float  # from 0 to 1, where all words are the same
    common: list[str]  # words, the longest first


def resembling(idea: Idea, root: Path) -> list[Other]:
    """What is there already of this kind, the most alike first.

    Compared are the sets of words A and B, less those of the prompt with its baseline and metrics, which every idea
    uses: |A and B| / sqrt(|A| |B|) (Ochiai 1957). This finds what is told alike, not what is told in other words.
    """
    usual = _words(_prompt("", (), root / "templates"))
    mine = _words(_told(idea)) - usual
    found = []
    for what, title, text in _at_hand(root):
        theirs = _words(f"{title} {text}") - usual
        common = sorted(mine & theirs, key=lambda word: (-len(word), word))
        similarity = len(common) / math.sqrt(max(len(mine) * len(theirs), 1))
        if similarity >= ALIKE:
            found.append(Other(what, title, similarity, common))
    return sorted(found, key=lambda other: -other.similarity)


def _at_hand(root: Path) -> Iterator[tuple[str, str, str]]:
    """What each idea and study is called, its title, and what is told of it."""
    for idea in _sound_ideas(root / "templates"):
        yield f"the idea {idea.name}", idea.title, _told(idea)
    for directory in sorted((root / "runs").glob("*/")):
        try:
            found = workspace.find_study(directory)
        except BadLedger:
            continue
        if found:
            started = found[1].started
            plan = [f"{run.proposal.title} {run.proposal.description}" for run in found[1].runs]
            yield (
                f"the study {directory.name}",
                started.title,
                " ".join([started.description, started.hypothesis, *plan]),
            )
    for notes in sorted((root / "notes").glob("*/notes.txt")):
        if not (root / "runs" / notes.parent.name).exists():  # a study of which only the notes were kept
            text = notes.read_text(errors="replace")
            yield f"the notes {notes}", text.removeprefix("# Title\n").partition("\n")[0], text


def _sound_ideas(templates: Path) -> Iterator[Idea]:
    for name in ideas.idea_names(templates):
        try:
            yield ideas.load(name, templates)
        except BadIdea:
            continue  # `agent ideas` says what is wrong with it


def _told(idea: Idea) -> str:
    steps = [f"{step.title} {step.description} {step.why}" for step in idea.plan]
    return " ".join([idea.title, idea.description, idea.hypothesis, *steps])


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]{4,}", text.lower())}


def _flow(text: str) -> str:
    return " ".join(text.split())


def _approved(idea: Idea, kept: Path) -> bool:
    try:
        answer = input(f"\nwrite it to {idea.folder}? [y/N] ")
    except EOFError:
        print()
        raise UserError(f"nobody is there to approve it: the idea lies in {kept / 'idea.yaml'}") from None
    return answer.strip().lower() in ("y", "yes")


def _wait(seconds: float) -> None:
    print(f"no answer; asking again in {seconds:g} s", flush=True)
    time.sleep(seconds)
