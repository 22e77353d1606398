"""One budget over real sockets: who gets what, who leaves, who is forgotten. The pool's clock is the test's own."""

import os
import signal
import threading
import time
from itertools import pairwise

import pytest

from batch_infer.adapters.coordinator import Budget, Directive, DriverClient, DriverService, Reporter
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.limits import Amount, Limits, Standing
from batch_infer.contract.progress import Counters, TaskId

RPM = 6_000  # 100 a second


class Ticking:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Ticking()


@pytest.fixture
def budget(clock):
    return Budget(Limits(requests_per_minute=RPM), clock=clock, random=lambda: 0.5)


@pytest.fixture
def service():
    with DriverService("127.0.0.1") as running:
        yield running


@pytest.fixture
def connect(service):
    """Workers, each with a connection of its own."""
    clients = []

    def make():
        clients.append(DriverClient(service.address))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


class Member:
    """A task whose requests are answered at once: it uses all that it is granted, as long as it has work."""

    def __init__(self, client, partition, call="call-1"):
        self.client, self.call, self.task = client, call, TaskId(1, partition, partition)
        self.spent = 0.0
        self.granted = 0.0
        self.number = 0

    def report(self, waiting=100, **options):
        self.number += 1
        standing = Standing(
            number=self.number,
            spent=Amount(self.spent),
            waiting=Amount(waiting),
            wanted=Amount(waiting),
            smallest=Amount(1 if waiting else 0),
            accepted=int(self.spent),
            latency_s=0.01 * self.spent,
        )
        directive = self.client.report(self.call, self.task, Counters(), standing=standing, **options)
        if directive.grant is not None:
            self.granted = directive.grant.requests
            if waiting:
                self.spent = float(int(self.granted))
        return directive


def spend(clock, members, seconds, step_s=0.25):
    """What each member uses in so many seconds of the pool's time."""
    before = [member.spent for member in members]
    for number in range(round(seconds / step_s)):
        for turn in range(len(members)):
            clock.now += step_s / len(members)
            members[(number + turn) % len(members)].report()
    return [member.spent - used for member, used in zip(members, before, strict=True)]


def test_busy_tasks_share_and_together_stay_within_the_limit(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    members = [Member(connect(), number) for number in range(4)]
    spend(clock, members, 5)
    used = spend(clock, members, 20)
    assert 0.97 * 2000 <= sum(used) <= 2000 + RPM / 60
    assert max(used) <= 1.2 * min(used)


def test_a_budget_that_nobody_asks_for_a_while_saves_up_nothing(service, connect, budget, clock):
    """A call is opened when a query is analysed; its first task may ask many seconds later."""
    service.open_call("call-1", budget=budget)
    member = Member(connect(), 0)
    clock.now += 60
    assert member.report(waiting=1000).grant.requests <= RPM / 60
    spend(clock, [member], 5)
    clock.now += 3
    before = member.granted
    assert member.report(waiting=1000).grant.requests - before <= RPM / 60


def test_an_idle_tasks_share_goes_to_the_busy_one_and_comes_back(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    busy, idle = Member(connect(), 0), Member(connect(), 1)
    for _ in range(80):
        clock.now += 0.25
        idle.report(waiting=0)
        busy.report()
    assert busy.spent >= 0.95 * 2000
    assert idle.spent == 0
    spend(clock, [busy, idle], 5)
    both = spend(clock, [busy, idle], 20)
    assert min(both) >= 0.8 * 1000


def test_two_calls_of_the_same_endpoint_share_one_budget(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    service.open_call("call-2", budget=budget)
    members = [Member(connect(), 0), Member(connect(), 0, call="call-2")]
    spend(clock, members, 5)
    used = spend(clock, members, 20)
    assert sum(used) <= 2000 + RPM / 60
    assert min(used) >= 0.8 * 1000


def test_a_finished_task_leaves_its_share_to_the_others(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    stays, goes = Member(connect(), 0), Member(connect(), 1)
    spend(clock, [stays, goes], 5)
    assert goes.report(waiting=0, finished=True) == Directive()
    spend(clock, [stays], 1)
    assert spend(clock, [stays], 10)[0] >= 0.97 * 1000


KILLED = """
from batch_infer.adapters.coordinator import DriverClient
from batch_infer.contract.limits import Amount, Standing
from batch_infer.contract.progress import Counters, TaskId
client = DriverClient(arguments[0])
standing = Standing(waiting=Amount(100), wanted=Amount(100), smallest=Amount(1), in_flight=10)
client.report("call-1", TaskId(1, 7, 7), Counters(), standing=standing)
print("reported", flush=True)
sys.stdin.read()
"""


def test_a_killed_worker_leaves_at_once(service, connect, budget, clock):
    from tests.http.test_driver_service import eventually, in_another_process

    call = service.open_call("call-1", budget=budget)
    stays = Member(connect(), 0)
    process = in_another_process(KILLED, service.address)
    assert process.stdout.readline() == b"reported\n"
    spend(clock, [stays], 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    eventually(lambda: TaskId(1, 7, 7) not in call.progress().running())
    spend(clock, [stays], 1)
    assert spend(clock, [stays], 10)[0] >= 0.97 * 1000


def test_a_task_that_falls_silent_is_forgotten_after_its_grants_are_void(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    stays, silent = Member(connect(), 0), Member(connect(), 1)
    spend(clock, [stays, silent], 5)
    valid_s = stays.report().grant.valid_s
    spend(clock, [stays], valid_s + 1)
    assert spend(clock, [stays], 10)[0] >= 0.97 * 1000
    before = silent.spent
    spend(clock, [stays, silent], 5)
    assert silent.spent > before, "it is welcome again"


def test_a_broken_connection_costs_no_share_and_grants_nothing_twice(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    members = [Member(connect(), 0), Member(connect(), 1)]
    spend(clock, members, 5)
    used = 0.0
    for _ in range(10):
        members[0].client.close()
        used += sum(spend(clock, members, 2))
    assert 0.95 * 2000 <= used <= 2000 + RPM / 60


def test_what_headers_say_binds_where_it_is_tighter(service, connect, clock):
    budget = Budget(Limits(requests_per_minute=RPM), clock=clock, random=lambda: 0.5)
    service.open_call("call-1", budget=budget)
    member = Member(connect(), 0)
    seen = Standing(seen=Limits(requests_per_minute=600))
    member.client.report("call-1", TaskId(1, 9, 9), Counters(), standing=seen)
    spend(clock, [member], 5)
    assert spend(clock, [member], 20)[0] <= 200 + 20


def test_an_endpoint_has_one_budget_whatever_it_is_called(service):
    def endpoint(name, model="m", **fields):
        return build_endpoint(name, {"base_url": "http://localhost/v1", "model": model, **fields})

    one = service.budget(endpoint("one", requests_per_minute=60))
    assert service.budget(endpoint("another", requests_per_minute=9000)) is one
    assert service.budget(endpoint("one", model="n")) is not one
    assert service.budget(endpoint("one", requests_per_minute=6000)) is one
    assert one.limits == Limits(requests_per_minute=6000)


def test_other_limits_than_before_hold_for_running_tasks_too(service, connect, budget, clock):
    service.open_call("call-1", budget=budget)
    member = Member(connect(), 0)
    spend(clock, [member], 5)
    budget.allow(Limits(requests_per_minute=600))
    spend(clock, [member], 2)
    assert 180 <= spend(clock, [member], 20)[0] <= 220


def test_a_report_that_asks_for_nothing_is_granted_nothing(service, connect, budget):
    service.open_call("call-1", budget=budget)
    service.open_call("without")
    assert connect().report("call-1", TaskId(1, 0, 0), Counters()).grant is None
    assert connect().report("without", TaskId(1, 0, 0), Counters(), standing=Standing()).grant is None


def test_a_task_that_is_told_to_stop_is_granted_nothing_and_one_that_is_halted_may_finish(service, connect, budget):
    call = service.open_call("call-1", budget=budget)
    member = Member(connect(), 0)
    call.halt("enough")
    directive = member.report()
    assert (directive.halt, directive.stop) == ("enough", None)
    assert directive.grant is not None
    call.stop("over")
    assert member.report() == Directive(stop="over", halt="enough")


# The reporter


class Heard:
    def __init__(self, service, count):
        self.at = []
        self.enough = threading.Event()
        self.count = count

    def __call__(self, grant):
        self.at.append(time.monotonic())
        if len(self.at) >= self.count:
            self.enough.set()


def test_a_task_that_waits_hears_of_new_grants_and_an_idle_one_seldom(service, connect, budget):
    service.open_call("call-1", budget=budget)
    waiting, idle = Heard(service, 4), Heard(service, 4)
    standings = [Standing(waiting=Amount(1), wanted=Amount(1), smallest=Amount(1)), Standing()]
    reporters = [
        Reporter(
            connect(), "call-1", TaskId(1, number, number), Counters, print,
            standing=lambda number=number: standings[number], on_grant=heard, interval_s=60,
        ).start()
        for number, heard in enumerate((waiting, idle))
    ]  # fmt: skip
    assert waiting.enough.wait(20)
    assert len(idle.at) == 1
    for reporter in reporters:
        reporter.close()


def test_hurrying_brings_the_next_grant_early_but_not_faster_than_a_limit(service, connect, budget):
    service.open_call("call-1", budget=budget)
    heard = Heard(service, 5)
    reporter = Reporter(
        connect(), "call-1", TaskId(1, 0, 0), Counters, print, standing=Standing, on_grant=heard, interval_s=60
    )
    with reporter:
        over = time.monotonic() + 20
        while not heard.enough.is_set() and time.monotonic() < over:
            reporter.hurry()
            heard.enough.wait(0.001)
    assert heard.enough.is_set()
    assert all(b - a >= 0.04 for a, b in pairwise(heard.at))


def test_a_task_is_told_once_to_send_nothing_further(service, connect, budget):
    call = service.open_call("call-1", budget=budget)
    told, heard = [], Heard(service, 5)
    standing = Standing(waiting=Amount(1), wanted=Amount(1), smallest=Amount(1))
    call.halt("enough")
    with Reporter(
        connect(), "call-1", TaskId(1, 0, 0), Counters, print,
        on_halt=told.append, standing=lambda: standing, on_grant=heard,
    ):  # fmt: skip
        assert heard.enough.wait(20)
    assert told == ["enough"]


def test_another_name_of_an_endpoint_does_not_undo_its_limits():
    fields = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    with DriverService("127.0.0.1") as service:
        budget = service.budget(build_endpoint("slow", {**fields, "requests_per_minute": 60, "max_concurrency": 2}))
        assert service.budget(build_endpoint("free", fields)) is budget
        assert budget.limits == Limits(requests_per_minute=60, max_concurrency=2)
        service.budget(build_endpoint("other", {**fields, "requests_per_minute": 600, "max_concurrency": 1}))
        assert budget.limits == Limits(requests_per_minute=60, max_concurrency=1)
        service.budget(build_endpoint("slow", {**fields, "requests_per_minute": 900}))
        assert budget.limits == Limits(requests_per_minute=600, max_concurrency=1), "registered anew"
