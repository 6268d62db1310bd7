"""Time to quality: the program end to end, and what its methods reach."""

import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.typing import ITEM, RATES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('time_to_quality')


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
    assert result['methods']['lightgcn']['ended'] == 'by the limit'
    assert 'GF-CF' in path.with_suffix('.md').read_text()
    assert path.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


def test_lightgcn_learns_more_than_popularity(script, monkeypatch):
    data = SyntheticHierarchy(protocol='c2f')[0]
    monkeypatch.setattr(script, 'EPOCHS', 8)
    curve = script.Curve(limit=math.inf)
    script.run_lightgcn(data, 0, curve)
    score = popularity_score(data[RATES].edge_index, data[ITEM].num_nodes)
    popular = evaluate_split(score, data, 'val')['recall@20']
    assert max(point['recall@20'] for point in curve.points) > 2 * popular


def test_seconds_of_evaluations_are_apart(script, monkeypatch):
    def evaluate(*_):
        time.sleep(0.05)
        return {'recall@20': 0.0, 'ndcg@20': 0.0}

    monkeypatch.setattr(script, 'EPOCHS', 4)
    monkeypatch.setattr(script, 'evaluate_split', evaluate)
    curve = script.Curve(limit=math.inf)
    script.run_lightgcn(SyntheticHierarchy(protocol='c2f')[0], 0, curve)
    assert len(curve.points) > 1
    assert curve.other_seconds >= 0.05 * len(curve.points)
