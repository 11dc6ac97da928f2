"""How the program keeps its memory small, and how much there is."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import math
import mmap
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsiseg.errors import OutOfMemory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of the GNU C library
APART_BYTES = 1 << 20
"""Arrays of fewer bytes stay in the heap (tiles of slides; a block of a volume is larger)."""


def keep_memory() -> None:
    """Let the GNU C library keep freed memory instead of returning it after each layer.

    Fresh pages for every activation cost a quarter of the time of a forward pass on a CPU. What threads
    read ahead comes from the same heap: in heaps of their own freed blocks would wait unused. Called
    once at start-up; elsewhere than on glibc it does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    libc.mallopt(_M_ARENA_MAX, 1)


def zeros_apart(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros in pages of their own, where they are many.

    For arrays that live through many layers of a network. Among the layers' tensors in the heap they would
    keep the gaps between those from being joined, and the heap would grow to twice what is in use.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < APART_BYTES:
        return np.zeros(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def apart(values: NDArray[Any]) -> NDArray[Any]:
    """The same values, with their axes in the same order in memory, in pages of their own (`zeros_apart`)."""
    if values.nbytes < APART_BYTES:
        return values
    order = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    pages = zeros_apart([values.shape[axis] for axis in order], values.dtype)
    pages = pages.transpose(np.argsort(order))
    pages[:] = values
    return pages


def free_memory_bytes(device: torch.device) -> int:
    """Memory that is free on a device; for the CPU what the machine has, or its container may use."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    known, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if known.is_file():
        entries = (line.split() for line in known.read_text().splitlines())
        free = next((int(e[1]) * 1024 for e in entries if e[0] == "MemAvailable:"), free)
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text))
    return free


_RAN_OUT = (
    "can't allocate memory",  # torch's allocator on a CPU
    "not enough memory",
    "could not create a ",  # oneDNN's: a primitive, a memory object
    "out of memory",  # CUDA's own
    "ALLOC_FAILED",  # cuDNN's and cuBLAS's
    "Failed to allocate memory",  # ONNX Runtime's
    "bad allocation",
    "bad_alloc",
    "can't start new thread",  # there is none without a stack
)


def ran_out(err: BaseException) -> bool:
    """True of what libraries raise where there is not enough memory."""
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(err, RuntimeError) and any(words in str(err) for words in _RAN_OUT)


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turns a lack of memory for what no plan can make smaller into one sentence. Raises OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        if not ran_out(err):
            raise
        raise OutOfMemory(f"memory ran out {what}; end other programs, or use a machine with more") from None


def free_unused() -> None:
    """Give back what an attempt that ran out of memory has left behind."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU is in use
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
