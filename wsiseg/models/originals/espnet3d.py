"""Checkpoints of the original 3D-ESPNet repository."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.card import Preprocessing
from wsiseg.models.originals.renaming import Recognised

# Original name -> ours, applied one after the other to the start or inside of each key.
_BLOCK_RENAMES = (
    # The dilations in the names are not those of the convolutions; they only count the branches.
    (r"\.d1\.", ".branches.0."),
    (r"\.d2\.", ".branches.1."),
    (r"\.d4\.", ".branches.2."),
    (r"\.d8\.", ".branches.3."),
    # Branches of an ASP block have norms of their own, those of an ESP unit are bare convolutions.
    (r"^((?:dec_l1\.3|classifier\.1)\.branches\.\d)\.conv\.", r"\1.0."),
    (r"^((?:dec_l1\.3|classifier\.1)\.branches\.\d)\.bn\.", r"\1.1."),
    (r"(\.branches\.\d)\.conv\.", r"\1."),
    (r"\.c1\.", ".reduce."),
    (r"\.bn\.", ".norm."),
)
_PART_RENAMES = (
    (r"^level0\.", "trunk.stem."),
    (r"^level1\.", "trunk.encode_half."),
    (r"^level2\.", "trunk.down_quarter."),
    (r"^level_2\.", "trunk.encode_quarter."),
    (r"^level3_0\.", "trunk.down_eighth."),
    (r"^level_3\.", "trunk.encode_eighth."),
    (r"^up_l3_l2\.up\.", "trunk.project_eighth."),
    (r"^merge_l2\.", "trunk.merge_quarter."),
    (r"^dec_l2\.", "trunk.decode_quarter."),
    (r"^up_l2_l1\.up\.", "trunk.project_quarter."),
    (r"^merge_l1\.", "trunk.merge_half."),
    (r"^dec_l1\.2\.", "trunk.project_half."),
    (r"^dec_l1\.3\.", "trunk.asp."),
    (r"^dec_l1\.", "trunk.decode_half."),
    (r"^pspModules\.(\d)\.features\.", r"refine.levels.\1."),
    (r"^classifier\.0\.", "refine.mix."),
    (r"^classifier\.1\.", "head.0."),
    (r"^classifier\.3\.", "head.2."),
    (r"^classifier\.4\.conv\.", "head.3."),
)


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of 3D-ESPNet."""
    return "level0.conv.weight" in state and "up_l3_l2.up.conv.weight" in state


def read(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """The checkpoint in this program's terms; its first and last convolution tell the arguments."""
    last = "classifier.4.conv.weight"
    for key in ("level0.conv.weight", last):
        if key not in state or state[key].ndim != 5:
            raise ModelError(f"{name} looks like 3D-ESPNet but lacks {key!r} of 5 axes")
    classes, channels = state[last].shape[0], state["level0.conv.weight"].shape[1]
    # The original code scales each modality of each volume to 0..1 by its own minimum and maximum,
    # which a card cannot say: this is for volumes scaled so to 0..255 before they are read.
    preprocessing = Preprocessing(mean=(0.0,) * channels, std=(255.0,) * channels)
    arguments = {"classes": classes, "channels": channels}
    return Recognised("espnet3d", arguments, dict(state), _BLOCK_RENAMES + _PART_RENAMES, preprocessing)
