"""The fixtures of the original networks: their filled weights, their images, their logits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsiseg.models.originals import recognise
from wsiseg.models.registry import build_network
from wsiseg.models.weights import fill


def reference_module(fixtures: Path) -> Any:
    """The functions that made the fixtures' weights and image."""
    spec = importlib.util.spec_from_file_location("reference", fixtures / "detfill_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled_state(fixtures: Path, name: str) -> dict[str, Tensor]:
    """The weights of a fixture, under their original names."""
    reference = reference_module(fixtures)
    keys = json.loads((fixtures / f"{name}_keys.json").read_text())
    return {
        key: torch.from_numpy(reference.fill_values(key, tuple(value["shape"]), value["role"]))
        for key, value in keys.items()
    }


def filled_network(fixtures: Path, name: str, **arguments: Any) -> nn.Module:
    """A fixture's network, recognised by its keys; `arguments` replace what the keys say."""
    recognised = recognise(filled_state(fixtures, name), name=name)
    network = build_network(recognised.network, **{**recognised.arguments, **arguments})
    fill(network, recognised.state, name=name)
    return network.eval()


def assert_logits(fixtures: Path, name: str, logits: NDArray[np.float32]) -> None:
    """Logits (K, *axes) are the fixture's, and their argmax but where the original's own is a tie."""
    stored = np.load(fixtures / f"{name}.npz")
    meta = json.loads(str(stored["meta"]))
    picked = logits
    if meta["subsample"] != "full":
        steps = [(1, 7), (3, 7)] if logits.ndim == 3 else [(1, 3), (2, 3), (0, 3)]
        picked = logits[(slice(None), *(slice(first, None, step) for first, step in steps))]
    tolerance = 1e-4 * meta["logit_absmax"]
    assert np.abs(picked - stored["logits_sub"].reshape(picked.shape)).max() <= tolerance
    top = np.sort(logits, axis=0)
    differs = logits.argmax(0) != stored["argmax"].reshape(logits.shape[1:])
    assert not (differs & (top[-1] - top[-2] > tolerance)).any()
