"""Memory allocation of a training process."""

import ctypes
import sys

# Constants of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """
    Let glibc keep the memory of freed tensors, up to 256 MB per thread, instead of returning it to
    the system, which has to clear its pages when the next gradient step asks for them.

    It holds for the rest of the process, and so belongs in a program, not in a library. Other C
    libraries are left as they are. The environment variables ``MALLOC_TRIM_THRESHOLD_=268435456``
    and ``MALLOC_MMAP_THRESHOLD_=33554432`` have the same effect.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)
        mallopt(_M_TRIM_THRESHOLD, 1 << 28)
