"""Real processes: drivers that run jobs, and a standalone cluster on the loopback interface. All small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

import pyspark
import pytest

from batch_infer.testing import FaultEndpoint
from tests.support.processes import command_of, free_port, kill_tree, tree_of

HERE = Path(__file__).parent
ANSWER = "@@"
SPARK_CLASS = str(Path(pyspark.__file__).parent / "bin" / "spark-class")


class Driver:
    """A driver process that runs jobs one after the other. `submit` returns at once, `result` waits."""

    def __init__(self, master, endpoint, folder, *, conf=None, fields=None):
        settings = {
            "spark.local.dir": str(folder),
            "spark.sql.warehouse.dir": str(folder / "warehouse"),
            **(conf or {}),
        }
        given = json.dumps({"conf": settings, "endpoint": fields or {}})
        self.errors = folder / f"driver-{free_port()}.err"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), master, endpoint.base_url, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            text=True,
            start_new_session=True,
        )
        self._answers = Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.result(120)

    @property
    def pid(self):
        return self.process.pid

    def _read(self):
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                self._answers.put(json.loads(line.removeprefix(ANSWER)))
        self._answers.put(None)

    def submit(self, rows, *, distinct=None, parts=4, word="p", columns_to=None, **options):
        """Starts `bi.run` with these options; with `columns_to`, a query of two columns instead."""
        job = {"rows": rows, "distinct": distinct or rows, "parts": parts, "word": word, "options": options}
        if columns_to is not None:
            job["columns_to"] = str(columns_to)
        self._send(job)

    def query(self, query, *, action, rows, parts, ledger):
        """Runs a query over `rows(id, body)` and `asked(id, r)`."""
        self.submit_query(query, action=action, rows=rows, parts=parts, ledger=ledger)
        return self.result()

    def submit_query(self, query, *, action, rows, parts, ledger):
        """Starts such a query."""
        self._send({"query": query, "action": action, "rows": rows, "parts": parts, "ledger": str(ledger)})

    def _send(self, job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def result(self, timeout_s=120):
        """What became of the last job; `None` when the process has ended."""
        try:
            return self._answers.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"no answer; stderr: {self.errors.read_text()[-3000:]}") from None

    def wait_until_asked(self, endpoint, requests, timeout_s=120):
        """Waits until the endpoint has seen so many requests; fails at once when the job is over before that."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                endpoint.wait_until("requests", at_least=requests, timeout_s=3)
            except TimeoutError:
                assert self._answers.empty(), self.result()
                assert time.monotonic() < until, self.errors.read_text()[-3000:]
            else:
                return

    def run(self, rows, *, timeout_s=120, **options):
        self.submit(rows, **options)
        return self.result(timeout_s)

    def kill(self):
        """SIGKILL to the driver, its JVM and its workers."""
        kill_tree(self.pid)
        self.process.wait(20)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()


@pytest.fixture
def start_driver(tmp_path):
    """Starts drivers: `start_driver(endpoint, master=…, conf=…, fields=…)`; they end with the test."""
    started = []

    def start(endpoint, master="local[2]", **settings):
        started.append(Driver(master, endpoint, tmp_path, **settings))
        return started[-1]

    yield start
    for driver in started:
        if driver.process.poll() is None:
            driver.close()


@pytest.fixture
def start_endpoint():
    started = []

    def start(**settings):
        started.append(FaultEndpoint(**settings))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()


@dataclass
class Cluster:
    """A standalone cluster. Worker processes outlive their executors, and start new ones."""

    url: str
    worker_pids: list[int]
    folder: Path
    """Of the executors' logs and copies."""
    conf: dict[str, str] = field(default_factory=dict)

    def executors(self):
        """The pids of the executors' JVMs."""
        found = [pid for worker in self.worker_pids for pid in tree_of(worker)]
        return [pid for pid in found if "CoarseGrainedExecutorBackend" in command_of(pid)]

    def kill_executor(self, pid):
        """SIGKILL to an executor's JVM; its Python workers notice, and follow."""
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def standalone_cluster(tmp_path_factory):
    """A master and 2 workers of 1 core and 512 MB each."""
    folder = tmp_path_factory.mktemp("cluster")
    port = free_port()
    url = f"spark://127.0.0.1:{port}"
    environment = {**os.environ, "SPARK_DAEMON_MEMORY": "192m", "SPARK_LOCAL_IP": "127.0.0.1"}
    common = ["--host", "127.0.0.1", "--webui-port", "0"]
    master = ["org.apache.spark.deploy.master.Master", *common, "--port", str(port)]
    worker = ["org.apache.spark.deploy.worker.Worker", *common, "--cores", "1", "--memory", "512m"]
    started = []

    def start(name, *command):
        log = folder / f"{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [SPARK_CLASS, *command], stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        started.append(process)
        return process, log

    try:
        _said(*start("master", *master), "I have been elected leader")
        for number in (1, 2):
            started_worker = start(f"worker-{number}", *worker, "--work-dir", str(folder / f"work-{number}"), url)
            _said(*started_worker, "Successfully registered with master")
        conf = {"spark.executor.memory": "471859200", "spark.executor.cores": "1"}
        yield Cluster(url, [process.pid for process in started[1:]], folder, conf)
    finally:
        for process in started:
            kill_tree(process.pid)
            process.wait(20)


def _said(process, log, words, timeout_s=60):
    """Waits until a process has written these words to its log."""
    over = threading.Event()
    for _ in range(timeout_s * 10):
        if words in log.read_text():
            return
        assert process.poll() is None, log.read_text()
        over.wait(0.1)  # a log can only be polled
    raise TimeoutError(log.read_text())
