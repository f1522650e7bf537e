"""The conversation with the language model, for a person to read: its text is data, and nothing in it is a link."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from markupsafe import Markup

from agent.lab.visible import visible
from agent.llm.transcript import Exchange
from agent.study.events import Event, ProposalMade, RunDescribed

if TYPE_CHECKING:
    from markdown_it.token import Token

OPEN, DIVIDE, CLOSE = re.compile(r"<{5,9} ?SEARCH"), re.compile(r"={5,9}\s*$"), re.compile(r">{5,9} ?REPLACE")
MOST_CHARACTERS = 60_000  # of a message


@dataclass(frozen=True)
class Message:
    """A message of a request. `same_as` is the request that it stands in already, which is shown in its place."""

    role: str
    text: Markup
    characters: int
    same_as: int | None = None


@dataclass(frozen=True)
class Request:
    """A request to the language model with its outcome."""

    number: int
    purpose: str
    time: datetime
    model: str
    tokens: str  # in words
    cost: float | None
    messages: Sequence[Message]
    answer: Markup | None
    failure: str


@dataclass
class Conversation:
    """All requests: those that led to a run by its number, and those about the study as a whole."""

    about_study: list[Request] = field(default_factory=list)
    by_run: dict[int, list[Request]] = field(default_factory=dict)


def arrange(exchanges: Sequence[Exchange], events: Iterable[Event]) -> Conversation:
    """Return the conversation, each request with the run that it was about."""
    conversation, waiting = Conversation(), list(_readable(exchanges))
    for event in events:
        if not isinstance(event, ProposalMade | RunDescribed) or event.run == 0:  # run 0 is nobody's proposal
            continue
        purpose = "proposal" if isinstance(event, ProposalMade) else "description"
        led = [request for request in waiting if request.purpose == purpose and request.time <= event.time]
        if led:
            conversation.by_run.setdefault(event.run, []).extend(led)
            waiting = [request for request in waiting if request not in led]
    conversation.about_study = waiting
    return conversation


def _readable(exchanges: Sequence[Exchange]) -> Iterator[Request]:
    first: dict[str, int] = {}  # text of a message -> the request that it first stood in
    for exchange in exchanges:
        messages = []
        for message in exchange.messages:
            text = message.get("content", "")
            same_as = first.setdefault(text, exchange.seq)
            repeated = same_as if same_as != exchange.seq else None
            shown = Markup() if repeated is not None else markdown(text)
            messages.append(Message(visible(message.get("role", "")), shown, len(text), repeated))
        if exchange.answer is not None:
            first.setdefault(exchange.answer, exchange.seq)
        yield Request(
            number=exchange.seq,
            purpose=exchange.purpose,
            time=exchange.time,
            model=exchange.model,
            tokens=_tokens(exchange),
            cost=exchange.cost,
            messages=messages,
            answer=None if exchange.answer is None else markdown(exchange.answer),
            failure=f"{exchange.error.kind}: {visible(exchange.error.message)}" if exchange.error else "",
        )


def _tokens(exchange: Exchange) -> str:
    usage = exchange.usage
    estimated = " (estimated)" if usage.estimated else ""
    return f"{usage.tokens_in:,} tokens read, {usage.tokens_out:,} written{estimated}"


def markdown(text: str) -> Markup:
    """Render a model's Markdown without HTML, links, images and headings that would join the outline of the page."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("fence", _fence)
    parser.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
    shown = visible(text)
    if len(shown) > MOST_CHARACTERS:
        shown = f"{shown[:MOST_CHARACTERS]}\n\n… and {len(shown) - MOST_CHARACTERS:,} characters more"
    tokens = parser.parse(_fence_edits(shown))
    for token in tokens:
        token.attrs.pop("style", None)  # the alignment of a table's cells; the page allows no inline style
        if token.type in ("heading_open", "heading_close"):
            token.tag = "p"
        if token.type == "heading_open":
            token.attrSet("class", "heading")
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _fence(_: object, tokens: Sequence["Token"], place: int, *__: object) -> str:
    """Render a block of code; in one of edits, what is searched for and what replaces it are marked as in a diff."""
    kind, lines = "", []
    for line in tokens[place].content.splitlines():
        if OPEN.match(line):
            kind = "del"
        elif kind and (DIVIDE.match(line) or CLOSE.match(line)):
            kind = "ins" if DIVIDE.match(line) else ""
        else:
            lines.append(Markup("<{0}>{1}</{0}>").format(kind or "span", line))
            continue
        lines.append(Markup('<span class="skipped">{}</span>').format(line))
    return Markup('<pre class="code">{}</pre>\n').format(Markup("\n").join(lines))


def _fence_edits(text: str) -> str:
    """Put SEARCH/REPLACE blocks that stand outside of fences into fences, so that they are read as code."""
    lines, fenced, edited = [], False, False
    for line in text.split("\n"):
        if line.lstrip().startswith(("```", "~~~")) and not edited:
            fenced = not fenced
        if not fenced and line.startswith("<<<<<"):
            edited = True
            lines.append("~~~~~~edit")
        lines.append(line)
        if edited and line.startswith(">>>>>"):
            edited = False
            lines.append("~~~~~~")
    return "\n".join([*lines, "~~~~~~"] if edited else lines)
