"""Other programs that compute a network on a CPU, behind the same call, and which is the fastest here.

A network is compiled for one shape of window. What wins is found by a short measurement, kept in the user's
cache folder for each machine, version, network and shape.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsiseg.bounded import LARGEST_SETTINGS, parse_json, read_bounded
from wsiseg.config import Backend, Precision
from wsiseg.errors import ModelError, UsageError
from wsiseg.files import to_json, write_whole
from wsiseg.models.foreign import ExportedGraph, in_short

logger = logging.getLogger(__name__)

NEEDED: Mapping[Backend, tuple[str, ...]] = {
    "torch": ("torch",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
}
"""What has to be installed for each."""
WITHIN: Mapping[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""Of the largest score, by which scores may differ from torch's."""
GAIN = 0.9
"""Of torch's time, that another back end must stay below."""
ROUNDS = 3
"""Of a measurement; the fastest counts, since others may use the machine too."""


def missing(backend: Backend) -> list[str]:
    """What is not installed of what a back end needs."""
    return [name for name in NEEDED[backend] if importlib.util.find_spec(name) is None]


def versions(backend: Backend) -> dict[str, str]:
    """The versions that can change a float."""
    return {name: importlib.metadata.version(name) for name in NEEDED[backend][:1]}


def check(backend: Backend, precision: Precision, *, device: torch.device) -> None:
    """Raises UsageError for a back end or a precision that this machine does not have."""
    if lacking := missing(backend):
        raise UsageError(
            f"backend {backend!r} needs {' and '.join(lacking)}, not installed: "
            f"pip install 'wsiseg[{backend}]'"
        )
    if backend != "torch" and device.type != "cpu":
        raise UsageError(f"backend {backend!r} computes on the CPU; use --device cpu, or --backend torch")
    if precision == "float32" or device.type != "cpu":
        return
    if precision == "float16":
        raise UsageError("precision 'float16' is for GPUs; use float32 or bfloat16 on a CPU")
    if not has_bfloat16():
        raise UsageError(
            "precision 'bfloat16': this processor has no instructions for it (AVX512-BF16 or AMX), it would "
            "only be slower; use float32"
        )


def has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16."""
    known = _processor()
    return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _processor() -> dict[str, Any]:
    """What torch knows of the processor; releases before 2.9 know little."""
    known = {"level": torch.backends.cpu.get_cpu_capability(), "name": platform.processor()}
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return {**known, **ask()}


class Compiled(nn.Module):
    """A network that another program computes: (B, C, *window) float32 in, the network's outputs out."""

    def __init__(self, run: Callable[[np.ndarray[Any, Any]], Sequence[np.ndarray[Any, Any]]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(made) for made in self._run(inputs.numpy())]


def compile_network(
    network: nn.Module, shape: tuple[int, ...], *, backend: Backend, precision: Precision, threads: int
) -> nn.Module:
    """A network for batches of `shape` (B, C, *window) with a back end. Raises ModelError."""
    if backend == "torch":
        return network
    try:
        with quietly():
            made = _COMPILERS[backend](network.eval(), shape, precision, threads)
            _check_alike(made, network, shape, within=WITHIN[precision])
            return made
    except Exception as err:  # noqa: BLE001 - what exporters end in is theirs to choose
        raise ModelError(
            f"{type(network).__name__} cannot be computed by {backend}: {in_short(err)}; use --backend torch"
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """What exporters warn and log of themselves is not for users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [one.level for one in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for one in loggers:
                one.setLevel(logging.ERROR)
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _check_alike(made: nn.Module, network: nn.Module, shape: tuple[int, ...], *, within: float) -> None:
    """Raises ModelError where a compiled network puts out something else than the network itself.

    Exporters follow one pass: what a network decides by the values of that image they take for granted.
    """
    inputs = _noise(shape)
    with torch.inference_mode():
        expected, found = network(inputs), made(inputs)
    first = expected[0] if isinstance(expected, tuple | list) else expected
    if first.shape != found[0].shape or not ((first - found[0]).abs().max() <= within * first.abs().max()):
        raise ModelError("its scores are others than torch's")


def _noise(shape: tuple[int, ...]) -> Tensor:
    layout: Any = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return made.contiguous(memory_format=layout)


def _with_openvino(
    network: nn.Module, shape: tuple[int, ...], precision: Precision, threads: int
) -> Compiled:
    ov = importlib.import_module("openvino")
    # Not by `convert_model`, which reports its use to the maker.
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    decoders = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    with torch.inference_mode():
        decoder = decoders.TorchScriptPythonDecoder(network, example_input=torch.zeros(shape))
        model = frontend.convert(frontend.load(decoder))
    model.reshape(list(shape))
    # Windows come, and scores are wanted, with channels next to each other.
    axes = "NHWC" if len(shape) == 4 else "NDHWC"
    own = "NCHW" if len(shape) == 4 else "NCDHW"
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input(0).tensor().set_layout(ov.Layout(axes))
    steps.input(0).model().set_layout(ov.Layout(own))
    wide = [len(model.output(i).partial_shape) == len(shape) for i in range(len(model.outputs))]
    for number, like_input in enumerate(wide):
        if like_input:
            steps.output(number).model().set_layout(ov.Layout(own))
            steps.output(number).tensor().set_layout(ov.Layout(axes))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    request = ov.Core().compile_model(steps.build(), "CPU", settings).create_infer_request()

    def run(inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        last = np.ascontiguousarray(np.moveaxis(inputs, 1, -1))
        request.set_input_tensor(0, ov.Tensor(last, shared_memory=True))
        made = [np.empty(output.shape, np.float32) for output in request.model_outputs]
        for number, values in enumerate(made):
            request.set_output_tensor(number, ov.Tensor(values, shared_memory=True))
        request.infer()
        return [np.moveaxis(v, -1, 1) if w else v for v, w in zip(made, wide, strict=True)]

    return Compiled(run)


def _with_onnxruntime(
    network: nn.Module, shape: tuple[int, ...], precision: Precision, threads: int
) -> Compiled:
    if precision != "float32":
        raise ModelError(f"its CPU kernels do not compute in {precision}")
    runtime = importlib.import_module("onnxruntime")
    program = torch.onnx.export(network, (torch.zeros(shape),), dynamo=True, verbose=False)
    assert program is not None  # with dynamo it never is
    graph = program.model_proto.SerializeToString()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return list(session.run(None, {name: np.ascontiguousarray(inputs)}))

    return Compiled(run)


_COMPILERS: Mapping[Backend, Callable[..., nn.Module]] = {
    "openvino": _with_openvino,
    "onnxruntime": _with_onnxruntime,
}


def fastest(
    network: nn.Module, shape: tuple[int, ...], *, name: str, precision: Precision, threads: int
) -> Backend:
    """The installed back end that computes a batch of `shape` in the least time; `name` is the model's.

    `network` is as torch would run it. Measured once and kept in the cache folder; what a back end cannot
    compute does not take part, and what gains little is not worth its memory and its start.
    """
    candidates = [b for b in NEEDED if not missing(b)]
    if isinstance(network, ExportedGraph) or len(candidates) == 1:
        return "torch"
    facts = {"model": name, "shape": shape, "precision": precision, "threads": threads}
    facts |= {"machine": _processor(), "versions": [versions(b) for b in candidates]}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache_folder() / f"{key}.json"
    found = _kept(kept)
    if found is None:
        logger.info("%s: measuring %s once for windows of %s", name, ", ".join(candidates), shape)
        found = {b: _seconds(network, shape, b, precision, threads) for b in candidates}
        try:
            write_whole(kept, to_json({"seconds": found, **facts}))
        except OSError as err:
            logger.info("%s: the measurement is not kept: %s", name, err)
    known: dict[Backend, float] = {b: found[b] for b in candidates if found.get(b) is not None}
    best = min(known, key=known.__getitem__, default="torch")
    return best if best in known and known[best] < GAIN * known.get("torch", math.inf) else "torch"


def cache_folder() -> Path:
    """Where measurements are kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "wsiseg" / "backends"


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        said = parse_json(read_bounded(path, most=LARGEST_SETTINGS))
    except (OSError, ValueError):
        return None
    seconds = said.get("seconds") if isinstance(said, dict) else None
    good = isinstance(seconds, dict) and all(isinstance(v, int | float | None) for v in seconds.values())
    return seconds if good else None


def _seconds(
    network: nn.Module, shape: tuple[int, ...], backend: Backend, precision: Precision, threads: int
) -> float | None:
    """What a batch takes, or None where the back end cannot compute it."""
    inputs, run = _noise(shape), network
    try:
        if backend == "torch":
            inputs = inputs.to(next((p.dtype for p in network.parameters()), torch.float32))
        else:
            plain = copy.deepcopy(network).float()  # a back end casts by itself
            run = compile_network(plain, shape, backend=backend, precision=precision, threads=threads)
    except ModelError as err:
        logger.info("%s", err)
        return None
    taken = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first begins everything
            begun = time.perf_counter()
            run(inputs)
            taken.append(time.perf_counter() - begun)
    return min(taken[1:])
