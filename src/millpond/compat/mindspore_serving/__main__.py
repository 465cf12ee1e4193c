"""`python -m millpond.compat.mindspore_serving script.py ...`: runs a script that imports `mindspore_serving`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from millpond.compat.mindspore_serving.alias import install_alias


def main() -> None:
    """Runs the script with its own arguments."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m millpond.compat.mindspore_serving script.py [arguments]", file=sys.stderr)
        raise SystemExit(2)
    install_alias()
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
