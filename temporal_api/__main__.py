"""`python -m temporal_api` is `temporal-api`."""

import signal
import sys


def main() -> None:
    """Run the command line. SIGTERM and Ctrl-C are a clean end from the start: imports take a second.

    Without a handler, PID 1 ignores SIGTERM, and Ctrl-C ends `serve` with "Aborted!".
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))

    from temporal_api.cli import main as run

    run()


if __name__ == "__main__":
    main()
