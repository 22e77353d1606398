"""What each HTTP status means: its error class, its kind, how long to wait, and words that hold no key."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.adapters.providers.anthropic import ANTHROPIC
from batch_infer.adapters.transport.status import MAX_RETRY_AFTER_S, NO_RULES, error_in_reply, error_of, retry_after_s
from batch_infer.contract.errors import Ambiguous, EndpointError, JobRejected, RowRejected, Throttled, Transient
from batch_infer.testing.replies import error_body

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def made(status, body=b"", now=NOW, rules=NO_RULES, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_of("'mine'", status, names, body, now, rules=rules)


CLASSES = {
    Throttled: [429, 503, 529],
    Transient: [408, 409, 425, 500, 501, 502, 504, 505, 520, 599],
    RowRejected: [400, 406, 410, 413, 415, 418, 422, 451],
    JobRejected: [401, 402, 403, 404, 405, 300, 301, 302, 303, 307, 308],
}


@pytest.mark.parametrize(("cls", "status"), [(cls, status) for cls, all_ in CLASSES.items() for status in all_])
def test_each_status_has_one_class(cls, status):
    error = made(status, error_body(status, "What happened."), x_request_id="req-1")
    assert type(error) is cls
    assert (error.status, error.request_id) == (status, "req-1")
    assert "endpoint 'mine'" in error.message
    assert str(status) in error.message
    assert error.kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication"),
        (402, "billing"),
        (403, "permission"),
        (404, "not_found"),
        (405, "not_found"),
        (302, "redirect"),
        (429, "rate_limited"),
        (503, "overloaded"),
        (529, "overloaded"),
        (500, "server_error"),
        (400, "bad_request"),
        (413, "too_large"),
    ],
)
def test_kinds_are_stable_words(status, kind):
    assert made(status).kind == kind


def test_a_job_fatal_message_says_what_to_do_next():
    assert "Check the key that the endpoint's api_key refers to" in made(401, error_body(401, "No.")).message
    assert "base_url and model" in made(404).message
    assert "redirects are not followed" in made(307).message


BILLING = [
    {"error": {"message": "You exceeded it.", "type": "insufficient_quota", "code": "insufficient_quota"}},
    {"error": {"message": "No credit.", "type": "insufficient_quota", "code": "credit_balance_exhausted"}},
    {"error": {"message": "x", "code": "project_spend_limit_exceeded"}},
    {"error": {"message": "x", "code": "organization_usage_limit_exceeded"}},
    {"type": "error", "error": {"type": "enforced_spend_limit_reached", "message": "x"}},
    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota.",
               "details": [{"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}]}},
]  # fmt: skip


@pytest.mark.parametrize("body", BILLING, ids=str)
def test_a_429_about_money_or_a_daily_quota_stops_the_job(body):
    error = made(429, json.dumps(body).encode(), retry_after="5")
    assert type(error) is JobRejected
    assert error.kind == "billing"
    assert "Check its billing" in error.message


GOOGLE_WORDS = "You exceeded your current quota, please check your plan and billing details."


def google(*quota_ids, delay=None):
    details = [
        {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": "Learn more", "url": "https://x"}]},
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": i} for i in quota_ids]},
    ]
    if delay is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return {"error": {"code": 429, "message": GOOGLE_WORDS, "status": "RESOURCE_EXHAUSTED", "details": details}}


@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: [error]], ids=["object", "list"])
def test_geminis_daily_quota_stops_the_job_and_any_other_one_is_waited_for(wrap):
    minute, day = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "GenerateRequestsPerDayPerProjectPerModel"
    error = made(429, json.dumps(wrap(google(minute, delay="45.578569677s"))).encode())
    assert type(error) is Throttled
    assert error.retry_after_s == 45.578569677
    assert GOOGLE_WORDS in error.message
    assert type(made(429, json.dumps(wrap(google(minute, day, delay="45s"))).encode())) is JobRejected
    bare = {"error": {"code": 429, "message": "Resource has been exhausted.", "status": "RESOURCE_EXHAUSTED"}}
    error = made(429, json.dumps(wrap(bare)).encode())
    assert type(error) is Throttled
    assert error.retry_after_s is None


def test_a_header_goes_before_geminis_retry_delay_and_garbage_is_no_delay():
    assert made(429, json.dumps(google(delay="45s")).encode(), retry_after="3").retry_after_s == 3
    assert made(429, json.dumps(google(delay="soon")).encode()).retry_after_s is None
    odd = {"error": {"status": "RESOURCE_EXHAUSTED", "details": [7, {"violations": [8], "retryDelay": None}]}}
    assert type(made(429, json.dumps(odd).encode())) is Throttled


@pytest.mark.parametrize(
    ("status", "kind", "message", "cls"),
    [
        (402, "billing_error", "x", JobRejected),
        (529, "overloaded_error", "Overloaded", Throttled),
        (429, "rate_limit_error", "x", Throttled),
        (429, "enforced_spend_limit_reached", "x", JobRejected),
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", JobRejected),
        (400, "invalid_request_error", "max_tokens: Field required", RowRejected),
        (413, "request_too_large", "x", RowRejected),
        (500, "api_error", "x", Transient),
        (504, "timeout_error", "x", Transient),
        (401, "authentication_error", "x", JobRejected),
        (403, "permission_error", "x", JobRejected),
        (404, "not_found_error", "x", JobRejected),
    ],
)
def test_anthropics_documented_errors(status, kind, message, cls):
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    assert type(made(status, json.dumps(body).encode(), rules=ANTHROPIC.errors)) is cls


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded"}},
        {"error": {"message": "x", "code": "slow_down"}},
        {"type": "error", "error": {"type": "rate_limit_error", "message": "x"}},
        {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "x"},
        {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "x",
                   "details": [{"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}]}]}},
    ],
    ids=str,
)  # fmt: skip
def test_any_other_429_is_waited_out(body):
    error = made(429, json.dumps(body).encode(), retry_after="5")
    assert type(error) is Throttled
    assert error.retry_after_s == 5


def test_an_overload_is_waited_out_whatever_its_code():
    error = made(503, error_body(503, "x", code="server_is_overloaded"))
    assert type(error) is Throttled


@pytest.mark.parametrize(
    ("status", "says", "cls"),
    [
        (400, "true", Transient),
        (422, "true", Transient),
        (500, "false", RowRejected),
        (501, "false", RowRejected),
        (409, "false", RowRejected),
        (503, "false", RowRejected),
        (529, "false", RowRejected),
        (429, "false", JobRejected),
        (429, "true", Throttled),
        (500, "true", Transient),
        (401, "true", JobRejected),
    ],
)
def test_x_should_retry_is_honoured_except_for_a_refused_key(status, says, cls):
    assert type(made(status, x_should_retry=says)) is cls


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (error_body(400, "This model's maximum context length is 8192 tokens."), "context_length"),
        (error_body(400, "x", code="context_length_exceeded"), "context_length"),
        (error_body(400, "x", kind="exceed_context_size_error"), "context_length"),
        (error_body(400, "prompt is too long: 210000 tokens > 200000 maximum"), "context_length"),
        (error_body(400, "x", code="content_filter"), "content_filter"),
        (error_body(400, "Your request was rejected.", code="content_policy_violation"), "content_filter"),
        (error_body(400, "Invalid temperature."), "bad_request"),
    ],
)
def test_a_refused_row_says_why(body, kind):
    assert made(400, body).kind == kind


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "5"}, 5),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 -0000"}, 30),
        ({"retry-after": "Thu, 01 Jan 99999999999 12:00:00 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:00 +99999999999999"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "60"}, 1.5),
        ({"retry-after-ms": "-1", "retry-after": "60"}, 0),
        ({"retry-after-ms": "garbage", "retry-after": "2"}, 2),
    ],
    ids=str,
)
def test_retry_after_in_every_form(headers, expected):
    assert retry_after_s(headers, NOW) == expected


@given(st.text())
def test_any_retry_after_is_a_wait_or_nothing(text):
    for name in ("retry-after", "retry-after-ms"):
        wait = retry_after_s({name: text}, NOW)
        assert wait is None or wait >= 0


def test_a_wait_longer_than_a_job_should_take_stops_it():
    error = made(429, retry_after=str(MAX_RETRY_AFTER_S + 1))
    assert type(error) is JobRejected
    assert error.kind == "quota"
    assert type(made(429, retry_after=str(MAX_RETRY_AFTER_S))) is Throttled
    assert type(made(503, retry_after="86400")) is JobRejected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (error_body(400, "The reason."), "The reason."),
        (b'{"message": "The reason."}', "The reason."),
        (b'{"error": "The reason."}', "The reason."),
        (b'{"error_code": "BAD_REQUEST", "message": "The reason."}', "The reason."),
        (b'"The reason."', "The reason."),
        (b"The\n  reason.", "The reason."),
    ],
)
def test_the_endpoints_own_words_are_passed_on(body, said):
    assert made(400, body).message == f"endpoint 'mine': HTTP 400: {said}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Bad gateway</body></html>",
        b"  <!doctype html>",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"null",
        b"3",
        b'{"error": null}',
        b'{"error": []}',
        b'{"error": {}}',
        b'{"error": {"message": null, "code": 7}}',
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_a_body_that_is_no_error_object_does_no_harm(body):
    error = made(502, body)
    assert type(error) is Transient
    assert "<" not in error.message
    assert len(error.message) < 400


@given(st.binary(max_size=300), st.integers(300, 599))
def test_any_body_gives_an_error_of_bounded_length(body, status):
    error = made(status, body)
    assert isinstance(error, EndpointError)
    assert len(error.message) < 600


KEYS = [
    "sk-" + "proj-" + "a1B2" * 10,
    "sk-" + "ant-api03-" + "x" * 30,
    "dap" + "i" + "0123456789abcdef" * 2,
    "AI" + "za" + "Sy0123456789",
    "ey" + "JhbGciOiJIUzI1NiJ9.e30.abc",
    "Bearer " + "abcd1234",
    "sk-" + "12***********34",
]


@pytest.mark.parametrize("key", KEYS)
def test_no_message_repeats_what_looks_like_a_key(key):
    for body in (error_body(401, f"Incorrect API key provided: {key}."), f"key={key}".encode(), f'"{key}"'.encode()):
        message = made(401, body).message
        assert key.removeprefix("Bearer ") not in message
        assert "[redacted]" in message


def test_words_about_keys_are_not_taken_for_keys():
    text = "Incorrect API key provided. You can find your API key at https://platform.example.com/account/api-keys."
    assert made(401, error_body(401, text)).message.startswith(f"endpoint 'mine': HTTP 401: {text}")


def test_a_long_message_is_cut():
    message = made(400, error_body(400, "word " * 1000)).message
    assert message.endswith("…")
    assert len(message) < 250


def test_an_error_inside_a_200_is_judged_by_its_own_code():
    assert type(error_in_reply("'e'", {"code": 429, "message": "x"})) is Throttled
    assert type(error_in_reply("'e'", {"code": 402, "message": "x"})) is JobRejected
    assert type(error_in_reply("'e'", {"code": 400, "message": "x"})) is RowRejected
    for error in (
        {"message": "The model crashed."},
        "The model crashed.",
        {"code": "x", "message": "The model crashed."},
    ):
        made = error_in_reply("'e'", error)
        assert type(made) is Ambiguous
        assert "The model crashed." in made.message
