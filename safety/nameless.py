"""Files that processes hold open after their last name was removed: they use the disk, and no folder shows them.

Standard library only. Invariant: what cannot be seen is not taken for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

BLOCK = 512


def nameless(pids: Iterable[int]) -> int | None:
    """Bytes on disk of such files of these processes, each file once; 0 for processes that are gone.

    None where the kernel does not tell, as of a process in a user namespace that is not below the caller's.
    """
    held: dict[tuple[int, int], int] = {}
    for pid in pids:
        try:
            handles = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:
            return None
        except OSError:
            continue
        for handle in handles:
            try:
                found = os.stat(f"/proc/{pid}/fd/{handle}")
            except PermissionError:
                return None
            except OSError:                                     # it was closed while this looked
                continue
            if found.st_nlink == 0:
                held[found.st_dev, found.st_ino] = found.st_blocks * BLOCK
    return sum(held.values())
