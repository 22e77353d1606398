"""What users import: its names, and that importing it brings neither Spark nor an HTTP library."""

import json
import subprocess
import sys

import batch_infer
import batch_infer.testing


def test_the_public_names_are_these():
    assert sorted(batch_infer.__all__) == [
        "Ambiguous",
        "BatchInferError",
        "ConfigError",
        "Endpoint",
        "EndpointError",
        "JobRejected",
        "RowRejected",
        "RunSummary",
        "SinkError",
        "Throttled",
        "Transient",
        "WrongReply",
        "ai_query",
        "inference_table",
        "is_normalized",
        "register",
        "register_endpoint",
        "run",
        "schema_to_ddl",
    ]


def test_the_testing_names_are_these():
    assert sorted(batch_infer.testing.__all__) == [
        "BODY_FAULTS",
        "EndpointConfig",
        "EndpointControl",
        "FakeRequest",
        "FakeTransport",
        "FaultEndpoint",
        "Rule",
        "WIRE_FAULTS",
        "chat_text",
        "count_tokens",
        "embedding",
        "json_reply",
    ]


def test_every_public_name_is_there():
    for name in batch_infer.__all__:
        assert getattr(batch_infer, name) is not None
    try:
        batch_infer.nonsense  # noqa: B018
    except AttributeError as error:
        assert "nonsense" in str(error)
    else:
        raise AssertionError


def in_a_fresh_process(program):
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("pyspark", "py4j", "httpx", "pyreqwest", "aiohttp", "pandas", "pyarrow", "numpy", "cryptography", "asyncio")


def test_importing_the_package_is_light():
    program = "import sys, json, batch_infer; batch_infer.register_endpoint; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(in_a_fresh_process(program))}
    assert loaded.isdisjoint(HEAVY)


WITHOUT_SPARK = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pyspark":
            raise ModuleNotFoundError("No module named 'pyspark'", name="pyspark")
sys.meta_path.insert(0, Finder())
import batch_infer
for name in ("run", "ai_query", "register", "RunSummary"):
    try:
        getattr(batch_infer, name)
    except batch_infer.ConfigError as error:
        print(error)
"""


def test_without_spark_the_message_says_how_to_get_it():
    lines = in_a_fresh_process(WITHOUT_SPARK).splitlines()
    assert len(lines) == 4
    for name, line in zip(("run", "ai_query", "register", "RunSummary"), lines, strict=True):
        assert line.startswith(f"batch_infer.{name} needs Spark, which is not installed here")
        assert "pip install 'batch-infer[spark]'" in line
