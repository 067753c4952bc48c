"""Processes that train: several, on parts of each batch, are faster on few cores than as many threads."""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def keep_freed_memory() -> None:
    """Tells glibc not to hand large freed blocks back to the system: on a CPU, page faults would take half the time."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        mmap_max, trim_threshold = -4, -1  # parameter numbers of <malloc.h>
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def run_workers(workers: int, work: Callable[[int, int], None]) -> None:
    """Calls `work(rank, workers)`, which must be picklable, in that many processes; one worker stays in this one."""
    if workers == 1:
        work(0, 1)
        return
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_join, (workers, Path(folder) / "meeting", work), workers, daemon=True)


def _join(rank: int, workers: int, meeting: Path, work: Callable[[int, int], None]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=workers)
    work(rank, workers)
    distributed.destroy_process_group()


def wait_for_all(workers: int) -> None:
    """Returns once every worker has called it."""
    if workers > 1:
        distributed.barrier()


def average_gradients(parameters: Iterable[torch.Tensor], workers: int) -> None:
    """Every worker must have gradients for the same parameters."""
    if workers == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.div_(workers).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
