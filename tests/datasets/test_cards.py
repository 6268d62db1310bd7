from pathlib import Path

import pytest

from pyg_c2f.datasets import describe
from pyg_c2f.datasets.published import read_checksums
from pyg_c2f.datasets.registry import PUBLISHED

FOLDER = Path(__file__).parents[2] / 'datasets'


def row_of_numbers(text):
    """The cells of the first table row that starts with a number."""
    rows = (line.strip('| ').split(' | ') for line in text.splitlines())
    return next(row for row in rows if row[0][:1].isdigit())


@pytest.mark.parametrize('name', PUBLISHED)
def test_card_agrees_with_class(name):
    card = (FOLDER / f'{name}.md').read_text()
    cls = PUBLISHED[name]
    numbers = row_of_numbers(card)
    keys = ('Users', 'Items', 'Train', 'Test', 'Density')
    stats = ' '.join(f'{x}: {y}.' for x, y in zip(keys, numbers[:5], strict=True))
    assert stats in cls.__doc__
    users, items, train, test = (int(cell.replace(',', '')) for cell in numbers[:4])
    density = 100 * (train + test) / (users * items)
    assert abs(density - float(numbers[4].rstrip(' %'))) < 5e-4
    commit = cls.base_url.split('/')[5]
    assert commit in card and cls.__name__ in card
    row = f'| [{name}]({name}.md) '
    (row,) = (x for x in (FOLDER / 'README.md').read_text().splitlines() if row in x)
    assert row.strip('| ').split(' | ')[2:] == numbers[:4]


def test_every_reference_has_a_card():
    assert set(read_checksums()) <= {path.stem for path in FOLDER.glob('*.md')}


def test_synthetic_card():
    out = describe('synthetic')
    train = out['num_train'] + out['num_val']
    expected = [out['num_users'], out['num_items'], train, out['num_test']]
    numbers = row_of_numbers((FOLDER / 'synthetic.md').read_text())
    assert [int(cell.replace(',', '')) for cell in numbers[:4]] == expected
    assert float(numbers[4].rstrip(' %')) == round(100 * out['density'], 3)
