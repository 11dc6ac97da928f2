"""Element-wise layers in one pass equal the same layers one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsiseg.execute import kernels
from wsiseg.execute.decision import highest
from wsiseg.execute.joining import Joint
from wsiseg.execute.schedule import Schedule, make_schedule
from wsiseg.graph.fusion import Formula, Part, Stage, formulas
from wsiseg.graph.network import NetworkGraph
from wsiseg.graph.operations import Pointwise
from wsiseg.models.inference import for_inference
from wsiseg.models.layers import NormAct
from wsiseg.models.registry import build_network
from wsiseg.models.zoo import load_card
from wsiseg.predict import NetworkPredictor
from wsiseg.preprocess import CaseStats, apply


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(channels: int, *, seed: int, height: int = 5, width: int = 7) -> Tensor:
    made = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


def schedule_of(network: nn.Module, *, channels: int = 3) -> Schedule:
    return make_schedule(NetworkGraph(network), (64, 48), channels=channels)


def known(schedule: Schedule) -> dict[int, Formula]:
    channels = [shape[0] for shape in schedule.shapes]
    found: dict[int, Formula] = {}
    for number, layer in enumerate(schedule.graph.layers):
        if isinstance(layer.operation, Pointwise) and schedule.made_with[number] == number:
            found |= formulas(schedule.graph.layers, channels, schedule.made_with, number)
    return found


@torch.inference_mode()
def joined(formula: Formula, inputs: dict[int, Tensor]) -> Tensor:
    joint = Joint(formula)
    like = inputs[joint.sources[0]]
    out = torch.full((1, formula.channels, *like.shape[2:]), torch.nan)
    out = out.contiguous(memory_format=torch.channels_last)
    joint([inputs[i] for i in joint.sources], out=out)
    return out


def by_layers(schedule: Schedule, layer: int, inputs: dict[int, Tensor]) -> Tensor:
    """The same by torch's own operations, layer after layer."""
    if layer in inputs:
        return inputs[layer]
    found = schedule.graph.layers[layer]
    assert isinstance(found.operation, Pointwise)
    return found.operation.function(*(by_layers(schedule, i, inputs) for i in found.inputs))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", ["A", "B"])
def test_every_element_wise_layer_of_espnet_is_made_in_one_pass(variant: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    network = build_network("espnet", classes=5, p=2, q=3, variant=variant).eval()
    for module in network.modules():  # norms and slopes that differ from channel to channel
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.uniform_(module.bias, -1, 1)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -1, 1)
    schedule = schedule_of(for_inference(network))
    layers, found = schedule.graph.layers, known(schedule)
    sinks = [
        n
        for n, layer in enumerate(layers)
        if isinstance(layer.operation, Pointwise) and schedule.made_with[n] == n
    ]
    assert set(sinks) == set(found)  # nothing is left to torch, and nothing has to be made in between
    for number, formula in found.items():
        inputs = {i: rows(schedule.shapes[i][0], seed=i, width=9000) for i in formula.sources}
        expected = by_layers(schedule, number, inputs)
        torch.testing.assert_close(joined(formula, inputs), expected, rtol=1e-5, atol=1e-5)


def test_sums_are_added_from_the_left_and_each_once() -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(4))
            self.tail = NormAct(8, ndim=2)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c, d = (branch(x) for branch in self.branches)
            out: Tensor = self.tail(x + torch.cat([a, b, b + c, b + c + d], dim=1))
            return out

    schedule = schedule_of(for_inference(Unit().eval()), channels=8)
    (formula,) = known(schedule).values()
    a, b, c, d = range(1, 5)
    assert [part.count for part in formula.parts] == [2, 2, 2, 2]
    terms = [part.terms for part in formula.parts]
    assert terms == [
        ((a, 0), (0, 0)),
        ((b, 0), (0, 2)),
        ((b, 0), (c, 0), (0, 4)),
        ((b, 0), (c, 0), (d, 0), (0, 6)),
    ]
    inputs = {i: rows(2 if i else 8, seed=i) for i in range(5)}
    large = {i: values * 10.0 ** (4 - i) for i, values in inputs.items()}  # the order of additions shows
    assert torch.equal(
        joined(Formula(formula.parts, (Stage.nothing(8),)), large),
        torch.cat([large[a], large[b], large[b] + large[c], large[b] + large[c] + large[d]], dim=1)
        + large[0],
    )


def test_what_no_formula_says_is_left_to_torch() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) * torch.sigmoid(x)

    assert known(schedule_of(Gated())) == {}

    class Often(nn.Module):
        """Three bends in a row: the second is made first, and read by the third."""

        def __init__(self) -> None:
            super().__init__()
            self.tails = nn.ModuleList(NormAct(3, ndim=2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for tail in self.tails:
                x = tail(x)
            return x

    schedule = schedule_of(for_inference(Often().eval()))
    found = known(schedule)
    last = len(schedule.graph.layers) - 1
    assert list(found) == [last - 2, last]
    assert found[last].sources == [last - 2]
    assert [len(formula.stages) for formula in found.values()] == [2, 1]
    inputs = {0: rows(3, seed=3)}
    between = {**inputs, last - 2: joined(found[last - 2], inputs)}
    torch.testing.assert_close(joined(found[last], between), by_layers(schedule, last, inputs))


def test_channels_of_one_layer_may_stand_in_several_places() -> None:
    parts = (Part(2, ((0, 1),)), Part(3, ((0, 0), (1, 2))))
    stage = Stage(torch.arange(5.0), torch.ones(5), torch.full((5,), 0.25))
    one, two = rows(3, seed=1), rows(5, seed=2)
    summed = torch.cat([one[:, 1:3], one + two[:, 2:5]], dim=1)
    expected = summed * torch.arange(5.0).view(1, 5, 1, 1) + 1
    made = joined(Formula(parts, (stage,)), {0: one, 1: two})
    torch.testing.assert_close(made, torch.where(expected > 0, expected, 0.25 * expected))


def test_the_highest_score_is_torchs_also_of_ties_and_of_what_is_no_number() -> None:
    scores = rows(8, seed=4, height=70, width=33)[0]
    scores[:, 3] = 1.0
    scores[2, 5, 7] = scores[6, 5, 7] = torch.inf
    scores[3, 9, 9] = scores[5, 9, 9] = torch.nan
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for cut in (scores, scores[:, :60, :30], scores.contiguous(), scores[:, :1, :1]):
            assert torch.equal(highest(cut), cut.max(dim=0).indices.to(torch.uint8))
    volume = torch.randn(4, 3, 5, 6).permute(3, 0, 1, 2)  # (6, 4, 3, 5), channels next to each other
    assert torch.equal(highest(volume), volume.max(dim=0).indices.to(torch.uint8))


@pytest.mark.parametrize("changes", [{}, {"channel_order": "BGR"}, {"foreground": "nonzero"}])
@pytest.mark.parametrize("own", [False, True])
def test_a_table_says_of_bytes_what_the_preprocessing_does(changes: dict[str, Any], own: bool) -> None:
    card = load_card("demo-breast8")
    spec = card.preprocessing.model_copy(update={"std": (50.0, 60.0, 70.0), **changes})
    stats = CaseStats(mean=(10, 20, 30), std=(3, 4, 5), pixels=9) if own else None
    network = build_network("espnet", classes=8, variant="C")
    predictor = NetworkPredictor(
        card.model_copy(update={"preprocessing": spec}), network, device=torch.device("cpu"), stats=stats
    )
    for layout in (torch.channels_last, torch.contiguous_format):
        pixels = torch.randint(0, 256, (2, 3, 40, 30), dtype=torch.uint8).contiguous(memory_format=layout)
        made = predictor.inputs(pixels)
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(made, apply(pixels, stats, spec))


def test_work_in_parts_covers_every_pixel_once() -> None:
    torch.set_num_threads(3)
    for pixels in (1, kernels.FEWEST, 2 * kernels.FEWEST + 1, 10 * kernels.FEWEST + 7):
        seen = np.zeros(pixels, np.uint8)

        def work(part: slice, seen: Any = seen) -> None:
            seen[part] += 1

        kernels.in_parts(work, pixels)
        assert (seen == 1).all()
    with pytest.raises(ZeroDivisionError):
        kernels.in_parts(lambda part: seen.fill(1 // part.start), 4 * kernels.FEWEST)


def test_where_nothing_may_be_written_functions_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_place(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'twice': no locator available for file 'kernels.py'")
        return numba.njit(**options)

    def twice(x: float) -> float:
        return 2 * x

    monkeypatch.setattr(kernels, "numba", SimpleNamespace(njit=without_a_place))
    assert kernels.compiled(twice)(1.5) == 3.0
