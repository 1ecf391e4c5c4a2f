"""The service's heap over weeks: what one moment needed goes back to the system.

With `PYTHONMALLOC=malloc` and one arena, as the unit sets them, what was freed goes back page by page (malloc_trim(3)).
Of Python's own arenas each stays whole as long as one object in its mebibyte lives.
"""

from __future__ import annotations

import ctypes
import gc

_give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)        # glibc's; other libraries do without


def settle() -> None:
    """Call once when everything is set up: what lives for good is not looked through again."""
    gc.collect()
    gc.freeze()


def trim() -> None:
    """Collect garbage and give free pages back. Takes milliseconds."""
    gc.collect()
    if _give_back is not None:
        _give_back(0)
