"""The service that the Spark driver hosts for its Python workers: secrets, progress, "stop", local model servers.

`DriverService` and `Call` run on the driver; its address travels in Spark's closures; `DriverClient` and `Reporter` run
in the workers.
"""

from batch_infer.adapters.coordinator.budget import Budget
from batch_infer.adapters.coordinator.call import Call
from batch_infer.adapters.coordinator.client import DriverClient, DriverError, DriverRefused, DriverUnreachable
from batch_infer.adapters.coordinator.protocol import Directive
from batch_infer.adapters.coordinator.reporter import Reporter
from batch_infer.adapters.coordinator.service import DriverService

__all__ = [
    "Budget",
    "Call",
    "Directive",
    "DriverClient",
    "DriverError",
    "DriverRefused",
    "DriverService",
    "DriverUnreachable",
    "Reporter",
]
