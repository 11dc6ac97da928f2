"""wsiseg: full-resolution tissue masks of whole-slide images.

The names below are what users rely on; they are loaded when first used, so that asking for help or
reading metadata does not wait for torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read when torch is first loaded. Threads of a network that wait for each other by spinning make a run
# many times slower as soon as something else uses one of the cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from wsiseg.errors import WsisegError
    from wsiseg.models.registry import build_network, load_network
    from wsiseg.pipeline import segment
    from wsiseg.predict import load_predictor
    from wsiseg.scoring import evaluate
    from wsiseg.sources import open_source
    from wsiseg.store import open_store
    from wsiseg.viewer.notebook import review

_HOMES = {
    "WsisegError": "wsiseg.errors",
    "build_network": "wsiseg.models.registry",
    "evaluate": "wsiseg.scoring",
    "load_network": "wsiseg.models.registry",
    "load_predictor": "wsiseg.predict",
    "open_source": "wsiseg.sources",
    "open_store": "wsiseg.store",
    "review": "wsiseg.viewer.notebook",
    "segment": "wsiseg.pipeline",
}

__all__ = [
    "WsisegError",
    "build_network",
    "evaluate",
    "load_network",
    "load_predictor",
    "open_source",
    "open_store",
    "review",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsiseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
