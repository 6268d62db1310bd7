import errno
import hashlib
import http.server
import os
import socket
import struct
import threading
from typing import ClassVar, NoReturn

import pytest

from pyg_c2f.datasets.download import download, matches
from pyg_c2f.typing import InputError

CONTENT = b'0 1 2\n' * 50000
REFERENCE = {'sha256': hashlib.sha256(CONTENT).hexdigest()}
HTML = b'<!DOCTYPE html><html><body>Please log in</body></html>'
HALF = len(CONTENT) // 2
SILENCE = threading.Event()
REDIRECTS = {
    'to-good': '/good',
    'loop': '/loop-again',
    'loop-again': '/loop-again',
    'to-file': 'file:///etc/passwd',
    'to-nowhere': 'http://127.0.0.1:1/',
    'to-no-address': 'http://[half/',
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the content at first, or from the second request on."""

    faults: ClassVar[set[str]] = set()  # those that were asked for

    def do_GET(self) -> None:  # noqa: N802
        fault = self.path.removeprefix('/')
        if fault in self.faults:
            fault = 'good'
        if fault != 'loop-again':  # never ends
            self.faults.add(fault)
        content = {'truncated': CONTENT[:-1], 'html': HTML}.get(fault, CONTENT)
        if fault.isdigit():
            return self.send_error(int(fault))
        if fault in REDIRECTS:
            self.send_response(302)
            self.send_header('Location', REDIRECTS[fault])
            return self.end_headers()
        if fault == 'silent':
            return SILENCE.wait() and None
        if fault == 'no-http':
            self.wfile.write(b'\x16\x03\x01')
            return None
        self.send_response(200)
        length = {'no-number': 'many', 'negative': '-3', 'promises': str(10**15)}
        if fault == 'chunks':
            self.send_header('Transfer-Encoding', 'chunked')
        elif fault not in ('unknown-length', 'endless'):
            self.send_header('Content-Length', length.get(fault, str(len(content))))
        self.end_headers()
        if fault in ('broken', 'reset', 'stalled'):
            content = content[:HALF]
        if fault == 'chunks':
            content = b'%x\r\n%b\r\n' % (HALF, content[:HALF])  # and no end
        self.wfile.write(content)
        if fault == 'more':
            self.wfile.write(CONTENT)
        if fault == 'reset':
            # Without this option the rest of the body ends as if it were complete.
            linger = struct.pack('ii', 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        if fault == 'stalled':
            SILENCE.wait()
        while fault == 'endless':
            try:
                self.wfile.write(CONTENT)
            except OSError:
                return None
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope='module')
def url():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
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
    monkeypatch.setattr('pyg_c2f.datasets.download._MAX_BYTES', 3 * len(CONTENT))


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
        ('broken', f'broke after {HALF} of {len(CONTENT)} bytes'),
        ('reset', 'reset|broke after'),
        ('chunks', 'cannot be downloaded .*IncompleteRead'),
        ('silent', 'cannot be downloaded .*timed out'),
        ('stalled', 'cannot be downloaded .*timed out'),
        ('endless', f'more than {3 * len(CONTENT):,} bytes came'),
        ('promises', f'broke after {len(CONTENT)} of {10**15} bytes'),
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
        ('matches', KeyboardInterrupt(), ''),
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
