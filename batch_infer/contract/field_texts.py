"""Owns reading the texts below a record's fields, so that they stand once: for `help()`, command lines, documentation.

A text is the string literal that follows a field in the class body, where editors and readers of the source find it.

On driver and workers.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TypeVar

C = TypeVar("C", bound=type)


def field_texts(record: type) -> dict[str, str]:
    """Each annotated field of a class and the text below it, on one line; empty where there is none.

    Where the source cannot be read (a frozen program), the result is empty.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(record)))
    except (OSError, TypeError, SyntaxError):
        return {}
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    texts: dict[str, str] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if is_text else ""  # type: ignore[union-attr]
            texts[node.target.id] = " ".join(str(text).split())
    return texts


def with_field_texts(record: C) -> C:
    """Adds the fields' texts to the class's docstring, so that `help()` shows them."""
    texts = field_texts(record)
    lines = [f"    {name}: {text}" for name, text in texts.items() if text]
    if lines and record.__doc__ is not None:
        record.__doc__ = inspect.cleandoc(record.__doc__) + "\n\nAttributes:\n" + "\n".join(lines)
    return record
