"""Owns turning references into secrets in this process, and the holder of a secret. Does not ask other processes.

A worker that gets `None` here asks the driver (`adapters.coordinator.client`), which resolves with the same function.

On driver and workers.
"""

from __future__ import annotations

import hmac
import importlib
import json
import logging
import os
from typing import Any, NoReturn

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.secret import SecretReference

MAX_FILE_BYTES = 64 * 1024
"""A file that holds more is not a key; the bound keeps `file:/dev/zero` from filling the memory."""
SDK_TIMEOUT_S = 20
"""databricks-sdk asks the workspace before it authenticates, and would try for five minutes."""

_log = logging.getLogger(__name__)


class Secret:
    """Holds a secret so that it cannot slip into a log, a traceback, a plan or a pickle by accident.

    Contract: `reveal()` is the only way out; `repr`, `str` and `format` are redacted; pickling is refused.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret. Call it where the header is made, and keep the result in no variable that lives on."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(redacted)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled, so that no closure or file holds it; send its SecretReference.")


def resolve(reference: SecretReference) -> str | None:
    """The secret that a reference names, or `None` when this process cannot resolve it.

    Contract: reads the environment or the file anew each time and keeps nothing. A trailing line break is stripped.
    `None` means that the place is not there for this process: variable unset or empty, no such file, no permission,
    Databricks not reachable or not installed. May block on the network for all schemes but
    `env:` and `file:`.

    Raises:
        ConfigError: the place is there, and what it holds cannot be a key: an empty file, a line break or a character
            outside printable ASCII in the middle (HTTP headers take no other). The message names the reference only.
    """
    if reference.scheme == "env":
        value: str | None = os.environ.get(reference.locator)
    elif reference.scheme == "file":
        value = _read_file(reference)
    elif reference.scheme == "databricks":
        value = _ask_databricks(reference)
    elif reference.scheme == "google":
        value = _google_token()
    elif reference.scheme == "aws":
        value = _aws_keys(reference.locator)
    else:
        value = databricks_token(reference.locator)
    return None if value is None else _checked(reference, value)


def unresolved_message(reference: SecretReference) -> str:
    """What to tell the user when `reference` was resolved neither on the worker nor on the driver."""
    what = {
        "env": f"the environment variable {reference.locator} is not set, or empty",
        "file": f"the file {reference.locator} does not exist, or cannot be read",
        "databricks": "neither dbutils nor databricks-sdk could read it (not installed, no access, or no such key)",
        "databricks-sdk": "databricks-sdk is not installed, or finds no credentials",
        "google": "google-auth is not installed, or finds no application default credentials",
        "aws": "botocore is not installed, or finds no credentials",
    }[reference.scheme]
    todo = {
        "env": f"Set {reference.locator} where the driver runs (os.environ in a notebook will do) and run again.",
        "file": "Put the key there, on the driver or on every worker, readable by the user that Spark runs as.",
        "databricks": "Check the scope and the key's name, and that the user who runs the job may read the scope.",
        "databricks-sdk": "Set DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET.",
        "google": "Run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file.",
        "aws": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile as in 'aws:PROFILE', or use a role.",
    }[reference.scheme]
    return f"the secret '{reference}' was found neither on the worker nor on the driver: {what}. {todo}"


def _checked(reference: SecretReference, value: str) -> str | None:
    value = value.rstrip("\r\n")
    if not value.strip():
        if reference.scheme == "file":
            raise ConfigError(f"the file of the secret '{reference}' is empty. Write the key into it.")
        return None
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"the secret '{reference}' holds a line break, a control character or a letter outside ASCII, which no "
            "API key has and no HTTP header may carry. Store the bare key, without quotes or further lines."
        )
    return value


def _read_file(reference: SecretReference) -> str | None:
    try:
        with open(reference.locator, "rb") as file:  # noqa: PTH123 - a plain path, opened once
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        _log.debug("The secret '%s' cannot be read in this process: %s.", reference, type(error).__name__)
        return None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(
            f"the file of the secret '{reference}' is larger than {MAX_FILE_BYTES // 1024} KiB, so it is no key. "
            "Check the path."
        )
    # Bytes that are not UTF-8 become U+FFFD, which `_checked` refuses: a UnicodeDecodeError would carry the secret.
    return content.decode("utf-8", "replace")


def _ask_databricks(reference: SecretReference) -> str | None:
    scope, key = reference.scope_and_key
    try:
        # Inside the Databricks runtime this is the notebook's own `dbutils`; elsewhere, one made from the environment.
        runtime = importlib.import_module("databricks.sdk.runtime")
        return str(runtime.dbutils.secrets.get(scope, key))
    except Exception as error:  # noqa: BLE001 - any failure means "not here"; its text may quote a header
        _log.debug("dbutils cannot read the secret '%s': %s.", reference, type(error).__name__)
    try:
        sdk = importlib.import_module("databricks.sdk")
        return str(sdk.WorkspaceClient().dbutils.secrets.get(scope, key))
    except Exception as error:  # noqa: BLE001 - as above
        _log.debug("databricks-sdk cannot read the secret '%s': %s.", reference, type(error).__name__)
    return None


def databricks_config(profile: str = "default") -> Any | None:
    """databricks-sdk's configuration (host and authentication), or `None` where it is not installed or finds none."""
    try:
        sdk = importlib.import_module("databricks.sdk.config")
        bounds = {"http_timeout_seconds": SDK_TIMEOUT_S, "retry_timeout_seconds": SDK_TIMEOUT_S}
        return sdk.Config(**bounds) if profile == "default" else sdk.Config(profile=profile, **bounds)
    except Exception as error:  # noqa: BLE001 - any failure means "not here"; its text may quote a header
        _log.debug("databricks-sdk has no configuration here: %s.", type(error).__name__)
        return None


def databricks_token(profile: str) -> str | None:
    """A bearer token by databricks-sdk's own authentication; a fresh one where that renews them."""
    config = databricks_config(profile)
    if config is None:
        return None
    try:
        header = str(config.authenticate().get("Authorization", ""))
    except Exception as error:  # noqa: BLE001 - as above
        _log.debug("databricks-sdk cannot authenticate here: %s.", type(error).__name__)
        return None
    scheme, _, token = header.partition(" ")
    return token if scheme == "Bearer" else None


GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def _google_token() -> str | None:
    """An access token of Google's application default credentials."""
    try:
        auth = importlib.import_module("google.auth")
        requests = importlib.import_module("google.auth.transport.requests")
        credentials, _ = auth.default(scopes=[GOOGLE_SCOPE])
        credentials.refresh(requests.Request())
    except Exception as error:  # noqa: BLE001 - any failure means "not here"; its text may quote a header
        _log.debug("google-auth has no credentials here: %s.", type(error).__name__)
        return None
    return str(credentials.token)


def _aws_keys(profile: str) -> str | None:
    """AWS credentials as JSON (`signing.Keys`), by botocore's own chain."""
    try:
        session = importlib.import_module("botocore.session").Session(profile=None if profile == "default" else profile)
        found = session.get_credentials()
        if found is None:
            return None
        keys = found.get_frozen_credentials()
    except Exception as error:  # noqa: BLE001 - as above
        _log.debug("botocore has no credentials here: %s.", type(error).__name__)
        return None
    return json.dumps({"access_key": keys.access_key, "secret_key": keys.secret_key, "token": keys.token})
