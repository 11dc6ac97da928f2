"""What Prefect's own processes do differently in this project; enabled by its prefect.toml.

`prefect deployment run segment-slide` means `segment-slide/segment-slide`: Prefect takes FLOW/DEPLOYMENT
only and fails on a name without "/". Full names work as ever.

A worker outlasts its server: Prefect's ends after some failed looks for work, and kills the runs that it has.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.plugins import register_hook
from prefect.utilities import services

PREFECT_PLUGIN_API_REQUIRES = ">=0.1,<1"

_read = PrefectClient.read_deployment_by_name


async def _read_by_short_name(self: PrefectClient, name: str) -> Any:
    return await _read(self, name if "/" in name else f"{name}/{name}")


_loop = services.critical_service_loop


async def _endless_loop(*args: Any, **given: Any) -> None:
    await _loop(*args, **given | {"backoff": sys.maxsize})


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect once at the start of each of its processes."""
    services.critical_service_loop = _endless_loop
    PrefectClient.read_deployment_by_name = _read_by_short_name  # type: ignore[method-assign,assignment]
