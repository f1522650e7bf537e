"""Removal of secrets from every text before it is sent to a model, shown or recorded."""

import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
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
    """Remove the values of secret environment variables, and text in the shape of a key.

    A value is also found URL-quoted, reversed, and in hexadecimal or base64, as part of a longer text too. It is not
    found if it is spaced out, split or encoded otherwise: what must not leak a key must not be given one.

    >>> redact("GET https://me:password@host/v1 with Bearer abc123def456")
    'GET https://[secret removed]@host/v1 with Bearer [secret removed]'
    """
    values = {part for name, value in os.environ.items() if NAMES.search(name) for part in value.split()}
    for value in sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True):
        for form in _forms(value):
            text = text.replace(form, REMOVED)
    return SHAPES.sub(REMOVED, text)


def _forms(value: str) -> Iterator[str]:
    """Yield a value and its simplest encodings."""
    data = value.encode()
    yield from (value, quote(value, safe=""), value[::-1], data.hex(), data.hex().upper())
    for encode in (b64encode, urlsafe_b64encode):
        for before in range(3):  # bytes that share the first character with the value
            whole = encode(bytes(before) + data).decode().rstrip("=")
            end = len(whole) - ((before + len(data)) % 3 > 0)  # the last one may be shared with what follows
            yield whole[(0, 2, 3)[before] : end]
