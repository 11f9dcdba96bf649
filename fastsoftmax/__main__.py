"""``python -m fastsoftmax [demo|train|bench|warmup|info]``: see `fastsoftmax._cli`."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
