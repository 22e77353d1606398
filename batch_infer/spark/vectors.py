"""Owns checks of embeddings as Spark expressions. No Python runs in them."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

TOLERANCE = 1e-3


def is_normalized(column: Column | str, tol: float = TOLERANCE) -> Column:
    """Whether embeddings have length one: | |v| - 1 | < tol.

    Contract: BOOLEAN for each row; NULL for a NULL array, `false` for an empty one, a zero vector, and one that holds
    NULL or NaN. Made of Spark's own functions: sends nothing, costs no Python worker.

    Args:
        column: ARRAY<FLOAT> or ARRAY<DOUBLE>; text is a column's name.
        tol: How far from one the length may be; not reached.

    Raises:
        ValueError: `tol` is not a positive number.
    """
    if not tol > 0:
        raise ValueError(f"tol is a number above 0; got {tol!r}.")
    vector = F.col(column) if isinstance(column, str) else column
    squares = F.aggregate(vector, F.lit(0.0), lambda total, x: total + x.cast("double") * x.cast("double"))
    length = F.sqrt(squares)
    is_one = (length > 0) & (F.abs(length - 1) < F.lit(float(tol)))
    return F.when(vector.isNotNull(), F.coalesce(is_one, F.lit(False)))
