"""Nothing in a file of weights is run, whatever it is called."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import card_of
from wsiseg.errors import ModelError
from wsiseg.models.card import sha256_of, write_card
from wsiseg.models.registry import load_network
from wsiseg.models.weights import read_checkpoint


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("by_torch", [False, True])
def test_a_pickle_is_refused_and_does_nothing(tmp_path: Path, suffix: str, by_torch: bool) -> None:
    path, made = tmp_path / f"w{suffix}", tmp_path / "made"
    trap = {"state_dict": Trap(made)}
    if by_torch:
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap))
    with pytest.raises(
        ModelError, match=r"w\.[a-z]+ is not a (safetensors file|checkpoint that loads without)"
    ):
        read_checkpoint(path)
    assert not made.exists()


def test_a_pickle_that_a_card_names_as_its_weights_does_nothing(tmp_path: Path) -> None:
    made, weights = tmp_path / "made", tmp_path / "none.safetensors"
    weights.write_bytes(pickle.dumps(Trap(made)))
    card = card_of().model_copy(update={"sha256": sha256_of(weights)})
    card = card.model_copy(update={"network": card.network.model_copy(update={"arguments": {"classes": 8}})})
    write_card(card, tmp_path / "m.json")
    with pytest.raises(ModelError, match=r"none\.safetensors is not a safetensors file"):
        load_network(tmp_path / "m.json")
    assert not made.exists()


LIE = b'{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 4]}}'


@pytest.mark.parametrize("header", [b"[" * 100_000, b"{}", b"", LIE])
@pytest.mark.parametrize("length", [None, 2**63, 10**12])
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(header) or 9) + header + b"\0\0\0\0")
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        read_checkpoint(path)
