"""Checkpoints of the original ESPNet repository: a full network (variant A or B) or an encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.card import Preprocessing
from wsiseg.models.originals.renaming import Recognised, count

# As the original code prepares images: OpenCV's BGR, statistics of Cityscapes, then divided by 255.
CITYSCAPES = Preprocessing(
    channel_order="BGR",
    mean=(72.3923111, 82.90893555, 73.15840149),
    std=(45.3192215, 46.15289307, 44.91483307),
    factor=1 / 255,
)

# Original name -> ours, applied one after the other to the start or inside of each key.
_ESP_RENAMES = (
    (r"\.c1\.conv\.", ".reduce."),
    (r"\.d1\.conv\.", ".branches.0."),
    (r"\.d2\.conv\.", ".branches.1."),
    (r"\.d4\.conv\.", ".branches.2."),
    (r"\.d8\.conv\.", ".branches.3."),
    (r"\.d16\.conv\.", ".branches.4."),
    (r"\.bn\.bn\.", ".tail.norm."),
    (r"\.bn\.act\.", ".tail.act."),
)
_ENCODER_RENAMES = (
    (r"^encoder\.level1\.conv\.", "encoder.stem.conv."),
    (r"^encoder\.level1\.bn\.", "encoder.stem.tail.norm."),
    (r"^encoder\.level1\.act\.", "encoder.stem.tail.act."),
    (r"^encoder\.b([123])\.bn\.", r"encoder.fuse\1.norm."),
    (r"^encoder\.b([123])\.act\.", r"encoder.fuse\1.act."),
    (r"^encoder\.level2_0\.(bn|act)\.", r"encoder.down1.tail.\1."),
    (r"^encoder\.level3_0\.(bn|act)\.", r"encoder.down2.tail.\1."),
    (r"^encoder\.level2_0\.", "encoder.down1."),
    (r"^encoder\.level3_0\.", "encoder.down2."),
    (r"^encoder\.level2\.", "encoder.stage1."),
    (r"^encoder\.level3\.", "encoder.stage2."),
    (r"^encoder\.classifier\.conv\.", "head."),
    (r"\.tail\.bn\.", ".tail.norm."),
)
_DECODER_RENAMES = (
    (r"^br\.", "norm_eighth."),
    (r"^up_l3\.0\.", "up_eighth."),
    (r"^level3_C\.conv\.", "project_quarter."),
    (r"^combine_l2_l3\.0\.bn\.", "fuse_quarter.norm."),
    (r"^combine_l2_l3\.0\.act\.", "fuse_quarter.act."),
    (r"^combine_l2_l3\.1\.", "mix_quarter."),
    (r"^up_l2\.0\.", "up_quarter."),
    (r"^up_l2\.1\.bn\.", "act_half.norm."),
    (r"^up_l2\.1\.act\.", "act_half.act."),
    (r"^conv\.conv\.", "mix_half.conv."),
    (r"^conv\.bn\.", "mix_half.tail.norm."),
    (r"^conv\.act\.", "mix_half.tail.act."),
    (r"^classifier\.", "up_half."),
)


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of ESPNet or of its encoder."""
    full = "encoder.classifier.conv.weight" in state
    return full or ("classifier.conv.weight" in state and "level2_0.c1.conv.weight" in state)


def read(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """The checkpoint in this program's terms; the channels that join at half resolution tell the variant."""
    full = "encoder.classifier.conv.weight" in state
    original = dict(state) if full else {f"encoder.{key}": value for key, value in state.items()}
    stem = original.get("encoder.level1.conv.weight")
    if stem is None or stem.ndim != 4:
        raise ModelError(f"{name} looks like ESPNet but lacks 'encoder.level1.conv.weight' of 4 axes")
    classes, channels = original["encoder.classifier.conv.weight"].shape[0], stem.shape[1]
    arguments: dict[str, Any] = {
        "classes": classes,
        "channels": channels,
        "p": count(original, "encoder.level2."),
        "q": count(original, "encoder.level3."),
        "variant": "C",
    }
    if full:
        join = original.get("conv.conv.weight")
        if join is None or join.ndim != 4:
            raise ModelError(f"{name} looks like ESPNet but lacks 'conv.conv.weight' of 4 axes")
        skip = join.shape[1] - classes
        arguments["variant"] = {16: "A", 16 + channels: "B"}.get(skip, f"with {skip} skip channels")
    # The ESP rules first: they free the names .bn. and .act. for the blocks that keep them.
    renames = _ESP_RENAMES + _ENCODER_RENAMES + _DECODER_RENAMES
    return Recognised("espnet", arguments, original, renames, CITYSCAPES, prefix="" if full else "encoder.")
