"""A request to a language model: its messages, and the reply with what it cost. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

Message = dict[str, str]  # role: system, user or assistant; content
# quota: nothing is granted now; auth: the key is not accepted; request: the server rejects the request; connection,
# timeout: no answer came; budget: the user's limits; replay: another question was recorded; short: the answer was cut
# off, and a longer one is asked for. The other three are failures of an answer.
Kind = Literal[
    "quota",
    "auth",
    "request",
    "connection",
    "timeout",
    "budget",
    "replay",
    "short",
    "refused",
    "malformed",
    "truncated",
]


class TokenUsage(BaseModel):
    """The tokens that a request has cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False  # the server gave no figures


@dataclass(frozen=True)
class Reply:
    """An answer, or the reason why there is none."""

    kind: Kind | None = None  # of failure; None: answered
    reason: str = ""
    remedy: str = ""
    answer: str | None = None  # also one that was cut off or refused
    usage: TokenUsage = field(default_factory=TokenUsage)
    wait: float | None = None  # seconds until a retry, 0 if the server names none; None: a retry would not help
    window: int | None = None  # tokens that the model can read at once, where the failure is due to that

    @property
    def message(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def rough_tokens(text: str) -> int:
    """Estimate the tokens of a text, one for 3 bytes: English has one for about 4, code one for about 3."""
    return len(text.encode(errors="replace")) // 3 + 1


def rough_prompt_tokens(messages: Sequence[Message]) -> int:
    """Estimate the tokens of a prompt, with 4 for the role and the delimiters of each message."""
    return sum(rough_tokens(message["content"]) + 4 for message in messages)
