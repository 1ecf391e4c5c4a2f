"""A worker unit as systemd keeps one (`python -m daemon.nursery --listen SOCKET`), without the ten seconds of imports.

    python tests/brood.py SOCKET

It imports what a nursery imports, then forks one nursery after another: each serves the one daemon that connects and
ends with that connection. What SOCKET.env holds as JSON enters a nursery's environment, and so its workers'. Invariant,
as in the nursery: this process never computes, so that it may fork.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from daemon import nursery
from daemon.nursery import die_with, import_modules, say, tend, wait_for_daemon
from daemon.worker import JOBS
from safety.sandbox import confine
from state.failpoints import ONCE


def main(address: Path) -> None:
    die_with(os.getppid())
    import_modules(JOBS)
    gc.collect()
    gc.freeze()
    mine = os.getpid()
    while True:
        served = os.fork()
        if served == 0:
            die_with(mine)
            with wait_for_daemon(address) as control:
                serve_one(control, Path(f"{address}.env"))
            os._exit(0)
        os.waitpid(served, 0)


def serve_one(control: socket.socket, extra: Path) -> None:
    if extra.exists():
        os.environ.update(json.loads(extra.read_text()))
    if mark := os.environ.get(ONCE):                    # a worker that kills itself says so outside its sandbox
        nursery.confine = lambda rules: confine(replace(rules, write=(*rules.write, str(Path(mark).parent))))
    say(control, {"ready": {"seconds": 0.0, "threads": 1}})
    tend(control, JOBS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
