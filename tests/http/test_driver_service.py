"""The driver's service and its workers, over real sockets and with second processes."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from batch_infer.adapters.coordinator import (
    Directive,
    DriverClient,
    DriverRefused,
    DriverService,
    DriverUnreachable,
    Reporter,
)
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import Counters, TaskId
from batch_infer.contract.secret import SecretReference

KEY = SecretReference.parse("env:BATCH_INFER_TEST_KEY")
TASK = TaskId(1, 0, 10)
OTHER = TaskId(1, 1, 11)
CLIENT_LOGGER = "batch_infer.adapters.coordinator.client"


@pytest.fixture
def service():
    with DriverService("127.0.0.1") as running:
        yield running


@pytest.fixture
def client(service):
    worker = DriverClient(service.address)
    yield worker
    worker.close()


class Noted:
    """A callable that keeps what it was called with, and tells when."""

    def __init__(self):
        self.values = []
        self.called = threading.Event()

    def __call__(self, value):
        self.values.append(value)
        self.called.set()


def eventually(true, timeout_s=5.0):
    """For the few states that nobody announces."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def in_another_process(script, *arguments):
    """Starts a Python process, hands it pickled arguments as `arguments`, and leaves its pipes open."""
    prelude = "import pickle, sys\narguments = pickle.load(sys.stdin.buffer)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stdin.write(pickle.dumps(arguments))
    process.stdin.flush()
    return process


# Secrets


ASK = """
from batch_infer.adapters.coordinator import DriverClient
address, reference = arguments
print("ready", flush=True)
sys.stdin.buffer.readline()
print(DriverClient(address).secret("call-1", reference), flush=True)
"""


def test_another_process_gets_a_secret_that_was_set_after_it_started(service, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("BATCH_INFER_TEST_KEY", raising=False)
    service.open_call("call-1", secrets=[KEY])
    process = in_another_process(ASK, service.address, KEY)
    assert process.stdout.readline() == b"ready\n"
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "hidden-value")
    output, _ = process.communicate(b"\n", timeout=20)
    assert output == b"hidden-value\n"
    assert "hidden-value" not in caplog.text


def test_a_secret_that_the_driver_lacks_too_is_none(service, client, monkeypatch):
    monkeypatch.delenv("BATCH_INFER_TEST_KEY", raising=False)
    service.open_call("call-1", secrets=[KEY])
    assert client.secret("call-1", KEY) is None
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "late")
    assert client.secret("call-1", KEY) == "late"


def test_only_references_that_the_call_was_opened_with_are_handed_over(service, client, monkeypatch):
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "hidden-value")
    service.open_call("call-1", secrets=[SecretReference.parse("env:ANOTHER")])
    service.open_call("call-2", secrets=[KEY])
    with pytest.raises(DriverRefused, match="api_key"):
        client.secret("call-1", KEY)
    assert client.secret("call-2", KEY) == "hidden-value"


def test_an_unusable_secret_is_refused_in_words_of_ours(service, client, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"hidden\nhidden")
    reference = SecretReference.parse(f"file:{path}")
    service.open_call("call-1", secrets=[reference])
    with pytest.raises(DriverRefused, match="no HTTP header") as refusal:
        client.secret("call-1", reference)
    assert "hidden" not in str(refusal.value)


def test_an_unexpected_failure_to_resolve_gives_its_class_alone(service, client, monkeypatch, caplog):
    def broken(reference):
        raise RuntimeError("hidden-value")

    monkeypatch.setattr("batch_infer.adapters.credentials.secrets.resolve", broken)
    service.open_call("call-1", secrets=[KEY])
    with pytest.raises(DriverRefused, match="RuntimeError") as refusal:
        client.secret("call-1", KEY)
    assert "hidden-value" not in str(refusal.value) + caplog.text


class Relay:
    """Passes bytes on between a worker and the service, and keeps them."""

    def __init__(self, address):
        self.recorded = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = (address.host, address.port)
        self.address = ServiceAddress("127.0.0.1", self._listener.getsockname()[1], address.token)
        self._threads = []
        self._sockets = [self._listener]
        self._start(self._accept)

    def _start(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                worker, _ = self._listener.accept()
            except OSError:
                return
            service = socket.create_connection(self._target)
            self._sockets += [worker, service]
            self._start(self._pass, worker, service)
            self._start(self._pass, service, worker)

    def _pass(self, source, sink):
        try:
            while data := source.recv(65536):
                self.recorded += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self):
        """Breaks every connection; new ones are still relayed."""
        for each in self._sockets[1:]:
            if each.fileno() >= 0:
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        for each in self._sockets:
            each.close()


@pytest.fixture
def relay(service):
    running = Relay(service.address)
    yield running
    running.close()


def test_nothing_is_in_clear_on_the_wire(service, relay, monkeypatch):
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "hidden-value")
    call = service.open_call("call-1", secrets=[KEY], local_address=lambda endpoint: "http://hidden-url")
    client = DriverClient(relay.address)
    assert client.secret("call-1", KEY) == "hidden-value"
    assert client.local_address("call-1", "local/chat") == "http://hidden-url"
    call.stop("hidden-reason")
    assert client.report("call-1", TASK, Counters(requests=1)) == Directive("hidden-reason")
    client.close()
    assert len(relay.recorded) > 200
    for secret in (b"hidden", b"BATCH_INFER", b"call-1", b"requests", service.address.token):
        assert secret not in relay.recorded
    for half in (service.address.token[:16], service.address.token[16:]):
        assert half not in relay.recorded


def test_a_broken_connection_is_replaced_unnoticed(service, relay, caplog):
    call = service.open_call("call-1")
    client = DriverClient(relay.address)
    assert client.report("call-1", TASK, Counters(requests=1)) == Directive()
    relay.cut()
    assert client.report("call-1", TASK, Counters(requests=2)) == Directive()
    assert call.progress().totals().requests == 2
    assert not [record for record in caplog.records if record.name.endswith("driver.client")]
    client.close()


# Model servers on the driver


def test_a_slow_model_server_holds_up_no_heartbeat_and_is_not_started_twice_at_a_time(service, monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.coordinator.client.PENDING_AFTER_S", 0.05)
    starting, may_finish, under_way = threading.Event(), threading.Event(), threading.Semaphore(1)

    def local_address(endpoint):
        assert under_way.acquire(blocking=False), "equal questions under way share one start"
        starting.set()
        may_finish.wait(20)
        under_way.release()
        return f"http://127.0.0.1:1/{endpoint}"

    service.open_call("call-1", local_address=local_address)
    client = DriverClient(service.address)
    with ThreadPoolExecutor(10) as pool:
        asking = [pool.submit(client.local_address, "call-1", "local/chat", 20) for _ in range(10)]
        assert starting.wait(5)
        for number in range(50):
            assert client.report("call-1", TASK, Counters(requests=number)) == Directive()
        with pytest.raises(DriverRefused, match=r"within 0\.2 s"):
            client.local_address("call-1", "local/chat", timeout_s=0.2)
        assert not any(each.done() for each in asking)
        may_finish.set()
        assert {each.result(10) for each in asking} == {"http://127.0.0.1:1/local/chat"}
    client.close()


def test_a_model_server_that_does_not_start_is_said_and_can_be_asked_for_again(service, client):
    outcomes = [ConfigError("the weights cannot be downloaded. Check the index."), RuntimeError("boom"), "http://up"]

    def local_address(endpoint):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    service.open_call("call-1", local_address=local_address)
    with pytest.raises(DriverRefused, match="weights cannot be downloaded"):
        client.local_address("call-1", "local/chat")
    with pytest.raises(DriverRefused, match=r"address local/chat \(RuntimeError\)"):
        client.local_address("call-1", "local/chat")
    assert client.local_address("call-1", "local/chat") == "http://up"


def test_a_call_without_model_servers_says_so(service, client):
    service.open_call("call-1")
    with pytest.raises(DriverRefused, match="base_url"):
        client.local_address("call-1", "local/chat")


# Progress and stop


def test_reports_add_up_to_the_call_they_name(service, client):
    first, second = service.open_call("call-1"), service.open_call("call-2")
    client.report("call-1", TASK, Counters(rows_done=1, requests=1, cost_usd=0.5))
    client.report("call-1", OTHER, Counters(rows_done=2, requests=2, in_flight=3))
    client.report("call-2", TASK, Counters(rows_done=9))
    client.report("call-1", TASK, Counters(rows_done=5, requests=5, cost_usd=2.5), finished=True)
    assert first.progress().totals() == Counters(rows_done=7, requests=7, in_flight=3, cost_usd=2.5)
    assert first.progress().running() == {OTHER}
    assert second.progress().totals() == Counters(rows_done=9)


def test_fifty_workers_at_once(service, monkeypatch):
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "hidden-value")
    call = service.open_call("call-1", secrets=[KEY])
    together = threading.Barrier(50)

    def work(partition):
        worker = DriverClient(service.address, connect_timeout_s=20)
        together.wait(20)
        assert worker.secret("call-1", KEY) == "hidden-value"
        for number in range(1, 11):
            directive = worker.report("call-1", TaskId(1, partition, partition), Counters(requests=number))
            assert directive == Directive()
        together.wait(20)
        running = len(call.progress().running())
        worker.report("call-1", TaskId(1, partition, partition), Counters(requests=11), finished=True)
        worker.close()
        return running

    with ThreadPoolExecutor(50) as pool:
        running = list(pool.map(work, range(50)))
    assert max(running) == 50
    assert call.progress().totals() == Counters(requests=550)
    assert call.progress().attempts_finished == 50


def test_a_fatal_report_stops_the_others_within_a_heartbeat(service):
    call = service.open_call("call-1")
    unaffected = service.open_call("call-2")
    told, first, second = Noted(), Noted(), Noted()
    call.on_fatal(told)
    clients = [DriverClient(service.address) for _ in range(2)]
    with (
        Reporter(clients[0], "call-1", TASK, Counters, first) as reporter,
        Reporter(clients[1], "call-1", OTHER, Counters, second),
    ):
        eventually(lambda: len(call.progress().running()) == 2)
        began = time.monotonic()
        assert reporter.fatal("401: the key is wrong")
        assert second.called.wait(1.5)
        assert time.monotonic() - began < 1.5
    assert second.values == ["401: the key is wrong"]
    assert first.values == [], "who published it knows"
    assert told.called.wait(5)
    assert told.values == ["401: the key is wrong"]
    assert call.fatal == "401: the key is wrong"
    late = clients[0].report("call-1", TaskId(1, 0, 99), Counters())
    assert late == Directive("401: the key is wrong"), "Spark's next attempt learns it before it asks anything"
    assert unaffected.fatal is None
    assert clients[0].report("call-2", TASK, Counters()) == Directive()
    for each in clients:
        each.close()


def test_the_first_fatal_message_stays(service, client, caplog):
    call = service.open_call("call-1")
    call.stop("the budget is spent")
    assert call.stopped == "the budget is spent"
    client.report("call-1", TASK, Counters(), fatal="first \ud83d")
    client.report("call-1", OTHER, Counters(), fatal="second")
    assert call.fatal == call.stopped == "first ?"
    told = Noted()
    call.on_fatal(lambda message: 1 / 0)
    call.on_fatal(told)
    assert told.called.wait(5), "registered late, told at once"
    assert told.values == ["first ?"]


def test_stop_reaches_every_task_once(service, client):
    call, noted, beats = service.open_call("call-1"), Noted(), threading.Semaphore(0)

    def counters():
        beats.release()
        return Counters()

    with Reporter(client, "call-1", TASK, counters, noted, interval_s=0.02):
        call.stop("the user closed the notebook")
        assert noted.called.wait(1.5)
        for _ in range(3):
            assert beats.acquire(timeout=5), "it goes on reporting until it is closed"
    assert noted.values == ["the user closed the notebook"]


def test_a_cancelled_stage_stops_its_tasks_only(service, client):
    call, asked = service.open_call("call-1"), []

    def is_cancelled(task):
        asked.append((task, time.monotonic()))
        return task.stage == 1

    call.is_cancelled = is_cancelled
    cancelled, other = Noted(), Noted()
    with (
        Reporter(client, "call-1", TaskId(1, 0, 10), Counters, cancelled, interval_s=0.02),
        Reporter(client, "call-1", TaskId(2, 0, 11), Counters, other, interval_s=0.02),
    ):
        assert cancelled.called.wait(1.5)
        eventually(lambda: len({at for task, at in asked if task.stage == 2}) >= 2)
    assert cancelled.values == ["cancelled"]
    assert other.values == []
    passes = [at for task, at in asked if task.stage == 2]
    assert all(later - earlier >= 0.45 for earlier, later in pairwise(passes))


def test_a_hook_that_blocks_or_fails_holds_up_no_heartbeat(service, client, caplog):
    call, release, entered = service.open_call("call-1"), threading.Event(), threading.Event()

    def is_cancelled(task):
        entered.set()
        release.wait(20)
        raise RuntimeError("the session is gone")

    call.is_cancelled = is_cancelled
    client.report("call-1", TASK, Counters())
    assert entered.wait(5)
    for _ in range(20):
        assert client.report("call-1", TASK, Counters()) == Directive()
    release.set()
    eventually(lambda: "cancelled tasks cannot be told" in caplog.text)
    assert client.report("call-1", TASK, Counters()) == Directive()


KILLED = """
from batch_infer.adapters.coordinator import DriverClient
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import Counters, TaskId
(address,) = arguments
client = DriverClient(address)
client.report("call-1", TaskId(1, 0, 10), Counters(requests=3, in_flight=2))
print("reported", flush=True)
sys.stdin.buffer.read()
"""


def test_a_killed_worker_no_longer_counts_as_running(service):
    call = service.open_call("call-1")
    process = in_another_process(KILLED, service.address)
    assert process.stdout.readline() == b"reported\n"
    assert call.progress().totals() == Counters(requests=3, in_flight=2)
    process.kill()
    process.communicate(timeout=10)
    eventually(lambda: not call.progress().running())
    assert call.progress().totals() == Counters(requests=3)


FORKS = """
import os, warnings
warnings.simplefilter("ignore")  # forking with threads is what this is about
from batch_infer.adapters.coordinator import Directive, DriverClient
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import Counters, TaskId
(address,) = arguments
client = DriverClient(address)
assert client.report("call-1", TaskId(1, 0, 0), Counters(requests=1)) == Directive()
client._state().lock.acquire()  # as if another thread were in the middle of a report
child = os.fork()
if child:
    client._state().lock.release()  # the child's first report must not wait for that
for number in range(20):
    task = TaskId(1, 1 if not child else 0, 1 if not child else 0)
    assert client.report("call-1", task, Counters(requests=number + 2)) == Directive()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""


def test_a_forked_child_makes_its_own_connection(service):
    call = service.open_call("call-1")
    process = in_another_process(FORKS, service.address)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert call.progress().totals().requests == 42
    assert service.refused_frames == 0


# Calls and services that are gone


def test_an_unknown_call_is_refused_and_progress_goes_on_without(service, client, caplog):
    call = service.open_call("call-1", secrets=[KEY])
    call.close()
    call.close()
    with pytest.raises(DriverRefused, match="Build the DataFrame again"):
        client.secret("call-1", KEY)
    assert client.report("call-1", TASK, Counters()) is None
    assert client.report("call-1", TASK, Counters()) is None
    assert len([record for record in caplog.records if record.name == CLIENT_LOGGER]) == 1


def test_call_ids_are_unique_while_open(service):
    call = service.open_call("call-1")
    with pytest.raises(ValueError, match="already open"):
        service.open_call("call-1")
    call.close()
    reopened = service.open_call("call-1")
    call.close()
    with pytest.raises(ValueError, match="already open"):
        service.open_call("call-1")
    assert reopened.progress().attempts_seen == 0


def test_without_the_service_the_task_goes_on_and_says_so_once(caplog):
    service = DriverService("127.0.0.1")
    service.open_call("call-1")
    client, counted = DriverClient(service.address), threading.Semaphore(0)

    def counters():
        counted.release()
        return Counters()

    reporter = Reporter(client, "call-1", TASK, counters, Noted(), interval_s=0.02).start()
    assert counted.acquire(timeout=5)
    service.close()
    for _ in range(20):
        assert counted.acquire(timeout=5), "the reporter lives on"
    eventually(lambda: caplog.records)
    began = time.monotonic()
    assert not reporter.fatal("401")
    reporter.close()
    assert time.monotonic() - began < 3
    assert [record.levelname for record in caplog.records if record.name == CLIENT_LOGGER] == ["WARNING"]
    assert "goes on without" in caplog.text
    with pytest.raises(DriverUnreachable, match=r"spark\.driver\.host"):
        client.secret("call-1", KEY)


def test_a_service_that_hangs_does_not_hold_up_the_end_of_a_task():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = DriverClient(ServiceAddress(*silent.getsockname(), os.urandom(32)))
        reporter = Reporter(client, "call-1", TASK, Counters, Noted()).start()
        connection, _ = silent.accept()
        began = time.monotonic()
        reporter.close()
        assert time.monotonic() - began < 3
        connection.close()


def test_reports_resume_when_the_driver_is_back(monkeypatch, caplog):
    monkeypatch.setattr("batch_infer.adapters.coordinator.client.REPORT_BACKOFF_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    address = ServiceAddress("127.0.0.1", port, bytes(32))
    client = DriverClient(address)
    assert client.report("call-1", TASK, Counters()) is None
    monkeypatch.setattr("os.urandom", lambda size: bytes(size))
    with DriverService("127.0.0.1", port=port) as service:
        call = service.open_call("call-1")
        eventually(lambda: client.report("call-1", TASK, Counters(requests=4)) == Directive())
        assert call.progress().totals().requests == 4
        client.close()


def test_another_program_at_the_address_is_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"220 mail.example.org ready\r\n")

        threading.Thread(target=greet, daemon=True).start()
        client = DriverClient(ServiceAddress(*listener.getsockname(), os.urandom(32)))
        with pytest.raises(DriverUnreachable, match="another program"):
            client.secret("call-1", KEY)


def test_a_reporter_outlives_broken_callables(service, client, caplog):
    call = service.open_call("call-1")
    call.stop("enough")

    def broken(*_):
        raise RuntimeError("boom")

    with Reporter(client, "call-1", TASK, broken, broken, interval_s=0.01) as reporter:
        eventually(lambda: len(caplog.records) >= 2)
        reporter.close()
        reporter.close()
    assert call.progress().attempts_finished == 1
    assert len(caplog.records) == 2


def test_closing_sends_the_last_counters(service, client):
    call, latest = service.open_call("call-1"), [Counters(requests=1)]
    with Reporter(client, "call-1", TASK, lambda: latest[0], Noted(), interval_s=60):
        latest[0] = Counters(requests=7)
    assert call.progress().totals().requests == 7
    assert call.progress().attempts_finished == 1


# The service itself


def test_closing_the_service_frees_its_port_while_something_blocks():
    service, entered, release = DriverService("127.0.0.1"), threading.Event(), threading.Event()

    def blocks(endpoint):
        entered.set()
        release.wait(20)
        return "http://late"

    service.open_call("call-1", local_address=blocks)
    client = DriverClient(service.address)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.local_address, "call-1", "local/chat")
        assert entered.wait(5)
        began = time.monotonic()
        service.close()
        service.close()
        assert time.monotonic() - began < 2
        with pytest.raises(DriverUnreachable):
            asking.result(15)
    release.set()
    with socket.create_server(("127.0.0.1", service.address.port)):
        pass
    with pytest.raises(ValueError, match="closed"):
        service.open_call("call-2")


def test_a_wildcard_needs_an_address_to_advertise():
    with pytest.raises(ConfigError, match="advertise_host"):
        DriverService("0.0.0.0")
    with DriverService("0.0.0.0", "127.0.0.1") as service:
        service.open_call("call-1")
        assert service.address.host == "127.0.0.1"
        client = DriverClient(service.address)
        assert client.report("call-1", TASK, Counters()) == Directive()
        client.close()


def test_a_taken_port_is_said_in_words(service):
    with pytest.raises(ConfigError, match=r"cannot listen on .*0 for any"):
        DriverService("127.0.0.1", port=service.address.port)


def test_the_service_does_not_travel(service):
    with pytest.raises(TypeError, match="send its `address`"):
        pickle.dumps(service)
