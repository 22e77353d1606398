"""Owns which kinds of table there are, and the checks of a choice among them. On the driver; touches no table."""

from __future__ import annotations

from collections.abc import Sequence

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.misspelt import did_you_mean
from batch_infer.contract.options import MODES
from batch_infer.spark.tables import rules
from batch_infer.spark.tables.delta import DELTA
from batch_infer.spark.tables.parquet import PARQUET
from batch_infer.spark.tables.sink import Sink

SINKS: dict[str, Sink] = {sink.name: sink for sink in (PARQUET, DELTA)}
"""Every kind of table, by its format's name."""

WRITING = tuple(mode for mode in MODES if mode != "resume")
"""Modes of a write; a resumed job writes in the mode that it was begun in."""


def check_choice(*, format: str, mode: str, merge_key: Sequence[str]) -> Sink:  # noqa: A002 - the user's own word
    """The sink of a format; refuses unknown formats and modes, and those that do not go together.

    Raises:
        ConfigError: with the names that exist.
    """
    for what, value, known, offered in (("format", format, SINKS, SINKS), ("mode", mode, WRITING, MODES)):
        if value not in known:
            raise ConfigError(
                f"the output's {what} is one of {', '.join(offered)}; got {value!r}.{did_you_mean(value, known)}"
            )
    sink = SINKS[format]
    if mode not in sink.modes:
        able = [f"format={other.name!r}" for other in SINKS.values() if mode in other.modes]
        raise ConfigError(
            f"mode {mode!r} updates rows in place, which {sink.name.capitalize()} cannot. Use {' or '.join(able)}."
        )
    if mode == "merge" and not merge_key:
        raise ConfigError(
            "mode 'merge' needs merge_key: the columns that say which row of the table a new row replaces."
        )
    if mode != "merge" and merge_key:
        raise ConfigError(f"merge_key is given, but mode is {mode!r}, which has no use for it. Use mode='merge'.")
    return sink


def check_schema(
    schema: rules.Schema,
    *,
    format: str,  # noqa: A002
    merge_key: Sequence[str] = (),
    partition_by: Sequence[str] = (),
) -> None:
    """Refuses what no table of this format can hold, whatever is at the path; see `rules.check_schema`.

    Raises:
        ConfigError: also a name that the format has no room for.
    """
    rules.check_schema(schema, format=format, merge_key=merge_key, partition_by=partition_by)
    SINKS[format].check_names(schema)
