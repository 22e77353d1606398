"""The search for what an endpoint can take, fed with samples. How it fares as a whole: test_simulated_limits."""

import math

import pytest

from batch_infer.engine.budget.controller import FIRST_WINDOW, HOLD_S, Controller
from batch_infer.engine.budget.latency import Latencies


class Feed:
    """Feeds a controller with reports of one task, every quarter of a second."""

    def __init__(self, most=None):
        self.controller = Controller(0.0, most)
        self.now = 0.0

    def report(self, *, replies, latency_s=0.5, in_flight=None, sent=None, throttled=0, waiting=True, binds=False):
        since, self.now = self.now, self.now + 0.25
        controller = self.controller
        controller.sent(since, self.now, replies if sent is None else sent, throttled)
        if throttled:
            controller.throttled(self.now, controller.epoch)
        controller.step(
            self.now,
            replies=replies,
            latency_s=replies * latency_s,
            in_flight=int(controller.window) if in_flight is None else in_flight,
            waiting=waiting,
            limit_binds=binds,
            rate_binds=binds,
        )
        return controller


def test_the_window_doubles_with_its_replies_at_first():
    controller = Feed().report(replies=2)
    assert controller.window == 2 * FIRST_WINDOW


def test_the_window_never_grows_while_the_application_is_the_limit():
    feed = Feed()
    for _ in range(100):
        controller = feed.report(replies=2, in_flight=3, waiting=False)
    assert controller.window == 8, "what 3 in flight do not use half of"


def test_the_window_never_exceeds_the_users_own():
    feed = Feed(most=20)
    for _ in range(100):
        controller = feed.report(replies=50)
    assert controller.window == 20
    assert controller.is_capped
    controller.cap(5)
    assert controller.window == 5


def test_the_window_stops_growing_when_replies_begin_to_queue():
    feed = Feed()
    for _ in range(4):
        controller = feed.report(replies=40, latency_s=0.5)
    assert controller.is_starting
    before = controller.window
    for _ in range(4):
        controller = feed.report(replies=40, latency_s=1.2)
    assert not controller.is_starting
    assert controller.window <= before + 20


def test_a_queue_of_a_few_milliseconds_does_not_hold_a_fast_endpoint_at_a_tiny_window():
    feed = Feed()
    for _ in range(4):
        feed.report(replies=500, latency_s=0.002)
    for _ in range(8):
        controller = feed.report(replies=500, latency_s=0.020)
    assert controller.window >= 100


def paced(seconds, per_report):
    """A controller that has met its first throttle in a steady run."""
    feed = Feed()
    for _ in range(int(4 * seconds)):
        feed.report(replies=per_report, in_flight=1)
    feed.report(replies=per_report, sent=per_report + 1, throttled=1, in_flight=1)
    return feed


def test_a_throttle_cuts_the_rate_to_what_was_admitted():
    feed = paced(10, 10)
    assert feed.controller.rate == pytest.approx(0.97 * 40, rel=0.05)
    assert feed.controller.epoch == 1


def test_throttles_of_requests_sent_before_the_cut_say_nothing_new():
    feed = paced(10, 10)
    rate = feed.controller.rate
    feed.now += 5
    feed.controller.throttled(feed.now, 0)
    assert feed.controller.rate == rate
    feed.controller.throttled(feed.now, 1)
    assert feed.controller.rate < rate


def test_several_throttles_within_a_second_cut_once():
    feed = paced(10, 10)
    rate, epoch = feed.controller.rate, feed.controller.epoch
    for _ in range(3):
        feed.controller.throttled(feed.now + 0.2, epoch)
    assert feed.controller.rate == rate


def test_the_rate_holds_and_then_grows_faster_and_faster_while_it_binds():
    feed = paced(10, 10)
    cut = feed.controller.rate
    for _ in range(int(4 * HOLD_S)):
        feed.report(replies=9, binds=True)
    assert feed.controller.rate == pytest.approx(cut)
    after = []
    for _ in range(3):
        for _ in range(20):
            feed.report(replies=9, binds=True)
        after.append(feed.controller.rate)
    growth = [later / sooner for sooner, later in zip([cut, *after], after, strict=False)]
    assert 1.03 < growth[0] < growth[1] < growth[2] < 1.3


def test_the_rate_does_not_grow_while_something_else_binds():
    feed = paced(10, 10)
    cut = feed.controller.rate
    for _ in range(200):
        feed.report(replies=5, in_flight=2, waiting=False, binds=False)
    assert feed.controller.rate == cut


def test_a_throttle_of_the_first_burst_does_not_end_the_search():
    feed = Feed()
    controller = feed.report(replies=0, sent=8, throttled=3)
    assert controller.is_starting
    assert controller.rate >= 0.9
    before = controller.rate
    for _ in range(20):
        feed.report(replies=2, binds=True)
    assert controller.rate > 4 * before


def test_a_larger_window_is_kept_when_it_brings_more_replies_and_given_up_when_not():
    for per_window, grows in ((0.5, True), (None, False)):
        feed = Feed()
        feed.controller._starting = False
        feed.controller.window = 40.0
        for _ in range(60 * 4):
            replies = round(feed.controller.window * per_window) if per_window else 20
            feed.report(replies=replies, latency_s=0.5)
        assert (feed.controller.window > 80) == grows
        if not grows:
            assert feed.controller.window <= 50


def test_a_smaller_window_is_tried_where_replies_queue():
    feed = Feed()
    controller = feed.controller
    for _ in range(4):
        feed.report(replies=40, latency_s=0.5)
    controller._starting = False
    controller.window = 200.0
    for _ in range(120 * 4):  # 40 slots: more in flight only queue
        busy = min(40, controller.window)
        feed.report(replies=round(busy / 2), latency_s=0.5 * max(1, controller.window / 40))
    assert 35 <= controller.window < 90


def test_a_throttle_of_a_larger_window_on_trial_takes_it_back_without_a_cut_of_the_rate():
    feed = Feed()
    controller = feed.controller
    controller._starting = False
    controller.window = 40.0
    while controller.window == 40:
        feed.report(replies=20)
    feed.report(replies=20, throttled=1)
    assert controller.window == 40
    assert controller.rate is None


def test_first_replies_that_wait_for_few_slots_are_known_as_such():
    latencies = Latencies(0.0)
    for reply in range(8):
        latencies.add(0.0, 1, 1.0 * (1 + reply // 2))  # two slots: 1, 1, 2, 2, 3, 3, 4, 4
    assert not latencies.may_queue
    for reply in range(8, 16):
        latencies.add(0.0, 1, 1.0 * (1 + reply // 2))
    assert latencies.may_queue
    assert latencies.unqueued_s == pytest.approx(1.5)


def test_a_small_window_stops_growing_when_the_latest_replies_are_late_and_soon_ends_the_search():
    feed = Feed()
    for _ in range(3):
        controller = feed.report(replies=2, latency_s=1.0)
    small = controller.window
    for _ in range(3):
        controller = feed.report(replies=2, latency_s=2.0)
    assert controller.window <= small + 4
    assert controller.is_starting
    for _ in range(4):
        controller = feed.report(replies=2, latency_s=2.0)
    assert not controller.is_starting


def test_what_replies_took_long_ago_is_forgotten():
    latencies = Latencies(0.0)
    latencies.add(0.0, 32, 32 * 0.1)
    assert not latencies.queue(1.5)
    latencies.add(10.0, 32, 32 * 1.0)
    assert latencies.queue(1.5)
    for minute in range(1, 10):
        latencies.add(60.0 * minute, 32, 32 * 1.0)
    assert not latencies.queue(1.5)
    assert math.isclose(latencies.unqueued_s, 1.0)
