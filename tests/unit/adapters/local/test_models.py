"""The pinned facts, and the messages for what is missing."""

import importlib.util
import re

import pytest

from batch_infer.adapters.local.models import LOCAL_MODELS, local_model, require_extra
from batch_infer.contract.errors import ConfigError


def test_every_model_is_pinned_by_version_and_hash():
    for name, model in LOCAL_MODELS.items():
        assert model.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", model.wheel_sha256)
        assert model.wheel.startswith(f"{model.package.replace('-', '_')}-{model.version}-py3-none-any")
        assert model.license == "Apache-2.0"


def test_model_ids_differ():
    assert len({model.model_id for model in LOCAL_MODELS.values()}) == len(LOCAL_MODELS)


def test_an_unknown_model_is_answered_with_the_ones_that_exist():
    with pytest.raises(ConfigError, match=r"'local/gpt'.*'local/chat', 'local/embed'"):
        local_model("gpt")


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else object())
    with pytest.raises(ConfigError, match=re.escape("need xllamacpp, not installed")) as caught:
        require_extra("xllamacpp", "gguf")
    assert "pip install 'batch-infer[local]'" in str(caught.value)
