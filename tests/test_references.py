"""The models to compare with, and the benchmark that does it."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import torch

from benchmarks.references import LightGCNRun, gfcf_scorer
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.typing import ITEM, RATES, USER

ROOT = Path(__file__).parents[1]


def test_gfcf_is_its_dense_definition():
    generator = torch.Generator().manual_seed(0)
    rated = (torch.rand(30, 20, generator=generator) < 0.3).double()
    rated[3], rated[:, 5] = 0, 0  # a user and an item without pairs
    edge_index = rated.nonzero().T
    twice = edge_index.repeat(1, 2)[:, torch.randperm(2 * edge_index.size(1))]

    def inverse(deg):
        return torch.where(deg > 0, deg, torch.inf).rsqrt()

    deg_user, deg_item = rated.sum(1), rated.sum(0)
    norm = inverse(deg_user)[:, None] * rated * inverse(deg_item)
    right = torch.linalg.svd(norm, full_matrices=False).Vh[:6].T
    low = inverse(deg_item)[:, None] * right @ right.T * deg_item.sqrt()
    expected = rated @ (norm.T @ norm + 0.7 * low)

    users = torch.tensor([7, 3, 0, 29])
    score = gfcf_scorer(twice, 30, 20, rank=6, weight=0.7, generator=generator)
    torch.testing.assert_close(
        score(users).double(), expected[users], rtol=1e-4, atol=1e-4
    )


def test_the_fast_layers_are_those_of_lightgcn():
    edge_index = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, 2, 3]])
    run = LightGCNRun(edge_index, 4, 5, embedding_dim=3)
    x = run.model.embedding.weight
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    both[0, 5:] += 4
    both[1, :5] += 4
    plain = type(run.model)(9, 3, 3)
    plain.load_state_dict(run.model.state_dict())
    ours, theirs = run.model.get_embedding(run.adj), plain.get_embedding(both)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(9, 3)
    (grad,) = torch.autograd.grad((ours * weight).sum(), x)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), plain.embedding.weight)
    torch.testing.assert_close(grad, expected)


def test_lightgcn_learns_more_than_popularity():
    data = SyntheticHierarchy(protocol='c2f')[0]
    pairs, num_items = data[RATES].edge_index, data[ITEM].num_nodes
    generator = torch.Generator().manual_seed(0)
    run = LightGCNRun(pairs, data[USER].num_nodes, num_items, generator, lr=1e-2)
    (before, _), (after, score) = islice(run.run(every=4), 2)
    assert 0 < before < after
    learned = evaluate_split(score, data, 'val')['recall@20']
    popular = evaluate_split(popularity_score(pairs, num_items), data, 'val')
    assert learned > 2 * popular['recall@20']


def test_time_to_quality(tmp_path):
    program = str(ROOT / 'benchmarks' / 'time_to_quality.py')
    call = [sys.executable, program, '--dataset', 'synthetic', '--seconds', '1']
    call += ['--threads', '1', '--out', str(tmp_path)]
    subprocess.run(call, check=True, capture_output=True, cwd=ROOT)
    path = tmp_path / 'time_to_quality-synthetic.json'
    result = json.loads(path.read_text())
    assert list(result['methods']) == ['fast', 'gfcf', 'paper', 'lightgcn']
    for method in result['methods'].values():
        seconds = [point['seconds'] for point in method['points']]
        assert seconds == sorted(seconds)
        assert method['other_seconds'] > 0
    assert len(result['methods']['gfcf']['points']) == 1
    assert len(result['methods']['paper']['points']) > 1
    assert 'GF-CF' in path.with_suffix('.md').read_text()
    assert path.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
