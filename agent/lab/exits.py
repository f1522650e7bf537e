"""How a process of the lab ends when it does not end well: one line on stderr, and the exit code that goes with it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from agent.lab.errors import UserError
from agent.lab.progress import say


def end(message: str, code: int) -> None:
    """Say why and exit."""
    say(" ".join(message.split()))
    raise SystemExit(code)


@contextmanager
def one_line(interrupted: str) -> Iterator[None]:
    """Exit 2 on a user's mistake, 130 on Ctrl-C (saying what `interrupted` says), 1 on a full disk or device."""
    try:
        yield
    except UserError as error:
        end(f"error: {error}", 2)
    except KeyboardInterrupt:
        end(f"interrupted: {interrupted}", 130)
    except torch.OutOfMemoryError as error:
        end(f"error: out of memory on the device ({str(error).splitlines()[0]}): lower BATCH or D_SAE", 1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        end(f"error: No space left on device ({error.filename or 'while writing'}): free some space", 1)
