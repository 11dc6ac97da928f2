"""The network of WACV 2018: its translation's logits, its published size, its crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.golden import assert_logits, filled_network, filled_state
from wsiseg.errors import ModelError
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.mrseg import MultiResolutionSeg, SparseDecoder, build_mrseg
from wsiseg.models.originals import mrseg, recognise
from wsiseg.models.registry import build_network
from wsiseg.preprocess import apply

RUNNING = ("running_mean", "running_var")


def test_filled_weights_give_the_logits_of_a_translation_that_was_never_held_against_the_original(
    shared: Path,
) -> None:
    fixtures, name = shared / "fixtures", "det_wacv18_translation"
    preprocessing = recognise(filled_state(fixtures, name), name=name).preprocessing
    with Image.open(fixtures / "images" / "ynet_1222_1_7200_3600_2.png") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = filled_network(fixtures, name)(apply(pixels, None, preprocessing))[0].numpy()
    assert_logits(fixtures, name, logits)


def test_parameters_are_as_many_as_published_of_which_most_are_two_resnets() -> None:
    network: Any = build_network("mrseg")
    assert isinstance(network, MultiResolutionSeg)
    assert sum(p.numel() for p in network.parameters()) == 26_005_014
    statistics = sum(v.numel() for k, v in network.state_dict().items() if k.endswith(RUNNING))
    assert 26_005_014 + statistics == 26_033_260  # the paper's 26.03 million count them
    for part in (network.outer, network.inner):
        resnet = [p for k, p in part.encoder.named_parameters() if not k.startswith("see_")]
        assert sum(p.numel() for p in resnet) == 11_176_512


def test_the_output_covers_the_published_rows_and_columns() -> None:
    network = MultiResolutionSeg(classes=2)
    rows = torch.arange(384).view(1, 1, -1, 1).expand(1, 1, 384, 384)
    crop = network.centre(rows)
    assert tuple(crop.shape[2:]) == network.output_size
    assert (int(crop[0, 0, 0, 0]), int(crop[0, 0, -1, 0])) == (63, 318)
    assert torch.equal(network.centre(rows.transpose(2, 3)), crop.transpose(2, 3))
    assert network.output_offset == (63, 63)


def test_other_channels_and_classes_make_scores_of_the_centre() -> None:
    torch.manual_seed(0)
    network = build_mrseg(classes=3, channels=4).eval()
    with torch.inference_mode():
        out = network(torch.rand(1, 4, *MultiResolutionSeg.input_size))
    assert out.shape == (1, 3, *MultiResolutionSeg.output_size)


def test_the_sparse_decoder_says_the_same_at_all_odd_pixels() -> None:
    torch.manual_seed(0)
    decoder = SparseDecoder(5).eval()
    widths = (64, 64, 64, 128, 256, 512)
    sizes = (16, 8, 8, 4, 2, 1)
    features = tuple(torch.rand(1, c, n, n) for c, n in zip(widths, sizes, strict=True))
    with torch.inference_mode():
        out = decoder(features)
    assert out.shape == (1, 5, 32, 32)
    for between in (out[:, :, 1::2, :], out[:, :, :, 1::2]):
        assert torch.equal(between, between[:, :, :1, :1].expand_as(between))
    assert float(out[:, :, ::2, ::2].std(dim=(2, 3)).max()) > 0.01


def test_patches_of_another_size_are_refused() -> None:
    network = build_mrseg()
    with pytest.raises(ValueError, match=r"takes patches of \(384, 384\), got \(256, 384\)"):
        network(torch.rand(1, 3, 256, 384))
    with pytest.raises(ModelError, match="MultiResolutionSeg.forward cannot be followed"):
        NetworkGraph(network.eval())


def test_the_translation_is_recognised_by_both_its_sub_networks_and_lacking_parts_are_named() -> None:
    stems = {f"m{size}.stem.0.weight": torch.empty(64, 4, 7, 7) for size in (384, 256)}
    assert mrseg.matches(stems)
    assert not mrseg.matches({"m384.stem.0.weight": torch.empty(0)})
    recognised = recognise({**stems, "cl.3.weight": torch.empty(6, 6, 1, 1)}, name="some.pth")
    assert recognised.arguments == {"classes": 6, "channels": 4}
    assert recognised.preprocessing.std == (255.0,) * 4
    with pytest.raises(
        ModelError, match="some.pth looks like the network of WACV 2018 but lacks 'cl.3.weight'"
    ):
        recognise(stems, name="some.pth")


def test_no_other_published_checkpoint_is_taken_for_it(shared: Path) -> None:
    for keymap in (shared / "fixtures" / "keymaps").glob("*.tsv"):
        keys = [line.split("\t")[0] for line in keymap.read_text().splitlines()[1:]]
        assert not mrseg.matches(dict.fromkeys(keys, torch.empty(0))), keymap.stem
