"""One training in progress: everything that the next step depends on, and how it survives a kill."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsiseg.errors import ManifestError
from wsiseg.metrics import ConfusionMatrix, Scores, score
from wsiseg.training.checkpoint import State, load_state, save_state
from wsiseg.training.curves import History
from wsiseg.training.losses import Parts
from wsiseg.training.optimisers import follow, make_optimiser, make_schedule
from wsiseg.training.patches import Batch
from wsiseg.training.run import Run
from wsiseg.training.start import freeze, frozen_at
from wsiseg.training.validation import figure_of, total_of

MEMORY_FORMATS = {"yx": torch.channels_last, "zyx": torch.channels_last_3d}
TRANSPOSED = nn.ConvTranspose2d | nn.ConvTranspose3d


def memory_format(network: nn.Module, *, axes: str) -> torch.memory_format:
    """The fastest layout in which a network can be trained.

    Where a transposed convolution leaves gaps (its kernel is smaller than its stride, as in WACV'18's
    sparse decoder), torch 2.13 goes backward beyond its own memory, and ends the program, with channels last.
    """
    gaps = any(
        kernel < stride
        for module in network.modules()
        if isinstance(module, TRANSPOSED)
        for kernel, stride in zip(module.kernel_size, module.stride, strict=True)
    )
    return torch.contiguous_format if gaps else MEMORY_FORMATS[axes]


class Session:
    """Network, optimiser, schedule, running mean, best weights and history of one training."""

    def __init__(
        self, run: Run, network: nn.Module, *, path: Path, identity: Mapping[str, Any], device: torch.device
    ) -> None:
        self.run, self.device = run, device
        self.format = memory_format(network, axes=run.axes)
        self.network = network.to(device).to(memory_format=self.format)  # type: ignore[call-overload]
        self.kept: nn.Module = copy.deepcopy(self.network) if run.average else self.network
        self.optimiser = make_optimiser(run, self.network)
        self.schedule = make_schedule(run, self.optimiser)
        self.history = History()
        self.step = 0
        self.best: dict[str, Any] = {"figure": -1.0, "step": 0, "weights": None}
        self.worse = 0
        self._names = [name for name, _ in self.network.named_parameters()]
        self._frozen: set[str] | None = None
        self._path, self._identity = path, dict(identity)
        self._seconds, self._start = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on this training, also before a kill."""
        return self._seconds + time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        """True where no better score came for too long, or no step is left."""
        patience = self.run.validation.patience
        return self.step >= self.run.steps or (patience is not None and self.worse >= patience)

    def prepare(self, step: int) -> None:
        """What a step depends on besides the state: which layers learn, and torch's own dice."""
        frozen = frozen_at(self.run.start, step, self._names)
        if frozen != self._frozen:
            freeze(self.network, frozen)
            self._frozen = frozen
        torch.manual_seed(self.run.seed * 1_000_003 + step)

    def forward(self, batch: Batch) -> Any:
        """What the network says of a batch."""
        mixed = self.run.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            return self.network(batch.inputs)

    def learn(self, step: int, parts: Parts) -> float:
        """One step down the sum of the losses. Raises ManifestError where it is not finite."""
        loss = torch.stack(list(parts.values())).sum()
        value = loss.item()
        if not math.isfinite(value):
            rate = self.run.optimiser.learning_rate
            raise ManifestError(
                f"the loss is not finite at step {step}; lower optimiser.learning_rate {rate}"
            )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.run.optimiser.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.run.optimiser.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        if self.kept is not self.network:
            # A mean over few steps holds little of the first, random weights.
            follow(self.kept, self.network, decay=min(self.run.average, 1 - 1 / step))
        self.step = step
        values = {name: part.item() for name, part in parts.items()}
        rate = float(self.optimiser.param_groups[-1]["lr"])
        self.history.note(step, values, rate=rate, seconds=self.seconds, last=step == self.run.steps)
        return value

    def judge(self, matrices: list[ConfusionMatrix]) -> Scores:
        """Take in the confusion of the validation cases; keeps the weights if they are the best so far."""
        classes = self.run.mask_classes
        scores = score(total_of(matrices, num_classes=len(classes)), classes)
        figure = figure_of(scores, self.run)
        self.history.score(self.step, scores, figure=figure)
        self.worse += 1
        if figure > self.best["figure"]:
            self.worse = 0
            weights = {key: value.clone() for key, value in self.weights.items()}
            keep = self.run.validation.keep == "best"
            self.best = {"figure": figure, "step": self.step, "weights": weights if keep else None}
        return scores

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of the network as it would be kept now."""
        return dict(self.kept.state_dict())

    @property
    def final_weights(self) -> dict[str, Tensor]:
        """Of the network to keep: the last, or the best of the validation."""
        return self.weights if self.best["weights"] is None else dict(self.best["weights"])

    def save(self) -> None:
        """Leave the state for another process. Raises StoreError."""
        state: State = {
            "identity": self._identity,
            "step": self.step,
            "network": self.network.state_dict(),
            "kept": self.kept.state_dict() if self.kept is not self.network else None,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "worse": self.worse,
            "history": asdict(self.history),
            "seconds": self.seconds,
        }
        save_state(self._path, state)

    def resume(self) -> None:
        """Take up what another process left, if it did. Raises StoreError, ConfigMismatch."""
        state = load_state(self._path, identity=self._identity, device=self.device)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        if state["kept"] is not None:
            self.kept.load_state_dict(state["kept"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best, self.worse = state["step"], state["best"], state["worse"]
        self.history = History(**state["history"])
        self._seconds, self._start = state["seconds"], time.monotonic()
