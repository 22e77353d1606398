"""`python -m batch_infer`: the `batch-infer` command."""

import sys

from batch_infer.surface.cli import main

if __name__ == "__main__":
    sys.exit(main())
