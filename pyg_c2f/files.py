"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to that becomes ``path`` in one step, or nothing.

    What is written is on the disk before it takes the name, and an older file stays
    until then; a failure leaves no trace, and is an OSError.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f'{path}: there is no folder {path.parent}; make it')
    if path.is_dir():
        raise IsADirectoryError(f'{path}: is a folder; name a file in it')
    part = path.with_name(path.name + '.part')
    try:
        yield part
        _sync(part, os.O_RDWR)
        os.replace(part, path)
        with suppress(OSError):  # Not every system lets folders be opened and synced.
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise OSError(
            f'{path}: cannot be written ({error.strerror or error}); what was there '
            'before is untouched: make room, or name another place'
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one go."""
    with whole_file(path) as part:
        part.write_text(text, encoding='utf-8')


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one go."""
    write_text(path, json.dumps(content, indent=2) + '\n')
