"""Checkpoints of the multi-resolution network of WACV 2018, under the names of its translation.

The original is a Lua program for Torch 7; its checkpoints are no torch checkpoints. These are the
names of a translation of that program, which could not be held against the original itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.card import Preprocessing
from wsiseg.models.originals.renaming import Recognised

# Parts that are a convolution and a norm; in all others 0 and 1 stay numbers.
_BLOCKS = r"(\.stem|\.skip_\d_\d|\.project|\.level0|\.merge|\.first|\.dilated\.\d|\.fuse|head\.0)"

# Original name -> ours, applied one after the other to the start or inside of each key.
_RENAMES = (
    (r"^bn\.", "norm."),
    (r"^m384\.", "outer."),
    (r"^m256\.", "inner."),
    # The encoder.
    (r"\.stem\.", ".encoder.stem."),
    (r"\.r([1-4])\.", r".encoder.stage\1."),
    (r"\.c1\.", ".first.conv."),
    (r"\.b1\.", ".first.norm."),
    (r"\.c2\.", ".second.0."),
    (r"\.b2\.", ".second.1."),
    (r"\.sc\.", ".shortcut."),
    (r"\.i128\.", ".encoder.see_half."),
    (r"\.i64\.", ".encoder.see_quarter."),
    # The original names sizes after inputs of 224 pixels: 112 is a half, 14 a sixteenth. Of the two
    # features at a quarter (56), those with a second underscore are the ones after the residual stage.
    (r"\.p\.112_14\.", ".dense.skip_1_5."),
    (r"\.p\.112_28\.", ".dense.skip_1_4."),
    (r"\.p\.112_56\.", ".dense.skip_1_3."),
    (r"\.p\.56_14\.", ".dense.skip_2_5."),
    (r"\.p\.56_28\.", ".dense.skip_2_4."),
    (r"\.p\.56_14_\.", ".dense.skip_3_5."),
    (r"\.p\.56_28_\.", ".dense.skip_3_4."),
    (r"\.p\.28_14\.", ".dense.skip_4_5."),
    (r"\.d6\.", ".dense.up5."),
    (r"\.d5\.", ".dense.up4."),
    (r"\.d4\.", ".dense.up3."),
    (r"\.d3\.", ".dense.up2."),
    (r"\.d2\.", ".dense.up1."),
    (r"\.dc\.", ".dense.project."),
    (r"\.h1\.", ".sparse.up5."),
    (r"\.h2\.", ".sparse.side5."),
    (r"\.h3\.", ".sparse.up4."),
    (r"\.h4\.", ".sparse.side4."),
    (r"\.h5\.", ".sparse.up3."),
    (r"\.h6\.", ".sparse.side3."),
    (r"\.h7\.", ".sparse.side2."),
    (r"\.h8\.", ".sparse.up2."),
    (r"\.h9\.", ".sparse.side1."),
    (r"\.h10\.", ".sparse.up1."),
    (r"\.l0\.", ".level0."),
    (r"\.out\.", ".merge."),
    (r"^ctx\.b\.0\.", "context.first."),
    (r"^ctx\.b\.1\.", "context.dilated.0."),
    (r"^ctx\.b\.2\.", "context.dilated.1."),
    (r"^ctx\.b\.3\.", "context.dilated.2."),
    (r"^ctx\.b\.4\.", "context.dilated.3."),
    (r"^ctx\.o\.", "context.fuse."),
    (r"^cl\.3\.", "head.1."),
    (r"^cl\.", "head.0."),
    (_BLOCKS + r"\.0\.", r"\1.conv."),
    (_BLOCKS + r"\.1\.", r"\1.norm."),
)


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the translation's two sub-networks."""
    return "m384.stem.0.weight" in state and "m256.stem.0.weight" in state


def read(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """The checkpoint in this program's terms; its first and last convolution tell the arguments."""
    last = "cl.3.weight"
    if last not in state or state[last].ndim != 4 or state["m384.stem.0.weight"].ndim != 4:
        raise ModelError(f"{name} looks like the network of WACV 2018 but lacks {last!r} of 4 axes")
    channels = state["m384.stem.0.weight"].shape[1]
    arguments = {"classes": state[last].shape[0], "channels": channels}
    # RGB divided by 255; the rest of the normalisation is learned.
    preprocessing = Preprocessing(mean=(0.0,) * channels, std=(255.0,) * channels)
    return Recognised("mrseg", arguments, dict(state), _RENAMES, preprocessing)
