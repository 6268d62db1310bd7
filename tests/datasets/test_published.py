import functools
import hashlib
import http.server
import re
import threading

import numpy as np
import pytest

from pyg_c2f.datasets import AmazonBook, Gowalla, InteractionDataset, Yelp2018, Yelp2020
from pyg_c2f.datasets.published import (
    PublishedDataset,
    file_state,
    pairs_digest,
    read_checksums,
)
from pyg_c2f.typing import RATES, InputError

CLASSES = [Gowalla, Yelp2018, Yelp2020, AmazonBook]
FILES = {'train.txt': b'0 0 1 2\n1 1 3\n', 'test.txt': b'0 3\n1 0 2\n'}


def sha256(content):
    return {'sha256': hashlib.sha256(content).hexdigest()}


@pytest.fixture
def tiny(tmp_path):
    """A published data set on a local server."""
    (tmp_path / 'server').mkdir()
    for file, content in FILES.items():
        (tmp_path / 'server' / file).write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=tmp_path / 'server')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        class Tiny(PublishedDataset):
            folder = 'tiny'
            base_url = f'http://127.0.0.1:{server.server_port}'

            @classmethod
            def references(cls):
                return {file: sha256(content) for file, content in FILES.items()}

        yield Tiny
        server.shutdown()


def test_download(tiny, tmp_path):
    dataset = tiny(tmp_path / 'root', protocol='c2f')
    assert str(dataset) == "Tiny('tiny')"
    assert dataset[0].protocol == 'c2f'
    for file, content in FILES.items():
        assert (tmp_path / 'root' / 'tiny' / file).read_bytes() == content
    # What is there is not asked for again.
    tiny.base_url = 'http://127.0.0.1:1'
    other = InteractionDataset(tmp_path / 'root', 'tiny', protocol='c2f')[0]
    edges = tiny(tmp_path / 'root', protocol='c2f')[0][RATES].edge_index
    assert edges.equal(other[RATES].edge_index)


def test_local_file_is_used_as_it_is(tiny, tmp_path):
    (tmp_path / 'tiny').mkdir()
    (tmp_path / 'tiny' / 'train.txt').write_text('0 0 1\n1 1\n')
    data = tiny(tmp_path)[0]
    assert data[RATES].edge_index.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert (tmp_path / 'tiny' / 'test.txt').read_bytes() == FILES['test.txt']


def test_wrong_checksum(tiny, tmp_path):
    (tmp_path / 'server' / 'test.txt').write_bytes(b'0 3\n')
    with pytest.raises(InputError, match=r'test.txt does not have the expected'):
        tiny(tmp_path)
    assert [path.name for path in (tmp_path / 'tiny').iterdir()] == ['train.txt']


def test_offline(tiny, tmp_path):
    tiny.base_url = 'http://127.0.0.1:1'
    with pytest.raises(InputError) as info:
        tiny(tmp_path)
    assert 'http://127.0.0.1:1/train.txt' in str(info.value)
    assert f'put the file into {tmp_path / "tiny"} by hand' in str(info.value)
    assert 'needed there: train.txt and test.txt' in str(info.value)
    assert not list((tmp_path / 'tiny').iterdir())


def test_wrong_call_downloads_nothing(tiny, tmp_path):
    with pytest.raises(InputError, match='unknown protocol'):
        tiny(tmp_path, protocol='other')
    assert not (tmp_path / 'tiny').exists()


@pytest.mark.parametrize('cls', CLASSES)
def test_references(cls):
    references = cls.references()
    assert set(references) == {'train.txt', 'test.txt'}
    for reference in references.values():
        assert re.fullmatch('[0-9a-f]{40}', reference['git_blob'])
        assert re.fullmatch('[0-9a-f]{64}', reference.get('sha256', '0' * 64))
    commit = cls.base_url.split('/')[5]
    assert re.fullmatch('[0-9a-f]{40}', commit)
    assert f'commit {commit[:7]}' in re.sub(r'\s+', ' ', cls.__doc__)
    assert 'Citation:' in cls.__doc__


def test_checksums_name_the_classes():
    assert list(read_checksums()) == [cls.folder for cls in CLASSES]


def test_pairs_digest():
    pairs = [(2, 5), (0, 3), (2, 1), (0, 3)]
    users, items = np.array(pairs).T
    flat = [number for pair in sorted(set(pairs)) for number in pair]
    raw = b''.join(number.to_bytes(8, 'little') for number in flat)
    assert pairs_digest(users, items) == hashlib.sha256(raw).hexdigest()


def test_file_state(tmp_path):
    path = tmp_path / 'train.txt'
    path.write_bytes(FILES['train.txt'])
    digest = pairs_digest(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 1, 3]))
    by_pairs = sha256(FILES['train.txt']) | {'pairs_sha256': digest}
    assert file_state(path, {}) == 'no reference'
    assert file_state(path, sha256(FILES['train.txt'])) == 'ok'
    path.write_text('1 3 1\n0 2 1 0\n')
    assert file_state(path, by_pairs) == 'ok'
    assert file_state(path, sha256(FILES['train.txt'])) == 'differs'
    path.write_text('1 3 1\n0 2 1\n')
    assert file_state(path, by_pairs) == 'differs'


@pytest.mark.dataset
@pytest.mark.parametrize(
    ('protocol', 'expected'),
    [('c2f', (810_128, 80_990, 136_252)), ('standard', (None, None, 217_242))],
)
def test_gowalla(data_root, protocol, expected):
    if not (data_root / 'gowalla').is_dir():
        pytest.skip(f'no gowalla in {data_root}')
    data = Gowalla(data_root, protocol=protocol)[0]
    assert data.num_nodes_dict == {'user': 29_858, 'item': 40_981}
    keys = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
    sizes = [data[RATES][key].size(1) for key in keys]
    assert sum(sizes) == 810_128 + 217_242
    for size, number in zip(sizes, expected, strict=True):
        assert number is None or size == number
    assert abs(sizes[1] / 810_128 - 0.1) < 0.01
