"""Owns an endpoint that is never the limit: nginx with the echo module, on the loopback interface.

It reads the request's body, waits, and answers with a small chat completion (a `Content-Length`, no chunks).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BINARY = Path(os.environ.get("NGINX", "/usr/sbin/nginx"))
MODULE = Path(os.environ.get("NGINX_ECHO_MODULE", "/usr/lib/nginx/modules/ngx_http_echo_module.so"))
START_TIMEOUT_S = 10.0

REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The customer asks for a refund of the second charge."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 34, "completion_tokens": 11, "total_tokens": 45},
    }
)

CONFIG = """\
load_module {module};
worker_processes 1;
daemon off;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  default_type application/json;
  client_body_buffer_size 256k;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      echo_read_request_body;
      {wait}
      echo_exec @reply;
    }}
    location @reply {{ return 200 '{reply}'; }}
  }}
}}
"""


class Nginx(NamedTuple):
    base_url: str
    pid: int


@contextmanager
def endpoint(scratch: str, latency_ms: float) -> Iterator[Nginx]:
    """A running nginx; ends with the block. Its files are under `scratch`."""
    _check_installed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(scratch) / f"nginx-{port}"
    root.mkdir()
    wait = f"echo_sleep {latency_ms / 1000:.3f};" if latency_ms else ""
    config = root / "nginx.conf"
    config.write_text(CONFIG.format(module=MODULE, root=root, port=port, wait=wait, reply=REPLY))
    process = subprocess.Popen([str(BINARY), "-c", str(config), "-e", str(root / "error.log")])
    try:
        _wait_for(port, process)
        yield Nginx(f"http://127.0.0.1:{port}/v1", process.pid)
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def _check_installed() -> None:
    missing = [str(path) for path in (BINARY, MODULE) if not path.exists()]
    if missing:
        sys.exit(
            f"This measurement needs nginx with the echo module; not found: {', '.join(missing)}.\n"
            "On Debian and Ubuntu: sudo apt-get install nginx-light libnginx-mod-http-echo\n"
            "Elsewhere, name them in the environment variables NGINX and NGINX_ECHO_MODULE."
        )


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nginx does not answer on port {port}; exit status {process.poll()}.")
