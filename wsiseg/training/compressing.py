"""Smaller and faster forms of a trained network, with what they cost written on their cards.

Post-training quantisation to 8 bits: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018. Weights are stored as int8 with a scale per channel; the ranges
of activations are those of windows of annotated cases. ONNX Runtime does it, and runs the result.
"""

from __future__ import annotations

import importlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.backends import missing, quietly
from wsiseg.errors import ManifestError, ModelError
from wsiseg.files import write_whole, writing
from wsiseg.manifest import read_manifest
from wsiseg.metrics import ConfusionMatrix, score
from wsiseg.models.card import ModelCard, NetworkSpec, check_new_card, sha256_of, write_card
from wsiseg.models.foreign import EXPORTED, ExportedGraph, OnnxNetwork, in_short
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import card_path, load_card
from wsiseg.predict import NetworkPredictor
from wsiseg.progress import Progress, no_progress
from wsiseg.sources.cached import CachedSource
from wsiseg.training.calibration import grid_of
from wsiseg.training.cases import Case, check_splits, open_case
from wsiseg.training.sections import Data
from wsiseg.training.validation import masks, windows_of

CALIBRATED = 32
"""Windows whose activations are looked at, at most."""
TIMED_ROUNDS = 5
LIMIT = "in 8 bits: ranges of activations were fitted to few windows, and other stains may exceed them"


def compress(
    model: str | Path,
    card: Path,
    data: Data,
    *,
    split: str = "validation",
    trust_code: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ModelCard:
    """Write a model with weights and arithmetic of 8 bits as an ONNX graph with its card, at `card` (.json).

    Ranges come from the `train` cases of a manifest, the figures on the card (IoU, bytes and CPU seconds,
    before and after) from those of `split`. Raises ModelError for a model that cannot be exported,
    ManifestError for cases that cannot be used.
    """
    _check_installed()
    known = load_card(model)
    network = load_network(model, trust_code=trust_code)
    if isinstance(network, ExportedGraph):
        raise ModelError(f"model {known.name} is an exported graph already; compress the one it was made of")
    if known.spacing is None:
        raise ModelError(f"the card of {known.name} states no pixel size; write its `spacing` there first")
    check_new_card(card, overwrite=overwrite)
    table = read_manifest(data.manifest, root=data.root)
    check_splits(table)
    grid = grid_of(known, data)
    cases = {
        name: [open_case(grid, table, row) for row in table.cases if (row.split or "train") == name]
        for name in ("train", split)
    }
    for name, found in cases.items():
        if not found:
            raise ManifestError(f"{data.manifest} has no case whose split is {name}")
    before = NetworkPredictor(known, network, device=torch.device("cpu"))
    weights = card.with_suffix(".onnx")
    graph = quantised(before, windows(before, cases["train"]))
    with writing(card):
        card.parent.mkdir(parents=True, exist_ok=True)
        write_whole(weights, graph)
    draft = known.model_copy(
        update={
            "name": card.stem,
            "network": NetworkSpec(name=EXPORTED[".onnx"]),
            "weights": weights.name,
            "sha256": sha256_of(weights),
            "limits": (*known.limits, LIMIT),
        }
    )
    after = NetworkPredictor(draft, OnnxNetwork(weights), device=torch.device("cpu"))
    source = card_path(model).parent / known.weights
    figures: dict[str, Any] = {
        "method": f"int8 after training, ranges of up to {CALIBRATED} windows of the train cases",
        "of": known.name,
        "cases": len(cases[split]),
        "split": split,
        "before": _scores(before, cases[split], progress) | {"bytes": source.stat().st_size},
        "after": _scores(after, cases[split], progress) | {"bytes": weights.stat().st_size},
    }
    seconds = in_turn([before, after], next(windows(before, cases[split])))
    for name, value in zip(("before", "after"), seconds, strict=True):
        figures[name]["CPU seconds a megapixel"] = round(value, 3)
    made = draft.model_copy(update={"quality": {"compression": figures}})
    with writing(card):
        write_card(made, card)
    return made


def _check_installed() -> None:
    if lacking := missing("onnxruntime"):
        raise ModelError(
            f"compressing needs {' and '.join(lacking)}, not installed: pip install 'wsiseg[onnxruntime]'"
        )


def windows(predictor: NetworkPredictor, cases: Sequence[Case]) -> Iterator[NDArray[Any]]:
    """Windows (1, C, *window) of annotated places of cases, as read."""
    for case in cases:
        plan = windows_of(predictor.card, case.shape, one_size=False)
        with CachedSource(case.source) as source:
            for window in plan.windows():
                if case.has_labels(window.core):
                    yield np.array(source.read(window.read).values[None])


def quantised(predictor: NetworkPredictor, images: Iterator[NDArray[Any]]) -> bytes:
    """An ONNX graph of 8 bits for windows of any side; activations range as they do on `images`.

    Raises ModelError.
    """
    inputs = [predictor.inputs(torch.from_numpy(image)) for image in itertools.islice(images, CALIBRATED)]
    quantization = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    onnx = importlib.import_module("onnx")
    network = predictor.network
    try:
        with tempfile.TemporaryDirectory() as folder, quietly():
            plain, prepared, made = (Path(folder) / f"{n}.onnx" for n in ("plain", "prepared", "made"))
            program = torch.onnx.export(network, (inputs[0],), dynamo=True, verbose=False)
            assert program is not None  # with dynamo it never is
            onnx.save(with_any_sides(program.model_proto), plain)
            shapes.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared, made, _Reader(onnx.load(prepared).graph.input[0].name, inputs), per_channel=True,
                weight_type=quantization.QuantType.QInt8, op_types_to_quantize=["Conv", "ConvTranspose"],
            )  # fmt: skip
            return made.read_bytes()
    except Exception as err:  # noqa: BLE001 - what exporters end in is theirs to choose
        raise ModelError(f"{type(network).__name__} cannot be quantised: {in_short(err)}") from None


def with_any_sides(model: Any) -> Any:
    """The same ONNX model for images of any sides: what it says of the sizes of one image is left out."""
    for value in (*model.graph.input, *model.graph.output):
        for number, side in enumerate(value.type.tensor_type.shape.dim):
            if number != 1:
                side.ClearField("dim_value")
                side.dim_param = f"{value.name}_{number}"
    del model.graph.value_info[:]
    return model


class _Reader:
    """Hands inputs to the calibration of ONNX Runtime, one after the other."""

    def __init__(self, name: str, inputs: Sequence[Tensor]) -> None:
        self._name = name
        self._rest = iter(inputs)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input by its name, or None."""
        image = next(self._rest, None)
        return None if image is None else {self._name: image.contiguous().numpy()}


def _scores(predictor: NetworkPredictor, cases: Sequence[Case], progress: Progress) -> dict[str, Any]:
    """IoU of the classes that are in the truth of some cases, taken together, and their mean."""
    classes = predictor.card.classes
    total = ConfusionMatrix.empty(len(classes))
    for case in progress(iter(cases), total=len(cases), what=predictor.card.name):
        for truth, mask in masks(predictor.for_case(case.stats), case):
            total += ConfusionMatrix.of(truth=truth, prediction=mask, num_classes=len(classes))
    found = {c.name: round(c.iou or 0.0, 4) for c in score(total, classes).classes if c.truth_pixels}
    return {"mean IoU": round(float(np.mean([*found.values()])), 4), "IoU": found}


def in_turn(predictors: Sequence[NetworkPredictor], image: NDArray[Any]) -> list[float]:
    """CPU seconds a megapixel of each, the least of some rounds, one after the other in each."""
    megapixels = image[0, 0].size / 1e6
    taken: list[list[float]] = [[] for _ in predictors]
    for _ in range(TIMED_ROUNDS + 1):  # the first begins everything
        for predictor, own in zip(predictors, taken, strict=True):
            begun = time.process_time()
            predictor(image)
            own.append((time.process_time() - begun) / megapixels)
    return [min(own[1:]) for own in taken]
