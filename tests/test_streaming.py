"""The mask of streaming is that of the network over the whole image, made of bands that are read once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.conftest import SLIDE, array_source, card_of, random_image
from wsiseg.classes import VOID
from wsiseg.errors import ModelError
from wsiseg.execute.base import Rows, Wanted
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.execute.streaming import Streaming, padded
from wsiseg.geometry import Region
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.espnet import ESPNetC, Variant, build_espnet
from wsiseg.predict import NetworkPredictor
from wsiseg.sources import open_source
from wsiseg.sources.cached import CachedSource

Mask = NDArray[np.uint8]
CLASSES, STRIDE = 5, 8
REACH = 464
"""Pixels that an output pixel of ESPNet with p = q = 1 depends on above or below it, at most."""


def slow(value: Any) -> Any:
    """A parameter for which the test takes longer."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> None:
    torch.set_num_threads(1)


# Networks


def randomised(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """The network in eval mode with fixed weights and statistics of which none is a default."""
    generator = torch.Generator().manual_seed(seed)

    def draw(values: Tensor, low: float, high: float) -> None:
        values.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                draw(module.running_mean, -0.3, 0.3)
                draw(module.running_var, 0.3, 1.5)
                draw(module.weight, 0.6, 1.6)
                draw(module.bias, -0.4, 0.4)
            elif isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                bound = 2.4 / math.sqrt(module.weight[0].numel())
                draw(module.weight, -bound, bound)
    return network.eval()


def predictor_of(network: nn.Module, *, ndim: int = 2, scale: int = 1) -> NetworkPredictor:
    """A network as a predictor of images with mean 128."""
    card = card_of(CLASSES, axes="zyx"[-ndim:], stride=STRIDE)
    windows = card.windows.model_copy(update={"output_scale": scale})
    pixels = card.preprocessing.model_copy(update={"mean": (128.0,) * 3, "std": (64.0,) * 3})
    card = card.model_copy(update={"windows": windows, "preprocessing": pixels})
    return NetworkPredictor(card, network, device=torch.device("cpu"))


def espnet(variant: Variant = "A", *, ndim: int = 2) -> NetworkPredictor:
    network = randomised(build_espnet(classes=CLASSES, variant=variant, p=1, q=1, ndim=ndim))
    if isinstance(network, ESPNetC):  # so that no class wins everywhere
        weight = network.head.weight
        assert isinstance(weight, Tensor)
        weight.data -= weight.data.mean(dim=1, keepdim=True)
    return predictor_of(network, ndim=ndim, scale=8 if variant == "C" else 1)


# Runs


def everything(region: Region) -> bool:
    return True


def near(*spots: slice) -> Wanted:
    """Wants what touches some rows."""
    return lambda region: any(region[0].start < s.stop and s.start < region[0].stop for s in spots)


class Watched(CachedSource):
    """Counts how often each row of an image is read, and remembers which ones the executor takes."""

    def __init__(self, image: Mask, *, valid: NDArray[np.bool_] | None = None) -> None:
        source = array_source(image, valid=valid)
        source.block = (STRIDE, *source.geometry.shape[1:])
        super().__init__(source)
        self.height = source.geometry.shape[0]
        self.times = np.zeros(self.height, int)
        self.taken: list[tuple[int, int]] = []
        original = source.read

        def counted(region: Region) -> Any:
            self.times[region[0]] += 1
            return original(region)

        source.read = counted  # type: ignore[method-assign]

    def __enter__(self) -> Watched:
        return self

    def read(self, region: Region) -> Any:
        self.taken.append((region[0].start, min(region[0].stop, self.height)))
        return super().read(region)


def pieces_of(
    executor: Streaming, source: Watched, *, first_row: int = 0, wanted: Wanted = everything
) -> Iterator[Rows]:
    """What a run yields; like the pipeline, forgets what is not read again."""
    for piece in executor.run(source, first_row=first_row, wanted=wanted):
        yield piece
        source.forget(before=executor.first_row_read(piece.rows.stop))


def joined(pieces: list[Rows], *, first_row: int, shape: tuple[int, ...]) -> Mask:
    """The rows from `first_row` on; pieces must join without gaps up to the last row."""
    assert pieces[0].rows.start <= first_row < pieces[0].rows.stop
    assert all(a.rows.stop == b.rows.start for a, b in itertools.pairwise(pieces))
    assert pieces[-1].rows.stop == shape[0]
    for piece in pieces:
        assert piece.mask.shape == (piece.rows.stop - piece.rows.start, *shape[1:])
    return np.concatenate([p.mask for p in pieces])[first_row - pieces[0].rows.start :]


def streamed(
    predictor: NetworkPredictor,
    image: Mask,
    *,
    band: int,
    first_row: int = 0,
    wanted: Wanted = everything,
    valid: NDArray[np.bool_] | None = None,
) -> Mask:
    shape = image.shape[1:]
    executor = Streaming(predictor, shape, band=band)
    with Watched(image, valid=valid) as source:
        pieces = list(pieces_of(executor, source, first_row=first_row, wanted=wanted))
    return joined(pieces, first_row=first_row, shape=shape)


def scores_of(predictor: NetworkPredictor, image: Mask) -> Tensor:
    """Scores (K, *shape) of the whole image, laid on background whose sides the stride divides."""
    shape = image.shape[1:]
    inside = (slice(None), *(slice(0, n) for n in shape))
    whole = np.full((3, *padded(shape, stride=STRIDE)), 255, np.uint8)
    whole[inside] = image
    return predictor(whole[None]).scores[0][inside]


def assert_mask_of(predictor: NetworkPredictor, mask: Mask, image: Mask) -> None:
    """The mask names the highest score everywhere, but where two of them differ by rounding only."""
    scores = scores_of(predictor, image)
    expected = scores.argmax(dim=0).numpy()
    shares = np.bincount(expected.ravel(), minlength=CLASSES) / expected.size
    assert (shares > 0.02).sum() >= 3, shares  # the comparison means something
    first, second = scores.topk(2, dim=0).values
    ties = (first - second < 1e-5 * scores.abs().max()).numpy()
    np.testing.assert_array_equal(mask[~ties], expected[~ties])
    assert ties.mean() < 1e-3


# The mask


@pytest.mark.parametrize("band", [8, 16, 64])
@pytest.mark.parametrize(("variant", "shape"), [("A", (1107, 45)), ("B", (614, 37)), ("C", (609, 52))])
def test_the_mask_is_the_networks_over_the_whole_padded_image(
    variant: Variant, shape: tuple[int, int], band: int
) -> None:
    predictor, image = espnet(variant), random_image(shape, seed=3)
    assert_mask_of(predictor, streamed(predictor, image, band=band), image)


@pytest.mark.slow
@pytest.mark.parametrize("q", [3, 5, 8])
@pytest.mark.parametrize("variant", ["C", "A", "B"])
def test_every_espnet_gives_real_tissue_the_scores_of_one_pass(variant: Variant, q: int) -> None:
    image = open_source(SLIDE).read((slice(300, 1100), slice(900, 1108))).values.copy()
    network = randomised(build_espnet(classes=CLASSES, variant=variant, p=2, q=q))
    scale = 8 if variant == "C" else 1
    predictor = predictor_of(network, scale=scale)
    expected = scores_of(predictor, image)
    assert (expected.flatten(1).std(dim=1) > 1e-3 * expected.abs().max()).all()
    schedule = make_schedule(NetworkGraph(network, enlarge=scale), image.shape[1:], channels=3)
    inputs = predictor.inputs(torch.from_numpy(image)[None])
    for band in (8, 16, 64, 256):
        with torch.inference_mode():
            made = LineStream(schedule, band=band).run(lambda rows: inputs[:, :, slice(*rows)], (0, 800))
            scores = torch.cat([out[0][1] for out in made if out[0] is not None], dim=2)[0]
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("band", [8, 16, 64])
def test_the_mask_of_a_volume_is_the_networks_over_the_whole_padded_volume(band: int) -> None:
    predictor, image = espnet(ndim=3), random_image((61, 21, 18), seed=4)
    assert_mask_of(predictor, streamed(predictor, image, band=band), image)


@pytest.mark.parametrize("height", [97, 99, 101, 103, 104])
def test_the_last_rows_are_right_whatever_is_missing_to_the_stride(height: int) -> None:
    predictor, image = espnet(), random_image((height, 16), seed=height)
    for band in (8, 40, 104):
        assert_mask_of(predictor, streamed(predictor, image, band=band), image)


@pytest.mark.parametrize("variant", ["A", slow("C")])
def test_a_run_that_begins_anywhere_gives_the_same_bytes_from_there_on(variant: Variant) -> None:
    predictor, image = espnet(variant), random_image((1530, 8), seed=5)
    for band, rows in ((24, (1466,)), (64, (1, 64, 777, 1529))):
        whole = streamed(predictor, image, band=band)
        for row in rows:
            part = streamed(predictor, image, band=band, first_row=row)
            np.testing.assert_array_equal(part, whole[row:], err_msg=f"band {band}, row {row}")


def test_a_volume_that_is_begun_in_the_middle_gives_the_same_bytes_from_there_on() -> None:
    predictor, image = espnet(ndim=3), random_image((61, 12, 9), seed=6)
    whole = streamed(predictor, image, band=8)
    for row in (1, 30, 60):
        np.testing.assert_array_equal(streamed(predictor, image, band=8, first_row=row), whole[row:])


class WithMore(nn.Module):
    """A network that returns something besides its scores."""

    def __init__(self, *, of_scores: bool) -> None:
        super().__init__()
        self.network = build_espnet(classes=CLASSES, p=1, q=1)
        self.more = nn.Conv2d(CLASSES if of_scores else 3, 2, 9, padding=4)
        self.of_scores = of_scores

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.network(image)
        return scores, self.more(scores if self.of_scores else image)


@pytest.mark.parametrize("of_scores", [False, True])
def test_of_several_outputs_the_first_makes_the_mask(of_scores: bool) -> None:
    """The second may be ready before the first, or need rows of it beyond the image or the wanted ones."""
    more = randomised(WithMore(of_scores=of_scores))
    assert isinstance(more, WithMore)
    image = random_image((1107, 8), seed=7)
    alone, both = predictor_of(more.network), predictor_of(more)
    spots = (slice(0, 20), slice(1090, 1107))
    for band in (64, 256):
        whole = streamed(both, image, band=band)
        np.testing.assert_array_equal(whole, streamed(alone, image, band=band))
        np.testing.assert_array_equal(streamed(both, image, band=band, first_row=600), whole[600:])
        part = streamed(both, image, band=band, wanted=near(*spots))
        for spot in spots:
            np.testing.assert_array_equal(part[spot], whole[spot])
    assert_mask_of(alone, streamed(both, image, band=1112), image)


# What is read


@pytest.mark.parametrize("band", [slow(8), 64])
@pytest.mark.parametrize("first_row", [0, 700])
def test_each_row_is_read_once(band: int, first_row: int) -> None:
    image = random_image((1340, 16))
    executor = Streaming(espnet(), (1340, 16), band=band)
    with Watched(image) as source:
        list(pieces_of(executor, source, first_row=first_row))
    assert source.taken == [(a, min(a + band, 1340)) for a in range(source.taken[0][0], 1340, band)]
    top = source.taken[0][0]
    assert max(0, first_row - REACH - 2 * band) <= top <= max(0, first_row - REACH + STRIDE)
    np.testing.assert_array_equal(source.times, np.arange(1340) >= top)


@pytest.mark.parametrize("band", [slow(8), 64])
@pytest.mark.parametrize(
    "spots", [(slice(0, 3000),), (slice(1200, 1210),), (slice(0, 40), slice(1500, 1550), slice(2980, 2990))]
)
def test_nothing_is_read_above_the_row_that_was_promised(band: int, spots: tuple[slice, ...]) -> None:
    executor = Streaming(espnet(), (3000, 8), band=band)
    with Watched(random_image((3000, 8))) as source:
        promised = seen = 0
        for piece in executor.run(source, first_row=0, wanted=near(*spots)):
            for first, _ in source.taken[seen:]:
                assert first >= promised, (piece.rows, first, promised)
            seen, promised = len(source.taken), executor.first_row_read(piece.rows.stop)
            assert promised >= piece.rows.stop - REACH - 2 * band  # or memory would grow


@pytest.mark.parametrize("band", [slow(8), 64])
def test_rows_between_wanted_ones_that_lie_far_apart_are_not_read(band: int) -> None:
    shape, spots = (3200, 12), (slice(300, 340), slice(1700, 1760), slice(3150, 3200))
    image, predictor = random_image(shape, seed=8), espnet()
    whole = streamed(predictor, image, band=band)
    executor = Streaming(predictor, shape, band=band)
    with Watched(image) as source:
        pieces = list(pieces_of(executor, source, wanted=near(*spots)))
    part = joined(pieces, first_row=0, shape=shape)
    for spot in spots:
        np.testing.assert_array_equal(part[spot], whole[spot])
    assert source.times.max() == 1
    # Read is what the wanted rows depend on, in whole bands, and what comes out with them.
    rows = np.arange(shape[0])
    needed = np.zeros(shape[0], bool)
    allowed = needed.copy()
    for spot in spots:
        needed |= (rows >= spot.start - REACH + STRIDE) & (rows < spot.stop + REACH - 2 * STRIDE)
        allowed |= (rows >= spot.start - REACH - 2 * band) & (rows < spot.stop + REACH + 2 * band)
    assert source.times[needed].all()
    assert not source.times[~allowed].any()
    assert (~allowed).sum() > 300
    assert executor.work.computed == source.times.sum() * 12
    assert executor.work.repeated == 0


def test_a_gap_shorter_than_the_receptive_field_is_not_left_out() -> None:
    shape, spots = (2000, 8), (slice(0, 40), slice(800, 840))
    image, predictor = random_image(shape), espnet()
    whole = streamed(predictor, image, band=32)
    executor = Streaming(predictor, shape, band=32)
    with Watched(image) as source:
        part = joined(list(pieces_of(executor, source, wanted=near(*spots))), first_row=0, shape=shape)
    np.testing.assert_array_equal(part[:840], whole[:840])
    assert source.taken == [(a, a + 32) for a in range(0, source.taken[-1][1], 32)]


@pytest.mark.parametrize("band", [slow(8), 64])
def test_a_run_that_begins_in_or_after_a_gap_gives_the_same_wanted_rows(band: int) -> None:
    shape, spots = (2400, 8), (slice(100, 140), slice(1500, 1900))
    image, predictor = random_image(shape, seed=9), espnet()
    whole = streamed(predictor, image, band=band)
    for row in (139, 500, 1777):
        part = streamed(predictor, image, band=band, first_row=row, wanted=near(*spots))
        for spot in spots:
            start = min(max(row, spot.start), spot.stop)
            np.testing.assert_array_equal(
                part[max(0, start - row) : max(0, spot.stop - row)], whole[start : spot.stop]
            )


@pytest.mark.parametrize("band", [16, 400])
def test_where_nothing_is_wanted_nothing_is_read(band: int) -> None:
    executor = Streaming(espnet(), (395, 8), band=band)
    with Watched(random_image((395, 8))) as source:
        pieces = list(pieces_of(executor, source, wanted=lambda region: False))
    assert not joined(pieces, first_row=0, shape=(395, 8)).any()
    assert not source.times.any()
    assert executor.work.take() == {"computed": 0, "repeated": 0}


# Void


@pytest.mark.parametrize("band", [slow(8), 64, 1024])
def test_what_cannot_be_decoded_is_void_exactly_there(band: int) -> None:
    shape = (1019, 21)
    image, predictor = random_image(shape, seed=10), espnet()
    valid = np.ones(shape, bool)
    valid[3:17, 2:9] = False
    valid[500:640, 11:21] = False
    valid[1010:, :4] = False
    mask = streamed(predictor, image, band=band, valid=valid)
    np.testing.assert_array_equal(mask == VOID, ~valid)
    np.testing.assert_array_equal(mask[valid], streamed(predictor, image, band=band)[valid])
    part = streamed(predictor, image, band=band, valid=valid, first_row=570)
    np.testing.assert_array_equal(part, mask[570:])


def test_void_is_exact_in_a_volume() -> None:
    shape = (37, 11, 10)
    image, predictor = random_image(shape, seed=11), espnet(ndim=3)
    valid = np.ones(shape, bool)
    valid[5:22, 3:8, 1:] = False
    for band in (8, 40):
        np.testing.assert_array_equal(streamed(predictor, image, band=band, valid=valid) == VOID, ~valid)


# Work


@pytest.mark.parametrize("band", [64, 1712])
def test_a_whole_run_computes_each_pixel_once(band: int) -> None:
    executor = Streaming(espnet(), (1707, 9), band=band)
    with Watched(random_image((1707, 9))) as source:
        list(pieces_of(executor, source))
    assert executor.work.take() == {"computed": 1707 * 9, "repeated": 0}
    assert executor.work.take() == {"computed": 0, "repeated": 0}


@pytest.mark.parametrize("band", [slow(16), 64, 1712])
@pytest.mark.parametrize("spots", [(slice(0, 1707),), (slice(0, 256), slice(1500, 1707))])
def test_a_resumed_run_counts_what_the_first_one_had_computed(band: int, spots: tuple[slice, ...]) -> None:
    """Together: every pixel that was computed, and apart from that the ones that were so twice."""
    shape, predictor = (1707, 9), espnet()
    image = random_image(shape)
    for row in (64, 1024, 1700):
        first, second = (Streaming(predictor, shape, band=band) for _ in range(2))
        with Watched(image) as source:
            pieces = pieces_of(first, source, wanted=near(*spots))
            next(p for p in pieces if p.rows.stop >= row)
            before = {r for a, b in source.taken for r in range(a, b)}
        with Watched(image) as source:
            list(pieces_of(second, source, first_row=row, wanted=near(*spots)))
            after = {r for a, b in source.taken for r in range(a, b)}
        assert first.work.take() == {"computed": 9 * len(before), "repeated": 0}
        again = {"computed": 9 * len(after), "repeated": 9 * len(before & after)}
        assert second.work.take() == again, (row, band)


# What is refused


def test_a_band_that_is_no_multiple_of_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="bands of 12 rows are no multiple of the output stride 8"):
        Streaming(espnet(), (100, 20), band=12)


def test_a_network_that_sees_the_whole_image_is_refused_by_its_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ModelError, match=r"layer '1' \(AdaptiveAvgPool2d\) sees more than a fixed"):
        Streaming(predictor_of(network.eval()), (100, 20), band=8)


# A network of somebody else


@pytest.fixture
def unet() -> Callable[..., nn.Module]:
    """MONAI's U-Net with batch norms that have seen data."""
    nets = pytest.importorskip("monai.networks.nets")

    def build(ndim: int, **options: Any) -> nn.Module:
        channels = (4, 6, 8, 10) if ndim == 2 else (3, 4, 5)
        network = nets.UNet(
            spatial_dims=ndim,
            in_channels=3,
            out_channels=CLASSES,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            norm="batch",
            **options,
        )
        return randomised(network)

    return build


@pytest.mark.parametrize(
    ("shape", "units", "band"),
    [((96, 40), 0, 16), ((200, 40), 2, 16), ((320, 24), 1, 64), ((24, 16, 12), 2, 4)],
)
def test_a_unet_of_monai_streams_to_what_it_makes_of_the_whole_image(
    unet: Callable[..., nn.Module], shape: tuple[int, ...], units: int, band: int
) -> None:
    network = unet(len(shape), num_res_units=units)
    image = torch.randn((1, 3, *shape), generator=torch.Generator().manual_seed(12))
    graph = NetworkGraph(network, ndim=len(shape))
    assert graph.output_stride == (8 if len(shape) == 2 else 4)
    stream = LineStream(make_schedule(graph, shape, channels=3), band=band)
    with torch.inference_mode():
        expected = network(image)
        made = [
            item[0]
            for item in stream.run(lambda rows: image[:, :, rows[0] : rows[1]], (0, shape[0]))
            if item[0] is not None
        ]
        assert [rows[0] for rows, _ in made] == [0, *(rows[1] for rows, _ in made[:-1])]
        found = torch.cat([values for _, values in made], dim=2)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
