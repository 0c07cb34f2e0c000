"""The host's memory: freed blocks are kept for the next step."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of what is freed, rather than give each large tensor back to the kernel.

    Our choice, for training on a CPU: by default every activation above 32 MiB, and most others, is mapped and zeroed
    page by page anew in every step. Without that a step of the 34M shape takes a tenth less; the peak is the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
