"""What all tests share."""

from __future__ import annotations

import os
import sys

import pytest

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)

PROVIDER_VARIABLES = ("OPENAI_", "AZURE_OPENAI_", "ANTHROPIC_", "DATABRICKS_", "GEMINI_")


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    """No test may reach a paid endpoint by accident."""
    for name in list(os.environ):
        if name.startswith(PROVIDER_VARIABLES) or name == "BATCH_INFER_ENDPOINTS":
            monkeypatch.delenv(name)
