"""The scripts in examples/ run, and learn something."""

import re
import runpy
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from torch_geometric import typing

from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.recipes import TrainingOptions, train
from pyg_c2f.typing import RATES
from tests.tiny import assert_same_model

EXAMPLES = Path(__file__).parents[2] / 'examples'
needs_sampling = pytest.mark.skipif(
    not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE),
    reason='needs pyg-lib or torch-sparse',
)


@pytest.fixture
def run_example(monkeypatch):
    """Runs a script as a user does, and returns what it computed."""

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name='__main__')

    return run_example


def test_lightgcn_meta_embedding(run_example):
    results = run_example('lightgcn_meta_embedding.py')['results']
    numel, ndcg = zip(*results.values(), strict=True)
    assert list(results) == [
        'nn.Embedding',
        'METIS anchors',
        'random anchors',
        'popularity',
    ]
    assert numel[:3] == (32_000, 3_200, 3_200)
    full, metis, random, popularity = ndcg
    assert full > metis > 1.5 * max(random, popularity)


def test_hetero_anchor_conv(run_example):
    out = run_example('hetero_anchor_conv.py')
    assert out['losses'][-1] < 0.3 * out['losses'][0]
    assert out['accuracy'] > 0.8 > 0.5 > out['majority']


@needs_sampling
@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib'")
def test_link_neighbor_loader(run_example):
    out = run_example('link_neighbor_loader.py', '--max-batches', 80)
    assert len(out['losses']) == 80
    assert sum(out['losses'][-5:]) < 0.8 * sum(out['losses'][:5])
    assert out['after'] > out['before'] + 0.05


def test_link_neighbor_loader_without_a_sampler(run_example, monkeypatch):
    for name in ('WITH_PYG_LIB', 'WITH_TORCH_SPARSE'):
        monkeypatch.setattr(typing, name, False)
    with pytest.raises(SystemExit) as stop:
        run_example('link_neighbor_loader.py')
    message = str(stop.value)
    assert len(message.splitlines()) == 1
    assert 'https://data.pyg.org/whl' in message and 'pyg-c2f[sparse]' in message


def test_csv_dataset(run_example):
    out = run_example('csv_dataset.py')
    data, result = out['data'], out['result']
    assert (data['user'].num_nodes, data['item'].num_nodes) == (600, 400)
    popularity = popularity_score(data[RATES].edge_index, 400)
    least = evaluate_split(popularity, data, 'test')
    assert result['ndcg@20'] > 1.5 * least['ndcg@20']
    for items in (out['known'], out['new']):
        assert len(set(items)) == 3
        assert all(re.fullmatch(r'P\d{3}', item) for item in items)
    assert not {'P001', 'P002'} & set(out['new'])


def test_custom_recipe(run_example, tmp_path):
    out = run_example('custom_recipe.py')
    val, recipe = out['val']['ndcg@20'], out['recipe']
    assert val > 0.9 * out['best']
    # An interrupted run continues, as with the recipes of the package.
    data = SyntheticHierarchy(60, 80, 900, 4, 8)[0]
    small = replace(recipe, embedding_dim=8, num_fine=8, max_epochs=10)
    whole, calls = train(data, small), count()

    def interrupt(line):
        if next(calls) == 1:
            raise KeyboardInterrupt

    options = TrainingOptions(out=tmp_path, on_evaluation=interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(data, small, options)
    run = train(data, small, TrainingOptions(out=tmp_path, resume=True))
    assert run.phases == whole.phases
    assert len(run.phases['coarse'][1]) > 3
    assert_same_model(run.model, whole.model)


def test_every_example_is_tested_and_listed():
    names = {path.name for path in EXAMPLES.glob('*.py')}
    tests, readme = Path(__file__).read_text(), (EXAMPLES / 'README.md').read_text()
    assert len(names) == 5
    for name in names:
        assert f"'{name}'" in tests and f'[{name}]({name})' in readme
