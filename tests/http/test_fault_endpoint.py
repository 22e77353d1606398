"""The fault endpoint itself: what it counts and enforces must be right, or the tests that rely on it prove nothing."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from batch_infer.testing import (
    BODY_FAULTS,
    EndpointConfig,
    EndpointControl,
    FaultEndpoint,
    Rule,
    chat_text,
    count_tokens,
    embedding,
)
from batch_infer.testing.behaviour import hash_fraction
from batch_infer.testing.rates import Bucket, RateLimits, duration
from batch_infer.testing.replies import chat_reply, embeddings_reply, spoil
from tests.support.paths import ROOT


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(url: str, fields: Any = None, *, key: str | None = None, raw: bytes | None = None) -> Answer:
    data = raw if raw is not None else None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(url, data=data)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        response = OPENER.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        body = response.read()
        with contextlib.suppress(ValueError):
            body = json.loads(body)
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, body)


def chat(endpoint: FaultEndpoint, prompt: str, **fields: Any) -> Answer:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": prompt}]
    return call(f"{endpoint.base_url}/chat/completions", {"model": "m", "messages": messages, **fields})


def embed(endpoint: FaultEndpoint, *inputs: str, **fields: Any) -> Answer:
    return call(f"{endpoint.base_url}/embeddings", {"model": "m", "input": list(inputs), **fields})


Tell = Callable[..., FaultEndpoint]


class TestReplies:
    def test_a_chat_reply_and_its_usage_can_be_recomputed(self, tell: Tell) -> None:
        endpoint = tell()
        prompt = "What is the capital of France, and why is it so?"
        body = chat(endpoint, prompt).body
        choice = body["choices"][0]
        assert choice["message"]["content"] == chat_text(prompt) == f"echo: {prompt[:40]}"
        assert choice["finish_reason"] == "stop"
        assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 10, "total_tokens": 21}

    def test_several_choices_are_billed_each(self, tell: Tell) -> None:
        body = chat(tell(), "hi", n=3).body
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == 3 * count_tokens("echo: hi")

    def test_replies_can_be_made_longer(self, tell: Tell) -> None:
        assert chat(tell(reply_words=50), "hi").body["usage"]["completion_tokens"] == 50

    def test_parts_of_a_message_are_one_prompt(self, tell: Tell) -> None:
        endpoint = tell()
        parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
        call(f"{endpoint.base_url}/chat/completions", {"messages": messages})
        assert endpoint.calls_by_prompt() == {"ab": 1}

    def test_a_json_schema_is_satisfied(self, tell: Tell) -> None:
        schema = {
            "type": "object",
            "properties": {
                "label": {"enum": ["good", "bad"]},
                "score": {"type": "number"},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
                "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            },
            "$defs": {"tag": {"type": "string"}},
        }
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        text = chat(tell(), "hi", response_format=form).body["choices"][0]["message"]["content"]
        assert json.loads(text) == {"label": "good", "score": 1.5, "tags": ["echo: hi"], "note": None}

    def test_completions_speak_the_older_format(self, tell: Tell) -> None:
        body = call(f"{tell().base_url}/completions", {"model": "m", "prompt": "one two"}).body
        assert body["choices"][0]["text"] == "echo: one two"
        assert body["usage"]["prompt_tokens"] == 2

    def test_embeddings_are_deterministic_unit_vectors_in_order(self, tell: Tell) -> None:
        body = embed(tell(), "one", "two words", "one", dimensions=8).body
        vectors = [item["embedding"] for item in body["data"]]
        assert [item["index"] for item in body["data"]] == [0, 1, 2]
        assert vectors == [embedding("one", 8), embedding("two words", 8), embedding("one", 8)]
        assert all(math.isclose(sum(x * x for x in vector), 1.0) for vector in vectors)
        assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}

    def test_embeddings_can_be_asked_for_as_base64(self, tell: Tell) -> None:
        raw = base64.b64decode(embed(tell(), "x", encoding_format="base64").body["data"][0]["embedding"])
        assert struct.unpack("<16f", raw) == pytest.approx(embedding("x"))

    def test_other_prefixes_work_and_invocations_go_by_the_body(self, tell: Tell) -> None:
        root = tell().base_url.removesuffix("/v1")
        messages = [{"role": "user", "content": "hi"}]
        assert call(f"{root}/openai/deployments/d/chat/completions?v=1", {"messages": messages}).status == 200
        assert call(f"{root}/serving-endpoints/e/invocations", {"input": "x"}).body["data"]
        assert call(f"{root}/serving-endpoints/e/invocations", {"prompt": "x"}).body["choices"][0]["text"]

    def test_models_are_listed_and_others_are_not_found(self, tell: Tell) -> None:
        endpoint = tell(models=["m1", "m2"])
        assert [m["id"] for m in call(f"{endpoint.base_url}/models").body["data"]] == ["m1", "m2"]
        answer = chat(endpoint, "hi")
        assert (answer.status, answer.body["error"]["code"]) == (404, "model_not_found")

    def test_bad_requests_are_refused(self, tell: Tell) -> None:
        endpoint = tell(max_inputs=2)
        assert call(f"{endpoint.base_url}/chat/completions", raw=b"{nonsense").status == 400
        assert call(f"{endpoint.base_url}/chat/completions", [1]).status == 400
        assert call(f"{endpoint.base_url}/chat/completions", {"messages": []}).status == 400
        assert call(f"{endpoint.base_url}/nothing", {}).status == 404
        assert embed(endpoint, "a", "b", "c").status == 400
        assert chat(endpoint, "x", n="three").body["error"]["code"] == "script_error"
        assert endpoint.stats()["in_flight"] == 0


class TestCounts:
    def test_requests_rows_prompts_and_tokens_are_counted(self, tell: Tell) -> None:
        endpoint = tell()
        for prompt in ("a b", "a b", "c"):
            chat(endpoint, prompt)
        embed(endpoint, "a b", "d")
        stats = endpoint.stats()
        assert (stats["requests"], stats["rows"], stats["billed_rows"]) == (4, 5, 5)
        assert endpoint.calls_by_prompt() == {"a b": 3, "c": 1, "d": 1}
        assert endpoint.billed_by_prompt() == endpoint.calls_by_prompt()
        assert stats["prompt_tokens"] == 2 + 2 + 1 + 2 + 1
        assert stats["completion_tokens"] == 3 + 3 + 2
        assert stats["status_counts"] == {"200": 4}
        assert stats["paths"] == {"/v1/chat/completions": 3, "/v1/embeddings": 1}

    def test_arrivals_and_bodies_are_kept_in_order(self, tell: Tell) -> None:
        endpoint = tell(keep_bodies=100)
        for i in range(5):
            chat(endpoint, str(i))
        arrivals = endpoint.arrivals()
        assert len(arrivals) == 5
        assert arrivals == sorted(arrivals)
        assert [body["messages"][-1]["content"] for body in endpoint.bodies()] == list("01234")
        stats = endpoint.stats()
        assert stats["first_request_at"] == arrivals[0]
        assert stats["last_reply_at"] >= arrivals[-1]

    def test_reset_forgets(self, tell: Tell) -> None:
        endpoint = tell()
        chat(endpoint, "x")
        endpoint.reset()
        assert endpoint.stats()["requests"] == 0
        assert endpoint.stats()["first_request_at"] is None
        assert endpoint.arrivals() == []
        assert endpoint.calls_by_prompt() == {}

    def test_header_names_are_counted_and_values_are_not_shown(self, tell: Tell) -> None:
        endpoint = tell(api_key="sk-secret")
        call(f"{endpoint.base_url}/models", key="sk-secret")
        stats = endpoint.stats()
        assert stats["header_names"]["authorization"] == 1
        assert stats["authorized"] == 1
        assert "sk-secret" not in json.dumps(stats)

    def test_refused_requests_are_not_billed(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule("bad", status=500)])
        chat(endpoint, "bad one")
        assert endpoint.calls_by_prompt() == {"bad one": 1}
        assert endpoint.billed_by_prompt() == {}
        assert endpoint.stats()["completion_tokens"] == 0

    def test_a_caller_who_goes_away_is_counted(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule(fault="stall")])
        with pytest.raises(TimeoutError):
            OPENER.open(f"{endpoint.base_url}/completions", b'{"prompt":"x"}', timeout=0.1)
        assert endpoint.wait_until("in_flight", at_most=0)["abandoned"] == 1

    def test_a_wait_that_is_not_met_times_out(self, tell: Tell) -> None:
        with pytest.raises(TimeoutError, match="requests"):
            tell().wait_until("requests", at_least=1, timeout_s=0.05)

    def test_an_unknown_count_is_refused(self, tell: Tell) -> None:
        with pytest.raises(ValueError, match="'nonsense'"):
            tell().wait_until("nonsense", at_least=1)


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Answer]]]:
    with ThreadPoolExecutor(20) as pool:
        yield lambda *args, **kwargs: pool.submit(*args, **kwargs)


Background = Callable[..., "Future[Answer]"]


class TestConcurrency:
    def test_held_requests_are_in_flight_until_released(self, tell: Tell, in_background: Background) -> None:
        endpoint = tell(rules=[Rule("hold", hold=True)])
        held = [in_background(chat, endpoint, f"hold {i}") for i in range(3)]
        endpoint.wait_until("in_flight", at_least=3)
        assert chat(endpoint, "quick").status == 200
        assert not any(future.done() for future in held)
        assert endpoint.stats()["peak_in_flight"] == 4
        endpoint.release()
        assert {future.result(5).status for future in held} == {200}
        assert endpoint.stats()["in_flight"] == 0

    def test_slots_limit_what_is_served_and_the_rest_queues(self, tell: Tell, in_background: Background) -> None:
        endpoint = tell(slots=2, rules=[Rule(hold=True)])
        futures = [in_background(chat, endpoint, str(i)) for i in range(5)]
        stats = endpoint.wait_until("in_flight", at_least=5)
        assert (stats["serving"], stats["queued"]) == (2, 3)
        for left in (3, 1, 0):
            endpoint.release()
            endpoint.wait_until("in_flight", at_most=left)
        assert {future.result(5).status for future in futures} == {200}
        assert endpoint.stats()["peak_served"] == 2

    def test_a_full_queue_answers_503(self, tell: Tell, in_background: Background) -> None:
        endpoint = tell(slots=1, queue_limit=1, rules=[Rule("hold", hold=True)])
        futures = [in_background(chat, endpoint, "hold") for _ in range(2)]
        endpoint.wait_until("queued", at_least=1)
        assert chat(endpoint, "x").status == 503
        endpoint.release()
        endpoint.wait_until("queued", at_most=0)
        endpoint.release()
        assert {future.result(5).status for future in futures} == {200}

    def test_a_slot_is_freed_when_its_caller_goes_away(self, tell: Tell) -> None:
        endpoint = tell(slots=1, rules=[Rule("stall", fault="stall")])
        with pytest.raises(TimeoutError):
            OPENER.open(f"{endpoint.base_url}/completions", b'{"prompt":"stall"}', timeout=0.1)
        assert chat(endpoint, "x").status == 200

    def test_latency_is_kept(self, tell: Tell) -> None:
        endpoint = tell(latency_s=0.1)
        chat(endpoint, "x")
        stats = endpoint.stats()
        assert 0.09 <= stats["last_reply_at"] - stats["first_request_at"] < 1


class TestRules:
    def statuses(self, endpoint: FaultEndpoint, *prompts: str) -> list[int]:
        return [chat(endpoint, prompt).status for prompt in prompts]

    def test_the_first_rule_that_applies_decides(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule("ab", status=501), Rule("a", status=502)])
        assert self.statuses(endpoint, "ab", "a", "b") == [501, 502, 200]

    def test_a_regular_expression_matches(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule(regex=r"^row \d0$", status=500)])
        assert self.statuses(endpoint, "row 10", "row 11", "a row 10") == [500, 200, 200]

    def test_a_rule_for_the_nth_request(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule(nth=2, status=500), Rule(every=3, status=502)])
        assert self.statuses(endpoint, *"abcdef") == [200, 500, 502, 200, 200, 502]

    def test_times_bounds_a_rule(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule(times=2, status=429, headers={"retry-after": "1"})])
        answers = [chat(endpoint, "x") for _ in range(3)]
        assert [answer.status for answer in answers] == [429, 429, 200]
        assert answers[0].headers["retry-after"] == "1"

    def test_per_prompt_times_lets_the_retry_of_a_row_through(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule(per_prompt_times=2, status=500)])
        assert self.statuses(endpoint, *"aabbab") == [500, 500, 500, 500, 200, 200]

    def test_per_prompt_times_counts_the_inputs_of_a_pack(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule("bad", per_prompt_times=1, status=500)])
        assert embed(endpoint, "x", "bad 1").status == 500
        assert embed(endpoint, "y", "bad 1").status == 200
        assert embed(endpoint, "bad 1", "bad 2").status == 500

    def test_a_match_in_any_input_decides_the_pack(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule("bad", status=400, error={"message": "no", "code": "bad_input"})])
        answer = embed(endpoint, "good", "bad", "good")
        assert (answer.status, answer.body) == (400, {"error": {"message": "no", "code": "bad_input"}})

    def test_a_fraction_depends_on_the_prompt_alone(self, tell: Tell) -> None:
        endpoint = tell(rules=[Rule(fraction=0.5, status=500)])
        prompts = [str(i) for i in range(20)]
        expected = [500 if hash_fraction(prompt) < 0.5 else 200 for prompt in prompts]
        assert self.statuses(endpoint, *prompts) == self.statuses(endpoint, *prompts) == expected
        assert 500 in expected
        assert 200 in expected

    def test_text_body_latency_and_headers_can_be_scripted(self, tell: Tell) -> None:
        rules = [
            Rule("text", text="another answer", headers={"x-extra": "1"}),
            Rule("body", body="raw", headers={"content-type": "text/plain"}),
            Rule("slow", latency_s=0.05),
        ]
        endpoint = tell(rules=rules)
        answer = chat(endpoint, "text")
        assert answer.body["choices"][0]["message"]["content"] == "another answer"
        assert answer.headers["x-extra"] == "1"
        assert chat(endpoint, "body").body == b"raw"
        assert chat(endpoint, "body").headers["content-type"] == "text/plain"
        assert chat(endpoint, "slow").status == 200

    def test_rules_can_change_while_it_runs(self, tell: Tell) -> None:
        endpoint = tell(latency_s=0.001, rules=[Rule(status=500)])
        assert chat(endpoint, "x").status == 500
        endpoint.configure(rules=[])
        assert chat(endpoint, "x").status == 200
        assert endpoint.stats()["requests"] == 2

    def test_an_unknown_fault_or_setting_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no fault 'explode'"):
            Rule(fault="explode")
        with pytest.raises(TypeError, match="latency_ms"):
            FaultEndpoint(latency_ms=3)

    def test_a_fault_that_does_not_apply_is_said(self, tell: Tell) -> None:
        answer = chat(tell(rules=[Rule(fault="short_batch")]), "x")
        assert (answer.status, answer.body["error"]["code"]) == (500, "script_error")


class TestLimits:
    def test_a_wrong_key_gets_401(self, tell: Tell) -> None:
        endpoint = tell(api_key="right")
        assert call(f"{endpoint.base_url}/models", key="right").status == 200
        assert call(f"{endpoint.base_url}/models", key="wrong").status == 401
        assert call(f"{endpoint.base_url}/models").status == 401

    def test_a_key_can_be_revoked_in_mid_run(self, tell: Tell) -> None:
        endpoint = tell(unauthorized_after=3)
        assert [chat(endpoint, "x").status for _ in range(4)] == [200, 200, 401, 401]

    def test_the_request_limit_answers_429_and_says_how_long(self, tell: Tell) -> None:
        endpoint = tell(requests_per_minute=60, burst=2, rate_headers=True)
        answers = [chat(endpoint, "x") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        refused = answers[-1]
        assert refused.headers["retry-after"] == "1"
        assert 0 < int(refused.headers["retry-after-ms"]) <= 1000
        assert refused.headers["x-ratelimit-limit-requests"] == "60"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.body["error"]["code"] == "rate_limit_exceeded"

    def test_the_token_limit_reserves_and_credits(self, tell: Tell) -> None:
        endpoint = tell(tokens_per_minute=60, burst_tokens=100)
        assert chat(endpoint, "one two", max_tokens=98).status == 200  # 100 reserved, 5 used
        assert chat(endpoint, "one two", max_tokens=95).status == 429  # 97 of the 95 that are left
        assert chat(endpoint, "one two", max_completion_tokens=90).status == 200

    def test_a_bucket_admits_what_its_rate_allows_in_every_window(self) -> None:
        bucket = Bucket(per_minute=600, size=5, now=0.0)
        admitted = []
        for tick in range(3000):
            now = tick / 100
            if bucket.missing_s(1, now) <= 0:
                bucket.take(1)
                admitted.append(now)
        assert len(admitted) == pytest.approx(300 + 5, abs=1)
        for start in admitted:
            assert sum(start <= at < start + 1 for at in admitted) <= 10 + 5

    def test_an_amount_larger_than_the_bucket_is_never_admitted(self) -> None:
        limits = RateLimits(EndpointConfig(tokens_per_minute=100), 0.0)
        assert limits.admit(101, 0.0) is not None
        assert limits.admit(100, 0.0) is None

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.0, "0ms"), (0.12, "120ms"), (1.5, "1.5s"), (60, "1m0s"), (360, "6m0s")]
    )
    def test_durations_look_like_openais(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


@pytest.mark.parametrize("fault", sorted(BODY_FAULTS))
def test_every_body_fault_spoils_a_reply_of_its_kind(fault: str) -> None:
    chats = chat_reply({"model": "m"}, 2, "echo: hi you", 1)
    vectors = embeddings_reply({"model": "m"}, ["a", "b"], 4)
    spoilt = 0
    for reply in (chats, vectors):
        whole = msgspec.json.encode(reply)
        try:
            status, headers, body = spoil(fault, reply)
        except ValueError:
            continue
        spoilt += 1
        assert (status, body) != (200, whole) or headers
    assert spoilt


class TestProcess:
    def test_another_process_can_ask_by_url(self, tell: Tell) -> None:
        endpoint = tell()
        chat(endpoint, "x")
        script = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from batch_infer.testing import EndpointControl\n"
            f"print(EndpointControl({endpoint.base_url!r}).stats()['requests'])\n"
        )
        assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout == b"1\n"
        assert EndpointControl(endpoint.control_url).calls_by_prompt() == {"x": 1}

    def test_it_dies_with_its_parent_even_when_that_is_killed(self) -> None:
        script = (
            f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
            "from batch_infer.testing import FaultEndpoint\n"
            "print(FaultEndpoint().pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert parent.stdout is not None
        assert parent.stderr is not None
        with parent.stdout, parent.stderr:
            assert int(parent.stdout.readline())
            parent.kill()
            parent.wait()
            parent.stderr.read()  # ends when the endpoint, which has inherited it, is gone

    def test_it_ends_with_its_block(self) -> None:
        with FaultEndpoint() as endpoint:
            pid = endpoint.pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        endpoint.close()

    def test_it_can_be_started_by_hand(self, tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text('{"api_key": "k", "rules": [{"match": "bad", "status": 400}]}')
        process = subprocess.Popen(
            [sys.executable, "-m", "batch_infer.testing.endpoint", "--config", f"@{config}"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        with process.stdout:
            urls = json.loads(process.stdout.readline())
            url = f"{urls['base_url']}/completions"
            assert call(url, {"prompt": "x"}, key="k").status == 200
            assert call(url, {"prompt": "bad"}, key="k").status == 400
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0

    def test_a_bad_configuration_is_said_at_the_start(self) -> None:
        command = [sys.executable, "-m", "batch_infer.testing.endpoint", "--config", '{"latency_ms": 3}']
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 2
        assert "latency_ms" in done.stderr
