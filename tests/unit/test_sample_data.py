"""The sample tickets hold what their card promises, and the Parquet file is what its source says."""

import importlib.util
import re
import unicodedata
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.paths import SAMPLE_DATA

CATEGORIES = {"billing", "bug", "shipping", "account", "feature_request", "other"}
COMMON_LANGUAGES = {"en", "de", "fr", "es", "pt", "it", "nl", "pl", "tr", "ja", "zh", "ko", "ar", "he", "hi", "uk"}


def matches(pattern):
    return re.compile(pattern).search


def has_only(pattern):
    return re.compile(pattern).fullmatch


def is_right_to_left(body):
    return any(unicodedata.bidirectional(c) in {"R", "AL"} for c in body)


AWKWARD = {
    "empty string": has_only(r""),
    "whitespace only": has_only(r"\s+"),
    "one word": has_only(r"[a-z]{1,10}"),
    "a very long word": matches(r"\w{500}"),
    "2,000 characters and more": lambda body: len(body) > 2_000,
    "emoji joined by zero-width joiners": matches("[\U0001f300-\U0001faff]\u200d[\U0001f300-\U0001faff]"),
    "flags": matches("[\U0001f1e6-\U0001f1ff]{2}"),
    "single quotes": matches(r"'\w+'"),
    "double quotes": matches(r'"\w+"'),
    "a name in braces": matches(r"(?<!\{)\{\w+(\.\w+)?\}"),
    "empty braces": matches(r"\{\}"),
    "double braces": matches(r"\{\{"),
    "backslashes": matches(r"\\[a-z]"),
    "LF": matches(r"(?<!\r)\n"),
    "CRLF": matches(r"\r\n"),
    "tabs": matches(r"\t"),
    "JSON": matches(r'\{\s*"\w+":'),
    "SQL": matches(r"SELECT .+ FROM "),
    "DROP TABLE": matches(r"'; DROP TABLE"),
    "HTML": matches(r"</\w+>"),
    "right-to-left text": is_right_to_left,
    "mixed direction": lambda body: is_right_to_left(body) and re.search("[A-Za-z]{4}", body),
    "combining characters": matches("[A-Za-z][\u0300-\u036f]"),
    "prompt injection": matches(r"(?i)ignore previous instructions\. you are now"),
    "numbers only": has_only(r"\d+"),
    "a URL only": has_only(r"https://\S+"),
}


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("sample_data_build", SAMPLE_DATA / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    return pq.read_table(SAMPLE_DATA / "tickets.parquet")


@pytest.fixture(scope="module")
def tickets(table):
    return table.to_pylist()


@pytest.fixture(scope="module")
def bodies(tickets):
    return [ticket["body"] for ticket in tickets if ticket["body"] is not None]


def test_the_parquet_file_holds_the_rows_of_its_source(build, table):
    assert table.equals(build.read_source())


def test_rebuilding_writes_the_same_rows(build, table, tmp_path):
    build.write_parquet(build.read_source(), tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(table)


def test_columns_have_the_documented_names_and_types(table):
    text = ["channel", "language", "customer", "subject", "body", "product", "category"]
    expected = {"ticket_id": pa.int64(), "created_at": pa.timestamp("us", "UTC"), **dict.fromkeys(text, pa.string())}
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == expected
    assert list(table.schema.names) == list(expected)


def test_ids_count_up_from_one_and_times_rise_with_them(tickets):
    assert len(tickets) >= 220
    assert [ticket["ticket_id"] for ticket in tickets] == list(range(1, len(tickets) + 1))
    times = [ticket["created_at"] for ticket in tickets]
    assert times == sorted(times)


def test_only_language_subject_and_body_can_be_null(table):
    assert {name for name in table.column_names if table[name].null_count} == {"language", "subject", "body"}


def test_channels_categories_and_languages_come_from_the_documented_sets(tickets):
    assert {ticket["channel"] for ticket in tickets} == {"email", "chat", "web", "phone"}
    assert {ticket["category"] for ticket in tickets} == CATEGORIES
    languages = {ticket["language"] for ticket in tickets} - {None}
    assert all(re.fullmatch("[a-z]{2}", language) for language in languages)
    assert languages >= COMMON_LANGUAGES


def test_bodies_are_between_one_and_8000_characters_unless_empty(bodies):
    lengths = [len(body) for body in bodies if body]
    assert min(lengths) == 1
    assert 7_000 < max(lengths) <= 8_000


@pytest.mark.parametrize("feature", AWKWARD)
def test_some_ticket_has_the_awkward_feature(feature, bodies):
    assert any(AWKWARD[feature](body) for body in bodies)


def test_at_least_three_bodies_are_sent_twice_and_the_rest_differ(bodies):
    times = Counter(body for body in bodies if body.strip())
    assert sum(1 for count in times.values() if count == 2) >= 3
    assert max(times.values()) == 2


def test_the_first_sixty_are_short_and_varied(tickets):
    first = tickets[:60]
    bodies = [ticket["body"] for ticket in first]
    assert bodies.count(None) == 2
    assert bodies.count("") == 1
    assert max(len(body or "") for body in bodies) <= 600
    assert len({ticket["language"] for ticket in first}) >= 10
    assert {ticket["category"] for ticket in first} == CATEGORIES


def test_addresses_and_links_are_reserved_for_examples(tickets):
    text = "\n".join(f"{ticket['subject']}\n{ticket['body']}" for ticket in tickets)
    hosts = re.findall(r"(?:\w@|://)([\w.-]*\w)", text)
    assert hosts
    assert all(host == "example.com" or host.endswith(".example.com") for host in hosts)


def test_the_card_counts_what_the_file_holds(table, tickets):
    card = (SAMPLE_DATA / "README.md").read_text(encoding="utf-8")
    counted = dict(re.findall(r"^\| (.+) \| (\d+) \|$", card, flags=re.MULTILINE))
    lengths = [len(ticket["body"]) for ticket in tickets if ticket["body"] and ticket["body"].strip()]
    expected = {"tickets": len(tickets), "NULL in `body`": table["body"].null_count}
    expected |= {"201 to 600": sum(200 < n <= 600 for n in lengths), "2,001 to 8,000": sum(n > 2_000 for n in lengths)}
    for column in ("category", "channel", "product", "language"):
        expected |= Counter(ticket[column] for ticket in tickets if ticket[column] is not None)
    assert {name: int(counted[name]) for name in expected} == expected


def test_the_card_is_up_to_date_with_the_file(build, table):
    assert build.counts(table) in build.CARD.read_text(encoding="utf-8")


def test_the_file_stays_small_enough_to_ship():
    assert (SAMPLE_DATA / "tickets.parquet").stat().st_size < 300_000
