"""The language model that judges latents: any endpoint that answers OpenAI's chat completions.

OPENAI_API_KEY, OPENAI_BASE_URL and SAE_AGENT_JUDGE (the judge's name there) say which.
"""

from collections.abc import Mapping, Sequence

from agent.lab import chat
from agent.lab.evaluation.bench.core import EvaluationError

SAE_BENCHS_JUDGE = "gpt-4o-mini"  # written into its code
MAX_WAIT = 30  # seconds that an endpoint may ask to wait
MIN_KEY = 8  # characters; what is shorter is no secret, and "none" is a word of the judge's


class JudgeError(EvaluationError):
    """A judge that gave no answer; `remedy` is what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Judge:
    """The judge that the environment names, asked from several threads. Its answers and errors are free of the key."""

    def __init__(
        self, environment: Mapping[str, str], *, timeout: float = 60, pauses: Sequence[float] = (1, 4, 15)
    ) -> None:
        """Raise JudgeError if the environment names no judge.

        `timeout` is in seconds for one answer, `pauses` before each retry if the endpoint asks for no other.
        """
        if problem := chat.check_key(environment.get("OPENAI_API_KEY")):
            remedy = "OPENAI_BASE_URL if it is not OpenAI's, and SAE_AGENT_JUDGE if it is not"
            raise JudgeError(f"no judge: {problem.reason}", f"{problem.remedy}; {remedy} {SAE_BENCHS_JUDGE}")
        self.model = environment.get("SAE_AGENT_JUDGE") or SAE_BENCHS_JUDGE
        self.failed: JudgeError | None = None  # why it was given up
        self._pauses = pauses
        setting = f"SAE_AGENT_JUDGE={self.model} and OPENAI_BASE_URL"
        self._server = chat.Server(self.model, environment, setting=setting, timeout=timeout, max_wait=MAX_WAIT)

    def ask(self, messages: Sequence[chat.Message], max_tokens: int) -> str:
        """Return the answer, or what there is of one that was cut off.

        Raise JudgeError if there is none; from then on, raise it at once.
        """

        def ask_once() -> chat.Reply:
            if self.failed:
                raise JudgeError(str(self.failed), self.failed.remedy)
            return self._server.complete(messages, max_tokens)

        *_, reply = chat.attempts(ask_once, self._pauses)
        if reply.answer is None:
            reason = self._without_key(f"the judge {self.model} failed: {reply.reason}")
            self.failed = JudgeError(reason, reply.remedy or "use another judge")
            raise self.failed
        return self._without_key(reply.answer.strip())

    def _without_key(self, text: str) -> str:
        key = self._server.key
        return text.replace(key, "<key>") if len(key) >= MIN_KEY else text
