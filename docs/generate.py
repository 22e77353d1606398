"""Owns the tables of the documentation that follow from the code: `make docs` writes them, a test finds stale ones.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from batch_infer.adapters.providers import PROVIDERS, registry
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.field_texts import field_texts
from batch_infer.contract.rows import ROW_CONTRACT, T, array, struct
from batch_infer.spark import planning, session
from batch_infer.surface import api

DOCS = Path(__file__).parent
_MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(list(head))]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def row_contract() -> str:
    """The columns of a row."""

    def kind(given: Any) -> str:
        if isinstance(given, str):
            return {"integer": "INT", "long": "BIGINT"}.get(given, given.upper())
        if given["type"] == "array":
            return f"ARRAY<{kind(given['elementType'])}>"
        return "STRUCT<" + ", ".join(each["name"] for each in given["fields"]) + ">"

    assert kind(array(T)) == "ARRAY<T>"
    assert kind(struct(a="long")) == "STRUCT<a>"
    return table(
        ("column", "type", ""), ((f"`{each.name}`", f"`{kind(each.type)}`", each.text) for each in ROW_CONTRACT)
    )


def providers() -> str:
    """What `'provider/model'` uses."""

    def row(name: str) -> list[str]:
        provider = PROVIDERS[name]
        variables = ", ".join(f"`{each}`" for each in provider.environment.variables) or "none"
        optional = " (the key may be missing)" if provider.environment.is_key_optional else ""
        address = f"`{provider.base_url}`" if provider.base_url else "from the variables, or `base_url`"
        if not provider.has_address:
            address = "started on the driver"
        return [f"`'{name}/…'`", provider.title, address, variables + optional, ", ".join(provider.tasks)]

    return table(("name", "provider", "address", "variables", "tasks"), map(row, PROVIDERS))


def endpoint_fields() -> str:
    """The fields of an endpoint."""
    texts = field_texts(Endpoint)
    return table(
        ("field", "default", ""),
        (
            (f"`{each.name}`", "" if each.default is MISSING else f"`{each.default!r}`", texts[each.name])
            for each in fields(Endpoint)
        ),
    )


def _arguments(function: Callable[..., Any]) -> str:
    described: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(function.__doc__ or "").partition("Args:\n")[2].splitlines():
        if not line.strip() or not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, line = line.strip().partition(": ")  # noqa: PLW2901 - the rest of the line
        described[name] = f"{described.get(name, '')} {line.strip()}".strip()
    parameters = inspect.signature(function).parameters.values()
    return table(
        ("argument", "default", ""),
        (
            (
                f"`{each.name}`",
                "" if each.default is each.empty else f"`{each.default!r}`",
                described.get(each.name, ""),
            )
            for each in parameters
        ),
    )


def settings() -> str:
    """Spark settings and environment variables."""
    rows = [
        (f"`{planning.DEFAULT_ENDPOINT_SETTING}`", "Endpoint of calls that name none."),
        (f"`{session.LEDGER_SETTING}`", "Path or URI of the ledger, or `off`."),
        (f"`{registry.SETTING}<name>.<field>`", "A field of an endpoint; `…headers.<name>` and `…query.<name>` too."),
        (f"`{registry.FILE_SETTING}`", "TOML file of endpoints."),
        (f"`{registry.FILE_VARIABLE}` (variable)", "TOML file of endpoints, where no setting names one."),
    ]
    return table(("setting", ""), rows)


TABLES: dict[str, Callable[[], str]] = {
    "row-contract": row_contract,
    "providers": providers,
    "endpoint-fields": endpoint_fields,
    "run-arguments": lambda: _arguments(api.run),
    "ai-query-arguments": lambda: _arguments(api.ai_query),
    "settings": settings,
}


def written(text: str) -> str:
    """A page with its tables as the code has them."""
    return _MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> int:
    """Writes every page."""
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
