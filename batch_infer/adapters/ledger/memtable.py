"""Owns the keys that one writer has recorded, while it writes. Does not hold replies, nor a dict of all its keys.

On driver and workers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from batch_infer.adapters.ledger.keys import EMPTY, U64, Columns, best, halves, joined, positions

UNSORTED_ENTRIES = 4096
"""Entries kept in a dict, until they become columns of 40 bytes each."""

Place = tuple[int, int, int, int]
"""Rank, offset, length, log."""


class Recent:
    """Sorted runs behind a small dict; runs of similar length are merged, so there are few of them."""

    def __init__(self) -> None:
        self._runs: list[Columns] = []
        self._clear()

    def _clear(self) -> None:
        self._unsorted: dict[str, int] = {}
        self._keys: list[str] = []
        self._rank, self._offset = array("Q"), array("Q")
        self._length, self._log = array("I"), array("I")

    def add(self, key: str, place: Place) -> None:
        """One more answer. Of two answers to one key the one of the higher rank is found."""
        rank, offset, length, log = place
        known = self._unsorted.get(key)
        if known is None or rank > self._rank[known]:
            self._unsorted[key] = len(self._keys)
        self._keys.append(key)
        self._rank.append(rank)
        self._offset.append(offset)
        self._length.append(length)
        self._log.append(log)

    def is_full(self) -> bool:
        """Whether it is time to `settle`."""
        return len(self._keys) >= UNSORTED_ENTRIES

    def settle(self) -> Columns:
        """Turns the dict into a sorted run; that run."""
        if not self._keys:
            return EMPTY
        high, low = halves(self._keys)
        rank, offset = np.frombuffer(self._rank, np.uint64), np.frombuffer(self._offset, np.uint64)
        length, log = np.frombuffer(self._length, np.uint32), np.frombuffer(self._log, np.uint32)
        run = best(Columns(high, low, rank, offset, length, log))
        self._clear()
        self._runs.append(run)
        while len(self._runs) > 1 and 2 * self._runs[-1].size >= self._runs[-2].size:
            self._runs[-2:] = [best(joined(self._runs[-2:]))]
        return run

    def columns(self) -> Columns:
        """All entries, sorted."""
        self.settle()
        return best(joined(self._runs))

    def find(self, keys: Sequence[str]) -> dict[str, Place]:
        """Where the answers to these keys are."""
        found = {key: self._place(self._unsorted[key]) for key in keys if key in self._unsorted}
        if self._runs and keys:
            high, low = halves(keys)
            for run in self._runs:
                _search(run, keys, high, low, found)
        return found

    def _place(self, i: int) -> Place:
        return self._rank[i], self._offset[i], self._length[i], self._log[i]


def _search(run: Columns, keys: Sequence[str], high: U64, low: U64, found: dict[str, Place]) -> None:
    rows = positions(run, high, low)
    for i in (rows >= 0).nonzero()[0].tolist():
        row = rows[i]
        place = int(run.rank[row]), int(run.offset[row]), int(run.length[row]), int(run.log[row])
        known = found.get(keys[i])
        if known is None or place[0] > known[0]:
            found[keys[i]] = place
