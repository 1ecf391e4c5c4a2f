"""A filter of system calls, written by hand: what no job needs is refused by the kernel. Standard library only.

Landlock speaks of files; this speaks of the rest: sockets, other processes, new privileges, and whatever changes a
file without opening it. A filter only narrows; under the worker unit it stands beside systemd's. Sources: Linux,
Documentation/userspace-api/seccomp_filter.rst; the numbers are those of asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from safety.kernel import call, complaint

Instruction = tuple[int, int, int, int]             # code, jump if true, jump if false, operand

MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table below, and the kernel's name for the architecture."""
X32_CALLS: Final = 0x40000000

NETWORK: Final = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
}
PROCESSES: Final = {"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)}
FORBIDDEN: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # other processes, and what survives this one
    "tkill": (200, 130), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "setsid": (112, 157), "setpgid": (109, 154),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # a file changed or watched without being opened
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # the kernel itself, and privileges
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428),
    "mount_setattr": (442, 442), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "iopl": (172, None), "ioperm": (173, None),
    "syslog": (103, 116), "personality": (135, 92),
}
GUARDED: Final = {
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "socketpair": (53, 199), "prctl": (157, 167),
    "fcntl": (72, 25), "ioctl": (16, 29), "clone": (56, 220), "clone3": (435, 435), "truncate": (76, 45),
    "openat": (257, 56), "open": (2, None), "openat2": (437, 437), "seccomp": (317, 277),
}
"""Calls that are allowed for some of their arguments."""
SIGNALS: Final = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
OF_ONESELF: Final = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")

LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW: Final = 0x7FFF0000
NUMBER, ARCHITECTURE = 0, 4
CLONE_THREAD, CLONE_NAMESPACES = 0x00010000, 0x7E020080
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
F_SETOWN, F_SETOWN_EX = 8, 15
FIOSETOWN, SIOCSPGRP, TIOCSTI = 0x8901, 0x8902, 0x5412
UNIX_SOCKETS, STREAM, SEQPACKET, TYPE_OF_SOCKET = 1, 1, 5, 0xF
SET_MODE_FILTER, SPECULATION_AS_BEFORE = 1, 4


@dataclass(frozen=True, slots=True)
class Policy:
    """What the filter has to stand in for. `pid` is the process it is for."""

    pid: int
    processes: bool = False         # whether it may start other processes
    landlock: int = 0               # below 6 signals are filtered here, below 3 what cuts a file short


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step)))


def known_machine() -> bool:
    """Whether there is a filter for this machine."""
    return platform.machine() in MACHINES


def filter_for(policy: Policy, machine: str) -> list[Instruction]:
    """The program. Every block it holds ends in a return or falls through with the call's number loaded."""
    column, architecture = MACHINES[machine]
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), refusal(errno.ENOSYS), (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, X32_CALLS), refusal(errno.ENOSYS)]
    for names, error in (
        (NETWORK, errno.EACCES), (FORBIDDEN, errno.EPERM), ({} if policy.processes else PROCESSES, errno.EPERM),
    ):
        for numbers in names.values():
            if (number := numbers[column]) is not None:
                program += [(EQUAL, 0, 1, number), refusal(error)]
    for name, body in _guards(policy):
        if (number := GUARDED[name][column]) is not None:
            program += [(EQUAL, 0, len(body), number), *body]
    return [*program, (RETURN, 0, 0, ALLOW)]


def install(policy: Policy) -> None:
    """Put the filter in force for this thread and what it starts, for good. Needs no_new_privs. Raises OSError.

    Memory is left to be read ahead as before: older kernels slow every filtered process down otherwise.
    """
    program = filter_for(policy, platform.machine())
    steps = (_Step * len(program))(*(_Step(*step) for step in program))
    whole = _Program(len(program), steps)
    number = GUARDED["seccomp"][MACHINES[platform.machine()][0]]
    assert number is not None
    if call(number, SET_MODE_FILTER, SPECULATION_AS_BEFORE, ctypes.byref(whole)) != 0:
        raise complaint("system call filter")


def refusal(error: int) -> Instruction:
    """The call fails with this errno."""
    return (RETURN, 0, 0, 0x00050000 | error)


def argument(place: int) -> Instruction:
    """Load the low half of an argument; it is enough for what is a C int."""
    return (LOAD, 0, 0, 16 + 8 * place)


def only(place: int, values: tuple[int, ...], error: int = errno.EPERM) -> list[Instruction]:
    """Allow the call where the argument is one of the values."""
    tests = [(EQUAL, len(values) - index, 0, value % 2**32) for index, value in enumerate(values)]
    return [argument(place), *tests, refusal(error), (RETURN, 0, 0, ALLOW)]


def none_of(place: int, values: tuple[int, ...], error: int = errno.EPERM) -> list[Instruction]:
    """Allow the call unless the argument is one of the values."""
    tests = [(EQUAL, len(values) - index, 0, value % 2**32) for index, value in enumerate(values)]
    return [argument(place), *tests, (RETURN, 0, 0, ALLOW), refusal(error)]


def _guards(policy: Policy) -> Iterator[tuple[str, list[Instruction]]]:
    """(call, what its arguments must be): each body ends in a return."""
    if policy.landlock < 6 or not policy.processes:
        for name in SIGNALS:
            yield name, only(0, (policy.pid,))
    for name in OF_ONESELF:
        yield name, only(0, (0, policy.pid))
    yield "socketpair", [
        argument(0), (EQUAL, 0, 4, UNIX_SOCKETS), argument(1), (AND, 0, 0, TYPE_OF_SOCKET), (EQUAL, 2, 0, STREAM),
        (EQUAL, 1, 0, SEQPACKET), refusal(errno.EACCES), (RETURN, 0, 0, ALLOW),
    ]
    yield "prctl", none_of(0, (PR_SET_PDEATHSIG, PR_SET_DUMPABLE))
    yield "fcntl", none_of(1, (F_SETOWN, F_SETOWN_EX))
    yield "ioctl", none_of(1, (FIOSETOWN, SIOCSPGRP, TIOCSTI))
    yield "clone3", [refusal(errno.ENOSYS)]                 # its flags cannot be seen; libraries then call clone
    yield "clone", [
        argument(0), (ANY_BIT, 2, 0, CLONE_NAMESPACES),
        *([(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ALLOW)] if policy.processes
          else [(ANY_BIT, 0, 1, CLONE_THREAD), (RETURN, 0, 0, ALLOW)]),
        refusal(errno.EPERM),
    ]
    if policy.landlock < 3:
        yield "truncate", [refusal(errno.EPERM)]
        yield "openat2", [refusal(errno.ENOSYS)]
        for name, place in (("open", 1), ("openat", 2)):
            yield name, [
                argument(place), (AND, 0, 0, os.O_TRUNC | os.O_ACCMODE), (EQUAL, 0, 1, os.O_TRUNC),
                refusal(errno.EPERM), (RETURN, 0, 0, ALLOW),
            ]
