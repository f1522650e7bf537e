"""Exits of the lab's processes: an error that a user can act on is one line on stderr and an exit code."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from agent.lab.errors import UserError
from agent.lab.progress import notify


def exit_with(message: str, code: int) -> None:
    """Print a message as one line and exit."""
    notify(" ".join(message.split()))
    raise SystemExit(code)


@contextmanager
def one_line_errors(interrupted: str) -> Iterator[None]:
    """Exit with one line and the code 2 on a UserError, 130 on Ctrl-C, 1 when the disk or the device is full.

    `interrupted` is the message for Ctrl-C: what is left, and how to go on.
    """
    try:
        yield
    except UserError as error:
        exit_with(f"error: {error}", 2)
    except KeyboardInterrupt:
        exit_with(f"interrupted: {interrupted}", 130)
    except torch.OutOfMemoryError as error:
        exit_with(f"error: out of memory on the device ({str(error).splitlines()[0]}): lower BATCH or D_SAE", 1)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and f"(os error {errno.ENOSPC})" not in str(error):
            raise
        place = getattr(error, "filename", None) or "while writing"
        exit_with(f"error: No space left on device ({place}): free some space", 1)
