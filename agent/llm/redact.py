"""Removal of secrets from every text before it is sent to a model, shown or recorded."""

import os
import re
from urllib.parse import quote

REMOVED = "[secret removed]"
NAMES = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)  # of environment variables
SHORTEST = 8  # characters; a shorter value protects nothing, and may be a word
# Keys that can be told by their shape; the last one is the user and password of a URL.
SHAPES = re.compile(
    r"\b(sk|pk|rk)-(?=[\w*-]*[\d*])[\w*-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[abps]-[\w-]{10,}|(?<=Bearer )[^\s\"']{8,}|(?<=://)[^\s/@]+:[^\s/@]+(?=@)"
)


def redact(text: str) -> str:
    """Remove the values of secret environment variables, plain or URL-quoted, and text in the shape of a key.

    >>> redact("GET https://me:password@host/v1 with Bearer abc123def456")
    'GET https://[secret removed]@host/v1 with Bearer [secret removed]'
    """
    values = {part for name, value in os.environ.items() if NAMES.search(name) for part in value.split()}
    for value in sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True):
        text = text.replace(value, REMOVED).replace(quote(value, safe=""), REMOVED)
    return SHAPES.sub(REMOVED, text)
