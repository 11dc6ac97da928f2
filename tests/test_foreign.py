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
from tests.cases import mask_of, write_tiff
from wsiseg.errors import ModelError
from wsiseg.models.card import ModelCard
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import build_network, load_network
from wsiseg.models.weights import save_weights
from wsiseg.models.zoo import load_card

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


@pytest.mark.parametrize(
    "name", [n if n == "monai:UNet" else pytest.param(n, marks=pytest.mark.slow) for n in MONAI]
)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


class TwoScores(nn.Module):
    """A network whose output is chosen by its arguments."""

    def __init__(self, *, kind: str = "list", classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)
        self.kind = kind

    def forward(self, image: Tensor) -> Any:
        scores = self.conv(image)
        made: dict[str, Any] = {
            "list": [scores, scores.mean(dim=(2, 3))], "dict": {"out": scores}, "none": None, "empty": (),
            "classes": scores.argmax(1, keepdim=True),
        }  # fmt: skip
        return made[self.kind]


def two_scores(folder: Path, **arguments: Any) -> Path:
    save_weights(TwoScores(**arguments), folder / "w.safetensors")
    import_checkpoint(
        folder / "w.safetensors", folder / "m.json", network="python:tests.test_foreign:TwoScores",
        arguments=arguments, trust_code=True, overwrite=True,
    )  # fmt: skip
    return folder / "m.json"


def test_a_network_that_returns_a_list_of_scores_and_diagnoses_runs(slide: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path / "o", two_scores(tmp_path), trust_code=True, **PLAIN)
    assert report.execution["executor"] == "windowed"
    assert report.diagnosis is not None
    assert len(report.diagnosis.names) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dict", "puts out dict; a score"), ("none", "puts out NoneType; a score"),
        ("empty", "puts out tuple; a score"), ("classes", "puts out torch.int64; a score"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_refused_at_the_import(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        two_scores(tmp_path, kind=kind)
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 3}, r"puts out \(2, 192, 160\) scores for a window, its card says \(3, 192, 160\)"),
        ({"diagnoses": ["a", "b", "c"]}, r"puts out \(2,\) diagnoses for a window, its card names 3"),
        ({"windows": {"output_scale": 2}}, r"its card says \(2, 96, 80\)"),
    ],
)
def test_a_card_that_does_not_fit_its_network_is_refused_before_anything_is_written(
    slide: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = two_scores(tmp_path)
    card = json.loads(path.read_text())
    card["windows"] |= changes.get("windows", {})
    if "classes" in changes:
        card["classes"].append({"index": 2, "name": "third", "color": [1, 2, 3]})
    card["diagnoses"] = changes.get("diagnoses", card["diagnoses"])
    path.write_text(json.dumps(card))
    options = PLAIN | {"executor": "windowed", "trust_code": True, "core": 320, "halo": 96}
    with pytest.raises(ModelError, match=message):
        wsiseg.segment(slide, tmp_path / "o", path, **options)
    assert not (tmp_path / "o").exists()


def test_an_import_replaces_a_card_only_when_told(tmp_path: Path) -> None:
    path = two_scores(tmp_path)
    with pytest.raises(ModelError, match="m.json is there already; use --overwrite"):
        import_checkpoint(tmp_path / "w.safetensors", path, network="python:x:y", trust_code=True)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ModelError, match="folder.json is there already"):
        import_checkpoint(tmp_path / "w.safetensors", tmp_path / "folder.json", overwrite=True)
    assert not (tmp_path / "folder.safetensors").exists()


def onnx_file(path: Path, *, kind: int = 1, shape: tuple[Any, ...] = (1, 3, "h", "w")) -> Path:
    """A 1 x 1 convolution of three channels to two."""
    import onnx
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight")
    given = helper.make_tensor_value_info("image", kind, list(shape))
    made = helper.make_tensor_value_info("scores", kind, None)
    node = helper.make_node("Conv", ["image", "weight"], ["scores"])
    graph = helper.make_graph([node], "graph", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def test_weights_that_a_graph_keeps_in_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    model = onnx.load(onnx_file(tmp_path / "one.onnx"))
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=0)
    assert (tmp_path / "two.data").exists()
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look
    import_checkpoint(tmp_path / "one.onnx", tmp_path / "a.json")
    with pytest.raises(ModelError, match="two.onnx is not an ONNX graph in one file"):
        import_checkpoint(tmp_path / "two.onnx", tmp_path / "b.json")


def test_graphs_with_other_inputs_are_refused_by_what_they_take(tmp_path: Path) -> None:
    half_open = onnx_file(tmp_path / "half.onnx", shape=(1, 3, 128, "w"))
    with pytest.raises(ModelError, match="some sides are fixed and some are open"):
        import_checkpoint(half_open, tmp_path / "m.json")
    free = onnx_file(tmp_path / "free.onnx", shape=(1, "c", "h", "w"))
    with pytest.raises(ModelError, match="with a fixed number of channels are supported"):
        import_checkpoint(free, tmp_path / "m.json")
    odd = import_checkpoint(onnx_file(tmp_path / "ODD.ONNX", shape=(1, 3, 100, 100)), tmp_path / "odd.json")
    assert (odd.windows.size, odd.windows.output_stride, odd.weights) == (100, 4, "odd.onnx")


def test_more_windows_at_a_time_than_a_graph_takes_are_refused(slide: Path, tmp_path: Path) -> None:
    import_checkpoint(onnx_file(tmp_path / "b.onnx", shape=(1, 3, 64, 64)), tmp_path / "b.json")
    with pytest.raises(ModelError, match=r"cannot be run on 4 window\(s\) of 64 x 64 pixels"):
        wsiseg.segment(slide, tmp_path / "o", tmp_path / "b.json", batch=4, **PLAIN)
    assert not (tmp_path / "o").exists()


def test_arguments_and_keys_that_make_no_network_are_one_sentence(tmp_path: Path) -> None:
    for arguments in ({"classes": -1}, {"classes": 4, "ndim": 5}, {"classes": 4, "name": "a"}):
        with pytest.raises(ModelError, match="'espnet' cannot be built with .*classes"):
            build_network("espnet", **arguments)
    torch.save({1: torch.zeros(1)}, tmp_path / "keys.pth")
    with pytest.raises(ModelError, match="does not hold a mapping of names to tensors"):
        import_checkpoint(tmp_path / "keys.pth", tmp_path / "m.json")
    with pytest.raises(ModelError, match="--network, with --arguments, says what"):
        import_checkpoint(tmp_path / "keys.pth", tmp_path / "m.json", arguments={"classes": 2})


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
