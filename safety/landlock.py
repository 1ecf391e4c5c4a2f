"""Landlock: which files, TCP ports and processes this process may reach from now on. Standard library only.

The kernel's own calls by number, because no library wraps them; the numbers are the same on every architecture. What a
kernel does not know yet (its ABI says so) is left out, and whoever asked is told the ABI. Source: Linux,
include/uapi/linux/landlock.h. Not here: which paths a worker needs (`safety.sandbox`).
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from safety.kernel import call, complaint

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG: Final = 1
PATH_BENEATH: Final = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
ALL_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Every right on files that an ABI knows; later ones know those of 5."""
TCP: Final = 0b11                                   # bind and connect, from ABI 4
SCOPES: Final = 0b11                                # abstract UNIX sockets and signals, from ABI 6

READING: Final = READ_FILE | READ_DIR
WRITING: Final = READING | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
"""No links, pipes, sockets or devices: whoever takes a folder over must meet nothing but files and folders."""
USING: Final = READ_FILE | WRITE_FILE | IOCTL_DEV | TRUNCATE
OF_A_FILE: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


@dataclass(frozen=True, slots=True)
class Rights:
    """What stays allowed; everything below a folder is meant with it. What does not exist is passed over."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    use: tuple[str, ...] = ()               # devices
    run: tuple[str, ...] = ()               # programs


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The version of Landlock that the kernel speaks; 0 where it has none or none is switched on."""
    return max(0, call(CREATE_RULESET, None, 0, VERSION_FLAG))


def restrict(rights: Rights, level: int) -> None:
    """Confine this thread, and what it starts from now on, to `rights`, for good. Needs no_new_privs.

    `level` is the ABI to use, at most the kernel's. Raises OSError.
    """
    handled = ALL_FILE_RIGHTS[min(level, 5)]
    attributes = _Ruleset(handled, TCP if level >= 4 else 0, SCOPES if level >= 6 else 0)
    size = 24 if level >= 6 else 16 if level >= 4 else 8
    ruleset = call(CREATE_RULESET, ctypes.byref(attributes), size, 0)
    if ruleset < 0:
        raise complaint("Landlock")
    try:
        for paths, allowed in (
            (rights.read, READING), (rights.write, WRITING), (rights.use, USING), (rights.run, EXECUTE),
        ):
            _allow(ruleset, paths, allowed & handled)
        if call(RESTRICT_SELF, ruleset, 0) != 0:
            raise complaint("Landlock")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[str], allowed: int) -> None:
    for path in paths:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:                             # what is not there cannot be opened either
            continue
        try:
            folder = stat.S_ISDIR(os.fstat(place).st_mode)
            rule = _Beneath(allowed if folder else allowed & OF_A_FILE, place)
            if rule.allowed and call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0) != 0:
                raise complaint(f"Landlock, {path}")
        finally:
            os.close(place)
