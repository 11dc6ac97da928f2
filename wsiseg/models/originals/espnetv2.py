"""Checkpoints of ESPNetv2 for segmentation, of the original EdgeNets repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.card import Preprocessing
from wsiseg.models.espnetv2 import ENCODER_CHANNELS
from wsiseg.models.originals.renaming import Recognised, shape_of

# As the original code prepares images: RGB, divided by 255, statistics of ImageNet.
IMAGENET = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)

# Original name -> ours, applied one after the other to the start or inside of each key.
_UNIT_RENAMES = (
    (r"\.proj_1x1\.conv\.", ".reduce.conv."),
    (r"\.proj_1x1\.(bn|act)\.", r".reduce.tail.\1."),
    (r"\.spp_dw\.(\d)\.conv\.", r".branches.\1."),
    (r"\.br_after_cat\.", ".fuse."),
    (r"\.conv_1x1_exp\.conv\.", ".expand."),
    (r"\.conv_1x1_exp\.bn\.", ".norm."),
    (r"\.module_act\.", ".act."),
    (r"\.inp_reinf\.0\.conv\.", ".reinforce.0.conv."),
    (r"\.inp_reinf\.0\.(bn|act)\.", r".reinforce.0.tail.\1."),
    (r"\.inp_reinf\.1\.conv\.", ".reinforce.1."),
    (r"\.inp_reinf\.1\.bn\.", ".reinforce.2."),
    (r"\.eesp\.", ".unit."),
)
_ENCODER_RENAMES = (
    (r"^base_net\.level1\.conv\.", "encoder.stem.conv."),
    (r"^base_net\.level1\.(bn|act)\.", r"encoder.stem.tail.\1."),
    (r"^base_net\.level2_0\.", "encoder.down1."),
    (r"^base_net\.level3_0\.", "encoder.down2."),
    (r"^base_net\.level3\.", "encoder.stage2."),
    (r"^base_net\.level4_0\.", "encoder.down3."),
    (r"^base_net\.level4\.", "encoder.stage3."),
    (r"\.bn\.", ".norm."),
)
_DECODER_RENAMES = (
    # Convolution, norm and activation, or the last two, are numbered in the original.
    (r"\.cbr\.0\.", ".conv."),
    (r"\.cbr\.1\.", ".tail.norm."),
    (r"\.cbr\.2\.", ".tail.act."),
    (r"(\.br|^bu_br_l\d)\.0\.", r"\1.norm."),
    (r"(\.br|^bu_br_l\d)\.1\.", r"\1.act."),
    (r"\.projection_layer\.", ".project."),
    (r"\.stages\.", ".views."),
    (r"\.merge_layer\.0\.br\.", ".fuse."),
    (r"\.merge_layer\.2\.", ".merge."),
    (r"\.merge_layer\.3\.", ".expand."),
    (r"\.br\.br\.", ".tail."),
    (r"\.wt_layer\.1\.", ".gate."),
    (r"\.expansion_layer\.", ".project."),
    (r"^bu_dec_l1\.", "pyramid."),
    (r"^bu_dec_(l[234])\.", r"\1.pyramid."),
    (r"^merge_enc_dec_(l[234])\.", r"\1.lateral."),
    (r"^bu_br_(l[234])\.", r"\1.fuse."),
    (r"^l2\.", "step_eighth."),
    (r"^l3\.", "step_quarter."),
    (r"^l4\.", "step_half."),
)


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of ESPNetv2 for segmentation."""
    return "base_net.level2_0.eesp.proj_1x1.conv.weight" in state


def read(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """The checkpoint in this program's terms; the channels of its layers tell the arguments."""
    channels = shape_of(state, "base_net.level1.conv.weight", axes=4, name=name)[1]
    if channels != 3:
        raise ModelError(f"{name} takes {channels} channels; ESPNetv2 prepares images of 3 (RGB) only")
    arguments: dict[str, Any] = {
        "classes": shape_of(state, "bu_dec_l4.merge_layer.3.weight", axes=4, name=name)[0],
        "channels": channels,
        "scale": _scale(state, name=name),
        "decoder_width": shape_of(state, "bu_dec_l1.merge_layer.3.weight", axes=4, name=name)[0],
    }
    renames = _UNIT_RENAMES + _ENCODER_RENAMES + _DECODER_RENAMES
    return Recognised("espnetv2", arguments, dict(state), renames, IMAGENET)


def _scale(state: Mapping[str, Tensor], *, name: str) -> float:
    """The published scale that has the encoder's channels. Raises ModelError."""
    levels = ("level1", "level2_0", "level3_0", "level4_0")
    widths = tuple(shape_of(state, f"base_net.{level}.act.weight", axes=1, name=name)[0] for level in levels)
    for scale, known in ENCODER_CHANNELS.items():
        if known == widths:
            return scale
    raise ModelError(f"{name} looks like ESPNetv2 but has {widths} channels, which no published scale has")
