# SPDX-License-Identifier: MIT
"""Where the command begins: before anything that takes time to import, so that Ctrl-C meets no traceback."""

import os
import signal
import sys


def main() -> int:
    """Run the command; its exit status."""
    try:
        from pmem_core import cli

        return cli.main()
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
