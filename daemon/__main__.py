"""The command `kaizend`: hand over to the command line; bad input becomes one clear line and exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    try:
        obey()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def obey() -> None:
    """Run the command. Always raises SystemExit."""
    import typer

    from daemon.cli import app
    from state.errors import UserError

    usage_error: Any = typer.BadParameter.__base__          # typer does not export it by a name of its own
    try:
        raise SystemExit(app(prog_name="kaizend", standalone_mode=False))
    except usage_error as error:
        say(error.format_message())
        raise SystemExit(2) from None
    except UserError as error:
        say(str(error))
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:                                 # the reader of `kaizend log | head` has gone
        raise SystemExit(141) from None
    except OSError as error:                                # a full disk, a folder that is not ours: the host's fault
        say(str(error))
        raise SystemExit(2) from None
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:                             # or the interpreter would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    from state.errors import one_line

    sys.stderr.write(f"kaizend: {one_line(text)}\n")


if __name__ == "__main__":
    main()
