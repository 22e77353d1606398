"""Owns what belongs to a Spark session on the driver: settings, task slots, and the driver's service and its calls.

One service serves all sessions of the driver process; it starts with the first call.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from batch_infer.adapters.coordinator.call import Call
from batch_infer.adapters.coordinator.service import DriverService
from batch_infer.adapters.local.server import LocalServers
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import TaskId

logger = logging.getLogger("batch_infer")

_lock = threading.Lock()
_service: DriverService | None = None
_local_servers = LocalServers()
_scratch: dict[str, str] = {}
_calls: list[Call] = []

KEPT_CALLS = 1000
"""Calls that the driver remembers: their plans may still be cached or be a view's."""

LEDGER_SETTING = "spark.batch_infer.ledger"


def active_session() -> SparkSession:
    """The session of the query that is being built.

    Raises:
        ConfigError: there is none.
    """
    spark = SparkSession.getActiveSession() or SparkSession._instantiatedSession  # noqa: SLF001 - in other threads
    if spark is None:
        raise ConfigError("there is no active Spark session. Create one with SparkSession.builder.getOrCreate().")
    return spark


def settings_of(spark: SparkSession) -> dict[str, str]:
    """The session's settings named `spark.batch_infer.…`; a session begins with the application's."""
    settings = {}
    own = spark._jsparkSession.sessionState().conf().getAllConfs()  # noqa: SLF001 - no public way lists them
    iterator = own.iterator()
    while iterator.hasNext():
        pair = iterator.next()
        name = str(pair.productElement(0))
        if name.startswith("spark.batch_infer."):
            settings[name] = str(pair.productElement(1))
    return settings


def ledger_path(spark: SparkSession, settings: Mapping[str, str], given: str | None = None) -> str | None:
    """Where replies are remembered: what is given, the session's setting, or (local mode) a folder of the session.

    Returns:
        A path or URI, or `None` where nothing is remembered: `"off"`, or a cluster without a setting.
    """
    chosen = given or settings.get(LEDGER_SETTING)
    if chosen is not None:
        if chosen.lower() == "off":
            return None
        return chosen if "://" in chosen or chosen.startswith("file:") else str(Path(chosen).expanduser().absolute())
    if not spark.sparkContext.master.startswith("local"):
        return None
    application = spark.sparkContext.applicationId
    with _lock:
        if application not in _scratch:
            _scratch[application] = tempfile.mkdtemp(prefix=f"batch_infer-{application}-")
            atexit.register(shutil.rmtree, _scratch[application], ignore_errors=True)
        return _scratch[application]


def task_slots(spark: SparkSession) -> int:
    """Tasks that the cluster can run at the same time now; by this, limits are divided."""
    context = spark.sparkContext
    master = str(context.master)
    local = re.fullmatch(r"local(?:\[(\*|\d+)(?:,\s*\d+)?\])?", master)
    if local:
        cores = (os.cpu_count() or 1) if local.group(1) == "*" else int(local.group(1) or 1)
        return max(1, cores // int(context.getConf().get("spark.task.cpus", "1") or 1))
    scala = context._jsc.sc()  # noqa: SLF001
    profile = scala.resourceProfileManager().defaultResourceProfile()
    return max(1, int(scala.maxNumConcurrentTasks(profile)))


def open_call(spark: SparkSession, endpoint: Endpoint) -> tuple[str, ServiceAddress]:
    """Announces a call to the driver's service, which starts with the first one. Returns its id and the address."""
    call_id = uuid.uuid4().hex
    service = _running_service(spark)
    call = service.open_call(
        call_id, secrets=endpoint.secrets, local_address=_local_servers.url, budget=service.budget(endpoint)
    )
    _let_go_of_old_calls(call)
    watch = StageWatch(spark)
    call.is_cancelled = watch.is_over
    call.on_fatal(lambda message: watch.cancel_stages(call.progress().latest(), message))
    return call_id, service.address


def _let_go_of_old_calls(newest: Call) -> None:
    """Every analysis of a query opens a call; of those that are not running, only the latest are kept."""
    with _lock:
        _calls.append(newest)
        surplus = len(_calls) - KEPT_CALLS
        old = [call for call in _calls[: max(0, surplus)] if not call.progress().running()]
        for call in old:
            _calls.remove(call)
    for call in old:
        call.close()


def close_call(call_id: str) -> None:
    """Forgets a call that no plan uses."""
    call = find_call(call_id)
    if call is None:
        return
    with _lock:
        if call in _calls:
            _calls.remove(call)
    call.close()


def find_call(call_id: str) -> Call | None:
    """An open call of this driver, for its progress; `None` when it is unknown."""
    with _lock:
        return _service.find_call(call_id) if _service is not None else None


def _running_service(spark: SparkSession) -> DriverService:
    global _service  # noqa: PLW0603 - one service a driver process
    with _lock:
        if _service is None:
            conf = spark.sparkContext.getConf()
            is_local = spark.sparkContext.master.startswith("local")
            host = "127.0.0.1" if is_local else str(conf.get("spark.driver.host"))
            bind = "127.0.0.1" if is_local else str(conf.get("spark.driver.bindAddress", host))
            _service = DriverService(bind, advertise_host=host)
            atexit.register(_service.close)
        return _service


class StageWatch:
    """Knows whether the stage of a task is over, and ends stages whose call cannot succeed."""

    def __init__(self, spark: SparkSession) -> None:
        self._scala_context = spark.sparkContext._jsc.sc()  # noqa: SLF001 - stages are not in the public API
        self._suspected: set[TaskId] = set()

    def is_over(self, task: TaskId) -> bool:
        """True when the task's stage has ended while the task still runs: it was cancelled, or its work is not needed.

        Asked again and again; says so only the second time it sees it, because Spark's status arrives late.
        """
        try:
            status = self._scala_context.statusStore().lastStageAttempt(task.stage).status().toString()
        except Exception:  # noqa: BLE001 - a stage unknown so far, or a context that is stopping
            return False
        if status not in ("FAILED", "COMPLETE"):
            self._suspected.discard(task)
            return False
        if task in self._suspected:
            return True
        self._suspected.add(task)
        return False

    def cancel_stages(self, tasks: Any, message: str) -> None:
        """Ends the stages of these tasks at once, so that Spark does not run them again to fail again."""
        for stage in {task.stage for task in tasks}:
            with contextlib.suppress(Exception):  # the stage may have ended meanwhile
                self._scala_context.cancelStage(stage, message)
