"""Every network takes a step; weights go from one training to the next; slides without labels teach."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import SLIDE
from tests.training_data import pictures, volumes
from wsiseg.errors import ManifestError, ModelError
from wsiseg.geometry import region_shape
from wsiseg.models.registry import build_network, load_network
from wsiseg.models.zoo import load_card
from wsiseg.training import cases as cases_module
from wsiseg.training.augment.histology import to_rgb, to_stains
from wsiseg.training.cases import open_cases
from wsiseg.training.loop import train
from wsiseg.training.sections import Start
from wsiseg.training.selfsupervised import PretextSampler, without_haematoxylin
from wsiseg.training.session import Session, memory_format
from wsiseg.training.start import build, freeze, frozen_at, give_each_class_a_channel, take_over

UNET = {"spatial_dims": 2, "in_channels": 3, "out_channels": 5, "channels": [4, 8], "strides": [2]}
DYNUNET = {
    "spatial_dims": 2, "in_channels": 3, "out_channels": 5, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2], "filters": [4, 8, 8, 8], "deep_supervision": True, "deep_supr_num": 2,
}  # fmt: skip
TWO_MASKS = [{"output": 0}, {"output": 1, "weight": 0.5}, {"output": 2, "weight": 0.25}]


def named(name: str, **arguments: Any) -> dict[str, Any]:
    return {"network": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "changes",
    [
        named("espnet", classes=5, p=1, q=1, variant="B"),
        named("espnet", classes=5, p=1, q=1, variant="C"),
        named("espnetv2", classes=5, scale=0.5),
        pytest.param(named("segnet", classes=5), marks=pytest.mark.slow),
        named("monai:UNet", **UNET),
        named("monai:DynUNet", **DYNUNET) | {"losses": TWO_MASKS},
    ],
    ids=lambda c: c["network"]["name"] + c["network"]["arguments"].get("variant", ""),
)
def test_every_network_takes_a_step_and_is_scored(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = pictures(tmp_path, splits="tv", steps=1, **changes)
    card = load_card(train(run))
    assert card.quality["validation"]["pixels"] == 48 * 56
    before = build(run).state_dict()
    after = load_network(tmp_path / "out" / "tiny.json").state_dict()
    assert any((before[key] != after[key]).any() for key in before)


def test_monai_takes_volumes(tmp_path: Path) -> None:
    unet = UNET | {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    card = load_card(train(volumes(tmp_path, steps=1, **named("monai:UNet", **unet))))
    assert card.quality["validation"]["volumes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mrseg", "ynet"])
def test_networks_of_one_patch_size_take_a_step_and_are_scored(tmp_path: Path, name: str) -> None:
    run = pictures(tmp_path, splits="tv", steps=1, patches={"size": 384}, **named(name, classes=5))
    card = load_card(train(run))
    assert card.quality["validation"]["pixels"] == 48 * 56


@pytest.mark.slow
def test_y_net_goes_from_stage_1_to_the_joint_network_of_stage_2(tmp_path: Path) -> None:
    size = {"patches": {"size": 384}}
    first = train(pictures(tmp_path / "one", splits="t", steps=1, **size, **named("ynet", classes=5)))
    joint = {
        "diagnoses": ["benign", "malignant"],
        "losses": [{"output": 0}, {"output": "diagnosis", "kind": "cross-entropy"}],
        "start": {"card": str(first), "freeze": ["stem", "stage1", "stage2"]},
    }
    run = pictures(
        tmp_path / "two", splits="tv", steps=2, **size, **joint, **named("ynet", classes=5, diagnoses=2)
    )
    rows = (tmp_path / "two" / "m.csv").read_text().splitlines()
    said = ["diagnosis", "malignant", "benign"]
    (tmp_path / "two" / "m.csv").write_text("\n".join(f"{r},{d}" for r, d in zip(rows, said, strict=True)))
    card = load_card(train(run))
    assert card.diagnoses == ("benign", "malignant")
    start = card.quality["training"]["start"]
    assert start["from"] == "tiny"
    assert any(name.startswith("diagnosis.") for name in start["first layers at random"])
    stage1 = load_network(first).state_dict()
    stage2 = load_network(tmp_path / "two/out/tiny.json").state_dict()
    torch.testing.assert_close(stage2["stem.conv.weight"], stage1["stem.conv.weight"], rtol=0, atol=0)
    assert (stage2["head_half.1.weight"] != stage1["head_half.1.weight"]).any()


def test_networks_are_laid_out_as_they_can_be_trained() -> None:
    assert memory_format(build_network("mrseg"), axes="yx") == torch.contiguous_format
    assert memory_format(build_network("espnet", classes=5), axes="yx") == torch.channels_last


def test_espnet_c_goes_into_the_full_network(tmp_path: Path) -> None:
    small = named("espnet", classes=5, p=1, q=1, variant="C")
    first = train(pictures(tmp_path / "c", splits="t", **small))
    run = pictures(tmp_path / "full", splits="t", start={"card": str(first)})
    network = build(run)
    assert isinstance(network, nn.Module)
    said = take_over(run, network)
    given = load_network(first).state_dict()
    for key, value in given.items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=0, atol=0)
    assert said["layers taken"] == len(dict(load_network(first).named_parameters()))
    assert said["first layers at random"][0] == "norm_eighth.weight"


def test_layers_of_another_shape_stay_random_and_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t", start={"card": "demo-breast8"})
    network = build(run)
    random = {key: value.clone() for key, value in network.state_dict().items()}
    said = take_over(run, network)
    given = load_network("demo-breast8").state_dict()
    torch.testing.assert_close(
        network.state_dict()["encoder.stem.conv.weight"], given["encoder.stem.conv.weight"], rtol=0, atol=0
    )
    assert "head.weight" in said["first layers at random"]
    torch.testing.assert_close(network.state_dict()["head.weight"], random["head.weight"], rtol=0, atol=0)
    none = pictures(tmp_path, splits="t", start={"card": "hippocampus"})
    with pytest.raises(ModelError, match="no layer of hippocampus .espnet3d. fits the network espnet"):
        train(none)
    with pytest.raises(ModelError, match="unknown model"):
        train(pictures(tmp_path, splits="t", start={"card": "nothing.json"}))
    wrong = pictures(tmp_path, splits="t", start={"card": "demo-breast8", "freeze": ["encodr"]})
    with pytest.raises(ManifestError, match="start names layers 'encodr', which the network does not have"):
        train(wrong)


def test_frozen_layers_stay_until_they_are_unfrozen_and_resume_knows_it(tmp_path: Path) -> None:
    later = [{"step": 3, "layers": ["encoder.stage2", "encoder.fuse3"]}]
    start = {"card": "demo-breast8", "freeze": ["encoder"], "unfreeze": later}
    run = pictures(tmp_path, splits="t", steps=4, start=start)
    seen: dict[int, dict[str, torch.Tensor]] = {}
    original = Session.learn

    def learn(session: Session, step: int, parts: Any) -> float:
        value = original(session, step, parts)
        seen[step] = {key: tensor.clone() for key, tensor in session.network.state_dict().items()}
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "learn", learn)
        train(run)
    given = load_network("demo-breast8").state_dict()
    for key in (
        "encoder.stem.conv.weight",
        "encoder.stem.tail.norm.running_mean",
        "encoder.stem.tail.act.weight",
    ):
        torch.testing.assert_close(seen[4][key], given[key], rtol=0, atol=0)
    late = "encoder.stage2.0.reduce.weight"
    torch.testing.assert_close(seen[2][late], given[late], rtol=0, atol=0)
    assert (seen[3][late] != given[late]).any()
    assert (seen[1]["up_half.weight"] != seen[2]["up_half.weight"]).any()


def test_what_is_unfrozen_is_a_function_of_the_step() -> None:
    start = Start(card="x", freeze=("a",), unfreeze=({"step": 5, "layers": ["a.b"]},))
    names = ["a.b.weight", "a.c.weight", "ab.weight"]
    assert frozen_at(start, 4, names) == {"a.b.weight", "a.c.weight"}
    assert frozen_at(start, 5, names) == {"a.c.weight"}
    assert frozen_at(None, 5, names) == set()
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    freeze(network, {"1.weight", "1.bias"})
    assert not network[1].training
    freeze(network, set())
    assert network[1].training
    assert all(p.requires_grad for p in network.parameters())


def test_no_class_begins_without_a_channel_that_speaks_for_it() -> None:
    torch.manual_seed(0)
    network = build_network("espnet3d", classes=3, channels=1, width=0.25, refinement=False)
    give_each_class_a_channel(network)
    seen: list[torch.Tensor] = []
    *_, last = (m for m in network.modules() if isinstance(m, torch.nn.Conv3d))
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    scores = network(torch.rand(1, 1, 16, 24, 16))
    torch.testing.assert_close(scores, seen[0])
    assert (scores.amax(dim=(0, 2, 3, 4)) > 0).all()


def test_an_image_without_haematoxylin_has_none_and_the_amount_is_what_was_there() -> None:
    stains = np.zeros((3, 6, 8), np.float32)
    stains[0, 2:4], stains[1] = 0.1, 0.05
    image = to_rgb(stains)
    rest, amount = without_haematoxylin(image)
    np.testing.assert_allclose(amount[2:4], 1.0, atol=0.05)
    np.testing.assert_allclose(amount[:2], 0.0, atol=0.05)
    assert to_stains(rest)[0].max() < 0.006
    np.testing.assert_allclose(to_stains(rest)[1], to_stains(image)[1], atol=0.003)


def test_patches_of_the_pretext_are_turned_with_their_targets(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t", pretext={}, preprocessing={"mean": [0, 0, 0], "std": [1, 1, 1]})
    batch = PretextSampler(run.model_copy(update={"seed": 3}), open_cases(run).train).batch(1)
    assert set(batch.targets) == {"haematoxylin", "rotation"}
    assert batch.targets["haematoxylin"].shape == (2, 32, 32)
    turns = [PretextSampler(run, open_cases(run).train).batch(s).targets["rotation"] for s in range(12)]
    assert set(torch.cat(turns).tolist()) == {0, 1, 2, 3}


def test_slides_without_labels_give_a_start(tmp_path: Path) -> None:
    run = pictures(tmp_path / "self", splits="tt", steps=40, pretext={}, augmentation={"flip": "yx"})
    rows = [row.split(",") for row in (tmp_path / "self" / "m.csv").read_text().splitlines()]
    (tmp_path / "self" / "m.csv").write_text(
        "\n".join(",".join(r if i == 0 else [*r[:4], "", *r[5:]]) for i, r in enumerate(rows))
    )
    path = train(run)
    quality = load_card(path).quality
    assert quality["note"].startswith("learned without labels")
    log = (tmp_path / "self" / "out" / "tiny.log.csv").read_text().splitlines()
    assert log[0].split(",")[:4] == ["step", "loss", "haematoxylin", "rotation"]
    amounts = [float(row.split(",")[2]) for row in log[1:]]
    assert amounts[-1] < 0.8 * amounts[0]
    second = pictures(tmp_path / "second", splits="t", start={"card": str(path)})
    network = build(second)
    assert take_over(second, network)["layers at random"] == 0
    with pytest.raises(ManifestError, match="a pretext has no masks to score"):
        train(pictures(tmp_path / "self", pretext={}, validation={"every": 1}))


def test_a_whole_slide_is_read_region_by_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases_module, "HELD_BYTES", 0)
    run = pictures(tmp_path, splits="t", pretext={}, spacing={"value": 1.0}, validation={"test": False})
    row = f"slide,{SLIDE.name},slide,train,,,CC0-1.0"
    (tmp_path / "m.csv").write_text(f"case,path,patient,split,annotation,mpp,licence\n{row}")
    run = run.model_copy(update={"data": run.data.model_copy(update={"root": SLIDE.parent})})
    case = open_cases(run).train[0]
    assert max(case.shape) < 1600  # of 2967 pixels of 0.5 µm
    read: list[int] = []
    original = type(case.source).read

    def spy(source: Any, region: Any) -> Any:
        read.append(math.prod(region_shape(region)))
        return original(source, region)

    monkeypatch.setattr(type(case.source), "read", spy)
    batch = PretextSampler(run, [case]).batch(1)
    assert batch.inputs.shape == (2, 3, 32, 32)
    assert read == [32 * 32] * 2
