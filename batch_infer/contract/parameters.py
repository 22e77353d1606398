"""Owns the check of `modelParameters` and `responseFormat`. Does not encode them: unknown names pass as they are.

Only what would break the product itself is refused: names that it sets, streaming, and values that are not JSON. A name
that is nearly a well-known one passes too; `near_misses` finds it, for a warning.

On driver and workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError

_OWNED = {
    "model": "it is the endpoint's: register another endpoint for another model",
    "response_format": "use the argument responseFormat",
}
_MADE_FROM_THE_REQUEST = {
    "messages": "chat",
    "prompt": "completions",
    "input": "embeddings",
    "dataframe_records": "custom",
}
"""The member of the body that holds the request, and the task that it belongs to."""
LARGE_THINKING_BUDGET = 32_000
"""Tokens of thinking above which models may use less than they are given (Databricks' documentation)."""

_log = logging.getLogger(__name__)


_WHOLE = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "budget_tokens", "thinking_budget"),
        *("n", "best_of", "seed", "top_k", "top_logprobs", "dimensions", "truncate_prompt_tokens"),
    }
)
"""Whole numbers wherever they occur. `map('max_tokens', 5, 'temperature', 0.5)` makes fractions of all its values."""

_WELL_KNOWN = (
    *sorted(_WHOLE - {"n"}),
    *("temperature", "top_p", "min_p", "stop", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("logit_bias", "logprobs", "user", "tools", "tool_choice", "parallel_tool_calls", "thinking", "reasoning"),
    *("reasoning_effort", "metadata", "service_tier", "extra_params", "chat_template_kwargs", "encoding_format"),
)
_NEAR = 0.8
"""`difflib`'s measure from which two names are alike: `max_token` and `temprature` are, `top_n` and `top_k` are not."""


def check_parameters(parameters: Any, task: str) -> dict[str, Any]:
    """Returns `modelParameters` as plain JSON values; they may also be given as the text of a JSON object.

    Raises:
        ConfigError: not a mapping of names, a name that the product sets, streaming, or a value that is not JSON.
    """
    if parameters is None:
        return {}
    if isinstance(parameters, str):
        parameters = _json_object(parameters)
    if not isinstance(parameters, Mapping) or not all(isinstance(name, str) and name for name in parameters):
        raise ConfigError(
            "modelParameters: expected named values, such as named_struct('max_tokens', 256, 'temperature', 0.0); "
            f"got {type(parameters).__name__}."
        )
    for name, value in parameters.items():
        _check_name(name, value, task)
        _check_json(value, name)
    parameters = {name: _plain(value, name) for name, value in parameters.items()}
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = parameters.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(
                f"modelParameters: {name!r} is a whole number of at least 1; got {value!r}.{_hint(value)}"
            )
    if task == "embeddings" and "max_tokens" in parameters:
        raise ConfigError("modelParameters: an embeddings endpoint has no 'max_tokens'.")
    check_thinking(parameters)
    return dict(parameters)


def _check_name(name: str, value: Any, task: str) -> None:
    if name in _MADE_FROM_THE_REQUEST:
        owner = _MADE_FROM_THE_REQUEST[name]
        why = f"{owner} endpoints are asked with it, and this one's task is {task!r}; " if owner != task else ""
        raise ConfigError(f"modelParameters: {name!r} cannot be set here; {why}it is made from the request.")
    if name in _OWNED:
        raise ConfigError(f"modelParameters: {name!r} cannot be set here; {_OWNED[name]}.")
    if name == "stream" and value is not False:
        raise ConfigError("modelParameters: a column holds whole replies, so 'stream' can only be false.")


def check_thinking(parameters: Mapping[str, Any]) -> None:
    """Checks that reasoning leaves tokens for the answer: `thinking.budget_tokens` below `max_tokens`.

    Raises:
        ConfigError: it is not, or it is no number of tokens.
    """
    thinking = parameters.get("thinking")
    if not isinstance(thinking, Mapping) or thinking.get("budget_tokens") is None:
        return
    budget = thinking["budget_tokens"]
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ConfigError(f"modelParameters: 'thinking.budget_tokens' is a whole number of at least 1; got {budget!r}.")
    limit = parameters.get("max_tokens") or parameters.get("max_completion_tokens")
    if limit is not None and budget >= limit:
        raise ConfigError(
            f"modelParameters: 'thinking.budget_tokens' is {budget}, and must be less than 'max_tokens', which is "
            f"{limit}: what is left is for the answer. Raise max_tokens or lower the budget."
        )
    if budget > LARGE_THINKING_BUDGET:
        _log.warning(
            "modelParameters: a thinking.budget_tokens of %d is above %d; models may not use all of it.",
            budget,
            LARGE_THINKING_BUDGET,
        )


def near_misses(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Names that are nearly, but not, well-known ones, with the name that may have been meant."""
    found = {name: get_close_matches(name, _WELL_KNOWN, n=1, cutoff=_NEAR) for name in parameters}
    return {name: near[0] for name, near in found.items() if near and name not in _WELL_KNOWN}


def _json_object(text: str) -> dict[str, Any]:
    value = None
    with suppress(msgspec.DecodeError, RecursionError):
        value = msgspec.json.decode(text)
    if isinstance(value, dict):
        return value
    raise ConfigError(
        "modelParameters: expected named values, such as named_struct('max_tokens', 256, 'temperature', 0.0), or a "
        'JSON object as text, such as {"max_tokens": 256}; got other text.'
    )


def _plain(value: Any, name: str) -> Any:
    """The value with whole numbers where a name asks for them."""
    if isinstance(value, Mapping):
        return {inner: _plain(item, inner) for inner, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, "") for item in value]
    return int(value) if name in _WHOLE and isinstance(value, float) and value.is_integer() else value


def _hint(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return " A map makes all its values one type: use named_struct('max_tokens', 256, …)."


def _check_json(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"modelParameters: {path!r} has a key that is not text: {name!r}.")
            _check_json(inner, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_json(inner, f"{path}[{i}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"modelParameters: {path!r} is {value!r}, which JSON cannot express.")
    elif value is not None and not isinstance(value, (str, bool, int)):
        raise ConfigError(f"modelParameters: {path!r} is a {type(value).__name__}, which JSON cannot express.")


def parse_response_format(text: str | Mapping[str, Any]) -> dict[str, Any]:
    """The wire's `response_format` object from JSON text (a DDL is converted by `contract.result_types`).

    Raises:
        ConfigError: not JSON, or not one of the three documented forms.
    """
    forms = (
        '{"type":"text"}, {"type":"json_object"}, '
        '{"type":"json_schema","json_schema":{"name":…,"schema":…,"strict":true}}'
    )
    if isinstance(text, str):
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"responseFormat: neither JSON nor a type such as 'STRUCT<…>': {error}.") from None
    else:
        value = dict(text)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("text", "json_object"):
        return dict(value)
    if kind == "json_schema":
        inner = value.get("json_schema")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str) and isinstance(inner.get("schema"), dict):
            return dict(value)
        raise ConfigError(f'responseFormat: "json_schema" must hold a "name" and a "schema". The forms are {forms}.')
    if isinstance(value, dict) and ("properties" in value or "$schema" in value or kind == "object"):
        raise ConfigError(
            "responseFormat: this is a bare JSON Schema. Wrap it: "
            '{"type":"json_schema","json_schema":{"name":"reply","schema":<yours>,"strict":true}}.'
        )
    raise ConfigError(f"responseFormat: unknown form. The forms are {forms}, or a type such as 'STRUCT<…>'.")
