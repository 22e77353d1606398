"""Owns the near end of a fault endpoint: starting and stopping its process, and asking what it saw."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import msgspec

from batch_infer.testing.config import EndpointConfig, Rule

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0

if TYPE_CHECKING:
    from typing import Self


class EndpointControl:
    """Asks a running fault endpoint what it saw, and tells it what to do next. Usable from any process.

    Args:
        url: The endpoint's base URL, or its control URL; for an endpoint that speaks https it must be the latter.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80

    def stats(self) -> dict[str, Any]:
        """All counts since the start or the latest `reset`; `tally.Tally` says what each one means.

        Times are seconds of the machine's monotonic clock (`time.monotonic`); `None` when nothing happened yet.
        """
        answer: dict[str, Any] = self._ask("stats")
        return answer

    def calls_by_prompt(self) -> dict[str, int]:
        """How often each prompt (each input, for embeddings) arrived, in whatever request and however it ended."""
        answer: dict[str, int] = self._ask("calls")
        return answer

    def billed_by_prompt(self) -> dict[str, int]:
        """How often each prompt was billed."""
        answer: dict[str, int] = self._ask("billed")
        return answer

    def arrivals(self) -> list[float]:
        """When each request arrived, in order, in seconds of `time.monotonic`."""
        answer: list[float] = self._ask("arrivals")
        return answer

    def bodies(self) -> list[dict[str, Any]]:
        """The latest request bodies, oldest first; one that is no JSON appears as `{"raw": …}`."""
        return [_parsed(raw) for raw in self._ask("bodies")]

    def reset(self) -> None:
        """Sets all counts to 0. Rules and limits go on as they are."""
        self._ask("reset")

    def release(self) -> None:
        """Answers every request that a rule with `hold=True` holds now."""
        self._ask("release")

    def configure(self, **changes: Any) -> None:
        """Changes fields of `EndpointConfig` while it runs. All rules fire anew and all buckets are full again."""
        config = msgspec.json.decode(json.dumps(self._ask("config")), type=EndpointConfig)
        self._ask("configure", msgspec.json.encode(msgspec.structs.replace(config, **_as_config_fields(changes))))

    def wait_until(
        self, stat: str, *, at_least: float | None = None, at_most: float | None = None, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """Blocks until a number of `stats` is in the given range, without polling. Returns the stats of that moment.

        Raises:
            TimeoutError: it was not within `timeout_s`.
        """
        query: dict[str, Any] = {"stat": stat, "timeout_s": timeout_s}
        if at_least is not None:
            query["at_least"] = at_least
        if at_most is not None:
            query["at_most"] = at_most
        answer: dict[str, Any] = self._ask("wait?" + urlencode(query), timeout_s=timeout_s + 5.0)
        return answer

    def _ask(self, what: str, body: bytes = b"", timeout_s: float = 30.0) -> Any:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request("POST", f"/_control/{what}", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status == 408:
            raise TimeoutError(f"The endpoint did not get there in time: {what}; it stands at {answer}.")
        if response.status != 200:
            raise ValueError(answer["error"]["message"])
        return answer


def _parsed(raw: str) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        return {"raw": raw}
    return body if isinstance(body, dict) else {"raw": raw}


def _as_config_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Lists become tuples, as the frozen configuration has them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


class FaultEndpoint(EndpointControl):
    """An OpenAI-compatible endpoint on the loopback interface, in a process of its own, that misbehaves on request.

    It serves `/chat/completions`, `/completions`, `/embeddings`, `/models`, Anthropic's `/v1/messages` and Databricks'
    `/invocations` (custom models' records included) under any prefix, and `/oidc/v1/token` for its client. Answers are
    deterministic: `replies.chat_text` and `replies.embedding` recompute them. The process ends with the `with` block,
    and on its own when this process dies, however it dies.

    Args:
        rules: Scripted behaviour; the first rule that applies to a request decides it.
        port: 0 takes a free one.
        settings: Any other field of `EndpointConfig`, such as `latency_s`, `slots` or `requests_per_minute`.

    Raises:
        TypeError: there is no such setting.

    Example:
        with FaultEndpoint(rules=[Rule("slow", latency_s=5), Rule(times=3, status=429)]) as endpoint:
            run_job(endpoint.base_url)
            assert endpoint.stats()["peak_in_flight"] <= 32
    """

    base_url: str
    """Such as `http://127.0.0.1:41234/v1`."""
    control_url: str

    def __init__(self, *, rules: Sequence[Rule] = (), port: int = 0, **settings: Any) -> None:
        self.config = EndpointConfig(rules=tuple(rules), **_as_config_fields(settings))
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "batch_infer.testing.endpoint"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module, our own interpreter
            [*command, "--port", str(port), "--config", "-", "--watch-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(self.config) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The fault endpoint did not start: exit status {self._process.wait(START_TIMEOUT_S)}.")
        urls = json.loads(line)
        self.base_url = urls["base_url"]
        self.control_url = urls["control_url"]
        self.pid: int = urls["pid"]
        super().__init__(self.control_url)

    def close(self) -> None:
        """Ends the process. Idempotent."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
