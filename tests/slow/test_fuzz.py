"""Damaged files of all readers: some of the cases of benchmarks/fuzz.py."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.fuzz import READERS, judge, main, valid_files
from pyg_c2f.datasets import InteractionDataset
from pyg_c2f.typing import InputError

CASES = 300

pytest.importorskip('pyarrow')


@pytest.mark.parametrize('reader', READERS)
def test_valid_files_are_read(reader, tmp_path):
    kinds = {
        judge(valid_files(random.Random(seed), reader), tmp_path) for seed in range(40)
    }
    refused = {what for what, _ in kinds} - {'read'}
    assert not refused or (reader == 'parquet' and refused == {'refused'})


def test_damaged_files_are_read_for_what_they_say_or_refused(tmp_path, monkeypatch):
    """In processes of their own, with little memory and time."""
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parents[2]))
    with pytest.raises(SystemExit) as ended:
        main(['--seed', '1', '--cases', str(CASES), '--out', str(tmp_path)])
    assert ended.value.code == 0
    readers = json.loads((tmp_path / 'fuzz-readers.json').read_text())['readers']
    assert list(readers) == list(READERS)
    for found in readers.values():
        assert found['read'] + found['refused'] == found['cases'] == CASES
        assert sum(found['reasons'].values()) == found['refused']
        # There is something of both.
        assert min(found['read'], found['refused']) > CASES / 20
    assert f'| text | {CASES} | ' in (tmp_path / 'fuzz-readers.md').read_text()


TABLE = b'user_id,item_id\n' + b''.join(b'a,%d\nb,%d\n' % (i, i) for i in range(5))
DAMAGED = TABLE + b'c\n'


def fails(error):
    def read(*_):
        raise error

    return read


def reads(raw):
    def read(root, name):
        (root / name / 'toy.csv').write_bytes(raw)
        return InteractionDataset(root, name)

    return read


@pytest.mark.parametrize(
    ('raw', 'read', 'outcome'),
    [
        (TABLE, InteractionDataset, 'read'),
        (DAMAGED, InteractionDataset, 'refused'),
        (TABLE, fails(KeyError()), 'another error'),
        (TABLE, fails(InputError('toy.csv, line 3: no')), 'refused, but right'),
        (DAMAGED, reads(TABLE), 'read, but wrong'),
        (DAMAGED, fails(InputError('the table is wrong')), 'unclear refusal'),
        (TABLE, reads(TABLE + b'b,9\n'), 'other interactions'),
        (TABLE, reads(TABLE.replace(b'a,4\n', b'')), 'other interactions'),
    ],
)
def test_the_judge_sees_what_is_wrong(raw, read, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr('benchmarks.fuzz.InteractionDataset', read)
    assert judge({'toy.csv': raw}, tmp_path)[0] == outcome
