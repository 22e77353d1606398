"""The ledger: what was sent, what came back, and finding it again, so that nothing is paid for twice.

`LedgerStore` is what the engine calls; `LedgerWriter` writes one task attempt's log; `Ledger` finds, adds up, exports,
compacts and purges. `files` has the layout of the directory, `adapters.ledger.records` that of the records.
"""

from batch_infer.adapters.ledger.audit import Audit
from batch_infer.adapters.ledger.files import Files, open_files
from batch_infer.adapters.ledger.purging import Purged
from batch_infer.adapters.ledger.reader import Ledger
from batch_infer.adapters.ledger.store import LedgerStore, Price
from batch_infer.adapters.ledger.table import SCHEMA
from batch_infer.adapters.ledger.writer import LedgerWriter

__all__ = ["SCHEMA", "Audit", "Files", "Ledger", "LedgerStore", "LedgerWriter", "Price", "Purged", "open_files"]
