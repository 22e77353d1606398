"""Resolving references in one process, and the holder that keeps a secret from view."""

import pickle
import sys
import types

import pytest

from batch_infer.adapters.credentials.secrets import MAX_FILE_BYTES, Secret, resolve, unresolved_message
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.secret import SecretReference

ENV = SecretReference.parse("env:BATCH_INFER_TEST_KEY")


def test_a_variable_is_read_when_asked(monkeypatch):
    monkeypatch.delenv("BATCH_INFER_TEST_KEY", raising=False)
    assert resolve(ENV) is None
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "first")
    assert resolve(ENV) == "first"
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "second")
    assert resolve(ENV) == "second"


@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_an_empty_variable_counts_as_unset(monkeypatch, value):
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", value)
    assert resolve(ENV) is None


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_file_loses_its_last_line_break_only(tmp_path, ending):
    path = tmp_path / "key"
    path.write_bytes(b" the-key " + ending.encode())
    assert resolve(SecretReference.parse(f"file:{path}")) == " the-key "


def test_a_file_that_is_not_there_is_not_resolved(tmp_path):
    assert resolve(SecretReference.parse(f"file:{tmp_path}/none")) is None
    assert resolve(SecretReference.parse(f"file:{tmp_path}")) is None, "a directory"


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is empty"):
        resolve(SecretReference.parse(f"file:{path}"))


@pytest.mark.parametrize("content", [b"hidden\nhidden", b"hidden\xff", "hiddené".encode(), b"hidden\0"])
def test_what_no_header_can_carry_is_refused_without_showing_it(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no HTTP header") as refusal:
        resolve(SecretReference.parse(f"file:{path}"))
    assert "hidden" not in str(refusal.value)
    assert refusal.value.__context__ is None


def test_an_endless_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        resolve(SecretReference.parse("file:/dev/zero"))
    path = tmp_path / "key"
    path.write_bytes(b"k" * MAX_FILE_BYTES)
    assert len(resolve(SecretReference.parse(f"file:{path}"))) == MAX_FILE_BYTES


def stub_databricks(monkeypatch, runtime_get=None, client_get=None):
    def utils(get):
        return types.SimpleNamespace(secrets=types.SimpleNamespace(get=get))

    sdk = types.ModuleType("databricks.sdk")
    runtime = types.ModuleType("databricks.sdk.runtime")
    if runtime_get:
        runtime.dbutils = utils(runtime_get)
    if client_get:
        sdk.WorkspaceClient = lambda: types.SimpleNamespace(dbutils=utils(client_get))
    monkeypatch.setitem(sys.modules, "databricks", types.ModuleType("databricks"))
    monkeypatch.setitem(sys.modules, "databricks.sdk", sdk)
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", runtime)


DATABRICKS = SecretReference.parse("databricks:my-scope/my-key")


def test_databricks_without_its_packages_is_not_resolved(monkeypatch):
    monkeypatch.setitem(sys.modules, "databricks", None)
    assert resolve(DATABRICKS) is None


def test_databricks_is_asked_through_dbutils(monkeypatch):
    stub_databricks(monkeypatch, runtime_get=lambda scope, key: f"{scope}+{key}")
    assert resolve(DATABRICKS) == "my-scope+my-key"


def test_databricks_falls_back_to_the_sdk_and_logs_no_error_text(monkeypatch, caplog):
    caplog.set_level("DEBUG")

    def denied(scope, key):
        raise RuntimeError("Authorization: Bearer hidden")

    stub_databricks(monkeypatch, runtime_get=denied, client_get=lambda scope, key: "from-sdk")
    assert resolve(DATABRICKS) == "from-sdk"
    stub_databricks(monkeypatch, runtime_get=denied, client_get=denied)
    assert resolve(DATABRICKS) is None
    assert "hidden" not in caplog.text


def test_a_secret_shows_itself_only_when_asked():
    secret = Secret("hidden")
    assert secret.reveal() == "hidden"
    assert "hidden" not in f"{secret} {secret!r} {secret!s} {[secret]}"
    assert secret == Secret("hidden")
    assert secret != Secret("other")
    assert secret != "hidden"
    assert len({secret, Secret("hidden")}) == 1


def test_a_secret_does_not_pickle():
    with pytest.raises(TypeError, match="send its SecretReference"):
        pickle.dumps(Secret("hidden"))


@pytest.mark.parametrize("text", ["env:A_KEY", "file:/run/key", "databricks:a/b"])
def test_the_message_for_an_unresolved_secret_names_it_and_what_to_do(text):
    message = unresolved_message(SecretReference.parse(text))
    assert text in message
    assert "Set " in message or "Put " in message or "Check " in message
