"""What the flows ask of Prefect beside a mask, without a server: it may be there or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
import torch
from prefect.utilities import services

from flows import common
from wsiseg import prefect_plugin


def test_a_gpu_is_named_by_its_number_on_the_machine_and_a_cpu_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("socket.gethostname", lambda: "Box_1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [common.gpu_name(d) for d in ("cpu", "cuda", "cuda:1")] == [None, "gpu-box-1-0", "gpu-box-1-1"]
    # What is not there, or is none, fails its own cases and not the flow.
    assert [common.gpu_name(d) for d in ("cuda:2", "tpu")] == [None, None]
    # Two workers that see a GPU each call it cuda:0 both.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a1b")
    assert [common.gpu_name(d) for d in ("cuda:0", "cuda:1")] == ["gpu-box-1-3", "gpu-box-1-gpu-5a1b"]


@contextmanager
def slots(log: list[str], *, broken: bool = False) -> Iterator[None]:
    """Stands for Prefect's own context."""
    log.append("taken")
    yield
    log.append("given back")
    if broken:
        raise httpx.ConnectError("away")


@pytest.mark.parametrize("broken", [False, True])
def test_a_slot_is_held_while_a_case_is_worked_on_and_given_back_also_where_nobody_takes_it(
    monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    log: list[str] = []
    monkeypatch.setattr(common, "gpu_name", lambda device: f"gpu of {device}")
    monkeypatch.setattr(common, "known_limit", lambda name: name == "gpu of cuda:1")
    monkeypatch.setattr(common, "concurrency", lambda name: slots(log, broken=broken))
    with common.gpu_slot("cuda:1"):
        log.append("works")
    assert log == ["taken", "works", "given back"]


def test_a_case_goes_on_without_a_slot_where_no_server_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(name: str) -> bool:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(common, "gpu_name", lambda device: "gpu-a-0")
    monkeypatch.setattr(common, "known_limit", away)
    monkeypatch.setattr(common, "concurrency", None)  # nobody asks
    done = []
    with caplog.at_level(logging.WARNING, logger="flows.common"), common.gpu_slot("cuda"):
        done.append(1)
    assert done == [1]
    assert "the Prefect API did not answer, the run goes on: refused" in caplog.text


def test_a_worker_looks_for_work_for_as_long_as_its_server_is_away() -> None:
    """Prefect's own ends after 12 times, and kills the runs that it has."""
    tries = []

    class Back(Exception):
        pass

    async def look() -> None:
        tries.append(1)
        if len(tries) == 40:
            raise Back
        raise httpx.ConnectError("refused")

    async def loop(service: Callable[..., Coroutine[Any, Any, None]]) -> None:
        await service(look, interval=0, backoff=4, printer=lambda *_: None)

    with pytest.raises(RuntimeError, match="exceeded"):
        asyncio.run(loop(prefect_plugin._loop))
    assert len(tries) == 12
    prefect_plugin.setup_environment(ctx=None)
    with pytest.raises(Back):
        asyncio.run(loop(services.critical_service_loop))
    assert len(tries) == 40


def test_links_to_files_lead_to_them_whatever_their_names_hold(tmp_path: Path) -> None:
    path = tmp_path / "a [1] (b) ü_c.overlay.png"
    path.write_bytes(b"picture")
    shown, _, target = common.link(path).partition("](")
    assert shown == r"[a \[1\] (b) ü\_c.overlay.png"
    assert not set("() ") & set(target[:-1])
    assert Path(unquote(urlsplit(target[:-1]).path)).read_bytes() == b"picture"
