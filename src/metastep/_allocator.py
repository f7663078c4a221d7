"""What the C library does with the memory that a compiled program gives back."""

import ctypes
import os
import platform

# glibc's <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next call, as this process's setting; call it first of all.

    A compiled program asks for the memory of its intermediate values at each call. By default glibc takes large
    blocks from the system and gives them straight back, so every call touches new pages; with large images, and on
    virtual machines above all, that shows. The process then keeps the most memory it ever had, and takes a few
    blocks more where a call begins before another thread has given back those of the one before. The command line
    does this by itself.

    Returns
    -------
    bool
        Whether it was done. False where the C library is not glibc, and where the environment (`MALLOC_...`,
        `GLIBC_TUNABLES`) says what the allocator is to do. Threads that have already allocated keep their ways: JAX
        must not have computed anything yet.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # A single arena: those of other threads are small, and return to mapping large blocks anew.
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    return all(library.mallopt(*setting) for setting in settings)
