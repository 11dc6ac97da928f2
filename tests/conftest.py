"""Images, networks and predictors that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsiseg.classes import anonymous_classes
from wsiseg.geometry import Geometry
from wsiseg.models.card import ModelCard, NetworkSpec, Preprocessing, Spacing, WindowSpec
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import build_network
from wsiseg.predict import Outputs
from wsiseg.sources.array import ArraySource

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"
SLIDE = REPOSITORY / "wsiseg" / "samples" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material beside the project's folder; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared beside the project (golden fixtures and larger data)")
    return SHARED


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Threads of torch are a global: a test that sets them must not change the next one's floats."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_image(shape: tuple[int, ...], *, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Noise (C, *shape) that is smooth enough for networks to have opinions about it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (channels, *(-(-n // 8) for n in shape)), dtype=np.uint8)
    for axis in range(len(shape)):
        coarse = coarse.repeat(8, axis=axis + 1)
    cut = coarse[(slice(None), *(slice(0, n) for n in shape))]
    return np.asarray(cut ^ rng.integers(0, 16, cut.shape, dtype=np.uint8), np.uint8)


def array_source(
    array: NDArray[np.uint8], *, spacing: float = 0.5, valid: NDArray[np.bool_] | None = None
) -> ArraySource:
    """An array (C, *axes) of 1 to 4 spatial axes as a source."""
    axes = "tzyx"[-(array.ndim - 1) :]
    geometry = Geometry(axes=axes, shape=array.shape[1:], spacing=(spacing,) * len(axes), unit="micrometer")
    return ArraySource(array, geometry, valid=valid)


def card_of(classes: int = 4, *, axes: str = "yx", stride: int = 1, channels: int = 3) -> ModelCard:
    """A card for predictors that have no weights."""
    return ModelCard(
        name="test",
        network=NetworkSpec(name="espnet"),
        weights="none.safetensors",
        sha256="0" * 64,
        axes=axes,
        channels=channels,
        classes=anonymous_classes(classes),
        spacing=Spacing(value=0.5),
        preprocessing=Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels),
        windows=WindowSpec(output_stride=stride, receptive_field=(0, 0), exact_halo=0),
        training_data="none",
        licence="none",
        intended_use="tests",
    )


def espnet3d_card(folder: Path, *, channels: int, seed: int = 2) -> Path:
    """The card of a narrow, fully convolutional 3D-ESPNet of three classes with seeded weights."""
    arguments: dict[str, Any] = {"classes": 3, "channels": channels, "width": 0.25, "refinement": False}
    torch.manual_seed(seed)
    torch.save(build_network("espnet3d", **arguments).state_dict(), folder / "w.pth")
    import_checkpoint(folder / "w.pth", folder / "m.json", network="espnet3d", arguments=arguments)
    return folder / "m.json"


class BitsPredictor:
    """Scores that say which of four classes the lowest two bits of the first channel name."""

    def __init__(self) -> None:
        self.card = card_of(4)
        self.batches: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        self.batches.append(images.shape[0])
        low = torch.from_numpy(images[:, 0] & 3).long()
        return Outputs(torch.nn.functional.one_hot(low, 4).movedim(-1, 1).float())
