"""Pauses Python's garbage collector during the imports of a command, and skips the collection at the process's end.

Imports create many objects and hardly any garbage. The garbage collector would search these objects again and again,
which would take a quarter of the CPU time of a short command.
"""

from __future__ import annotations

import gc


def pause_garbage_collection() -> None:
    """Turn the garbage collector off. Called before the first import."""
    gc.disable()


def resume_garbage_collection() -> None:
    """Turn the garbage collector on if it is off.

    The collector then ignores all objects that exist now, which are the objects of the imported modules.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def skip_garbage_collection_at_exit() -> None:
    """Make the garbage collector ignore all objects. Otherwise Python would search them at the end of the process."""
    gc.freeze()
