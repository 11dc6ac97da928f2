"""Every published checkpoint imports strictly; damaged copies of it are refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_models import Evil
from wsiseg.errors import ModelError
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import load_network
from wsiseg.models.weights import read_checkpoint

PUBLISHED = {
    "encoder_espnet_p_2_q_3": ("espnet", {"classes": 20, "channels": 3, "p": 2, "q": 3, "variant": "C"}),
    "espnet_p_2_q_3": ("espnet", {"classes": 20, "channels": 3, "p": 2, "q": 3, "variant": "A"}),
    "espnet_p_2_q_8": ("espnet", {"classes": 20, "channels": 3, "p": 2, "q": 8, "variant": "A"}),
    "espnetv2_s_0.5_city_1024x512": (
        "espnetv2", {"classes": 20, "channels": 3, "scale": 0.5, "decoder_width": 64},
    ),
    "espnetv2_s_1.0_pascal_384x384": (
        "espnetv2", {"classes": 21, "channels": 3, "scale": 1.0, "decoder_width": 64},
    ),
}  # fmt: skip


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "fixtures" / "weights" / f"{request.param}.pth"


def refused(checkpoint: Path, match: str) -> None:
    """The import ends with one sentence, and leaves nothing."""
    card = checkpoint.with_suffix(".json")
    with pytest.raises(ModelError, match=match) as caught:
        import_checkpoint(checkpoint, card)
    assert "\n" not in str(caught.value)
    assert not card.exists()
    assert not card.with_suffix(".safetensors").exists()


def test_a_published_checkpoint_becomes_a_card_that_loads(published: Path, tmp_path: Path) -> None:
    card = import_checkpoint(published, tmp_path / "model.json")
    assert (card.network.name, card.network.arguments) == PUBLISHED[published.stem]
    assert (card.channels, len(card.classes)) == (3, card.network.arguments["classes"])
    original = {k: v for k, v in read_checkpoint(published).items() if not k.endswith("batches_tracked")}
    imported = load_network(tmp_path / "model.json").state_dict()
    ours = {k: v for k, v in imported.items() if not k.endswith("batches_tracked")}

    def numbers(state: dict[str, Tensor]) -> list[tuple[tuple[int, ...], float]]:
        return sorted((tuple(v.shape), float(v.double().sum())) for v in state.values())

    assert numbers(ours) == numbers(original)  # every tensor, once, unchanged


def test_prefixes_and_batch_counters_make_no_difference(published: Path, tmp_path: Path) -> None:
    state = read_checkpoint(published)
    norms = [k.removesuffix("running_mean") for k in state if k.endswith("running_mean")]
    counted = state | {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}
    torch.save({f"module.{k}": v for k, v in counted.items()}, tmp_path / "wrapped.pth")
    card = import_checkpoint(tmp_path / "wrapped.pth", tmp_path / "wrapped.json")
    assert (card.network.name, card.network.arguments) == PUBLISHED[published.stem]


def test_damaged_copies_are_refused_and_run_nothing(published: Path, tmp_path: Path) -> None:
    data = published.read_bytes()
    (tmp_path / "short.pth").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "short.pth", "short.pth is not a checkpoint that loads without running code")
    (tmp_path / "spoilt.pth").write_bytes(b"\x93" * 64 + data[64:])
    refused(tmp_path / "spoilt.pth", "spoilt.pth is not a checkpoint that loads without running code")
    state = read_checkpoint(published)
    torch.save({**state, "evil": Evil(tmp_path / "trace")}, tmp_path / "evil.pth")
    refused(tmp_path / "evil.pth", "evil.pth is not a checkpoint that loads without running code")
    assert not (tmp_path / "trace").exists()


def test_keys_and_shapes_that_do_not_fit_are_named(published: Path, tmp_path: Path) -> None:
    state = read_checkpoint(published)
    norm = next(k for k in reversed(state) if k.endswith("running_var"))
    torch.save({(f"{k}_" if k == norm else k): v for k, v in state.items()}, tmp_path / "renamed.pth")
    refused(tmp_path / "renamed.pth", r"does not fit the network: it lacks '.*running_var' of shape \(\d+,\)")
    torch.save(state | {norm: state[norm][:-1]}, tmp_path / "shape.pth")
    refused(tmp_path / "shape.pth", r"'.*running_var' has shape \(\d+,\), the network needs \(\d+,\)")
    torch.save(state | {"head.extra": torch.zeros(2)}, tmp_path / "more.pth")
    refused(tmp_path / "more.pth", "it holds 'head.extra', which the network lacks")
