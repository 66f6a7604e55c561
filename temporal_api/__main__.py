"""`python -m temporal_api` is `temporal-api`."""

import signal
import sys


def main() -> None:
    """Run the command line. SIGTERM is a clean end from the start: imports take a second, and PID 1 ignores it else."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    from temporal_api.cli import main as run

    run()


if __name__ == "__main__":
    main()
