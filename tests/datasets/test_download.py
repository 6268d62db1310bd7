import errno
import hashlib
import os
import socket
import socketserver
import struct
import threading
from contextlib import suppress
from typing import ClassVar, NoReturn

import pytest

from pyg_c2f.datasets.download import download, matches
from pyg_c2f.typing import InputError

CONTENT = b'0 1 2\n' * 50000
REFERENCE = {'sha256': hashlib.sha256(CONTENT).hexdigest()}
HTML = b'<!DOCTYPE html><html><body>Please log in</body></html>'
HALF = len(CONTENT) // 2
SILENCE = threading.Event()


def answer(head, content=CONTENT):
    return b'HTTP/1.1 %b\r\n\r\n%b' % (head.encode(), content)


def sized(size, content=CONTENT):
    return answer(f'200 OK\r\nContent-Length: {size}', content)


SIZE = len(CONTENT)
CHUNK = b'%x\r\n%b\r\n' % (HALF, CONTENT[:HALF])  # and no end
ANSWERS = {
    'good': sized(SIZE),
    'unknown-length': answer('200 OK'),
    'more': sized(SIZE, 2 * CONTENT),
    'no-number': sized('many'),
    'negative': sized(-3),
    'truncated': sized(SIZE - 1, CONTENT[:-1]),
    'html': sized(len(HTML), HTML),
    'chunks': answer('200 OK\r\nTransfer-Encoding: chunked', CHUNK),
    'promises': sized(10**15),
    'endless': answer('200 OK'),
    **dict.fromkeys(('broken', 'reset', 'stalled'), sized(SIZE, CONTENT[:HALF])),
    'silent': b'',
    'no-http': b'\x16\x03\x01',
    '404': answer('404 Not Found', b''),
    '503': answer('503 Service Unavailable', b''),
}
for path, target in {
    'to-good': '/good',
    'loop': '/loop-again',
    'loop-again': '/loop-again',
    'to-file': 'file:///etc/passwd',
    'to-nowhere': 'http://127.0.0.1:1/',
    'to-no-address': 'http://[half/',
}.items():
    ANSWERS[path] = answer(f'302 Found\r\nLocation: {target}', b'')


class Handler(socketserver.StreamRequestHandler):
    """Gives a faulty answer first, and the content from the second request on."""

    faults: ClassVar[set[str]] = set()  # those that were asked for

    def handle(self) -> None:
        fault = self.rfile.readline().split()[1].decode().removeprefix('/')
        while self.rfile.readline().strip():
            pass
        if fault in self.faults:
            fault = 'good'
        if fault != 'loop-again':  # never ends
            self.faults.add(fault)
        self.wfile.write(ANSWERS[fault])
        if fault in ('silent', 'stalled'):
            SILENCE.wait()
        if fault == 'reset':
            # Without this option the rest of the body ends as if it were complete.
            linger = struct.pack('ii', 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        with suppress(OSError):
            while fault == 'endless':
                self.wfile.write(CONTENT)


@pytest.fixture(scope='module')
def url():
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        SILENCE.set()
        server.shutdown()


def test_matches():
    blob = hashlib.sha1(b'blob %d\0' % len(CONTENT) + CONTENT).hexdigest()
    for reference in (REFERENCE, {'git_blob': blob}):
        assert matches(CONTENT, reference)
        assert not matches(CONTENT[1:], reference)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    Handler.faults.clear()
    monkeypatch.setattr('pyg_c2f.datasets.download._TIMEOUT', 0.5)
    monkeypatch.setattr('pyg_c2f.datasets.download._MAX_BYTES', 3 * SIZE)


@pytest.mark.parametrize(
    'path', ['good', 'unknown-length', 'to-good', 'more', 'no-number', 'negative']
)
def test_good(url, tmp_path, path):
    target = tmp_path / 'new' / 'train.txt'
    download(f'{url}/{path}', target, REFERENCE)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('truncated', 'does not have the expected checksum, nothing was kept'),
        ('html', 'does not have the expected checksum'),
        ('broken', f'broke after {HALF} of {SIZE} bytes'),
        ('reset', 'reset|broke after'),
        ('chunks', 'cannot be downloaded .*IncompleteRead'),
        ('silent', 'cannot be downloaded .*timed out'),
        ('stalled', 'cannot be downloaded .*timed out'),
        ('endless', f'more than {3 * SIZE:,} bytes came'),
        ('promises', f'broke after {SIZE} of {10**15} bytes'),
        ('no-http', 'cannot be downloaded'),
        ('404', 'Error 404'),
        ('503', 'Error 503'),
        ('loop', 'Error 302'),
        ('to-file', 'Error 302'),
        ('to-nowhere', 'refused'),
        ('to-no-address', 'cannot be downloaded'),
    ],
)
def test_bad_answer(url, tmp_path, path, message):
    target = tmp_path / 'train.txt'
    with pytest.raises(InputError, match=message) as info:
        download(f'{url}/{path}', target, REFERENCE)
    assert f'{url}/{path}' in str(info.value)
    assert f'into {tmp_path} by hand' in str(info.value)
    assert '\n' not in str(info.value)
    assert not list(tmp_path.iterdir())
    # The next try works.
    download(f'{url}/{path}', target, REFERENCE)
    assert target.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ('step', 'error', 'message'),
    [
        ('tqdm.update', OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 'No space'),
        ('matches', KeyboardInterrupt(), None),
    ],
)
def test_interrupted(url, tmp_path, monkeypatch, step, error, message):
    def stop(*args: object) -> NoReturn:
        raise error

    monkeypatch.setattr(f'pyg_c2f.datasets.download.{step}', stop)
    with pytest.raises((InputError, KeyboardInterrupt), match=message):
        download(f'{url}/good', tmp_path / 'train.txt', REFERENCE)
    assert not list(tmp_path.iterdir())


def test_bad_target(url, tmp_path):
    (tmp_path / 'train.txt' / 'x').mkdir(parents=True)
    with pytest.raises(InputError, match='cannot be downloaded'):
        download(f'{url}/good', tmp_path / 'train.txt', REFERENCE)
    assert [path.name for path in tmp_path.iterdir()] == ['train.txt']
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot be written'):
        download(f'{url}/good', tmp_path / 'file' / 'train.txt', REFERENCE)
