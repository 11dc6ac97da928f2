"""Lets `prefect deployment run segment-slide` mean `segment-slide/segment-slide`.

Prefect takes FLOW/DEPLOYMENT only and fails on a name without "/". This plugin, on Prefect's own
entry point and hook, reads such a name as NAME/NAME; full names work as ever. It is enabled by the
project's prefect.toml.
"""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.plugins import register_hook

PREFECT_PLUGIN_API_REQUIRES = ">=0.1,<1"

_read = PrefectClient.read_deployment_by_name


async def _read_by_short_name(self: PrefectClient, name: str) -> Any:
    return await _read(self, name if "/" in name else f"{name}/{name}")


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect once at the start of each of its processes."""
    PrefectClient.read_deployment_by_name = _read_by_short_name  # type: ignore[method-assign,assignment]
