"""The command ``s3dcp``, also as ``python -m s3dcp``."""

from __future__ import annotations

import signal
import sys

from . import _native


def main() -> int:
    """Run the command with the arguments of this process and return its exit code."""
    # Python's own handler only takes note, to raise KeyboardInterrupt once the command is over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.main(["s3dcp", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
