"""Owns the child process that serves one embedded model over HTTP. Does not decide when it starts or where it is kept.

    python -m batch_infer.adapters.local.serve --model PATH --kind chat|embed [--port PORT]

Prints one JSON line, `{"url": ..., "pid": ...}`, on stdout once it answers; whatever llama.cpp has to say goes to
stderr. Ends when its stdin closes, so that it never outlives the process that started it, however that one died, and
on SIGTERM. Ignores SIGINT: Ctrl-C reaches every process of the terminal, and the parent decides what it means.

In a process of its own, on the driver.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batch_infer.adapters.local.models import LOCAL_MODELS, LocalModel

THREADS = 1
"""Threads of computation. With two on a busy two-core machine the server collapses: OpenMP spins. Source: measured."""

PROMPT_CACHE_MIB = 256
"""Memory for prompts seen before; llama.cpp's own default is 8 GiB."""

MOST_TOKENS = 512
"""Tokens of a reply to a request that sets no `max_tokens`. So small a model sometimes never stops by itself."""
LOG_WARNINGS = 2
"""llama.cpp's verbosity: errors and warnings, nothing for each request."""

_ORPHAN_CHECK_S = 1.0
_HEALTH_INTERVAL_S = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves one model until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m batch_infer.adapters.local.serve")
    parser.add_argument("--model", required=True, type=Path, help="the GGUF")
    parser.add_argument("--kind", required=True, choices=sorted(LOCAL_MODELS))
    parser.add_argument("--port", type=int, default=0, help="0 means a free one")
    options = parser.parse_args(arguments)

    end = threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True)
    end.start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp writes to both

    server = _start(options.model, LOCAL_MODELS[options.kind], options.port)
    _wait_until_healthy(server.listening_address)
    with answers:
        answers.write(json.dumps({"url": server.listening_address, "pid": os.getpid()}) + "\n")
    end.join()


def _start(path: Path, model: LocalModel, port: int) -> Any:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # slow, and of the `local` extra

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {model.model_id}
    params.port = port
    params.n_parallel = model.slots
    params.n_ctx = model.slots * model.context_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.n_predict = MOST_TOKENS
    params.verbosity = LOG_WARNINGS
    params.ui = False
    params.endpoint_slots = False  # it shows the prompts in flight to everyone on this machine
    if model.dimensions is not None:
        params.embedding = True
        # An input is computed in one go, so the batch is what bounds its length.
        params.n_batch = params.n_ubatch = model.context_tokens
    return xllamacpp.Server(params)


def _wait_until_healthy(url: str) -> None:
    # The parent bounds the waiting.
    address = urlsplit(url)
    while True:
        connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(_HEALTH_INTERVAL_S)


def _exit_with_parent(parent: int) -> None:
    # A process forked from the parent may hold the other end of stdin open, hence the second condition.
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _ORPHAN_CHECK_S)
        if readable and not os.read(0, 4096):
            break
    sys.stderr.flush()
    os._exit(0)  # nothing is kept, and llama.cpp would first finish what is in flight


if __name__ == "__main__":
    main()
