"""The command `kaizend`: hand over to the command line; bad input becomes one clear line and exit code 2."""

from __future__ import annotations

import os
import sys


def main() -> None:
    from daemon.cli import app
    from state.errors import UserError

    try:
        app()
    except UserError as error:
        print(f"kaizend: {error}", file=sys.stderr)        # noqa: T201
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:                                 # the reader of `kaizend log | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


if __name__ == "__main__":
    main()
