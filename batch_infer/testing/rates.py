"""Owns the fault endpoint's rate limits: two token buckets and the headers that report them. Pure; no clock."""

from __future__ import annotations

import math

import msgspec

from batch_infer.testing.config import EndpointConfig


class Bucket:
    """A token bucket that starts full.

    Args:
        per_minute: Refill.
        size: What it holds at most.
        now: The current time in seconds; every later call takes a `now` of the same clock.
    """

    def __init__(self, per_minute: float, size: float, now: float) -> None:
        self.per_second = per_minute / 60.0
        self.per_minute = per_minute
        self.size = size
        self._level = size
        self._at = now

    def level(self, now: float) -> float:
        """What is in it at `now`."""
        self._level = min(self.size, self._level + (now - self._at) * self.per_second)
        self._at = now
        return self._level

    def missing_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 when it is there already. Never more than a wait for a full bucket."""
        return max(0.0, (min(amount, self.size) - self.level(now)) / self.per_second)

    def take(self, amount: float) -> None:
        """Takes `amount`; a negative one is a credit. Check `missing_s` first."""
        self._level = min(self.size, self._level - amount)


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is over a limit, and for how long."""

    what: str
    wait_s: float


class RateLimits:
    """The endpoint's limits on requests and tokens, each a bucket; without limits everything is admitted."""

    def __init__(self, config: EndpointConfig, now: float) -> None:
        rpm, tpm = config.requests_per_minute, config.tokens_per_minute
        self._retry_after = config.retry_after
        self._requests = None if rpm is None else Bucket(rpm, config.burst or max(1.0, rpm / 60.0), now)
        self._tokens = None if tpm is None else Bucket(tpm, config.burst_tokens or tpm, now)

    def admit(self, tokens: int, now: float) -> Refusal | None:
        """Takes one request and `tokens` out of the buckets, or nothing at all and says why."""
        for name, bucket, amount in (("requests", self._requests, 1.0), ("tokens", self._tokens, float(tokens))):
            if bucket is not None:
                wait_s = bucket.missing_s(amount, now)
                if wait_s > 0 or amount > bucket.size:
                    return Refusal(name, wait_s)
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return None

    def settle(self, reserved: int, used: int) -> None:
        """Credits back what was reserved and not used."""
        if self._tokens is not None:
            self._tokens.take(used - reserved)

    def retry_headers(self, wait_s: float) -> dict[str, str]:
        """`retry-after` in whole seconds, rounded up, and `retry-after-ms`, as configured."""
        headers = {}
        if self._retry_after in ("both", "seconds"):
            headers["retry-after"] = str(max(1, math.ceil(wait_s)))
        if self._retry_after in ("both", "milliseconds"):
            headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
        return headers

    def state_headers(self, now: float) -> dict[str, str]:
        """`x-ratelimit-{limit,remaining,reset}-*`, the reset as a duration such as `6m0s` or `120ms`."""
        headers = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(int(bucket.per_minute))
                headers[f"x-ratelimit-remaining-{name}"] = str(int(max(0.0, bucket.level(now))))
                headers[f"x-ratelimit-reset-{name}"] = duration(bucket.missing_s(bucket.size, now))
        return headers


def duration(seconds: float) -> str:
    """Seconds in the format of OpenAI's reset headers: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.3g}s"
