"""One run at a time in an output folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout


def lock_folder(folder: Path) -> FileLock:
    """Makes the folder, and keeps other runs out of it until the lock is released or this process
    ends, however it ends.

    Raises:
        ValueError: another process trains there; nothing has been written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"train.output: another run is writing to {folder}; wait for its end or choose another "
            "folder"
        ) from None
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Lets other runs in, and removes the lock's file, and the folder where nothing was written."""
    file = Path(lock.lock_file)
    file.unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        file.parent.rmdir()
