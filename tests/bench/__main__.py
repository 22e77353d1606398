"""Owns the command line. Several measurements run one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys

NAMES = ("stall", "throughput", "memory", "evaluated_once", "overhead", "details", "resume", "slots")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that endpoints end with us
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)}; all when left out")
    parser.add_argument("--pairs", type=int, help="interleaved repetitions, where a measurement compares")
    parser.add_argument("--rows", type=int, help="instead of the measurement's own number of rows")
    parser.add_argument("--latency-ms", type=float, help="the endpoint's latency (throughput, overhead and details)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no measurement {unknown[0]!r}. There are: {', '.join(NAMES)}.")
    names = options.names or NAMES
    if len(names) == 1:
        importlib.import_module(f"tests.bench.{names[0]}").measure(options)
        return 0
    shared = [argument for argument in sys.argv[1:] if argument not in names]
    return max(subprocess.run([sys.executable, "-m", "tests.bench", name, *shared]).returncode for name in names)


if __name__ == "__main__":
    sys.exit(main())
