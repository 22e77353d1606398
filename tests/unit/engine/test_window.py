"""The window: what is in flight, in which order batches come back, and what a failure does to its neighbours."""

from __future__ import annotations

import asyncio

import pytest

from batch_infer.contract.errors import Ambiguous, JobRejected, RowRejected, Throttled, Transient, WrongReply
from batch_infer.contract.limits import Amount, Limits
from batch_infer.contract.reply import Failure, Outcome, Reply, Usage
from batch_infer.contract.request import Request
from batch_infer.engine.batches import Batch, Bounds
from batch_infer.engine.budget.permits import TaskPermits
from batch_infer.engine.budget.pool import Pool
from batch_infer.engine.ports import Ending, NoStore, Sent
from batch_infer.engine.retry import RetryPolicy
from batch_infer.engine.tally import Tally
from batch_infer.engine.window import Run
from tests.support.open_gate import OpenGate
from tests.support.virtual_clock import VirtualClock, run_virtually


def request(text, tokens=1):
    return Request(key=f"key-{text}", content=str(text), prompt_tokens=tokens)


class Server:
    """An endpoint in virtual time: `behave(prompt, nth call of this prompt)` gives a latency, or raises."""

    def __init__(self, behave=lambda prompt, nth: 0.01):
        self.behave = behave
        self.calls = []
        self.in_flight = self.peak = 0
        self.by_prompt = {}

    async def __call__(self, requests):
        now = asyncio.get_running_loop().time()
        prompts = [r.content for r in requests]
        self.calls.append((now, prompts))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            latency = 0
            for prompt in prompts:
                nth = self.by_prompt[prompt] = self.by_prompt.get(prompt, 0) + 1
                latency = max(latency, self.behave(prompt, nth))
            await asyncio.sleep(latency)
        finally:
            self.in_flight -= 1
        return Sent([Reply(text=f"re {p}", usage=Usage(1, 1, 2)) for p in prompts], Limits(60))


async def batches_of(rows, size):
    for start in range(0, len(rows), size):
        yield Batch([None if row is None else request(row) for row in rows[start : start + size]], start)


def answer(rows, server, *, size=4, in_flight=8, most_tokens=None, policy=None, source=None, gates=None, **options):
    async def main():
        clock = VirtualClock()
        gate = OpenGate(clock, in_flight, most_tokens)
        if gates is not None:
            gates.append(gate)
        run = Run(
            source if source is not None else batches_of(rows, size),
            server, gate, options.pop("store", NoStore()), clock,
            policy=policy or RetryPolicy(), random=lambda: 0.5, **options,
        )  # fmt: skip
        return [finished async for finished in run.results()], clock.now()

    return run_virtually(main())


def flat(finished):
    return [outcome for batch in finished for outcome in batch.outcomes]


def test_every_row_comes_back_in_its_place_and_null_rows_cost_nothing():
    rows = [None if i % 7 == 3 else str(i) for i in range(50)]
    server = Server(lambda prompt, nth: (int(prompt) * 37 % 11) / 10)
    finished, _ = answer(rows, server)
    assert [o and o.reply.text for o in flat(finished)] == [r and f"re {r}" for r in rows]
    assert [batch.tag for batch in finished] == list(range(0, 50, 4))
    assert len(server.calls) == sum(r is not None for r in rows)


def test_a_slow_row_does_not_stall_the_rows_of_later_batches():
    server = Server(lambda prompt, nth: 20 if prompt == "5" else 0.01)
    _, took = answer([str(i) for i in range(1000)], server, in_flight=64, size=256)
    assert took == pytest.approx(20, rel=0.01)
    assert server.peak == 64


def test_reading_stops_when_too_many_rows_are_kept_behind_a_slow_one():
    server = Server(lambda prompt, nth: 20 if prompt == "0" else 0.01)
    read = []

    async def source():
        async for batch in batches_of([str(i) for i in range(2000)], 10):
            read.append(asyncio.get_running_loop().time())
            yield batch

    answer([], server, source=source(), bounds=Bounds(retained_rows=100))
    assert sum(at < 19 for at in read) <= 11


def test_reading_stops_when_too_many_bytes_are_kept():
    server = Server(lambda prompt, nth: 20 if prompt.startswith("0") else 0.01)
    read = []

    async def source():
        async for batch in batches_of([f"{i}-" + "x" * 1000 for i in range(500)], 1):
            read.append(asyncio.get_running_loop().time())
            yield batch

    answer([], server, source=source(), bounds=Bounds(retained_bytes=50_000))
    assert 10 < sum(at < 19 for at in read) <= 60


def test_unordered_batches_come_back_as_they_are_done():
    server = Server(lambda prompt, nth: 20 if prompt == "0" else 0.01)
    finished, _ = answer([str(i) for i in range(12)], server, ordered=False)
    assert [batch.tag for batch in finished] == [4, 8, 0]


def test_transient_faults_are_tried_again_and_counted():
    def behave(prompt, nth):
        if nth <= 2:
            raise Transient("boom", kind="server_error", status=500)
        return 0.01

    tally = Tally()
    finished, _ = answer(["a"], Server(behave), tally=tally)
    (outcome,) = flat(finished)
    assert (outcome.reply.text, outcome.attempts) == ("re a", 3)
    assert (tally.requests, tally.attempts_repeated, tally.rows_done) == (3, 2, 1)


def test_a_row_that_keeps_failing_ends_with_its_error_and_its_neighbours_live():
    def behave(prompt, nth):
        if prompt == "bad":
            raise Transient("boom", kind="server_error", status=500)
        return 0.01

    finished, _ = answer(["a", "bad", "b"], Server(behave), policy=RetryPolicy(max_attempts=3))
    good, bad, also_good = flat(finished)
    assert (bad.failure.kind, bad.failure.status, bad.failure.retryable, bad.attempts) == ("server_error", 500, True, 3)
    assert good.reply and also_good.reply


def test_a_refused_row_is_not_sent_again():
    def behave(prompt, nth):
        raise RowRejected("no", kind="bad_request", status=400)

    server = Server(behave)
    finished, _ = answer(["a"], server)
    assert len(server.calls) == 1
    assert flat(finished)[0].failure.retryable is False


def test_a_possibly_billed_request_is_repeated_only_within_its_own_budget():
    def behave(prompt, nth):
        raise Ambiguous("timeout", kind="timeout")

    server = Server(behave)
    tally = Tally()
    answer(["a"], server, tally=tally, policy=RetryPolicy(max_ambiguous_retries=2))
    assert (len(server.calls), tally.ambiguous) == (3, 3)


def test_throttling_costs_time_but_no_attempts_until_the_deadline():
    def behave(prompt, nth):
        if nth <= 40:
            raise Throttled("slow down", kind="rate_limited", status=429, retry_after_s=2.0)
        return 0.01

    finished, took = answer(["a"], Server(behave), policy=RetryPolicy(max_attempts=2))
    assert flat(finished)[0].reply
    assert took >= 80
    finished, _ = answer(["a"], Server(behave), policy=RetryPolicy(throttle_deadline_s=10))
    assert flat(finished)[0].failure.kind == "rate_limited"


def test_retry_after_closes_the_gate_for_everyone():
    def behave(prompt, nth):
        if prompt == "0" and nth == 1:
            raise Throttled("slow down", kind="rate_limited", status=429, retry_after_s=5.0)
        return 1.0

    server = Server(behave)
    answer([str(i) for i in range(12)], server, in_flight=2)
    assert not [at for at, _ in server.calls if 0.0 < at < 5.0]


def test_fail_fast_raises_the_first_failure_and_names_the_request():
    def behave(prompt, nth):
        if prompt == "7":
            raise RowRejected("no", kind="bad_request", status=400)
        return 0.01

    server = Server(behave)
    with pytest.raises(RowRejected, match="key-7.*no"):
        answer([str(i) for i in range(1000)], server, fail_fast=True)
    assert len(server.calls) < 30


def test_a_job_fatal_reply_stops_everything_at_once():
    def behave(prompt, nth):
        if prompt == "9":
            raise JobRejected("wrong key", kind="authentication", status=401)
        return 0.5

    server = Server(behave)
    with pytest.raises(JobRejected, match="wrong key"):
        answer([str(i) for i in range(1000)], server)
    assert len(server.calls) <= 16


def test_an_endpoint_that_never_answered_stops_the_job():
    def behave(prompt, nth):
        raise Transient("endpoint 'e' refused the connection.", kind="connect")

    with pytest.raises(JobRejected, match="nothing was ever answered") as caught:
        answer(["a"], Server(behave))
    assert caught.value.kind == "unreachable"


def test_an_endpoint_that_answered_before_costs_only_the_row():
    def behave(prompt, nth):
        if prompt == "z":
            raise Transient("refused", kind="connect")
        return 0.01

    finished, _ = answer(["a", "z"], Server(behave))
    assert flat(finished)[1].failure.kind == "connect"


def test_one_bad_text_in_a_pack_is_found_by_halving():
    def behave(prompt, nth):
        if prompt == "bad":
            raise RowRejected("empty", kind="bad_request", status=400)
        return 0.01

    rows = [str(i) for i in range(15)] + ["bad"]
    server = Server(behave)

    class Packed(Server):
        async def __call__(self, requests):
            if any(r.content == "bad" for r in requests):
                server.calls.append((0, [r.content for r in requests]))
                raise RowRejected("empty", kind="bad_request", status=400)
            return await server(requests)

    finished, _ = answer(rows, Packed(), size=16, bounds=Bounds(rows_per_request=16))
    outcomes = flat(finished)
    assert [o.failure is None for o in outcomes] == [True] * 15 + [False]
    assert len(server.calls) == 9  # 16; 8, 8; 4, 4; 2, 2; 1, 1


def test_packs_respect_rows_and_tokens():
    server = Server()

    async def source():
        yield Batch([request(i, tokens=10) for i in range(10)])

    answer(
        [],
        server,
        source=source(),
        in_flight=1,
        bounds=Bounds(rows_per_request=4, tokens_per_request=30),
    )
    assert [len(prompts) for _, prompts in server.calls] == [3, 3, 3, 1]


def test_throttled_packs_are_sent_again_whole():
    def behave(prompt, nth):
        if len(server.calls) == 1:
            raise Throttled("slow", kind="rate_limited", status=429)
        return 0.01

    server = Server(behave)
    answer([str(i) for i in range(8)], server, size=8, bounds=Bounds(rows_per_request=8))
    assert [len(prompts) for _, prompts in server.calls] == [8, 8]


def test_what_the_input_raises_reaches_the_caller():
    async def source():
        yield Batch([request("a")])
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        answer([], Server(), source=source())


def test_known_replies_are_not_asked_again():
    class Memory(NoStore):
        def find(self, keys):
            return {k: Outcome(reply=Reply(text="known"), from_ledger=True) for k in keys if k == "key-b"}

    async def main():
        clock = VirtualClock()
        server = Server()
        run = Run(
            batches_of(["a", "b", "c"], 2),
            server,
            OpenGate(clock),
            Memory(),
            clock,
            policy=RetryPolicy(),
        )
        return [f async for f in run.results()], server

    finished, server = run_virtually(main())
    assert [o.reply.text for o in flat(finished)] == ["re a", "known", "re c"]
    assert len(server.calls) == 2


def test_closing_early_cancels_what_is_in_flight():
    async def main():
        clock = VirtualClock()
        server = Server(lambda prompt, nth: 0.01 if prompt in "0123" else 100)
        run = Run(
            batches_of([str(i) for i in range(100)], 4),
            server,
            OpenGate(clock),
            NoStore(),
            clock,
            policy=RetryPolicy(),
        )
        results = run.results()
        first = await results.__anext__()
        await results.aclose()
        return first, server

    first, server = run_virtually(main())
    assert len(first.outcomes) == 4
    assert server.in_flight == 0


def test_equal_requests_in_flight_are_sent_once_and_billed_once():
    rows = ["a", "b", "a", "a", "c", "b"]
    server = Server()
    finished, _ = answer(rows, server, size=6, coalesce=True)
    outcomes = flat(finished)
    assert [o.reply.text for o in outcomes] == [f"re {r}" for r in rows]
    assert [o.from_ledger for o in outcomes] == [False, False, True, True, False, True]
    assert sum(o.usage.total_tokens for o in outcomes if not o.from_ledger) == 6
    assert len(server.calls) == 3


def test_equal_requests_share_a_failure_too():
    def behave(prompt, nth):
        raise RowRejected("no", kind="bad_request", status=400)

    server = Server(behave)
    finished, _ = answer(["a", "a"], server, size=2, coalesce=True)
    assert [o.failure.kind for o in flat(finished)] == ["bad_request"] * 2
    assert len(server.calls) == 1


class Remembers(NoStore):
    """A store that knows of one failure."""

    def find(self, keys):
        refused = Outcome(failure=Failure("bad_request", "too rude", 400), attempts=1, from_ledger=True)
        return {"key-3": refused} if "key-3" in keys else {}


def test_a_known_failure_is_that_row_again_without_a_call():
    server, tally = Server(), Tally()
    finished, _ = answer([str(i) for i in range(6)], server, store=Remembers(), tally=tally)
    assert [o.failure and o.failure.kind for o in flat(finished)] == [None, None, None, "bad_request", None, None]
    assert sorted(prompts for _, prompts in server.calls) == [[str(i)] for i in range(6) if i != 3]
    assert (tally.rows_done, tally.rows_failed, tally.rows_from_ledger) == (5, 1, 0)
    assert tally.failures == {}, "what failed before does not end this run early"


def test_a_known_failure_stops_a_run_that_fails_at_the_first_one():
    server = Server()
    with pytest.raises(RowRejected, match=r"request key-3: too rude .*nothing was sent now.*retry_failed") as caught:
        answer([str(i) for i in range(3, 6)], server, store=Remembers(), fail_fast=True)
    assert (caught.value.kind, caught.value.status) == ("bad_request", 400)


class Mending:
    """Answers wrongly the first `wrong` times; notes the turns of each request."""

    def __init__(self, wrong, then=None):
        self.wrong = wrong
        self.then = then or (lambda: Reply(text="right", usage=Usage(1, 1, 2)))
        self.turns = []

    async def __call__(self, requests):
        self.turns.append(requests[0].turns)
        number = len(self.turns)
        if number > self.wrong:
            return Sent([self.then()])
        reply = Reply(text=f"wrong {number}", usage=Usage(1, 1, 2))
        mend = f"mend {number}"
        return Sent([WrongReply("not it", kind="type_mismatch", usage=reply.usage, reply=reply, correction=mend)])


def test_a_wrong_reply_is_mended_in_the_same_conversation_and_every_turn_is_billed():
    server, tally = Mending(wrong=2), Tally()
    (outcome,) = flat(answer(["a"], server, tally=tally)[0])
    assert server.turns == [
        (),
        (("wrong 1", "mend 1"),),
        (("wrong 1", "mend 1"), ("wrong 2", "mend 2")),
    ]
    assert (outcome.reply.text, outcome.attempts, outcome.usage) == ("right", 3, Usage(3, 3, 6))
    assert (tally.requests, tally.in_flight, tally.rows_done, tally.prompt_tokens) == (3, 0, 1, 3)


def test_a_reply_that_stays_wrong_is_the_rows_error_and_is_kept():
    server, tally = Mending(wrong=9), Tally()
    (outcome,) = flat(answer(["a"], server, tally=tally)[0])
    assert len(server.turns) == 3
    assert (outcome.reply, outcome.failure.kind, outcome.failure.reply.text) == (None, "type_mismatch", "wrong 3")
    assert (outcome.attempts, outcome.usage, tally.rows_failed) == (3, Usage(3, 3, 6), 1)


def test_a_passing_fault_while_mending_keeps_the_conversation():
    def overloaded_once():
        if len(server.turns) == 2:
            raise Transient("x", kind="server_error")
        return Reply(text="right", usage=Usage(1, 1, 2))

    server = Mending(wrong=1, then=overloaded_once)
    (outcome,) = flat(answer(["a"], server)[0])
    assert server.turns == [(), (("wrong 1", "mend 1"),), (("wrong 1", "mend 1"),)]
    assert (outcome.reply.text, outcome.attempts, outcome.usage) == ("right", 3, Usage(2, 2, 4))


def test_a_request_with_a_problem_is_its_rows_error_without_a_call():
    bad = Request(key="bad", content=b"[]", problem="the request is an empty array")

    async def source():
        yield Batch([request("a"), bad, None])

    server = Server()
    first, second, third = flat(answer([], server, source=source())[0])
    assert (first.reply.text, third) == ("re a", None)
    assert (second.failure.kind, second.failure.message, second.attempts) == ("bad_request", bad.problem, 0)
    assert len(server.calls) == 1
    with pytest.raises(RowRejected, match="empty array"):
        answer([], server, source=source(), fail_fast=True)


# Permits: each is settled once, and told what became of it


def test_what_was_billed_is_settled_and_what_failed_is_told_apart():
    def behave(prompt, nth):
        if nth == 1 and prompt != "good":
            raise {
                "throttled": Throttled("x", kind="rate_limited", status=429, retry_after_s=3.0, limits=Limits(30)),
                "server": Transient("x", kind="server_error", status=500),
                "unconnected": Transient("x", kind="connect"),
                "timeout": Ambiguous("x", kind="timeout"),
                "refused": RowRejected("x", kind="bad_request", status=400),
            }[prompt]
        return 0.25

    told = {}
    for prompt in ("good", "throttled", "server", "unconnected", "timeout", "refused"):
        gates = []
        answer(["good", prompt], Server(behave), in_flight=1, gates=gates)
        told[prompt] = [
            (ending, how.get("used"), how) for ending, (_, how) in zip(gates[0].endings, gates[0].settled, strict=True)
        ]
    ending, used, how = told["good"][0]
    assert (ending, used) == (Ending.ACCEPTED, Amount(1, 1, 1))
    assert how["latency_s"] == pytest.approx(0.25)
    assert how["seen"] == Limits(60)
    assert told["throttled"][1][0] is Ending.THROTTLED
    assert told["throttled"][1][2]["retry_after_s"] == 3.0
    assert told["throttled"][1][2]["seen"] == Limits(30), "what a refusal says of the limits counts too"
    assert told["server"][1][:2] == (Ending.ACCEPTED, Amount(1))
    assert told["unconnected"][1][:2] == (Ending.FAILED, Amount(1))
    assert told["timeout"][1][:2] == (Ending.FAILED, None), "it may have been billed: the reservation stands"
    assert told["refused"][1][:2] == (Ending.ACCEPTED, Amount(1))


def test_every_permit_is_settled_whatever_ends_the_run():
    class Full(NoStore):
        def intend(self, requests):
            if requests[0].content == "20":
                raise OSError("no space left")

    def wrong_key(prompt, nth):
        if prompt == "20":
            raise JobRejected("wrong key", kind="authentication", status=401)
        return 0.5

    def defect(prompt, nth):
        if prompt == "20":
            raise ZeroDivisionError
        return 0.5

    rows = [str(i) for i in range(100)]
    for failing, options in (
        (Server(wrong_key), {}),
        (Server(defect), {}),
        (Server(), {"store": Full()}),
        (Server(lambda prompt, nth: 0.5), {"source": broken_after(24)}),
    ):
        gates = []
        with pytest.raises((JobRejected, ZeroDivisionError, OSError)):
            answer(rows, failing, gates=gates, **options)
        assert len(gates[0].settled) == len(gates[0].needs) > 8
        assert {Ending.CANCELLED} < set(gates[0].endings)


async def broken_after(count):
    async for batch in batches_of([str(i) for i in range(count)], 4):
        yield batch
    await asyncio.sleep(0.75)
    raise OSError("the disk is gone")


def test_what_is_reserved_for_replies_follows_the_replies():
    gates = []
    answer([str(i) for i in range(100)], Server(), in_flight=4, gates=gates, bounds=Bounds(completion_tokens=500))
    assert gates[0].needs[0] == Amount(1, 1, 500)
    assert gates[0].needs[-1] == Amount(1, 1, 1)


def test_a_request_that_no_limit_will_ever_allow_fails_alone_and_at_once():
    async def source():
        yield Batch([request("a"), request("long", tokens=1000), request("b")])

    server = Server()
    finished, _ = answer([], server, source=source(), most_tokens=100)
    outcomes = flat(finished)
    assert [o.failure and o.failure.kind for o in outcomes] == [None, "too_large", None]
    assert (len(server.calls), outcomes[1].attempts) == (2, 0)


# Halting: nothing further is sent, and what there is comes back


def halted(rows, server, after_s, *, in_flight=4, policy=None, **options):
    async def main():
        clock = VirtualClock()
        gate = OpenGate(clock, in_flight)
        tally = Tally()
        run = Run(
            batches_of(rows, 4), server, gate, NoStore(), clock,
            policy=policy or RetryPolicy(), tally=tally, random=lambda: 0.5, **options,
        )  # fmt: skip
        if after_s is None:
            run.halt("enough")
        else:
            asyncio.get_running_loop().call_later(after_s, run.halt, "enough")
        finished = [f async for f in run.results()]
        return finished, tally, clock.now(), gate

    return run_virtually(main())


def test_a_halted_run_lets_come_home_what_is_in_flight_and_sends_nothing_more():
    server = Server(lambda prompt, nth: 1.0)
    finished, tally, took, gate = halted([str(i) for i in range(40)], server, 1.5)
    outcomes = flat(finished)
    assert [o.failure is None for o in outcomes] == [True] * 8 + [False] * 32
    assert {(o.failure.kind, o.failure.message, o.failure.retryable, o.attempts) for o in outcomes[8:]} == {
        ("not_sent", "enough", True, 0)
    }
    assert (len(server.calls), took) == (8, 2.0)
    assert tally.failures == {"not_sent": 32}
    assert len(gate.settled) == 8


def test_a_run_that_is_halted_from_the_start_sends_nothing():
    server = Server()
    finished, _, _, _ = halted(["a", "b", "a"], server, None, coalesce=True)
    assert [o.failure.kind for o in flat(finished)] == ["not_sent"] * 3
    assert server.calls == []


def test_halting_ends_waiting_for_a_limit_or_a_pause_at_once():
    def behave(prompt, nth):
        if prompt == "throttled":
            raise Throttled("slow down", kind="rate_limited", status=429, retry_after_s=500)
        if prompt == "down":
            raise Transient("boom", kind="server_error", status=500)
        return 1.0

    finished, _, took, _ = halted(["down", "throttled", "later"], Server(behave), 0.1, in_flight=2)
    kinds = [(o.failure.kind, o.attempts) for o in flat(finished)]
    assert kinds == [("server_error", 1), ("rate_limited", 1), ("not_sent", 0)]
    assert took < 1


def test_a_pack_that_was_refused_before_the_run_was_halted_has_been_sent_and_may_be_sent_again():
    async def main():
        clock = VirtualClock()

        async def send(requests):
            await asyncio.sleep(1)
            raise RowRejected("no", kind="bad_request", status=400)

        run = Run(
            batches_of(["a", "b", "c", "d"], 4), send, OpenGate(clock, 1), NoStore(), clock,
            policy=RetryPolicy(), bounds=Bounds(rows_per_request=4), random=lambda: 0.5,
        )  # fmt: skip
        asyncio.get_running_loop().call_later(0.5, run.halt, "enough")
        return [f async for f in run.results()]

    outcomes = flat(run_virtually(main()))
    assert {(o.failure.kind, o.failure.status, o.failure.retryable, o.attempts) for o in outcomes} == {
        ("bad_request", 400, True, 1)
    }


def test_a_wrong_reply_whose_repair_was_cut_off_by_a_halt_is_not_final():
    async def main():
        clock = VirtualClock()

        async def send(requests):
            await asyncio.sleep(1)
            reply = Reply(text="nope", usage=Usage(1, 1, 2))
            return Sent([WrongReply("no", kind="type_mismatch", reply=reply, correction="mend it", usage=reply.usage)])

        run = Run(
            batches_of(["a"], 1), send, OpenGate(clock, 1), NoStore(), clock,
            policy=RetryPolicy(max_repairs=2), random=lambda: 0.5,
        )  # fmt: skip
        asyncio.get_running_loop().call_later(1.5, run.halt, "enough")
        return [f async for f in run.results()]

    (outcome,) = flat(run_virtually(main()))
    assert (outcome.failure.kind, outcome.failure.retryable, outcome.attempts) == ("type_mismatch", True, 2)
    assert outcome.usage.total_tokens == 4


# The throttle deadline, under permits that slow down


class LeasedBySelf(TaskPermits):
    """Permits of a pool that is asked directly, every 100 ms."""

    def __init__(self, clock, limits=None):
        super().__init__(limits or Limits(), clock, lambda: 0.5, lambda: None)
        self._pool, self._time = Pool(limits or Limits(), clock.now(), lambda: 0.5), clock

    async def keep(self):
        while True:
            self.take(self._pool.exchange("task", self.standing(), self._time.now()))
            await self._time.sleep(0.1)


def answer_under_leases(rows, server, *, deadline_s, limits=None, **options):
    async def main():
        clock = VirtualClock()
        permits = LeasedBySelf(clock, limits)
        keeping = asyncio.ensure_future(permits.keep())
        policy = RetryPolicy(throttle_deadline_s=deadline_s)
        run = Run(batches_of(rows, 64), server, permits, NoStore(), clock, policy=policy, random=lambda: 0.5, **options)
        finished = [batch async for batch in run.results()]
        keeping.cancel()
        return flat(finished), clock.now()

    return run_virtually(main())


@pytest.mark.parametrize("retry_after_s", [None, 1.0, 60.0, 3600.0])
def test_an_endpoint_that_throttles_for_ever_ends_every_waiting_row_at_the_deadline(retry_after_s):
    def refuse(prompt, nth):
        raise Throttled("HTTP 429", kind="rate_limited", status=429, retry_after_s=retry_after_s)

    outcomes, took = answer_under_leases([str(i) for i in range(200)], Server(refuse), deadline_s=30)
    assert took < 40
    assert {(o.failure.kind, o.failure.status, o.failure.retryable) for o in outcomes} == {("rate_limited", 429, True)}
    assert all("throttle_deadline_s" in o.failure.message for o in outcomes)


def test_waiting_for_ones_turn_at_a_slow_limit_is_no_waiting_through_throttles():
    def rarely(prompt, nth):
        if nth == 1 and int(prompt) % 20 == 19:
            raise Throttled("HTTP 429", kind="rate_limited", status=429)
        return 0.1

    outcomes, took = answer_under_leases(
        [str(i) for i in range(100)], Server(rarely), deadline_s=60, limits=Limits(requests_per_minute=30)
    )
    assert took > 180
    assert [o.failure for o in outcomes if o.failure] == []
