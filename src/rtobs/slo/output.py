"""Puts files on disk: all of them, or none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from rtobs.slo.mistakes import items

LIST: Final = ".rtobs-slo.json"
"""Names the files of the last build, so that the next one can take away what is not made any more."""


def write(files: Mapping[str, str], folder: Path) -> list[str]:
    """Write *files*, text by relative path, into *folder*; return which files of the last build were taken away.

    Every file is written beside its place first and moved there when all of them are complete. What was in its place
    is kept meanwhile, and goes back there if anything fails: the folder is as it was then.

    Raises:
        OSError: something cannot be written.
    """
    with contextlib.ExitStack() as undo:
        _make(folder, undo)
        gone = sorted(_before(folder) - set(files))
        names = json.dumps(sorted(files), indent=2) + "\n"
        staging = Path(tempfile.mkdtemp(prefix=".rtobs-", dir=folder))
        undo.callback(shutil.rmtree, staging, ignore_errors=True)
        for name, text in {**files, LIST: names}.items():
            file = staging / "new" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        for name in (*files, LIST):
            _make((folder / name).parent, undo)
            _put_aside(folder / name, staging / "old" / name, undo)
            os.replace(staging / "new" / name, folder / name)  # noqa: PTH105  atomic, and says so
            undo.callback((folder / name).unlink)
        for name in gone:
            _put_aside(folder / name, staging / "old" / name, undo)
        undo.pop_all()
    shutil.rmtree(staging, ignore_errors=True)
    return gone


def _make(folder: Path, undo: contextlib.ExitStack) -> None:
    """Make *folder* and those round it, as far as they are missing."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        undo.callback(_remove, one)
    if not missing:
        folder.mkdir(exist_ok=True)  # says what is wrong where it is no folder


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty: somebody else has put something there
        folder.rmdir()


def _put_aside(file: Path, aside: Path, undo: contextlib.ExitStack) -> None:
    """Move *file* out of the way, if it is there; a folder in its place is somebody else's, and an error."""
    if not file.is_symlink() and file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    aside.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.replace(file, aside)  # noqa: PTH105  as above
        undo.callback(os.replace, aside, file)


def _before(folder: Path) -> set[str]:
    """Return the files of the last build, as far as they are inside of *folder*."""
    try:
        names = items(json.loads((folder / LIST).read_text(encoding="utf-8"))) or ()
    except (OSError, ValueError):
        return set()
    inside = (name for name in names if isinstance(name, str) and not PurePosixPath(name).is_absolute())
    return {name for name in inside if ".." not in PurePosixPath(name).parts}
