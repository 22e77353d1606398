"""Owns the `Provider` record: all that differs from one provider to the next. Pure data; on driver and workers.

One module a provider exports one record; `batch_infer.adapters.providers` lists them. A server that speaks OpenAI's
wire needs its name, its address and its variables; everything else has OpenAI's values as defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batch_infer.adapters.providers.limit_headers import OPENAI_LIMITS, LimitHeader
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.transport.status import NO_RULES, ErrorRules
from batch_infer.contract.endpoint import Endpoint

EMBEDS = re.compile(r"embed|\b(?:bge|gte|e5)-", re.IGNORECASE)
"""Pattern in the names of embeddings models. Whoever names theirs otherwise gives the field `task`."""

OPENAI_ADDRESS = "up to and without '/chat/completions', such as 'https://api.openai.com/v1'"


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of `'provider/model'` without registration."""

    key: str | None = None
    """Variable that holds the key."""
    base_url: str | None = None
    """Variable that holds another address than the default one."""
    is_key_optional: bool = False
    """Whether the server may run without keys: the key is then sent only where the variable is set."""
    others: tuple[str, ...] = ()
    """Further variables that `Provider.fields_from_environment` reads."""

    @property
    def variables(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for name in (self.key, self.base_url, *self.others) if name is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider: how it is reached, written to, read, and what its errors mean."""

    name: str
    """What `Endpoint.provider` says, and what stands before the '/' of an unregistered name."""
    title: str = ""
    """Name for documentation; by default the name itself."""
    wires: Mapping[str, Callable[..., Any]] = field(
        default_factory=lambda: dict.fromkeys(("chat", "completions", "embeddings"), OpenAIWire)
    )
    """How each task that it offers is written and read."""
    base_url: str = ""
    """Address where an endpoint names none."""
    address: str = OPENAI_ADDRESS
    """What to write into `base_url`, for messages."""
    has_address: bool = True
    """Whether requests need a `base_url`; the embedded models' is known to the driver alone."""
    environment: Environment = Environment()
    """Variables of an endpoint without registration."""
    key_header: str = "authorization"
    """Header that carries the key, in lower case."""
    key_prefix: str = "Bearer "
    """Text before the key in that header."""
    limit_headers: tuple[LimitHeader, ...] = OPENAI_LIMITS
    """Headers in which replies say what is allowed."""
    errors: ErrorRules = NO_RULES
    """Its own error codes, where they say more than the status."""
    fields: frozenset[str] = frozenset()
    """Fields of `Endpoint` that few providers have, and this one does."""
    model_list: str | None = None
    """Path below `base_url` that lists the models of a server of one's own, for did-you-mean."""
    is_embedded: bool = False
    """Whether its server is this package's own, started on the driver."""
    fields_from_environment: Callable[[str], Mapping[str, Any] | None] | None = None
    """An unregistered model's fields, where the environment's variables alone do not make them. It returns `None` where
    there is no such model."""
    check: Callable[[Endpoint], None] | None = None
    """Raises `ConfigError` for fields that do not go together."""
    check_call: Callable[[Mapping[str, Any], Mapping[str, Any] | None], None] | None = None
    """Raises `ConfigError` for model parameters and a response format that it cannot be sent."""
    check_ready: Callable[[Endpoint], None] | None = None
    """Raises `ConfigError` where a package that it needs is missing. On the driver, when a call is planned."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its endpoints can be for."""
        return tuple(self.wires)

    def credentials(self, api_key: str) -> dict[str, str]:
        """The headers that carry a key."""
        return {self.key_header: self.key_prefix + api_key}

    def task_of(self, model: str) -> str:
        """The task of a model of which only the name is known."""
        return "embeddings" if EMBEDS.search(model) and "embeddings" in self.tasks else self.tasks[0]

    def unregistered(self, model: str) -> Mapping[str, Any] | None:
        """The fields of `'provider/model'`; `None` where there is no such model.

        Raises:
            ConfigError: a variable that its address comes from is not set.
        """
        if self.fields_from_environment is not None:
            found = self.fields_from_environment(model)
            return None if found is None else {"provider": self.name, **found}
        return self.plain_fields(model)

    def plain_fields(self, model: str) -> dict[str, Any]:
        """The fields that name, default address and variables make."""
        environment = self.environment
        given = os.environ.get(environment.base_url) if environment.base_url else None
        fields: dict[str, Any] = {"provider": self.name, "base_url": given or self.base_url, "model": model}
        if environment.key and (not environment.is_key_optional or os.environ.get(environment.key)):
            fields["api_key"] = f"env:{environment.key}"
        return fields
