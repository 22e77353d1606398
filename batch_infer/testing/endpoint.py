"""Owns the fault endpoint's command line: `python -m batch_infer.testing.endpoint --port 8000 --config '{…}'`.

Does not serve; that is `server`. Prints one line of JSON with its URLs once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batch_infer.testing.config import EndpointConfig
from batch_infer.testing.server import Server

PARENT_POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is interrupted, or, with `--watch-parent`, until its parent goes away."""
    parser = argparse.ArgumentParser(prog="python -m batch_infer.testing.endpoint", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument(
        "--config", default="{}", help="EndpointConfig as JSON, @FILE to read it from there, or - for a line of stdin"
    )
    parser.add_argument("--watch-parent", action="store_true", help="exit when stdin closes or the parent dies")
    options = parser.parse_args(arguments)
    try:
        config = msgspec.json.decode(_config_text(options.config), type=EndpointConfig)
    except (msgspec.MsgspecError, ValueError, OSError) as error:
        parser.error(f"--config: {error}")
    with contextlib.suppress(KeyboardInterrupt):
        _run(_serve(config, options.port, watch_parent=options.watch_parent))
    return 0


def _config_text(option: str) -> str:
    if option == "-":
        return sys.stdin.readline()
    return Path(option[1:]).read_text(encoding="utf-8") if option.startswith("@") else option


def _run(main: Coroutine[Any, Any, None]) -> None:
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(main)
    else:
        import uvloop  # noqa: PLC0415 - optional

        uvloop.run(main)


async def _serve(config: EndpointConfig, port: int, *, watch_parent: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    base_url, control_url = await Server(config).listen(port)
    gc.freeze()
    line = msgspec.json.encode({"base_url": base_url, "control_url": control_url, "pid": os.getpid()})
    print(line.decode(), flush=True)  # noqa: T201 - the command's output
    if watch_parent:
        # Another child of the parent may have inherited our stdin's other end, hence the second check.
        loop.add_reader(0, lambda: None if os.read(0, 4096) else stop.set())
        parent = os.getppid()
        while os.getppid() == parent and not stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), PARENT_POLL_S)
    else:
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
