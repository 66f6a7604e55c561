"""`python -m temporal_api` is `temporal-api`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line. SIGTERM and Ctrl-C are a clean end from the start: imports take a second.

    Without a handler, PID 1 ignores SIGTERM, and Ctrl-C ends `serve` with "Aborted!".
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: a connection would get its number, and the log's lines
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115

    from temporal_api.cli import main as run

    run()


if __name__ == "__main__":
    main()
