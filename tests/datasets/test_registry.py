import json

import pytest

from pyg_c2f.datasets import DataSpec, InteractionDataset, describe, get_dataset
from pyg_c2f.datasets.published import PublishedDataset
from pyg_c2f.datasets.registry import PUBLISHED
from pyg_c2f.typing import RATES, InputError

FILES = {'train.txt': '0 0 1 2\n1 1 3 4 5 0\n', 'test.txt': '0 3\n1 2\n'}
ROWS = ''.join(f'{u},{i}\n' for u in range(4) for i in range(10))


def test_folder(put, monkeypatch):
    root = put('toy', FILES)
    data = get_dataset(DataSpec('toy', root, split_seed=3))
    edges = InteractionDataset(root, 'toy', split_seed=3)[0][RATES].edge_index
    assert data[RATES].edge_index.equal(edges)
    assert data.split_seed == 3
    put('datasets', {})
    (root / 'toy').rename(root / 'datasets' / 'toy')
    monkeypatch.chdir(root)
    assert get_dataset('toy', split_seed=3)[RATES].edge_index.equal(edges)


def test_columns(put):
    columns = {'user_column': 'who', 'item_column': 'what'}
    root = put('toy', {'toy.csv': 'who,what\n' + ROWS})
    data = get_dataset('toy', root, **columns)
    assert data.num_nodes_dict == {'user': 4, 'item': 10}
    counts = describe('toy', root, **columns)
    assert (counts['num_interactions'], counts['density']) == (40, 1.0)


def test_synthetic():
    data = get_dataset('synthetic', protocol='c2f', split_seed=1)
    assert (data.dataset, data.protocol, data.split_seed) == ('synthetic', 'c2f', 1)
    out = describe('synthetic')
    assert out['source'] == 'generated' and out['files'] == []
    assert out['num_interactions'] == 80_000


def test_unknown(put):
    root = put('toy', FILES)
    with pytest.raises(InputError, match='synthetic, gowalla, yelp2018, yelp2020'):
        get_dataset('Gowala', root)
    with pytest.raises(InputError, match='train.txt and test.txt'):
        describe('Gowala', root)
    with pytest.raises(InputError, match='is a file'):
        get_dataset('toy', root / 'toy' / 'train.txt')


@pytest.mark.parametrize('name', PUBLISHED)
def test_published(put, offline, name):
    root = put('other', {})
    out = describe(name, root)
    assert [file['state'] for file in out['files']] == ['missing', 'missing']
    assert out['num_users'] is None and out['density'] is None
    assert [path.name for path in root.iterdir()] == ['other']
    with pytest.raises(InputError, match='cannot be downloaded'):
        get_dataset(name, root)
    put(name, FILES)
    assert get_dataset(name, root).dataset == name
    out = describe(name, root)
    assert [file['state'] for file in out['files']] == ['differs', 'differs']
    assert out['source'].endswith(name)
    assert out['license'] == PublishedDataset.license_note


def test_published_name_as_table(put, offline):
    root = put('yelp2018', {'yelp2018.csv': 'user_id,item_id\n' + ROWS})
    assert get_dataset('yelp2018', root)['item'].num_nodes == 10
    assert describe('yelp2018', root)['source'] == 'local'


def test_describe(put):
    out = describe('toy', put('toy', FILES))
    sizes = {file: len(text) for file, text in FILES.items()}
    assert {file['file']: file['bytes'] for file in out['files']} == sizes
    assert {file['state'] for file in out['files']} == {'no reference'}
    names = ('num_users', 'num_items', 'num_train', 'num_val', 'num_test')
    assert [out[name] for name in names] == [2, 6, 7, 1, 2]
    assert out['density'] == 10 / 12
    assert json.loads(json.dumps(out)) == out
