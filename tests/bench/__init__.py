"""Measurements of batch_infer. Each prints its figures; none passes or fails.

    python -m tests.bench [name …] [--pairs N] [--rows N] [--latency-ms N]

    stall           one row of 20 s among 10,000 of 10 ms: does it hold the others back?
    throughput      rows/s through Spark, beside a naive UDF and a hand-written asyncio loop
    memory          a worker's peak memory at 30,000 and at 300,000 rows
    evaluated_once  calls at the endpoint for queries that Spark likes to evaluate twice
    overhead        the ledger on against off
    details         the whole row contract on against off

    report          what every measurement prints
    sessions        Spark sessions, and the tasks' input
    processes       CPU time and peak memory of process trees, from /proc (Linux)
    nginx           an endpoint that is never the limit
    by_hand         the asyncio + aiohttp loop that one would write without Spark
    naive           the UDF that one would write without batch_infer

Run them from the project's root, on a machine that does nothing else.
"""
