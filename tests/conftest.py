"""Images, networks and predictors that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

import wsiseg
from tests.cases import CROPS, NAMES, SMALL, write_tiff
from tests.executors import Pooled
from wsiseg.classes import anonymous_classes
from wsiseg.geometry import Geometry
from wsiseg.models.card import (
    ModelCard,
    NetworkSpec,
    Preprocessing,
    Spacing,
    WindowSpec,
    sha256_of,
    write_card,
)
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import NETWORKS, build_network
from wsiseg.models.zoo import DEFAULT_MODELS
from wsiseg.predict import Outputs
from wsiseg.report import Report
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that use the fixture `shared`, before those with a mark are left out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Threads of torch are a global: a test that sets them must not change the next one's floats."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread_without_gradients(_few_threads: None) -> Iterator[None]:
    """For sums that are compared bit by bit."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def slide_rgb() -> NDArray[np.uint8]:
    """The shipped slide (3, y, x) as OpenSlide's own reader gives it."""
    with openslide.OpenSlide(str(SLIDE)) as handle:
        rgba = np.asarray(handle.read_region((0, 0), 0, handle.dimensions))
    assert (rgba[..., 3] == 255).all()
    return np.moveaxis(rgba[..., :3], -1, 0).copy()


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


@pytest.fixture(scope="session")
def picture() -> NDArray[np.uint8]:
    """A small scene (y, x, 3) of real crops side by side, with glass on the right and below."""
    scene = np.full((300, 520, 3), 243, np.uint8)
    for number, name in enumerate(NAMES):
        crop = np.asarray(Image.open(CROPS / "images" / f"{name}.png"))
        scene[10 : 10 + 200, 130 * number + 5 : 130 * number + 125] = crop[:200, :120]
    return scene


@pytest.fixture(scope="session")
def slide(picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("slide") / "scene.tif", picture)


@pytest.fixture(scope="session")
def segmented(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return wsiseg.segment(slide, tmp_path_factory.mktemp("out"), "breast-tissue3", **SMALL)


@pytest.fixture(scope="module")
def eight_classes() -> Iterator[None]:
    """For tests that know the classes and the reach of `demo-breast8`: it is what slides get."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFAULT_MODELS, "yx", "demo-breast8")
        yield


@pytest.fixture
def pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card of a network that cannot be streamed."""
    monkeypatch.setitem(NETWORKS, "pooled", Pooled)
    torch.manual_seed(0)
    save_file(Pooled(classes=4).state_dict(), tmp_path / "pooled.safetensors")
    card = card_of(4).model_copy(
        update={
            "name": "pooled",
            "network": NetworkSpec(name="pooled", arguments={"classes": 4}),
            "weights": "pooled.safetensors",
            "sha256": sha256_of(tmp_path / "pooled.safetensors"),
            "background": None,
        }
    )
    write_card(card, tmp_path / "pooled.json")
    return tmp_path / "pooled.json"


@pytest.fixture
def fixed_memory(_few_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test gets must not depend on the machine."""
    torch.set_num_threads(1)
    monkeypatch.setattr("wsiseg.execution.free_memory_bytes", lambda device: 16 * 10**9)
