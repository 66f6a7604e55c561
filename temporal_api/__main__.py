"""`python -m temporal_api` is `temporal-api`."""

from temporal_api.cli import main

if __name__ == "__main__":
    main()
