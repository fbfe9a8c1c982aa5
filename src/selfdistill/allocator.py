"""Memory that a training step frees and the next one needs again stays with the process."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, where networks run on the CPU.

    By default glibc takes arrays of 32 MiB and more from the system at every use and gives them back after it, and the
    system zeroes them page by page: with large batches up to two fifths of a step. Arrays above 1 GiB are still given
    back. The price is memory: the process stays as large as it once was, and what it keeps lies in pieces, which in a
    step of BYOL took a quarter more.

    Returns:
        Whether anything changed: not with an accelerator, without glibc, or where the environment already sets it up
        (``MALLOC_…``, ``GLIBC_TUNABLES``).
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or torch.accelerator.is_available() or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
