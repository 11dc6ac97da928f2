"""S3 through s3fs: what goes wrong there as errors that a user can read."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from fsspec.exceptions import FSTimeoutError

from wsiseg.errors import ObjectStoreError

CONNECT_S, READ_S, ATTEMPTS = 5, 60, 3
"""How long a store may be silent, and how often it is asked: the longest wait is bounded."""
KEYS = 1000
"""That one request may remove."""
_BUSY = {errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT}


class Objects(s3fs.S3FileSystem):  # type: ignore[misc]
    """S3 as it is now: no listing is kept, because others write there too."""

    retries = ATTEMPTS

    @classmethod
    def shared(cls, *, asynchronous: bool = False) -> Objects:
        """The one of this process and thread; credentials and endpoint are those of the environment."""
        waits = {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
        }
        return cls(
            config_kwargs=waits, use_listings_cache=False, asynchronous=asynchronous, default_fill_cache=False
        )

    async def _call_s3(self, method: str, *args: Any, **more: Any) -> Any:
        with _said(str(more.get("Bucket", "")), method=method):
            return await super()._call_s3(method, *args, **more)

    async def _rm(self, path: Any, recursive: bool = False, **_: Any) -> None:
        # Of s3fs a name with brackets in it would be a pattern.
        keys = path if isinstance(path, list) else list(await self._find(path)) or [path]
        for start in range(0, len(keys), KEYS):
            await self._bulk_delete(keys[start : start + KEYS])

    async def _cat_file(self, path: str, *args: Any, **more: Any) -> Any:
        with _said(self.split_path(path)[0]):
            return await super()._cat_file(path, *args, **more)

    async def _get_file(self, rpath: str, *args: Any, **more: Any) -> Any:
        with _said(self.split_path(rpath)[0]):
            return await super()._get_file(rpath, *args, **more)


@contextmanager
def _said(bucket: str, *, method: str = "") -> Iterator[None]:
    """Turns what a store, or the way to it, says into one sentence. Raises ObjectStoreError."""
    place = f"the object store of bucket {bucket!r}"
    try:
        yield
    except ObjectStoreError:
        raise
    except FileNotFoundError as err:
        if method == "head_bucket" or _code(err) == "NoSuchBucket":
            raise ObjectStoreError(errno.ENODEV, f"there is no bucket {bucket!r}: check its name") from None
        raise
    except PermissionError as err:
        raise ObjectStoreError(
            errno.EACCES, f"{place} denies access ({_code(err) or 'AccessDenied'}): check the credentials"
        ) from None
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError):
        raise ObjectStoreError(
            errno.EACCES, f"{place} needs credentials and none were found: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ) from None  # fmt: skip
    except (ConnectionError, HTTPClientError, FSTimeoutError, TimeoutError, aiohttp.ClientError) as err:
        raise ObjectStoreError(
            errno.ENETUNREACH,
            f"{place} cannot be reached ({type(err).__name__}): check the network and AWS_ENDPOINT_URL, and "
            "run the same command again, it continues",
        ) from None
    except BotoCoreError as err:
        raise ObjectStoreError(errno.EINVAL, f"{place} cannot be used: {type(err).__name__}") from None
    except OSError as err:
        if err.errno in _BUSY:
            raise ObjectStoreError(
                errno.EAGAIN, f"{place} is too busy ({_code(err)}): run the same command again, it continues"
            ) from None
        raise


def _code(err: BaseException) -> str:
    """What the store calls an error."""
    response = getattr(err.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
