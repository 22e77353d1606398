"""The innermost ring: records, identities, errors and configuration. Pure data: no I/O, no Spark, no event loop."""
