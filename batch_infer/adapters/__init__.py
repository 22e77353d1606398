"""The third ring: the world outside Spark: HTTP, wire formats, the ledger, the driver service, local models."""
