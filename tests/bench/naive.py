"""Owns the UDF that one would write today: `pandas_udf`, a thread pool, and the `openai` client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

THREADS = 64

_clients: dict[str, Any] = {}


def _client(base_url: str) -> Any:
    if base_url not in _clients:
        from openai import OpenAI

        _clients[base_url] = OpenAI(base_url=base_url, api_key="none")
    return _clients[base_url]


def udf(base_url: str) -> Any:
    """A scalar UDF from prompt to text; a worker process keeps its client across batches and tasks."""

    def ask(prompts: pd.Series) -> pd.Series:
        client = _client(base_url)

        def one(prompt: str) -> str:
            reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])
            return reply.choices[0].message.content or ""

        with ThreadPoolExecutor(THREADS) as pool:
            return pd.Series(list(pool.map(one, prompts)))

    return F.pandas_udf(ask, "string")
