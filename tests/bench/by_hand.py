"""Owns the loop that one would write without Spark: asyncio + aiohttp, one process, a fixed number in flight.

python -m tests.bench.by_hand BASE_URL ROWS IN_FLIGHT      prints one line of JSON
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from typing import Any

import aiohttp


def run(base_url: str, rows: int, in_flight: int) -> dict[str, Any]:
    """Runs the loop in a process of its own; its figures exclude the process's start."""
    command = [sys.executable, "-m", "tests.bench.by_hand", base_url, str(rows), str(in_flight)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures


async def ask_all(base_url: str, prompts: list[str], in_flight: int) -> list[str]:
    answers = [""] * len(prompts)
    todo = iter(enumerate(prompts))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

        async def work() -> None:
            for index, prompt in todo:
                body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
                async with session.post(f"{base_url}/chat/completions", json=body) as response:
                    answers[index] = (await response.json())["choices"][0]["message"]["content"]

        await asyncio.gather(*(work() for _ in range(in_flight)))
    return answers


def main() -> None:
    base_url, rows, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    prompts = [f"ticket {i}{': ' + 'lorem ipsum ' * 10}"[:130] for i in range(rows)]
    before, started = _cpu_s(), time.monotonic()
    answers = asyncio.run(ask_all(base_url, prompts, in_flight))
    seconds = time.monotonic() - started
    assert all(answers)
    print(json.dumps({"rows": rows, "rows_per_s": rows / seconds, "cpu_s": _cpu_s() - before}))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
