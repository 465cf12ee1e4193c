"""`python -m millpond` is the `millpond` command."""

from __future__ import annotations

import sys

from millpond.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
