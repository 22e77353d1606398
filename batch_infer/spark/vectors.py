"""Owns checks of embeddings as Spark expressions. No Python runs in them. On the driver."""

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

    def add(total: Column, x: Column) -> Column:
        return total + x.cast("double") * x.cast("double")

    def is_one(total: Column) -> Column:
        return F.coalesce((total > 0) & (F.abs(F.sqrt(total) - 1) < F.lit(float(tol))), F.lit(False))

    # The vector stands in it once: where that is a call, Spark would make it again for each time it is named.
    return F.aggregate(vector, F.lit(0.0), add, is_one)
