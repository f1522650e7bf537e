"""Memory that a process no longer needs, for the processes beside it."""

import ctypes
import gc

import torch


def give_back() -> None:
    """Return freed memory to the device, and to the system where its C library keeps it (glibc)."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
