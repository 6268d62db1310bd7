import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from pyg_c2f.datasets.download import download, matches
from pyg_c2f.typing import InputError

CONTENT = b'0 1 2\n' * 50000
REFERENCE = {'sha256': hashlib.sha256(CONTENT).hexdigest()}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the content, breaks off half-way, or knows nothing."""

    def do_GET(self) -> None:  # noqa: N802
        if self.path == '/absent':
            return self.send_error(404)
        content = CONTENT[:-1] if self.path == '/other' else CONTENT
        self.send_response(200)
        if self.path != '/unknown-length':
            self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.path == '/broken':
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope='module')
def url():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_matches():
    blob = hashlib.sha1(b'blob %d\0' % len(CONTENT) + CONTENT).hexdigest()
    assert matches(CONTENT, REFERENCE)
    assert matches(CONTENT, {'git_blob': blob})
    assert not matches(CONTENT[1:], REFERENCE)
    assert not matches(CONTENT[1:], {'git_blob': blob})


@pytest.mark.parametrize('path', ['good', 'unknown-length'])
def test_good(url, tmp_path, path):
    target = tmp_path / 'new' / 'train.txt'
    download(f'{url}/{path}', target, REFERENCE)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('other', 'does not have the expected checksum, nothing was kept'),
        ('broken', f'broke after {len(CONTENT) // 2} of {len(CONTENT)} bytes'),
        ('absent', '404'),
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


def test_no_connection(tmp_path):
    # Port 1 is reserved; nothing answers there.
    url = 'http://127.0.0.1:1/train.txt'
    with pytest.raises(InputError, match=f'{url} cannot be downloaded'):
        download(url, tmp_path / 'train.txt', REFERENCE)
    assert not list(tmp_path.iterdir())


def test_interrupted(url, tmp_path, monkeypatch):
    def interrupt(*args: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr('pyg_c2f.datasets.download.matches', interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(f'{url}/good', tmp_path / 'train.txt', REFERENCE)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    target = Path(tmp_path / 'file' / 'train.txt')
    with pytest.raises(InputError, match='cannot be written'):
        download('http://127.0.0.1:1/train.txt', target, REFERENCE)
