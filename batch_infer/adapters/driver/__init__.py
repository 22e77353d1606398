"""The service that the Spark driver hosts for its Python workers: secrets, progress, "stop", local model servers.

`DriverService` and `Call` run on the driver; `ServiceAddress` travels in Spark's closures; `DriverClient` and
`Reporter` run in the workers.
"""

from batch_infer.adapters.driver.budget import Budget
from batch_infer.adapters.driver.call import Call
from batch_infer.adapters.driver.client import DriverClient, DriverError, DriverRefused, DriverUnreachable
from batch_infer.adapters.driver.protocol import Directive, ServiceAddress
from batch_infer.adapters.driver.reporter import Reporter
from batch_infer.adapters.driver.service import DriverService

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
    "ServiceAddress",
]
