"""Owns `'provider/model'`: an endpoint made of a provider's own environment variables, without registration.

On the driver. Reads addresses from the environment, of secrets only whether they are set.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from batch_infer.adapters.credentials.secrets import databricks_config
from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.providers import AZURE_V1

LOCAL_TASKS = {"chat": "chat", "embed": "embeddings"}
_EMBEDS = re.compile(r"embed|\b(?:bge|gte|e5)-", re.IGNORECASE)
"""Names of embeddings models. Whoever names theirs otherwise registers it, with its task."""


def unregistered(name: str) -> Mapping[str, Any] | None:
    """The fields of `'provider/model'`, or `None` where that is no provider's.

    Raises:
        ConfigError: a variable that the provider's address comes from is not set.
    """
    provider, slash, model = name.partition("/")
    make = _MAKERS.get(provider)
    return make(model) if slash and model and make is not None else None


def _task(model: str) -> str:
    return "embeddings" if _EMBEDS.search(model) else "chat"


def _local(model: str) -> Mapping[str, Any] | None:
    if model not in LOCAL_TASKS:
        return None
    return {
        "provider": "local",
        "model": LOCAL_MODELS[model].model_id,
        "task": LOCAL_TASKS[model],
        "max_concurrency": LOCAL_MODELS[model].slots,
        "inputs_per_request": 16,
        "usd_per_million_prompt_tokens": 0,
        "usd_per_million_completion_tokens": 0,
    }


def _openai(model: str) -> Mapping[str, Any]:
    return {
        "base_url": os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
        "model": model,
        "task": _task(model),
        "api_key": "env:OPENAI_API_KEY",
    }


def _anthropic(model: str) -> Mapping[str, Any]:
    return {
        "provider": "anthropic",
        "base_url": os.environ.get("ANTHROPIC_BASE_URL") or None,
        "model": model,
        "api_key": "env:ANTHROPIC_API_KEY",
    }


def _gemini(model: str) -> Mapping[str, Any]:
    return {"provider": "gemini", "model": model, "task": _task(model), "api_key": "env:GEMINI_API_KEY"}


def _azure(model: str) -> Mapping[str, Any]:
    address = os.environ.get("AZURE_OPENAI_ENDPOINT")
    if not address:
        raise ConfigError(f"endpoint 'azure/{model}': set AZURE_OPENAI_ENDPOINT to the resource's address.")
    is_v1 = address.rstrip("/").endswith(AZURE_V1)
    version = None if is_v1 else os.environ.get("OPENAI_API_VERSION")
    if not version and not is_v1:
        raise ConfigError(
            f"endpoint 'azure/{model}': set OPENAI_API_VERSION to a version such as '2024-10-21', or let "
            f"AZURE_OPENAI_ENDPOINT end in {AZURE_V1!r}."
        )
    return {
        "provider": "azure",
        "base_url": address,
        "api_version": version,
        "model": model,
        "task": _task(model),
        "api_key": "env:AZURE_OPENAI_API_KEY",
    }


def _databricks(model: str) -> Mapping[str, Any]:
    host = os.environ.get("DATABRICKS_HOST") or getattr(databricks_config(), "host", None)
    if not host:
        raise ConfigError(
            f"endpoint 'databricks/{model}': set DATABRICKS_HOST to the workspace's address, such as "
            "'https://NAME.cloud.databricks.com'."
        )
    fields: dict[str, Any] = {
        "provider": "databricks",
        "base_url": host if "://" in host else f"https://{host}",
        "model": model,
        "task": _task(model),
    }
    if os.environ.get("DATABRICKS_TOKEN"):
        fields["api_key"] = "env:DATABRICKS_TOKEN"
    elif os.environ.get("DATABRICKS_CLIENT_ID") and os.environ.get("DATABRICKS_CLIENT_SECRET"):
        fields["client_id"] = "env:DATABRICKS_CLIENT_ID"
        fields["client_secret"] = "env:DATABRICKS_CLIENT_SECRET"  # noqa: S105 - a reference
    elif _has_databricks_sdk():
        fields["api_key"] = "databricks-sdk:default"
    else:
        fields["api_key"] = "env:DATABRICKS_TOKEN"
    return fields


def _has_databricks_sdk() -> bool:
    try:
        return importlib.util.find_spec("databricks.sdk") is not None
    except ModuleNotFoundError:  # not even `databricks` is there
        return False


_MAKERS: dict[str, Callable[[str], Mapping[str, Any] | None]] = {
    "openai": _openai,
    "azure": _azure,
    "databricks": _databricks,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "local": _local,
}
PROVIDER_NAMES = tuple(_MAKERS)
"""What may stand before the '/' of an unregistered name."""
