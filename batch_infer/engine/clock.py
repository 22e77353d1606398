"""Owns time: the `Clock` that the engine waits on. Tests inject one whose time is virtual."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds and a way to wait for them."""

    def now(self) -> float:
        """Seconds since an arbitrary origin; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits; returns at once when `seconds` is 0 or less."""
        ...


class SystemClock:
    """The machine's own monotonic clock."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        if seconds > 0:
            await asyncio.sleep(seconds)
