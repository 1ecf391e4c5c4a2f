"""The command `kaizend`: hand over to the command line; bad input becomes one clear line and exit code 2.

So does what nobody expected, with exit code 70.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, Final

SOFTWARE: Final = 70            # EX_SOFTWARE of sysexits
TRACEBACK: Final = "KAIZEND_TRACEBACK"


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
    except Exception as error:                              # our own fault, then: told in a line, too
        if TRACEBACK in os.environ:
            raise
        say(f"{unexpected(error)} (a defect of kaizend: {TRACEBACK}=1 shows more); what was recorded is whole")
        raise SystemExit(SOFTWARE) from None
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:                             # or the interpreter would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unexpected(error: Exception) -> str:
    """What happened and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}, at {os.path.basename(last.filename)}:{last.lineno}"


def say(text: str) -> None:
    from state.errors import one_line

    sys.stderr.write(f"kaizend: {one_line(text)}\n")


if __name__ == "__main__":
    main()
