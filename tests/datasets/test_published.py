import functools
import hashlib
import http.server
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from pyg_c2f.datasets import Gowalla, InteractionDataset, describe
from pyg_c2f.datasets.published import (
    PublishedDataset,
    file_state,
    pairs_digest,
    read_checksums,
)
from pyg_c2f.datasets.registry import PUBLISHED
from pyg_c2f.typing import RATES, InputError

CARDS = Path(__file__).parents[2] / 'datasets'
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
    with pytest.raises(InputError, match='unknown protocol'):
        tiny(tmp_path / 'root', protocol='other')
    assert not (tmp_path / 'root').exists()
    dataset = tiny(tmp_path / 'root', protocol='c2f')
    assert str(dataset) == "Tiny('tiny')"
    assert dataset[0].protocol == 'c2f'
    for file, content in FILES.items():
        assert (tmp_path / 'root' / 'tiny' / file).read_bytes() == content
    # Files that exist are not requested again.
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


def row_of_numbers(text):
    """The cells of the first table row that starts with a number."""
    rows = (line.strip('| ').split(' | ') for line in text.splitlines())
    return next(row for row in rows if row[0][:1].isdigit())


@pytest.mark.parametrize('name', PUBLISHED)
def test_references_and_cards(name):
    cls = PUBLISHED[name]
    references = cls.references()
    assert set(references) == {'train.txt', 'test.txt'}
    for reference in references.values():
        assert re.fullmatch('[0-9a-f]{40}', reference['git_blob'])
        assert re.fullmatch('[0-9a-f]{64}', reference.get('sha256', '0' * 64))
    commit, text = cls.base_url.split('/')[5], ' '.join(cls.__doc__.split())
    assert re.fullmatch('[0-9a-f]{40}', commit)
    assert f'commit {commit[:7]}' in text and 'Citation:' in text
    card = (CARDS / f'{name}.md').read_text()
    assert commit in card and cls.__name__ in card
    numbers = row_of_numbers(card)
    keys = ('Users', 'Items', 'Train', 'Test', 'Density')
    stats = ' '.join(f'{x}: {y}.' for x, y in zip(keys, numbers, strict=True))
    assert stats in text
    users, items, train, test = (int(cell.replace(',', '')) for cell in numbers[:4])
    density = 100 * (train + test) / (users * items)
    assert abs(density - float(numbers[4].rstrip(' %'))) < 5e-4
    row = f'| [{name}]({name}.md) '
    (row,) = (x for x in (CARDS / 'README.md').read_text().splitlines() if row in x)
    assert row.strip('| ').split(' | ')[2:] == numbers[:4]


def test_every_reference_has_a_class():
    assert list(read_checksums()) == list(PUBLISHED)


def test_synthetic_card():
    out = describe('synthetic')
    train = out['num_train'] + out['num_val']
    expected = [out['num_users'], out['num_items'], train, out['num_test']]
    numbers = row_of_numbers((CARDS / 'synthetic.md').read_text())
    assert [int(cell.replace(',', '')) for cell in numbers[:4]] == expected
    assert float(numbers[4].rstrip(' %')) == round(100 * out['density'], 3)


def test_file_state(tmp_path):
    path = tmp_path / 'train.txt'
    # The digest is that of the numbers of the distinct pairs, in their order.
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 3)]
    raw = b''.join(number.to_bytes(8, 'little') for pair in pairs for number in pair)
    digest = hashlib.sha256(raw).hexdigest()
    assert pairs_digest(*np.array([*pairs[::-1], (0, 1)]).T) == digest
    by_bytes = sha256(FILES['train.txt'])
    by_pairs = by_bytes | {'pairs_sha256': digest}
    for content, reference, state in (
        (FILES['train.txt'], {}, 'no reference'),
        (FILES['train.txt'], by_bytes, 'ok'),
        (b'1 3 1\n0 2 1 0\n', by_pairs, 'ok'),
        (b'1 3 1\n0 2 1 0\n', by_bytes, 'differs'),
        (b'1 3 1\n0 2 1\n', by_pairs, 'differs'),
    ):
        path.write_bytes(content)
        assert file_state(path, reference) == state


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
    files = describe('gowalla', data_root)['files']
    assert {file['state'] for file in files} == {'ok'}
