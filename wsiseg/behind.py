"""Work that goes on behind what comes next: one thing at a time, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Behind:
    """What is given to it is done while the caller goes on; who gives it more waits for what went before.

    An error comes out where that is waited for: with the next thing, or at the end of the block. A block
    that ends otherwise than well waits too, so that nothing is half done.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()

    def do(self, work: Callable[[], None]) -> None:
        """Begin some work, once the last is done. Raises what that raised."""
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Until nothing is left to be done. Raises what the last work raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
