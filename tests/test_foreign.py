"""Networks of others: MONAI's by name, exported graphs, code that runs only where the user trusts it."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import wsiseg
from tests.test_pipeline import mask_of, write_tiff
from wsiseg.errors import ModelError
from wsiseg.models.card import ModelCard
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import build_network, load_card, load_network
from wsiseg.models.weights import save_weights

UNET: dict[str, Any] = {
    "spatial_dims": 2, "in_channels": 3, "out_channels": 4, "channels": [8, 16], "strides": [2],
}  # fmt: skip
PLAIN: dict[str, Any] = {"tissue_filter": False, "image": "none", "slab": 64, "chunk": 32}
MONAI: dict[str, dict[str, Any]] = {
    "monai:UNet": UNET | {"norm": "batch"},
    "monai:SegResNet": {"spatial_dims": 2, "init_filters": 8, "in_channels": 3, "out_channels": 4},
    "monai:DynUNet": {
        "spatial_dims": 2, "in_channels": 3, "out_channels": 4, "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32],
    },
    "monai:FlexibleUNet": {
        "in_channels": 3, "out_channels": 4, "backbone": "efficientnet-b0",
        "decoder_channels": [32, 16, 8, 8, 8],
    },
    "monai:VNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 4},
    "monai:SwinUNETR": {"spatial_dims": 2, "in_channels": 3, "out_channels": 4, "feature_size": 12},
}  # fmt: skip


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    rgb = coarse.repeat(32, axis=0).repeat(32, axis=1)[:170, :150]
    return write_tiff(tmp_path_factory.mktemp("slide") / "s.tif", rgb)


def imported(name: str, arguments: dict[str, Any], folder: Path) -> ModelCard:
    """A card of a network of others with seeded weights, made by the import."""
    torch.manual_seed(3)
    network = build_network(name, **arguments).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "weights.pth")
    return import_checkpoint(folder / "weights.pth", folder / "model.json", network=name, arguments=arguments)


@pytest.mark.parametrize("name", MONAI)
def test_a_network_of_monai_is_imported_by_name_and_loads_with_its_weights(name: str, tmp_path: Path) -> None:
    card = imported(name, MONAI[name], tmp_path)
    channels = MONAI[name]["in_channels"]
    assert (card.network.name, card.channels, len(card.classes)) == (name, channels, 4)
    torch.manual_seed(3)
    image = torch.rand(1, channels, 64, 64)
    with torch.inference_mode():
        expected = build_network(name, **MONAI[name]).eval()
        expected.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
        torch.testing.assert_close(load_network(tmp_path / "model.json")(image), expected(image))


def test_a_monai_network_with_batch_norm_streams_and_one_with_instance_norm_runs_in_windows(
    slide: Path, tmp_path: Path
) -> None:
    card = imported("monai:UNet", MONAI["monai:UNet"], tmp_path / "batch")
    assert card.windows.receptive_field is not None
    report = wsiseg.segment(slide, tmp_path / "a", tmp_path / "batch" / "model.json", memory=1300, **PLAIN)
    assert report.execution["executor"] == "streaming"
    network = load_network(tmp_path / "batch" / "model.json")
    with torch.inference_mode():
        pixels = torch.from_numpy(rgb_of(slide)).permute(2, 0, 1)[None] / 255
        expected = network(pixels)[0].argmax(0).numpy()
    np.testing.assert_array_equal(mask_of(report), expected)
    card = imported("monai:UNet", UNET, tmp_path / "instance")
    assert (card.windows.exact_halo, card.windows.taper) == (None, 32)
    report = wsiseg.segment(slide, tmp_path / "b", tmp_path / "instance" / "model.json", **PLAIN)
    assert report.execution["executor"] == "windowed"
    assert any("(InstanceNorm2d)" in remark for remark in report.remarks)
    with pytest.raises(wsiseg.WsisegError, match="--exact: model model sees its whole window"):
        wsiseg.segment(slide, tmp_path / "c", tmp_path / "instance" / "model.json", exact=True, **PLAIN)


def rgb_of(path: Path) -> NDArray[np.uint8]:
    source = wsiseg.open_source(path)
    return np.moveaxis(source.read(source.geometry.whole).values, 0, -1)


def test_what_monai_does_not_take_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="unknown network 'monai:Nothing'; of MONAI are known: DynUNet"):
        build_network("monai:Nothing")
    with pytest.raises(ModelError, match="'monai:UNet' cannot be built: .*missing"):
        build_network("monai:UNet", spatial_dims=2)
    with pytest.raises(ModelError, match="'monai:VNet' cannot be built: out channels should be divisible"):
        build_network("monai:VNet", spatial_dims=2, in_channels=3, out_channels=4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model as ONNX and as a graph of torch.export, for sides that are multiples of 8."""
    folder = tmp_path_factory.mktemp("exported")
    network, image = load_network("demo-breast8"), torch.rand(1, 3, 64, 64)
    sides = {axis: 8 * torch.export.Dim(name, min=2, max=512) for axis, name in ((2, "h"), (3, "w"))}
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        program = torch.export.export(network, (image,), dynamic_shapes={"image": sides})
        torch.export.save(program, folder / "graph.pt2")
        torch.onnx.export(program, (), str(folder / "graph.onnx"), external_data=False, verbose=False)
    logging.disable(logging.NOTSET)
    return folder


def as_windows(card: Path) -> Path:
    """The card with the windows and the preprocessing of the demonstration model."""
    demo = json.loads(load_card("demo-breast8").model_dump_json())
    data = json.loads(card.read_text())
    data["windows"] |= {"output_stride": 8, "core": 64, "halo": 32, "taper": 0}
    data |= {name: demo[name] for name in ("preprocessing", "spacing")}
    card.write_text(json.dumps(data))
    return card


@pytest.mark.parametrize(("file", "kind"), [("graph.onnx", "onnx"), ("graph.pt2", "torch-export")])
def test_an_exported_graph_gives_the_mask_of_the_network(
    exported: Path, file: str, kind: str, slide: Path, tmp_path: Path
) -> None:
    card = import_checkpoint(exported / file, tmp_path / "graph.json", trust_code=file.endswith("pt2"))
    assert (card.network.name, card.weights, len(card.classes)) == (kind, file, 8)
    trusted = PLAIN | {"trust_code": True}
    report = wsiseg.segment(slide, tmp_path / "a", as_windows(tmp_path / "graph.json"), **trusted)
    assert report.execution["executor"] == "windowed"
    assert any("is not followed layer by layer" in remark for remark in report.remarks)
    plain = wsiseg.segment(
        slide, tmp_path / "b", "demo-breast8", executor="windowed", core=64, halo=32, **PLAIN
    )
    mask, expected = mask_of(report), mask_of(plain)
    assert len(np.unique(expected)) > 1
    assert (mask != expected).sum() <= expected.size * 1e-4  # float ties


def test_what_may_run_code_is_refused_until_it_is_trusted(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reading .*graph.pt2 can run code that is in it; .* --trust-code"):
        import_checkpoint(exported / "graph.pt2", tmp_path / "graph.json")
    assert not (tmp_path / "graph.json").exists()
    import_checkpoint(exported / "graph.pt2", tmp_path / "graph.json", trust_code=True)
    with pytest.raises(ModelError, match="if you trust it, say so with --trust-code"):
        load_network(tmp_path / "graph.json")


class Doubled(nn.Module):
    """A network that a card can name."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        return 2.0 * torch.as_tensor(self.conv(image))


def test_code_on_a_card_runs_only_where_it_is_trusted(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_nets.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'trace')!r}).touch()\n"
        "from tests.test_foreign import Doubled\n"
        "def make(classes): return Doubled(classes=classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_weights(Doubled(classes=2), tmp_path / "w.safetensors")
    asked: dict[str, Any] = {"network": "python:lab_nets:make", "arguments": {"classes": 2}}
    with pytest.raises(ModelError, match="runs code of the module 'lab_nets'; .* --trust-code"):
        import_checkpoint(tmp_path / "w.safetensors", tmp_path / "m.json", **asked)
    assert not (tmp_path / "trace").exists()
    import_checkpoint(tmp_path / "w.safetensors", tmp_path / "m.json", trust_code=True, **asked)
    assert (tmp_path / "trace").exists()
    sys.modules.pop("lab_nets")
    (tmp_path / "trace").unlink()
    with pytest.raises(ModelError, match="--trust-code"):
        wsiseg.segment(slide, tmp_path / "out", tmp_path / "m.json", **PLAIN)
    assert not (tmp_path / "trace").exists()
    report = wsiseg.segment(slide, tmp_path / "out", tmp_path / "m.json", trust_code=True, **PLAIN)
    assert report.mask_shape == (170, 150)
    with pytest.raises(ModelError, match="'python:lab_nets:none' is not found"):
        build_network("python:lab_nets:none", trust_code=True)


def test_graphs_that_cannot_be_run_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"bad.onnx is not an ONNX graph in one file that can be run"):
        import_checkpoint(tmp_path / "bad.onnx", tmp_path / "m.json")
    (tmp_path / "bad.pt2").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"bad.pt2 is not a graph of torch.export"):
        import_checkpoint(tmp_path / "bad.pt2", tmp_path / "m.json", trust_code=True)
    with pytest.raises(ModelError, match="no such checkpoint"):
        import_checkpoint(tmp_path / "none.onnx", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()
