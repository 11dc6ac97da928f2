"""What a case is begun again with when its memory ran out: the policy, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEP = 4
"""By which a batch or a band shrinks: every attempt costs the slabs that the one before has written."""


def smaller(
    execution: Mapping[str, Any], *, stride: int, executor: str, device: str
) -> dict[str, Any] | None:
    """What a plan is made from that needs less memory than `execution`; None where nothing is left.

    `stride` is the network's output stride; `executor` and `device` are what the user asked for: windows
    take the place of the smallest bands, and the CPU that of a GPU, only where the choice was left open.

    >>> smaller({"executor": "windowed", "batch": 6}, stride=8, executor="auto", device="auto")
    {'executor': 'windowed', 'batch': 1}
    """
    if execution["executor"] == "windowed" and execution["batch"] > 1:
        return {**execution, "batch": max(1, execution["batch"] // STEP)}
    if execution["executor"] == "streaming" and execution["band"] > stride:
        return {**execution, "band": max(stride, execution["band"] // STEP // stride * stride)}
    if execution["executor"] == "streaming" and executor == "auto":
        reason = "memory ran out in the smallest bands"
        return {**execution, "executor": "windowed", "batch": 1, "reason": reason}
    if str(execution.get("device_name")).startswith("cuda") and device == "auto":
        return {"device_name": "cpu"}
    return None


def left(execution: Mapping[str, Any], *, why: str) -> dict[str, Any]:
    """A plan that was left, as the next one keeps it among its `attempts`."""
    names = ("executor", "batch" if execution["executor"] == "windowed" else "band", "device_name")
    return {**{name: execution.get(name) for name in names}, "why": why}


def in_words(execution: Mapping[str, Any]) -> str:
    """How a plan, or what was `left` of it, takes memory.

    >>> in_words({"executor": "streaming", "band": 128, "device_name": "cpu"})
    'bands of 128 rows on cpu'
    """
    if execution["executor"] == "streaming":
        shown = f"bands of {execution['band']} rows"
    else:
        shown = f"windows in batches of {execution['batch']}"
    return f"{shown} on {execution.get('device_name')}"


def tried(execution: Mapping[str, Any]) -> list[str]:
    """What a plan and those before it tried, in order."""
    return [in_words(one) for one in [*execution.get("attempts", ()), execution]]


def remark(execution: Mapping[str, Any]) -> str:
    """What the report says of the plans that were left for this one."""
    before = ", then ".join(f"{in_words(one)} ({one['why']})" for one in execution["attempts"])
    return f"memory ran out with {before}: the mask was computed in {in_words(execution)}"
