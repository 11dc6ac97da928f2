"""Cards and weights: what does not fit is refused with one sentence, and nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wsiseg.errors import ModelError
from wsiseg.models.card import read_card
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.originals import recognise
from wsiseg.models.registry import load_network
from wsiseg.models.weights import read_checkpoint
from wsiseg.models.zoo import ZOO, load_card, zoo_names

ESPNET = "weights/espnet_p_2_q_3.pth"


def test_every_shipped_model_loads_and_says_what_it_is_not_for() -> None:
    assert "demo-breast8" in zoo_names()
    for name in zoo_names():
        card = load_card(name)
        network = load_network(name)
        assert not network.training
        assert card.notice == "research use only, not for diagnosis"
        said = "demonstration, not for diagnosis" if name.startswith("demo-") else "not for diagnosis"
        assert said in card.limits
        assert card.spacing is not None
        assert card.spacing.assumed == name.startswith("demo-")  # the crops did not state theirs


def copied_zoo(folder: Path) -> Path:
    """The shipped demonstration model, copied to be spoilt."""
    for suffix in (".json", ".safetensors"):
        (folder / f"demo{suffix}").write_bytes((ZOO / f"demo-breast8{suffix}").read_bytes())
    card = json.loads((folder / "demo.json").read_text())
    card["weights"] = "demo.safetensors"
    (folder / "demo.json").write_text(json.dumps(card))
    return folder / "demo.json"


def test_weights_of_another_sha256_are_refused(tmp_path: Path) -> None:
    card = copied_zoo(tmp_path)
    load_network(card)
    weights = tmp_path / "demo.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match=r"have sha256 \w{12}\.\.\., the card says \w{12}"):
        load_network(card)
    weights.unlink()
    with pytest.raises(ModelError, match="weights .* are missing"):
        load_network(card)


def rewritten(card: Path, **changes: object) -> Path:
    """The card with some entries changed."""
    data = json.loads(card.read_text()) | changes
    card.write_text(json.dumps(data))
    return card


def test_weights_that_do_not_fit_name_the_first_difference(tmp_path: Path) -> None:
    from wsiseg.models.card import sha256_of

    card = copied_zoo(tmp_path)
    weights = tmp_path / "demo.safetensors"
    state = load_file(weights)
    first = sorted(state)[0]

    def save(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, weights)
        rewritten(card, sha256=sha256_of(weights))

    save({k: v for k, v in state.items() if k != "encoder.stem.conv.weight"})
    with pytest.raises(ModelError, match=r"lacks 'encoder.stem.conv.weight' of shape \(16, 3, 3, 3\)"):
        load_network(card)
    save({**state, "encoder.stem.conv.weight": torch.zeros(16, 3, 5, 5)})
    with pytest.raises(
        ModelError, match=r"'encoder.stem.conv.weight' has shape \(16, 3, 5, 5\), the network needs"
    ):
        load_network(card)
    save({**state, "surplus": torch.zeros(1)})
    with pytest.raises(ModelError, match="holds 'surplus', which the network lacks"):
        load_network(card)
    weights.write_bytes(b"not safetensors")
    rewritten(card, sha256=sha256_of(weights))
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_network(card)
    assert first in state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": 9}, "background 9 is not a class"),
        ({"weights": "../elsewhere.safetensors"}, "must be a file name beside the card"),
        ({"channels": 4}, "mean and std must have 4 values"),
        ({"colour": 1}, "colour: Extra inputs"),
    ],
)
def test_a_card_with_a_mistake_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_card(rewritten(copied_zoo(tmp_path), **change))


def test_classes_must_be_numbered_in_order(tmp_path: Path) -> None:
    card = copied_zoo(tmp_path)
    classes = json.loads(card.read_text())["classes"]
    with pytest.raises(ModelError, match="numbered 0, 1, 2"):
        read_card(rewritten(card, classes=classes[::-1]))


def test_unknown_models_and_missing_cards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown model 'nothing': neither a shipped model"):
        load_card("nothing")
    with pytest.raises(ModelError, match="cannot read the model card"):
        read_card(tmp_path / "none.json")


class Evil:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_a_checkpoint_with_code_is_refused_and_the_code_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weight": torch.zeros(1), "evil": Evil(trace)}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="not a checkpoint that loads without running code"):
        import_checkpoint(tmp_path / "evil.pth", tmp_path / "card.json")
    assert not trace.exists()
    assert not (tmp_path / "card.json").exists()


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ModelError, match="not a checkpoint that loads"):
        read_checkpoint(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="does not hold a mapping"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        ModelError, match="not a checkpoint of a known network; its first key is 'some.weight'"
    ):
        import_checkpoint(tmp_path / "other.pth", tmp_path / "card.json")
    with pytest.raises(ModelError, match="a card is a .json file"):
        import_checkpoint(tmp_path / "other.pth", tmp_path / "card.txt")


def test_published_checkpoints_import_with_prefixes_and_refuse_what_is_damaged(
    shared: Path, tmp_path: Path
) -> None:
    path = shared / "fixtures" / ESPNET
    state = read_checkpoint(path)
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "wrapped.pth")
    card = import_checkpoint(tmp_path / "wrapped.pth", tmp_path / "wrapped.json")
    assert card.network.arguments == {"classes": 20, "channels": 3, "p": 2, "q": 3, "variant": "A"}
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="not a checkpoint that loads"):
        read_checkpoint(tmp_path / "cut.pth")
    renamed = {("br.bn.mean" if k == "br.running_mean" else k): v for k, v in state.items()}
    torch.save(renamed, tmp_path / "renamed.pth")
    with pytest.raises(ModelError, match="lacks 'br.running_mean'"):
        import_checkpoint(tmp_path / "renamed.pth", tmp_path / "renamed.json")
    for key, message in [("conv.conv.weight", "conv.conv.weight"), ("encoder.level1.conv.weight", "level1")]:
        short = {k: v for k, v in state.items() if k != key}
        with pytest.raises(ModelError, match=f"looks like ESPNet but lacks '.*{message}"):
            recognise(short, name="short")
