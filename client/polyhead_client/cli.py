"""Entry point of the command ``polyhead-client``; the command itself is in `polyhead_client.command`.

The two are separate so that a user without the extra ``cli`` reads what to install instead of a traceback.
"""

from __future__ import annotations

import sys

EXTRA = ("typer", "rich", "click")


def main() -> None:
    """Runs the command line."""
    try:
        from polyhead_client.command import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        message = f"polyhead-client: {error.name} is missing; in the project folder: pip install './client[cli]'"
        print(message, file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
