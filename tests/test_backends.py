"""What computes a network: the same masks but for counted ties, and which one is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import wsiseg
from tests.cases import CROPS, NAMES, SMALL, Interrupted, mask_of, stop_after, write_tiff
from tests.test_cli import Ran, assert_one_sentence
from wsiseg import backends
from wsiseg.config import Backend
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.foreign import ExportedGraph
from wsiseg.models.inference import FixedNorm, InFloat32, for_inference
from wsiseg.models.zoo import load_card
from wsiseg.predict import NetworkPredictor

WINDOWED: dict[str, Any] = {**SMALL, "executor": "windowed", "device": "cpu", "threads": 1, "image": "none"}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Real tissue, 384 x 384 pixels."""
    return write_tiff(tmp_path / "a.tif", np.asarray(Image.open(CROPS / "images" / f"{NAMES[0]}.png")))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wsiseg" / "backends"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_back_end_gives_torchs_mask_but_for_ties(
    tmp_path: Path, slide: Path, backend: str, batch: int
) -> None:
    options = {**WINDOWED, "batch": batch, "confidence": True}
    plain = wsiseg.segment(slide, tmp_path / "torch", backend="torch", **options)
    other = wsiseg.segment(slide, tmp_path / backend, backend=backend, **options)
    assert (plain.execution["backend"], other.execution["backend"]) == ("torch", backend)
    assert other.execution[backend] == backends.versions(backend)[backend]  # type: ignore[arg-type]
    ties = int((mask_of(plain) != mask_of(other)).sum())
    assert ties <= 3  # of 147,456 pixels
    stores = [wsiseg.open_store(report.store) for report in (plain, other)]
    kept = [store.confidence() for store in stores]
    sure = [np.asarray(confidence[:], int) for confidence in kept if confidence is not None]
    assert np.abs(sure[0] - sure[1]).max() <= 1


@pytest.mark.slow
def test_what_was_begun_with_a_back_end_is_finished_with_it(tmp_path: Path, slide: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, out, backend="openvino", progress=stop_after(2), **WINDOWED)
    resumed = wsiseg.segment(slide, out, backend="openvino", **WINDOWED)
    assert resumed.execution["backend"] == "openvino"
    alone = wsiseg.segment(slide, tmp_path / "alone", backend="openvino", **WINDOWED)
    assert np.array_equal(mask_of(resumed), mask_of(alone))


class _Exported(ExportedGraph):
    pass


def test_the_fastest_is_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: dict[str, float | None] = {"torch": 0.2, "openvino": 0.1, "onnxruntime": None}
    measured: list[str] = []

    def measure(network: object, shape: object, backend: Backend, *_: object) -> float | None:
        measured.append(backend)
        return seconds[backend]

    monkeypatch.setattr(backends, "_seconds", measure)
    network = nn.Conv2d(3, 8, 1)

    def choose(**changes: Any) -> Backend:
        facts: dict[str, Any] = {"name": "a", "precision": "float32", "threads": 1, **changes}
        return backends.fastest(network, facts.pop("shape", (1, 3, 64, 64)), **facts)

    assert choose() == "openvino"
    assert measured == ["torch", "openvino", "onnxruntime"]
    assert choose() == "openvino"
    assert len(measured) == 3  # kept
    seconds["torch"] = 0.05
    assert choose(threads=2) == choose(shape=(2, 3, 64, 64)) == choose(name="b") == "torch"
    assert len(measured) == 12
    for file in cache.glob("*.json"):
        file.write_text('{"seconds": {"torch": "fast"}}')
    assert choose() == "torch"
    assert len(measured) == 15
    seconds.update(torch=0.1, openvino=0.095)
    assert choose(name="c") == "torch"  # so little is not worth another program
    assert len(measured) == 18
    assert backends.fastest(
        _Exported(), (1, 3, 8, 8), name="a", precision="float32", threads=1
    ) == "torch"  # fmt: skip
    assert len(measured) == 18


def test_a_back_end_that_cannot_compute_a_network_takes_no_part() -> None:
    class Odd(nn.Module):
        """Decides by what it sees, which exporters follow once."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.max()) < 1 else x * 3

    with pytest.raises(wsiseg.WsisegError, match="openvino: its scores are others than torch's; use"):
        backends.compile_network(
            Odd(), (1, 3, 8, 8), backend="openvino", precision="float32", threads=1
        )  # fmt: skip
    kinds: tuple[Backend, ...] = ("torch", "openvino")
    for backend in kinds:
        taken = backends._seconds(Odd(), (1, 3, 8, 8), backend, "float32", 1)
        assert (taken is None) == (backend == "openvino")
    with pytest.raises(wsiseg.WsisegError, match="Odd cannot be computed by onnxruntime: .*--backend torch"):
        backends.compile_network(
            Odd(), (1, 3, 8, 8), backend="onnxruntime", precision="float32", threads=1
        )  # fmt: skip


def test_large_windowed_cases_take_what_is_fastest(
    tmp_path: Path, slide: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsiseg.predict.MEASURED_PX", 384 * 384)
    asked: list[tuple[int, ...]] = []

    def fastest(network: nn.Module, shape: tuple[int, ...], **_: object) -> str:
        asked.append(shape)
        # It is held against torch as the program runs it.
        assert any(isinstance(module, FixedNorm) for module in network.modules())
        weights = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        assert weights.is_contiguous(memory_format=torch.channels_last)
        return "torch"

    monkeypatch.setattr("wsiseg.predict.fastest", fastest)
    wsiseg.segment(slide, tmp_path / "out", **WINDOWED)
    assert asked == [(1, 3, 96, 96)]
    wsiseg.segment(slide, tmp_path / "streamed", device="cpu", image="none")
    wsiseg.segment(slide, tmp_path / "named", backend="torch", **WINDOWED)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "float16"), ("precision 'float16' is for GPUs", "bfloat16 on a CPU")),
        (("--precision", "bfloat16"), ("precision 'bfloat16'", "no instructions", "use float32")),
        (("--backend", "openvino"), ("backend 'openvino' computes windows", "--executor windowed")),
        (
            ("--backend", "onnxruntime", "--executor", "windowed"),
            ("backend 'onnxruntime' needs onnx, not installed", "pip install 'wsiseg[onnxruntime]'"),
        ),
    ],
)
def test_what_this_machine_does_not_have_is_one_sentence(
    tmp_path: Path,
    slide: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(backends, "has_bfloat16", lambda: False)
    known = backends.missing
    monkeypatch.setattr(backends, "missing", lambda b: ["onnx"] if b == "onnxruntime" else known(b))
    ran = Ran(capfd, "segment", slide, "--out", tmp_path / "out", "--device", "cpu", *options)
    assert_one_sentence(ran, 2, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("executor", ["streaming", "windowed"])
def test_in_bfloat16_nearly_all_pixels_keep_their_class(
    tmp_path: Path, slide: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    monkeypatch.setattr(backends, "has_bfloat16", lambda: True)
    options = {**(WINDOWED if executor == "windowed" else {"device": "cpu", "image": "none"}), "threads": 1}
    full = wsiseg.segment(slide, tmp_path / "full", **options)
    less = wsiseg.segment(slide, tmp_path / "less", precision="bfloat16", **options)
    assert (full.execution["precision"], less.execution["precision"]) == ("float32", "bfloat16")
    same = float((mask_of(full) == mask_of(less)).mean())
    assert 0.97 < same < 1


NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("espnet", {"variant": "A", "p": 1, "q": 1}),
    ("espnet", {"variant": "C", "p": 1, "q": 1}),
    ("espnet", {"variant": "A", "p": 1, "q": 1, "ndim": 3}),
    ("espnetv2", {"scale": 0.5}),
    ("ynet", {"encoder": "C1", "diagnoses": 5}),
    ("espnet3d", {"channels": 3, "width": 0.25}),
    ("espnet3d", {"channels": 3, "width": 0.25, "refinement": False}),
    ("mrseg", {}),
    ("segnet", {}),
]


@pytest.mark.parametrize(("name", "arguments"), NETWORKS, ids=[f"{n}-{a}" for n, a in NETWORKS])
def test_every_network_computes_in_bfloat16(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(3)
    network = wsiseg.build_network(name, classes=5, **arguments).eval()
    volume = name == "espnet3d" or arguments.get("ndim") == 3
    inputs = torch.randn(1, 3, *getattr(network, "input_size", (16, 16, 16) if volume else (64, 64)))
    narrow = for_inference(network, dtype=torch.bfloat16)
    with torch.inference_mode():
        made = [n(x) for n, x in ((network, inputs), (narrow, inputs.bfloat16()))]
    full, less = (m[0] if isinstance(m, tuple | list) else m for m in made)
    assert full.shape == less.shape
    assert float((full - less).abs().max()) < 0.1 * float(full.abs().max())
    assert {p.dtype for p in network.parameters()} == {torch.float32}  # a copy was changed


@pytest.mark.parametrize("variant", ["A", "C"])
def test_the_scores_of_the_last_layer_stay_in_single_precision(variant: str) -> None:
    card = load_card("demo-breast8")
    network = wsiseg.build_network("espnet", classes=8, p=1, q=1, variant=variant).eval()
    predictor = NetworkPredictor(card, network, device=torch.device("cpu"), precision="bfloat16")
    *_, last = predictor.network.modules()
    assert isinstance(last, InFloat32)
    kinds = [p.dtype for p in predictor.network.parameters()]
    assert (set(kinds[:-1]), kinds[-1]) == ({torch.bfloat16}, torch.float32)
    with torch.inference_mode():
        inputs = predictor.inputs(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
        assert inputs.dtype == torch.bfloat16
        assert predictor.network(inputs).dtype == torch.float32
    NetworkGraph(predictor.network)  # it can be streamed
