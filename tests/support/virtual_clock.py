"""A clock and an event loop whose time is virtual: sleeping costs nothing, and the order of events is exact."""

from __future__ import annotations

import asyncio
import selectors


class _NoWaitSelector(selectors.SelectSelector):
    """Never blocks; instead of waiting, moves the loop's time."""

    def __init__(self, loop_time):
        super().__init__()
        self._loop_time = loop_time

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("deadlock: nothing is scheduled and nothing can happen")
        if timeout > 0:
            self._loop_time[0] += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._virtual = [0.0]
        super().__init__(_NoWaitSelector(self._virtual))

    def time(self):
        return self._virtual[0]

    def _make_self_pipe(self):
        self._internal_fds = 0

    def _close_self_pipe(self):
        pass


class VirtualClock:
    def now(self):
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds):
        if seconds > 0:
            await asyncio.sleep(seconds)


def run_virtually(coroutine):
    """Runs a coroutine to its end on a loop of its own; returns its result."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


__all__ = ["VirtualClock", "VirtualLoop", "run_virtually"]
