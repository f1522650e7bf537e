"""The language model that judges latents: any endpoint that answers OpenAI's chat completions.

OPENAI_API_KEY, OPENAI_BASE_URL and SAE_AGENT_JUDGE (the judge's name there) say which.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from agent.lab.evaluation.bench.core import EvaluationError

OPENAI = "https://api.openai.com/v1"
SAE_BENCHS_JUDGE = "gpt-4o-mini"  # written into its code
PATIENCE = 30  # seconds that an endpoint may ask to wait
SHORTEST_KEY = 8  # characters; what is shorter is no secret, and "none" is a word of the judge's


class JudgeError(EvaluationError):
    """The judge gave no answer that can be used."""

    def __init__(self, why: str, do: str, passing: bool = False, after: float | None = None) -> None:
        super().__init__(why)
        self.do = do
        self.passing = passing  # another try may help
        self.after = after  # seconds that the endpoint asks to wait before it


@dataclass
class Judge:
    """A judge, asked from several threads at once. What it says and how it fails is free of the key."""

    model: str
    base_url: str
    key: str = field(repr=False)
    timeout: float = 60  # seconds, of one answer
    waits: Sequence[float] = (1, 4, 15)  # seconds before each further try, where the endpoint names none
    failed: JudgeError | None = None  # why it was given up

    @classmethod
    def chosen(cls, environment: Mapping[str, str], **limits: Any) -> "Judge":
        """The judge that the environment names. Raises JudgeError where it names none."""
        if not (key := environment.get("OPENAI_API_KEY")):
            raise JudgeError(
                "no judge: OPENAI_API_KEY is not set",
                "set OPENAI_API_KEY (for a local endpoint any text), OPENAI_BASE_URL where it is not OpenAI, and "
                f"SAE_AGENT_JUDGE where it is not {SAE_BENCHS_JUDGE}",
            )
        model = environment.get("SAE_AGENT_JUDGE") or SAE_BENCHS_JUDGE
        return cls(model, environment.get("OPENAI_BASE_URL") or OPENAI, key, **limits)

    def ask(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        """Its answer. Tries again where that may help; once it has given up, it does so at once. Raises JudgeError."""
        for wait in (*self.waits, None):
            if self.failed:
                raise JudgeError(str(self.failed), self.failed.do)
            try:
                said = self.choice(messages, max_tokens).message.content
                if not isinstance(said, str):
                    raise self._error("gave a choice without text", "use another judge")
                return self._without_key(said.strip())
            except JudgeError as error:
                if wait is None or not error.passing:
                    self.failed = error
                    raise
                time.sleep(wait if error.after is None else error.after)
        raise AssertionError("the last try returns or raises")

    def choice(self, messages: list[dict[str, str]], max_tokens: int) -> Any:
        """The first choice of one completion, asked once. Raises JudgeError."""
        import openai

        client = openai.OpenAI(api_key=self.key, base_url=self.base_url, timeout=self.timeout, max_retries=0)
        try:
            answer = client.chat.completions.create(model=self.model, messages=messages, max_tokens=max_tokens)  # type: ignore[arg-type]
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APITimeoutError:
            raise self._error(f"gave no answer in {self.timeout:.0f} s", "see whether it is overloaded", True) from None
        except openai.APIConnectionError as error:
            do = "start it, or set OPENAI_BASE_URL"
            raise self._error(f"cannot be reached ({error.__cause__ or error})", do, True) from None
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise self._error(f"gave no completion ({type(error).__name__}: {error})", "see OPENAI_BASE_URL") from None
        choices = getattr(answer, "choices", None)
        if not choices:
            what = "text that is no completion" if isinstance(answer, str) else "a completion without a choice"
            raise self._error(f"gave {what}", "see whether OPENAI_BASE_URL ends where /chat/completions follows")
        return choices[0]

    def _refused(self, error: Any) -> JudgeError:
        status = error.status_code
        do = {
            401: "set OPENAI_API_KEY to a key that is valid there",
            403: "set OPENAI_API_KEY to a key that may use it",
            404: "set SAE_AGENT_JUDGE to a model that is served there, and OPENAI_BASE_URL to where it is",
            429: "wait, or raise the limit of the account",
        }.get(status, "see what the endpoint says")
        asked = error.response.headers.get("retry-after", "")
        after = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else None
        passing = (status in (408, 409, 429) or status >= 500) and error.code != "insufficient_quota"
        said = " ".join(str(error.message).split())[:200]
        return self._error(f"answered {status}: {said}", do, passing and (after or 0) <= PATIENCE, after)

    def _error(self, what: str, do: str, passing: bool = False, after: float | None = None) -> JudgeError:
        host = urlparse(self.base_url).hostname  # alone: a user's name or a key may stand in the rest
        return JudgeError(self._without_key(f"the judge {self.model} at {host} {what}"), do, passing, after)

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "<key>") if len(self.key) >= SHORTEST_KEY else text
