"""The few calls of the Linux kernel that Python does not offer, by number. Standard library only."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.prctl.restype = ctypes.c_int

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def call(number: int, *arguments: Any) -> int:
    """A system call; below 0 when it failed, and then `complaint` says why."""
    return int(_LIBC.syscall(ctypes.c_long(number), *(_word(argument) for argument in arguments)))


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """prctl(2)."""
    return int(_LIBC.prctl(option, *(ctypes.c_ulong(value) for value in (first, second, 0, 0))))


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones. Raises OSError."""
    if _LIBC.unshare(flags) != 0:
        raise complaint("namespace")


def complaint(what: str) -> OSError:
    """Why the last call failed."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def drop_capabilities() -> None:
    """Give up every capability, for this process and what it may become. Raises OSError where some are left."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        if prctl(PR_CAPBSET_DROP, capability) != 0:         # the first that the kernel does not know, or may not drop
            break
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)           # _LINUX_CAPABILITY_VERSION_3, this process
    none = (ctypes.c_uint32 * 6)()
    if _LIBC.capset(header, none) != 0 and _held():         # a unit without any may not even ask
        raise complaint("capabilities")


def _held() -> bool:
    with open("/proc/self/status") as status:
        return any(int(line.split()[1], 16) for line in status if line.startswith(("CapPrm", "CapEff")))


def _word(argument: Any) -> Any:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument
