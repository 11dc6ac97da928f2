"""Checkpoints of the original Y-Net repository: segmentation alone (stage 1) or joint (stage 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsiseg.models.card import Preprocessing
from wsiseg.models.originals.renaming import Recognised, shape_of

# As the original code prepares images: OpenCV's BGR divided by 255, and no statistics.
BGR_TO_ONE = Preprocessing(channel_order="BGR", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))

# Original name -> ours, applied one after the other. In a joint checkpoint the segmentation network
# stands under "segNet."; "level4_1" without it is another unit, of the diagnosis branch.
_DILATED_RENAMES = (
    (r"\.c1\.conv\.", ".reduce."),
    (r"\.d1\.conv\.", ".branches.0."),
    (r"\.d2\.conv\.", ".branches.1."),
    (r"\.d4\.conv\.", ".branches.2."),
    (r"\.d8\.conv\.", ".branches.3."),
    (r"\.d16\.conv\.", ".unused."),
    (r"(level\d_\d)\.bn\.", r"\1.norm."),
)
_RESIDUAL_RENAMES = (
    (r"\.c1\.conv\.", ".first.conv."),
    (r"\.c1\.bn\.", ".first.norm."),
    (r"\.c2\.conv\.", ".second."),
    (r"\.c2\.bn\.", ".norm."),
)
_STAGE_RENAMES = (
    (r"^segNet\.level1\.", "stem."),
    (r"^segNet\.level2\.conv\.", "stage1.down."),
    (r"^segNet\.level2_([01])\.", r"stage1.units.\1."),
    (r"^segNet\.br_2\.bn\.", "stage1.fuse."),
    (r"^segNet\.level3_0\.conv\.", "stage2.down."),
    (r"^segNet\.level3_1\.", "stage2.units.0."),
    (r"^segNet\.level3_2\.", "stage2.units.1."),
    (r"^segNet\.level4_1\.", "stage2.units.2."),
    (r"^segNet\.level4_2\.", "stage2.units.3."),
    (r"^segNet\.level4_3\.", "stage2.units.4."),
    (r"^segNet\.br_4\.bn\.", "stage2.fuse."),
    (r"^level4_0\.conv\.", "diagnosis.stage1.down."),
    (r"^level4_1\.", "diagnosis.stage1.units.0."),
    (r"^level4_2\.", "diagnosis.stage1.units.1."),
    (r"^br_con_4\.bn\.", "diagnosis.stage1.fuse."),
    (r"^level5_0\.conv\.", "diagnosis.stage2.down."),
    (r"^level5_1\.", "diagnosis.stage2.units.0."),
    (r"^level5_2\.", "diagnosis.stage2.units.1."),
    (r"^br_con_5\.bn\.", "diagnosis.stage2.fuse."),
    (r"^fc1\.", "diagnosis.hidden."),
    (r"^fc2\.", "diagnosis.out."),
    (r"^(stem|.*\.down)\.bn\.", r"\1.norm."),
)
_HEAD_RENAMES = (
    *(
        (rf"^segNet\.{original}\.", f"pool_{scale}.levels.{level}.")
        for scale, name in (("eighth", "p{}"), ("quarter", "p{}0"), ("half", "p0{}"))
        for level, original in enumerate(name.format(number) for number in (1, 2, 3, 4))
    ),
    (r"\.features\.1\.", ".project.conv."),
    (r"\.features\.2\.", ".project.norm."),
    (r"^segNet\.class_0\.3\.", "head_half.1."),  # the last convolution, which stands alone
    *(
        # Convolution, norm and ReLU are counted one by one in the original.
        (rf"^segNet\.{original}\.{3 * layer + part}\.", f"head_{scale}.{layer}.{ours}.")
        for scale, original in (("eighth", "classifier"), ("quarter", "class_1"), ("half", "class_0"))
        for layer in range(3)
        for part, ours in enumerate(("conv", "norm"))
    ),
)


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of Y-Net, segmentation or joint."""
    return any(f"{prefix}class_0.3.weight" in state for prefix in ("", "segNet."))


def read(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """The checkpoint in this program's terms; a network under "segNet." is the joint one.

    The segmentation part of a residual (D1) joint network, saved alone, has the keys of stage 1 and
    is taken for it, although the two join their finest features in another order.
    """
    joint = "segNet.class_0.3.weight" in state
    original = dict(state) if joint else {f"segNet.{key}": value for key, value in state.items()}
    dilated = "segNet.level2_0.c2.conv.weight" not in original
    arguments: dict[str, Any] = {
        "classes": shape_of(original, "segNet.class_0.3.weight", axes=4, name=name)[0],
        "channels": shape_of(original, "segNet.level1.conv.weight", axes=4, name=name)[1],
        "encoder": "C1" if dilated else "D1",
        "diagnoses": shape_of(original, "fc2.weight", axes=2, name=name)[0] if joint else None,
    }
    if dilated:
        original = _with_unused(original) if joint else _without_unused(original)
    # The rules of units first: they know a unit's norm by the original's names of levels.
    renames = (_DILATED_RENAMES if dilated else _RESIDUAL_RENAMES) + _STAGE_RENAMES + _HEAD_RENAMES
    return Recognised("ynet", arguments, original, renames, BGR_TO_ONE, prefix="" if joint else "segNet.")


def _with_unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every pyramid with its convolution of dilation 16, zeros where the checkpoint has none.

    The original's stage-1 file does not make it and its stage-2 file does, so joint networks that
    started from stage 1 may lack it; nothing that is computed depends on it.
    """
    dilation8 = {key: value for key, value in state.items() if ".d8." in key}
    absent = {key.replace(".d8.", ".d16."): value.new_zeros(value.shape) for key, value in dilation8.items()}
    return absent | dict(state)


def _without_unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A segmentation network that the stage-2 file made, as the stage-1 file makes it."""
    return {key: value for key, value in state.items() if ".d16." not in key}
