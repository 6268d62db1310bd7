import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pyg_c2f.report import results_table, size_table, write_report
from pyg_c2f.typing import KS


def values(scale: float) -> dict[str, float]:
    names = [f'{name}@{k}' for name in ('recall', 'ndcg') for k in KS]
    return {name: scale * (1 + i) / 100 for i, name in enumerate(names)}


def phase(epoch: int, scale: float) -> dict[str, Any]:
    return {
        'best_epoch': epoch,
        'last_epoch': epoch + 5,
        'val': values(scale),
        'test': values(scale / 2),
    }


@pytest.fixture
def metrics() -> dict[str, Any]:
    fine = phase(35, 2.5)
    return {
        'dataset': 'made <up>',
        'protocol': 'c2f',
        'recipe': 'paper',
        'seed': 7,
        'split_seed': 2024,
        'num_users': 1234,
        'num_items': 56,
        'num_train': 78901,
        'val': fine['val'],
        'test': fine['test'],
        'popularity': {'val': values(0.5), 'test': values(0.3)},
        'coarse': {'phase1': phase(15, 1.0), 'phase2': phase(45, 2.0)},
        'fine': {'phase1': phase(10, 2.2), 'phase2': fine},
        'bytes': {
            'codebooks': 1500,
            'codebooks_dense': 2000,
            'assignments': 30_000,
            'scalars': 0,
            'inference_extra': 400_000,
            'propagated_table': 700_000,
            'full_table': 1_400_000,
        },
        'seconds': {'load': 0.5, 'train': 200.0, 'total': 8000.0},
        'versions': {'torch': '2.13.0'},
        'command': 'python run.py train --dataset "made <up>" --seed 7',
    }


@pytest.fixture
def history() -> list[dict[str, Any]]:
    return [
        {
            'stage': stage,
            'phase': number,
            'epoch': epoch,
            'loss': None if epoch == 0 else 1 / epoch,
            'val': values(1 + epoch / 50),
            'seconds': 0.1,
            'anchors_in_use': 20,
        }
        for stage in ('coarse', 'fine')
        for number, epochs in ((1, range(0, 20, 5)), (2, range(20, 50, 5)))
        for epoch in epochs
    ]


class Page(HTMLParser):
    """Collects the text, the pictures and everything the page would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text: list[str] = []
        self.pictures: list[bytes] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding='utf-8'))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ('img', 'meta'):
            self.open.append(tag)
        prefix = 'data:image/svg+xml;base64,'
        for name, value in attrs:
            if name in ('src', 'href', 'srcset') and value is not None:
                if value.startswith(prefix):
                    self.pictures.append(base64.b64decode(value.removeprefix(prefix)))
                else:
                    self.loaded.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_results_table_holds_every_number(metrics: dict[str, Any]) -> None:
    test, val = results_table(metrics).split('\n\n')
    for split, block in (('test', test), ('val', val)):
        header, *lines = block.splitlines()
        assert {len(line) for line in lines} == {len(header)}
        assert header.split()[0] == split
        rows = {
            'popularity': metrics['popularity'],
            'coarse, phase 1': metrics['coarse']['phase1'],
            'coarse, phase 2': metrics['coarse']['phase2'],
            'fine, phase 1': metrics['fine']['phase1'],
            'fine, phase 2': metrics['fine']['phase2'],
        }
        assert len(lines) == len(rows)
        names = [name.lower() for name in header.split()[2:]]
        assert names == [f'{m}@{k}' for m in ('ndcg', 'recall') for k in KS]
        for line, (label, result) in zip(lines, rows.items(), strict=True):
            assert line.startswith(label)
            cells = line.removeprefix(label).split()
            if 'best_epoch' in result:
                assert int(cells.pop(0)) == result['best_epoch']
            assert cells == [f'{result[split][name]:.4f}' for name in names]


def test_a_result_of_no_phase_has_its_own_row(metrics: dict[str, Any]) -> None:
    assert 'final model' not in results_table(metrics)
    metrics['test'] = values(9.0)
    test, val = results_table(metrics).split('\n\n')
    assert test.splitlines()[-1].startswith('final model')
    assert 'final model' not in val


def test_size_table_adds_up(metrics: dict[str, Any]) -> None:
    header, *lines = size_table(metrics).splitlines()
    assert {len(line) for line in lines} == {len(header)}
    counted = {}
    for line in lines:
        name, size, *_ = re.split(r'\s{2,}', line)
        counted[name] = int(size.replace(',', ''))
    stored = ('codebooks', 'assignments', 'scalars', 'inference_extra')
    total = counted.pop('total of the above')
    assert total == sum(metrics['bytes'][name] for name in stored)
    assert counted == metrics['bytes']


def test_report_is_one_whole_file(
    tmp_path: Path, metrics: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    out = tmp_path / 'runs' / 'one'
    path = write_report(out, metrics, history)
    assert path == out / 'report.html'
    assert list(out.iterdir()) == [path]
    page = Page(path)
    assert page.open == []
    assert page.loaded == []
    assert '@import' not in path.read_text(encoding='utf-8')
    assert metrics['command'] in page.text
    text = ' '.join(page.text)
    for part in ('made <up>', 'c2f', 'paper', 'seed 7', '1,234', '2.13.0', '1,400,000'):
        assert part in text
    for result in (metrics['val'], metrics['test']):
        assert {f'{value:.4f}' for value in result.values()} <= set(page.text)
    assert len(page.pictures) == 2
    for picture in page.pictures:
        assert ElementTree.fromstring(picture).tag.endswith('svg')


def test_report_is_replaced_and_repeats(
    tmp_path: Path, metrics: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    path = write_report(tmp_path, metrics, history[:3])
    early = path.read_bytes()
    assert write_report(tmp_path, metrics, history).read_bytes() != early
    assert write_report(tmp_path, metrics, history[:3]).read_bytes() == early


@pytest.mark.parametrize('evaluations', [0, 1, 5, 10])
def test_an_interrupted_run_has_a_report(
    tmp_path: Path,
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
    evaluations: int,
) -> None:
    for name in ('fine', 'val', 'test', 'bytes', 'command'):
        del metrics[name]
    del metrics['coarse']['phase2']
    page = Page(write_report(tmp_path, metrics, history[:evaluations]))
    assert len(page.pictures) == (evaluations > 0)
    assert 'coarse, phase 1' in page.text
    assert 'coarse, phase 2' not in page.text
    assert size_table(metrics) == ''


def test_a_bare_run_has_a_report(tmp_path: Path) -> None:
    assert Page(write_report(tmp_path, {'dataset': 'x'}, [])).pictures == []
    assert results_table({}) == ''


def test_the_fine_stage_alone_has_curves(
    tmp_path: Path, metrics: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    del metrics['coarse'], metrics['popularity']
    fine = [line for line in history if line['stage'] == 'fine']
    assert len(Page(write_report(tmp_path, metrics, fine)).pictures) == 2
