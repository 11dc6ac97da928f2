"""Holds the slot of a GPU that is not there, as a flow of its own: `python -m tests.slots DEVICE SECONDS`."""

from __future__ import annotations

import sys
import time

import torch
from prefect import flow

from flows.common import gpu_slot


def tell() -> None:
    """The time, by one clock of the machine."""
    sys.stdout.write(f"{time.monotonic()}\n")
    sys.stdout.flush()


@flow
def hold(device: str, seconds: float) -> None:
    """Says when it has the slot and when it gives it back."""
    with gpu_slot(device):
        tell()
        time.sleep(seconds)
        tell()


if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    hold(sys.argv[1], float(sys.argv[2]))
