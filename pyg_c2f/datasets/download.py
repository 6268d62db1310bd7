r"""Downloads of files: complete and verified, or not at all."""

import hashlib
import http.client
import os
import ssl
import urllib.request
from pathlib import Path

from tqdm import tqdm

from pyg_c2f.typing import InputError

_TIMEOUT = 30  # seconds without an answer
_BLOCK = 1 << 16
_MAX_BYTES = 1 << 28  # far more than any of the files


def matches(content: bytes, reference: dict[str, str]) -> bool:
    r"""Whether a file has its reference checksum.

    It is ``sha256``, or else ``git_blob``, the SHA-1 that git gives the file.
    """
    if 'sha256' in reference:
        return hashlib.sha256(content).hexdigest() == reference['sha256']
    header = b'blob %d\0' % len(content)
    digest = hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
    return digest == reference['git_blob']


def download(url: str, target: Path, reference: dict[str, str]) -> None:
    r"""Downloads a file, verifies its checksum and puts it in place.

    The target appears only when it is complete and right: the download goes to a
    temporary file beside it, which is removed on every failure. The checksum is that
    of :func:`matches`.
    """
    by_hand = f'or put the file into {target.parent} by hand'
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise InputError(
            f'{target} is missing and {target.parent} cannot be written '
            f'({error.strerror}); name another data root, or put the file from {url} '
            'there'
        ) from error
    try:
        _fetch(url, part)
        if not matches(part.read_bytes(), reference):
            raise InputError(
                f'{url} does not have the expected checksum, nothing was kept; try '
                f'again, {by_hand}'
            )
        part.replace(target)
    except InputError:
        raise
    # A ValueError comes from a redirection to an invalid address.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(
            f'{target} is missing and {url} cannot be downloaded ({reason}); try '
            f'again, {by_hand}'
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, path: Path) -> None:
    context = ssl.create_default_context()
    # The addresses are those in published.py.
    with urllib.request.urlopen(  # noqa: S310
        url, timeout=_TIMEOUT, context=context
    ) as response:
        size = response.length or 0
        # disable=None: silent unless the output is a terminal.
        bar = tqdm(
            total=size, desc=path.parent.name, unit='B', unit_scale=True, disable=None
        )
        with bar, path.open('wb') as file:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
                if file.tell() > _MAX_BYTES:
                    raise OSError(f'more than {_MAX_BYTES:,} bytes came')
    if path.stat().st_size < size:
        raise OSError(
            f'the connection broke after {path.stat().st_size} of {size} bytes'
        )
