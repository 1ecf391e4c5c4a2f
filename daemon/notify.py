"""What the service tells systemd: sd_notify(3) in a few lines. Without NOTIFY_SOCKET everything here does nothing."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager that started this process, if one did. Every call says whether it was sent.

    `watchdog_seconds` is the time within which systemd wants to hear `watchdog` (infinite where it does not ask).
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.address = environment.get("NOTIFY_SOCKET", "")
        wanted = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        self.watchdog_seconds = int(wanted) / 1e6 if self.address and mine and wanted.isdigit() else math.inf

    def ready(self, status: str = "") -> bool:
        """Started, or done with reloading."""
        return self._send("READY=1", *([f"STATUS={one_line(status)}"] if status else []))

    def reloading(self) -> bool:
        """Reading its configuration again; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> bool:
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(f"STATUS={one_line(text)}")

    def watchdog(self) -> bool:
        """Alive."""
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        if not self.address:
            return False
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False                        # nobody listens any more: no reason to stop working
        return True


def one_line(text: str) -> str:
    """A new line would begin another assignment."""
    return " ".join(text.split())
