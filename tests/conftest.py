"""What all tests share."""

from __future__ import annotations

import os
import sys

import pytest

from batch_infer.adapters.providers import PROVIDERS
from batch_infer.adapters.providers.registry import FILE_VARIABLE

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)

PROVIDER_VARIABLES = {name for provider in PROVIDERS.values() for name in provider.environment.variables}


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    """No test may reach a paid endpoint by accident."""
    for name in list(os.environ):
        if name in PROVIDER_VARIABLES or name == FILE_VARIABLE:
            monkeypatch.delenv(name)
