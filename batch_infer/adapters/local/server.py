"""Owns the embedded models' server processes on the driver: started on first use, restarted, stopped with it.

Does not serve (that is `serve`, in the child process) and does not fetch weights (that is `weights`).
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from batch_infer.adapters.local.fetch import Progress, say
from batch_infer.adapters.local.models import LOCAL_MODELS, LocalModel, local_model, require_extra
from batch_infer.adapters.local.weights import ensure_weights
from batch_infer.contract.errors import ConfigError

START_TIMEOUT_S = 120.0
"""Seconds for a server to load its model. On an idle core it takes 1-2; a cold disk and a busy machine take longer."""

STOP_TIMEOUT_S = 5.0
"""Seconds for a server to end after its stdin closed, before it is killed."""

LOG_TAIL_BYTES = 2000
"""Bytes of llama.cpp's log that go into the error when a server does not start."""


def check_installed() -> None:
    """Checks that the `local` extra is installed. Starts nothing and touches no network.

    Raises:
        ConfigError: it is not; the message has the command that installs it.
    """
    require_extra("xllamacpp", "gguf", "safetensors")


Command = Callable[[LocalModel, Path, int], list[str]]


def serve_command(model: LocalModel, weights: Path, port: int) -> list[str]:
    """The command that serves `model` from `weights`; port 0 means a free one."""
    module = "batch_infer.adapters.local.serve"
    return [sys.executable, "-m", module, "--model", str(weights), "--kind", model.name, "--port", str(port)]


class LocalServers:
    """The servers of the embedded models, at most one a model.

    Contract: driver only; not picklable. Thread-safe: threads that ask for the same model get the same server, and one
    that asks for another model does not wait for it. The servers listen on 127.0.0.1 alone, end with this process
    whatever ends it, and spend no money.

    Args:
        cache_dir: The folder of the weights; `None` means `weights.default_cache_dir()`.
        progress: Told one line when something slow begins.
        start_timeout_s: Seconds for a server to answer after it was started. Fetching the weights is not counted.
        command: The command of a server.
        weights: Where the weights of a model are; `None` means `weights.ensure_weights`.
    """

    def __init__(
        self,
        cache_dir: Path | None = None,
        *,
        progress: Progress = say,
        start_timeout_s: float = START_TIMEOUT_S,
        command: Command = serve_command,
        weights: Callable[[LocalModel], Path] | None = None,
    ) -> None:
        self._start_timeout_s = start_timeout_s
        self._command = command
        self._weights = weights or (lambda model: ensure_weights(model, cache_dir=cache_dir, progress=progress))
        self._locks = {name: threading.Lock() for name in LOCAL_MODELS}
        self._running: dict[str, _Child] = {}
        atexit.register(self.stop)

    def url(self, name: str) -> str:
        """The base URL of the model's OpenAI-compatible API, such as `http://127.0.0.1:40123/v1`.

        Starts the server on first use, which fetches the weights if they are not in the cache, and again when it has
        died: on the same port if that is still free, so that whoever holds the URL can go on.

        Args:
            name: `chat` or `embed`.

        Raises:
            ConfigError: there is no such model, the `local` extra is not installed, the weights cannot be had, or the
                server does not start.
        """
        model = local_model(name)
        with self._locks[name]:
            child = self._running.get(name)
            if child is None or not child.is_alive():
                check_installed()
                self._running[name] = child = self._start(model, child.port if child else 0)
            return f"{child.url}/v1"

    def pid(self, name: str) -> int | None:
        """The process that serves the model, or `None` when there is none."""
        child = self._running.get(name)
        return child.process.pid if child is not None and child.is_alive() else None

    def stop(self) -> None:
        """Ends the servers. Idempotent; `url` starts them again.

        Does not wait long for a thread that is starting one: that server ends with this process.
        """
        for name, lock in self._locks.items():
            if lock.acquire(timeout=STOP_TIMEOUT_S):
                try:
                    child = self._running.pop(name, None)
                    if child is not None:
                        child.stop()
                finally:
                    lock.release()

    def _start(self, model: LocalModel, port: int) -> _Child:
        weights = self._weights(model)
        try:
            return _Child(model, self._command(model, weights, port), self._start_timeout_s)
        except ConfigError:
            if port == 0:
                raise
        return _Child(model, self._command(model, weights, 0), self._start_timeout_s)


class _Child:
    """One server process that has answered."""

    def __init__(self, model: LocalModel, command: list[str], timeout_s: float) -> None:
        self._owner = os.getpid()
        # An unnamed file takes the log: nothing to clean up, and nobody has to keep reading it as with a pipe.
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(  # noqa: S603 - a list, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": _python_path()},
                start_new_session=True,
            )
            try:
                answer = json.loads(_first_line(self.process, timeout_s))
            except TimeoutError:
                self.stop(grace_s=0)
                raise ConfigError(_not_started(model, f"it did not answer in {timeout_s:g} seconds", log)) from None
            except ValueError:
                self.stop(grace_s=STOP_TIMEOUT_S)
                why = f"its process ended with exit code {self.process.returncode}"
                raise ConfigError(_not_started(model, why, log)) from None
            except BaseException:
                self.stop(grace_s=0)
                raise
        self.url: str = answer["url"]
        self.port = int(self.url.rpartition(":")[2])

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, grace_s: float = STOP_TIMEOUT_S) -> None:
        if os.getpid() != self._owner:
            return  # a fork of the driver: the server is not its own
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            block = os.read(process.stdout.fileno(), 4096)
            if not block:
                break
            line += block
    return line


def _not_started(model: LocalModel, why: str, log: IO[bytes]) -> str:
    # `pread`, because seeking would move the place where the child writes.
    size = os.fstat(log.fileno()).st_size
    tail = os.pread(log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(errors="replace").strip()
    return (
        f"The server of the embedded model 'local/{model.name}' ({model.title}) did not start: {why}. If memory and "
        f"CPU are not exhausted, remove {model.model_id}.gguf from the cache, so that it is made again. "
        f"The end of its log:\n{tail or '(empty)'}"
    )


def _python_path() -> str:
    # The child must find this package also where only this process's `sys.path` knows it.
    root = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
