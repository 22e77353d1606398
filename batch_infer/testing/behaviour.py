"""Owns the decision what to do with a request: limits, authentication, rules. Pure; does not send or wait."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from batch_infer.testing import replies
from batch_infer.testing.config import BODY_FAULTS, WIRE_FAULTS, EndpointConfig, Rule
from batch_infer.testing.dialects import messages_reply, predictions_reply
from batch_infer.testing.incoming import Incoming
from batch_infer.testing.rates import RateLimits
from batch_infer.testing.tokens import IssuedTokens


class Decision(msgspec.Struct):
    """What to send, and when."""

    status: int
    headers: dict[str, str]
    body: bytes
    latency_s: float = 0.0
    hold: bool = False
    fault: str | None = None
    """A member of `WIRE_FAULTS`; faults of the body are in `body` already."""
    rule: Rule | None = None
    admitted: bool = False
    """Whether it takes one of the endpoint's slots."""
    reserved_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Behaviour:
    """Decides requests one after the other, in the order in which they arrive.

    Args:
        config: What the endpoint was told.
        now: The current time in seconds, of the clock that `decide` is given.
    """

    def __init__(self, config: EndpointConfig, now: float) -> None:
        self.config = config
        self.limits = RateLimits(config, now)
        self._random = random.Random(0)  # noqa: S311 - jitter, reproducible on purpose
        self._arrived = 0
        self._passed = 0
        self._rules = [_Armed(rule) for rule in config.rules]
        client = config.oauth_client
        self.tokens = None if not client else IssuedTokens(client, config.oauth_lifetime_s, config.oauth_token_uses)

    def authorised(self, key: str | None) -> bool:
        """Whether a request with this key passes; counts the request."""
        self._arrived += 1
        limit = self.config.unauthorized_after
        if limit is not None and self._arrived >= limit:
            return False
        if self.tokens:
            return self.tokens.accepts(key)
        return self.config.api_key is None or key == self.config.api_key

    def decide(self, request: Incoming, now: float) -> Decision:
        """What becomes of an authenticated request: refused by a limit, scripted by a rule, or answered."""
        reserved = request.prompt_tokens
        if request.api not in ("embeddings", "custom"):
            reserved += self._max_tokens(request.body)
        refusal = self.limits.admit(reserved, now)
        if refusal is not None:
            message = f"Rate limit reached on {refusal.what}; try again in {refusal.wait_s:.3f} s."
            body = replies.error_body(429, message, kind=refusal.what, code="rate_limit_exceeded")
            return Decision(429, self._with_state(self.limits.retry_headers(refusal.wait_s), now), body)
        self._passed += 1
        rule = next((armed.rule for armed in self._rules if armed.fires(request.prompts, self._passed)), None)
        decision = self._answer(request, rule)
        decision.admitted = True
        decision.reserved_tokens = reserved
        decision.headers = self._with_state(decision.headers, now)
        return decision

    def _max_tokens(self, body: Mapping[str, Any]) -> int:
        named = body.get("max_completion_tokens") or body.get("max_tokens")
        return named if isinstance(named, int) else self.config.default_max_tokens

    def _with_state(self, headers: dict[str, str], now: float) -> dict[str, str]:
        return {**self.limits.state_headers(now), **headers} if self.config.rate_headers else headers

    def _answer(self, request: Incoming, rule: Rule | None) -> Decision:
        config = self.config
        latency_s = config.latency_s
        if config.latency_jitter_s:
            latency_s += self._random.uniform(0.0, config.latency_jitter_s)
        if rule is None:
            decision = self._refuse(request) or self._reply(request, None)
            decision.latency_s = latency_s
            return decision
        decision = _scripted_body(rule) or self._reply(request, rule)
        decision.latency_s = latency_s if rule.latency_s is None else rule.latency_s
        decision.hold = rule.hold
        decision.headers = {**decision.headers, **rule.headers}
        decision.rule = rule
        if rule.fault in WIRE_FAULTS:
            decision.fault = rule.fault
        return decision

    def _refuse(self, request: Incoming) -> Decision | None:
        model = request.body.get("model")
        if self.config.models and model not in self.config.models:
            message = f"The model {str(model)[:80]!r} does not exist."
            return Decision(404, {}, replies.error_body(404, message, code="model_not_found"))
        limit = self.config.max_inputs
        if limit is not None and len(request.prompts) > limit:
            message = f"{len(request.prompts)} inputs are more than the {limit} allowed."
            return Decision(400, {}, replies.error_body(400, message, kind="invalid_request_error"))
        return None

    def _reply(self, request: Incoming, rule: Rule | None) -> Decision:
        reply = self._correct_reply(request, rule.text if rule is not None else None)
        usage = reply.get("usage", {})
        decision = Decision(200 if rule is None else rule.status, {}, b"")
        decision.prompt_tokens = usage.get("prompt_tokens") or usage.get("input_tokens", 0)
        decision.completion_tokens = usage.get("completion_tokens") or usage.get("output_tokens", 0)
        if rule is None or rule.fault not in BODY_FAULTS:
            decision.body = msgspec.json.encode(reply)
            return decision
        try:
            status, decision.headers, decision.body = replies.spoil(rule.fault, reply)
        except ValueError as error:
            return Decision(500, {}, replies.error_body(500, str(error), code="script_error"))
        if rule.status == 200:
            decision.status = status
        return decision

    def _correct_reply(self, request: Incoming, scripted: str | None) -> dict[str, Any]:
        if request.api == "embeddings":
            return replies.embeddings_reply(request.body, request.prompts, self.config.dimensions)
        if request.api == "custom":
            return predictions_reply(request.body, scripted)
        text = replies.chat_text(request.prompts[0], self.config.reply_words) if scripted is None else scripted
        return _BUILD[request.api](request.body, request.prompt_tokens, text, self._passed)


_BUILD = {"chat": replies.chat_reply, "completions": replies.completion_reply, "messages": messages_reply}


def _scripted_body(rule: Rule) -> Decision | None:
    if rule.body is not None:
        return Decision(rule.status, {}, rule.body.encode("utf-8", "surrogatepass"))
    if rule.error is not None:
        return Decision(rule.status, {}, msgspec.json.encode({"error": rule.error}))
    if rule.status >= 400:
        code = "rate_limit_exceeded" if rule.status == 429 else None
        return Decision(rule.status, {}, replies.error_body(rule.status, f"Scripted {rule.status}.", code=code))
    return None


class _Armed:
    """A rule and how often it may still fire."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._regex = None if rule.regex is None else re.compile(rule.regex)
        self._left = rule.times
        self._fired_by_prompt: Counter[str] = Counter()

    def fires(self, prompts: Iterable[str], number: int) -> bool:
        """Whether the rule applies to the `number`-th request; if so, that is one of its times."""
        rule = self.rule
        if self._left == 0:
            return False
        if rule.nth is not None and number != rule.nth:
            return False
        if rule.every is not None and number % rule.every:
            return False
        if rule.match is not None or self._regex is not None or rule.fraction is not None:
            prompts = [prompt for prompt in prompts if self._matches(prompt)]
            if not prompts:
                return False
        if rule.per_prompt_times is not None:
            due = [prompt for prompt in prompts if self._fired_by_prompt[prompt] < rule.per_prompt_times]
            if not due:
                return False
            self._fired_by_prompt.update(due)
        if self._left is not None:
            self._left -= 1
        return True

    def _matches(self, prompt: str) -> bool:
        rule = self.rule
        if rule.match is not None and rule.match not in prompt:
            return False
        if self._regex is not None and not self._regex.search(prompt):
            return False
        return rule.fraction is None or hash_fraction(prompt) < rule.fraction


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone; `Rule.fraction` compares with it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
