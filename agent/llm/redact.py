"""Secrets are taken out of every text before it is sent to a model, shown or written down."""

import os
import re
from urllib.parse import quote

REMOVED = "[secret removed]"
NAMES = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)  # of environment variables
SHORTEST = 8  # characters; what is shorter guards nothing, and may be a word
# Keys that can be told by their shape, whoever they belong to; the last one is what a URL holds before its host.
SHAPES = re.compile(
    r"\b(sk|pk|rk)-(?=[\w*-]*[\d*])[\w*-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[abps]-[\w-]{10,}|(?<=Bearer )[^\s\"']{8,}|(?<=://)[^\s/@]+:[^\s/@]+(?=@)"
)


def redact(text: str) -> str:
    """The text without the values of this process's secret environment variables, plain or quoted as in a URL, and
    without what has the shape of a key."""
    values = {part for name, value in os.environ.items() if NAMES.search(name) for part in value.split()}
    for value in sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True):
        text = text.replace(value, REMOVED).replace(quote(value, safe=""), REMOVED)
    return SHAPES.sub(REMOVED, text)
