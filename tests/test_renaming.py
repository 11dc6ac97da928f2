"""Names of original checkpoints: to those of this program, and back for what a file lacks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wsiseg.errors import ModelError
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.originals import recognise
from wsiseg.models.originals.renaming import original_names, rename

FIXTURES = (
    "det_espnetA_q3_c8", "det_espnetB_q3_c8", "det_espnetc_q3_c8", "det_espnetv2_s0.5_c8",
    "det_esp3d_full_aligncTrue", "det_ynet_st1_C1_aligncTrue", "det_ynet_st2_C1_aligncTrue",
    "det_wacv18_translation",
)  # fmt: skip


def test_a_rule_is_turned_round_with_its_groups_and_anchors() -> None:
    rules = ((r"\.c1\.", ".reduce."), (r"^b([12])\.(bn|act)\.", r"fuse\1.\2."), (r"\.bn\.", ".norm."))
    assert rename("b2.bn.bias", rules) == "fuse2.norm.bias"
    assert original_names("fuse2.norm.bias", rules) == {"b2.bn.bias", "fuse2.bn.bias", "fuse2.norm.bias"}
    assert original_names("a.reduce.x", rules) == {"a.c1.x", "a.reduce.x"}
    assert original_names("a.c1.x", rules) == set()  # the rules leave no such name


@pytest.mark.parametrize("name", FIXTURES)
def test_a_lost_tensor_is_named_as_its_file_would(shared: Path, name: str) -> None:
    keys = json.loads((shared / "fixtures" / f"{name}_keys.json").read_text())
    state = {key: torch.empty(value["shape"]) for key, value in keys.items()}
    whole = recognise(state, name=name)
    named = {}
    for lost in whole.original:
        rest = {key: tensor for key, tensor in whole.original.items() if key != lost}
        named[lost] = replace(whole, original=rest).name_in_file(rename(lost, whole.renames))
    assert named == {lost: lost.removeprefix(whole.prefix) for lost in whole.original}


def test_an_encoder_alone_is_named_without_the_prefix_of_the_whole(shared: Path, tmp_path: Path) -> None:
    keys = json.loads((shared / "fixtures" / "det_espnetc_q3_c8_keys.json").read_text())
    state = {key: torch.zeros(value["shape"]) for key, value in keys.items()}
    del state["level3.1.d8.conv.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ModelError, match=r"lacks 'level3.1.d8.conv.weight' of shape \(25, 25, 3, 3\)"):
        import_checkpoint(tmp_path / "short.pth", tmp_path / "short.json")
