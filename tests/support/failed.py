"""Failed: prints the tests that failed in the last run, a line each, as pytest remembers them."""

from __future__ import annotations

import json
from pathlib import Path


def main() -> None:
    """Print nothing where nothing is remembered."""
    remembered = Path(".pytest_cache/v/cache/lastfailed")
    for name in json.loads(remembered.read_text()) if remembered.exists() else ():
        print(name)


if __name__ == "__main__":
    main()
