"""The server of a language model as the environment names it."""

import os

from agent.lab.chat import Server, check_key
from agent.llm.client import LLMError

TIMEOUT = 600.0  # seconds for one answer
MAX_WAIT = 600.0  # seconds that a server may ask to wait


def server(model: str, *, stream: bool = False, timeout: float = TIMEOUT) -> Server:
    """Return the server at OPENAI_BASE_URL, or OpenAI's own. Raise LLMError without a usable OPENAI_API_KEY."""
    if problem := check_key(os.environ.get("OPENAI_API_KEY")):
        raise LLMError("auth", problem.message)
    setting = f"--llm {model}"
    return Server(model, os.environ, setting=setting, timeout=timeout, max_wait=MAX_WAIT, stream=stream)
