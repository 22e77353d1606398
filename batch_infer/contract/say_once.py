"""Owns saying a thing once in a process, however many tasks or queries come upon it. On driver and workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable


class SayOnce:
    """A logger's warnings, each at most once for a key. Thread-safe.

    Args:
        logger: Where the warnings go.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: set[Hashable] = set()
        self._lock = threading.Lock()

    def warning(self, key: Hashable, message: str, *arguments: object) -> bool:
        """Logs a warning unless one with this key was logged before.

        Returns:
            Whether it was logged now.
        """
        with self._lock:
            if key in self._said:
                return False
            self._said.add(key)
        self._logger.warning(message, *arguments)
        return True

    def forget(self) -> None:
        """Lets every warning be said again; for tests, and for what begins anew."""
        with self._lock:
            self._said.clear()
