"""Owns one small GET: a JSON document from a server of the user's own, or nothing. On the driver; never raises.

Only for what may be left out, such as the names of a server's models: short timeout, no retry, no redirect.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

TIMEOUT_S = 2.0
"""Seconds that a plan may wait for an answer that it can do without."""
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of the largest document that is read."""

_log = logging.getLogger(__name__)


def get_json(url: str, headers: Mapping[str, str]) -> Any | None:
    """The JSON document at a URL; `None` where it cannot be had."""
    import httpx  # noqa: PLC0415 - needed by few plans

    try:
        reply = httpx.get(url, headers=dict(headers), timeout=TIMEOUT_S, follow_redirects=False)
        if reply.status_code != 200 or len(reply.content) > MAX_BYTES:
            return None
        return msgspec.json.decode(reply.content)
    except Exception as error:  # noqa: BLE001 - whatever it is, the document cannot be had
        _log.debug("%s cannot be read: %s.", url, type(error).__name__)
        return None
