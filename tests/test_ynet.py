"""Y-Net equals the original: golden scores and diagnoses, parameter counts, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.golden import assert_logits, filled_network, filled_state
from wsiseg.errors import ModelError
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.originals import recognise
from wsiseg.models.originals.ynet import BGR_TO_ONE
from wsiseg.models.registry import build_network
from wsiseg.models.weights import fill
from wsiseg.models.ynet import YNet, build_ynet
from wsiseg.preprocess import apply

KEYMAPS = {
    "ynet_stage1_C1_c8": ("C1", None),
    "ynet_stage1_D1_c8": ("D1", None),
    "ynet_stage2_C1_c8_d5": ("C1", 5),
    "ynet_stage2_D1_c8_d5": ("D1", 5),
    "ynet_stage2_segC1_c8": ("C1", None),  # the segmentation part as the stage-2 file makes it
}


def network_input(fixtures: Path, meta: dict[str, str]) -> Tensor:
    pixels = np.asarray(Image.open(fixtures / meta["input"]).convert("RGB")).copy()
    image = apply(torch.from_numpy(pixels).permute(2, 0, 1)[None], None, BGR_TO_ONE)
    return image.contiguous()


def mapped_state(fixtures: Path, keymap: str) -> dict[str, Tensor]:
    """A checkpoint of the right names and shapes; the values are numbers that tell keys apart."""
    rows = [line.split("\t") for line in (fixtures / "keymaps" / f"{keymap}.tsv").read_text().splitlines()]
    shapes = {row[0]: () if row[1] == "scalar" else tuple(map(int, row[1].split("x"))) for row in rows[1:]}
    return {key: torch.full(shape, float(number)) for number, (key, shape) in enumerate(shapes.items())}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# -- equal to the original -----------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("stage", ["st1", "st2"])
def test_filled_weights_give_the_golden_scores_and_diagnoses(
    shared: Path, stage: str, align_corners: bool
) -> None:
    fixtures = shared / "fixtures"
    name = f"det_ynet_{stage}_C1_alignc{align_corners}"
    meta = json.loads((fixtures / f"{name}.json").read_text())
    network = filled_network(fixtures, name, align_corners=align_corners)
    with torch.inference_mode():
        out = network(network_input(fixtures, meta))
    if stage == "st1":
        assert_logits(fixtures, name, out[0].numpy())
        return
    scores, diagnosis = out
    assert_logits(fixtures, name, scores[0].numpy())
    expected = np.load(fixtures / f"{name}.npz")["diag_logits"]
    assert np.abs(diagnosis[0].numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_images_are_prepared_as_in_the_original(shared: Path) -> None:
    fixtures = shared / "fixtures"
    meta = json.loads((fixtures / "det_ynet_st1_C1_aligncTrue.json").read_text())
    image = network_input(fixtures, meta)
    bgr = np.asarray(Image.open(fixtures / meta["input"]).convert("RGB"))[..., ::-1].astype(np.float32)
    original = np.ascontiguousarray((bgr / np.float32(255)).transpose(2, 0, 1)[None])
    assert hashlib.sha256(original.tobytes()).hexdigest() == meta["input_tensor_sha256_f32"]
    # A factor of 1 / 255 is not quite a division by 255.
    np.testing.assert_allclose(image.numpy(), original, rtol=2e-7)


@pytest.mark.parametrize(
    ("encoder", "diagnoses", "count"),
    [("C1", None, 2_755_488), ("D1", None, 7_624_608), ("C1", 5, 3_913_381), ("D1", 5, 9_110_437)],
)
def test_parameters_are_as_many_as_published(encoder: str, diagnoses: int | None, count: int) -> None:
    network = build_network("ynet", encoder=encoder, diagnoses=diagnoses)
    assert parameters(network) == count
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.95)}


@pytest.mark.slow
def test_the_convolutions_that_the_joint_network_never_computes_do_not_change_it() -> None:
    torch.manual_seed(0)
    network = build_ynet(diagnoses=5).eval()
    unused = [p for name, p in network.named_parameters() if ".unused." in name]
    assert len(unused) == 11
    image = torch.rand(1, 3, 384, 384)
    with torch.inference_mode():
        before = network(image)
        for parameter in unused:
            parameter.fill_(torch.nan)
        after = network(image)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.slow
def test_the_stages_of_the_residual_network_join_the_finest_features_in_another_order() -> None:
    torch.manual_seed(0)
    alone, joint = build_ynet(encoder="D1").eval(), build_ynet(encoder="D1", diagnoses=5).eval()
    joint.load_state_dict(alone.state_dict(), strict=False)
    image = torch.rand(1, 3, 384, 384)
    with torch.inference_mode():
        expected = alone(image)
        assert not torch.allclose(joint(image)[0], expected, rtol=1e-3)
        # With the channels that read them put in the other order, the joint network agrees.
        for name, weight in joint.named_parameters():
            if name.startswith("pool_half.") and name.endswith("conv.weight"):
                weight.copy_(torch.cat([weight[:, 8:], weight[:, :8]], dim=1))
            if name == "head_half.0.conv.weight":
                weight.copy_(torch.cat([weight[:, 8:24], weight[:, :8], weight[:, 24:]], dim=1))
        torch.testing.assert_close(joint(image)[0], expected, rtol=1e-4, atol=1e-5)


# -- other sizes ---------------------------------------------------------------------------------------


def test_other_numbers_of_classes_channels_and_diagnoses_are_those_of_the_scores() -> None:
    network = build_ynet(classes=3, channels=1, diagnoses=2).eval()
    with torch.inference_mode():
        scores, diagnosis = network(torch.rand(2, 1, 384, 384))
    assert tuple(scores.shape) == (2, 3, 384, 384)
    assert tuple(diagnosis.shape) == (2, 2)


@pytest.mark.parametrize("shape", [(1, 3, 512, 512), (1, 3, 384, 392), (1, 3, 376, 384), (3, 384, 384)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    assert YNet.input_size == (384, 384)
    message = f"takes images of 384 x 384 pixels, got .* = {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        build_ynet()(torch.zeros(shape))


def test_arguments_that_make_no_network_are_refused() -> None:
    with pytest.raises(ModelError, match="encoder 'E1' is unknown; choose C1 or D1"):
        build_network("ynet", encoder="E1")
    with pytest.raises(ModelError, match="classes must be at least 1, got 0"):
        build_network("ynet", classes=0)
    with pytest.raises(ModelError, match="diagnoses must be at least 1, or None .*; got 0"):
        build_network("ynet", diagnoses=0)


@pytest.mark.parametrize("diagnoses", [None, 5])
def test_the_graph_is_refused_at_the_layer_that_pools_everything(diagnoses: int | None) -> None:
    message = "layer 'pool_eighth.levels.0.pool' .AdaptiveAvgPool2d. sees more than a fixed neighbourhood"
    with pytest.raises(ModelError, match=message):
        NetworkGraph(build_ynet(diagnoses=diagnoses).eval())


# -- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keymap", KEYMAPS)
def test_every_original_checkpoint_fits_its_network(shared: Path, keymap: str) -> None:
    state = mapped_state(shared / "fixtures", keymap)
    recognised = recognise(state, name=keymap)
    encoder, diagnoses = KEYMAPS[keymap]
    assert recognised.network == "ynet"
    assert recognised.arguments == {
        "classes": 8, "channels": 3, "encoder": encoder, "diagnoses": diagnoses,
    }  # fmt: skip
    assert recognised.preprocessing.channel_order == "BGR"
    network = build_network("ynet", **recognised.arguments)
    fill(network, recognised.state, name=keymap)
    # No tensor came from elsewhere or was used twice, but for the dead ones that stage 1 leaves out.
    found = sorted(float(t.flatten()[0]) for t in network.state_dict().values())
    dead = {key for key in state if ".d16." in key and diagnoses is None}
    assert found == sorted(float(t.flatten()[0]) for key, t in state.items() if key not in dead)


def test_keys_of_the_residual_units_stand_for_the_same_layers(shared: Path) -> None:
    state = mapped_state(shared / "fixtures", "ynet_stage2_D1_c8_d5")
    network = build_network("ynet", encoder="D1", diagnoses=5)
    fill(network, recognise(state, name="test").state, name="test")
    own = network.state_dict()
    for original, ours in {
        "segNet.level1.bn.bias": "stem.norm.bias",
        "segNet.level2_1.c1.bn.running_var": "stage1.units.1.first.norm.running_var",
        "segNet.level4_1.c2.conv.weight": "stage2.units.2.second.weight",
        "segNet.p40.features.1.weight": "pool_quarter.levels.3.project.conv.weight",
        "segNet.p02.features.2.running_mean": "pool_half.levels.1.project.norm.running_mean",
        "segNet.classifier.7.weight": "head_eighth.2.norm.weight",
        "segNet.class_0.3.weight": "head_half.1.weight",
        "level4_1.c2.bn.weight": "diagnosis.stage1.units.0.norm.weight",
        "br_con_5.bn.weight": "diagnosis.stage2.fuse.weight",
        "fc1.bias": "diagnosis.hidden.bias",
    }.items():
        torch.testing.assert_close(own[ours], state[original], rtol=0, atol=0)


def test_dead_convolutions_may_be_absent_from_a_joint_checkpoint(shared: Path) -> None:
    name = "det_ynet_st2_C1_aligncTrue"
    state = filled_state(shared / "fixtures", name)
    # As where the segmentation part comes from the stage-1 file.
    partial = {key: t for key, t in state.items() if not (key.startswith("segNet.") and ".d16." in key)}
    assert len(state) - len(partial) == 7
    recognised = recognise(partial, name=name)
    network = build_network("ynet", **recognised.arguments)
    fill(network, recognised.state, name=name)
    own = network.state_dict()
    assert not own["stage2.units.4.unused.weight"].any()
    kept = own["diagnosis.stage2.units.1.unused.weight"]
    torch.testing.assert_close(kept, state["level5_2.d16.conv.weight"], rtol=0, atol=0)


def test_checkpoints_that_lack_what_is_computed_are_refused(shared: Path) -> None:
    complete = mapped_state(shared / "fixtures", "ynet_stage2_C1_c8_d5")

    def without(key: str) -> dict[str, Tensor]:
        return {k: t for k, t in complete.items() if k != key}

    for key in ("segNet.level1.conv.weight", "fc2.weight"):
        with pytest.raises(ModelError, match=f"broken.pth lacks '{key}' of . axes"):
            recognise(without(key), name="broken.pth")
    recognised = recognise(without("segNet.level3_1.d4.conv.weight"), name="broken.pth")
    with pytest.raises(ModelError, match="broken.pth .* lacks 'segNet.level3_1.d4.conv.weight'"):
        fill(
            build_network("ynet", **recognised.arguments),
            recognised.state,
            name="broken.pth",
            called=recognised.name_in_file,
        )
    flat = complete | {"segNet.class_0.3.weight": torch.zeros(8)}
    with pytest.raises(ModelError, match="lacks 'segNet.class_0.3.weight' of 4 axes"):
        recognise(flat, name="broken.pth")
