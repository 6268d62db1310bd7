"""The page of the demo: its reader gives the lists of the one in Python."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bundle_damage import damaged, sealed

from pyg_c2f.bundle import Bundle, BundleError
from pyg_c2f.cli.demo import PAGE_FOLDER
from tests.bundles import (
    BROKEN,
    GOOD,
    KINDS,
    SIZES,
    bundle_bytes,
    example,
    random_bundle,
    with_section,
)

ROOT = Path(__file__).parents[1]
FILES = {'index.html', 'app.js', 'bundle.js', 'style.css'}

needs_node = pytest.mark.skipif(
    shutil.which('node') is None, reason='the reader in JavaScript needs node'
)


def node(script, path, **request):
    """What a program in benchmarks/js answers."""
    out = subprocess.run(
        ['node', ROOT / 'benchmarks/js' / script],
        input=json.dumps({'path': str(path), **request}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def same_list(given, expected):
    """Whether lists are the same to the last bit of their scores."""
    items, scores = expected
    if given.get('items') != list(items):
        return False
    # JSON of a large number from JavaScript looks like that of an integer.
    return [float(x) for x in given['scores']] == scores.tolist()


@needs_node
@pytest.mark.parametrize('kind', KINDS)
def test_lists_are_those_of_python(kind, tmp_path):
    path = tmp_path / 'model.c2f'
    path.write_bytes(random_bundle(**KINDS[kind]))
    bundle, rng = Bundle.load(path), np.random.default_rng(0)
    names = bundle.item_ids or [str(x) for x in range(bundle.num_items)]
    calls, expected = [], []
    for turn in range(60):
        drawn = rng.integers(bundle.num_items, size=(2, 1 + turn)).tolist()
        history, among = drawn
        if turn % 3 == 0:
            history = [names[x] for x in history]
        if turn % 4 == 0:
            among = [names[x] for x in among]
        k, seen = int(rng.choice([1, 5, 20, 5000])), bool(turn % 2)
        candidates = among if turn % 5 == 0 else None
        options = {'excludeSeen': seen, 'candidates': candidates}
        calls.append(['recommend', history, k, options])
        expected.append(bundle.recommend(history, k, seen, candidates))
    answer = node('read.mjs', path, calls=calls)
    assert answer['numItems'] == bundle.num_items
    assert answer['itemIds'] == bundle.item_ids
    assert answer['itemTitles'] == bundle.item_titles
    for given, wanted in zip(answer['results'], expected, strict=True):
        assert same_list(given, wanted)


@needs_node
def test_the_example_of_the_page(tmp_path):
    data, rows = example()
    path = tmp_path / 'model.c2f'
    path.write_bytes(data)
    every = {'excludeSeen': False}
    calls = [['recommend', history, 4, every] for history, _ in rows]
    for (_, expected), given in zip(
        rows, node('read.mjs', path, calls=calls)['results'], strict=True
    ):
        assert given['scores'] == [expected[x] for x in given['items']]


@needs_node
@pytest.mark.parametrize('kind', ['plain', 'all', 'one'])
def test_similar_items_are_those_of_python(kind, tmp_path):
    path = tmp_path / 'model.c2f'
    path.write_bytes(random_bundle(**KINDS[kind]))
    bundle = Bundle.load(path)
    items = list(range(0, bundle.num_items, 7)) + [(bundle.item_ids or ['0'])[0]]
    calls = [['similarItems', item, bundle.num_items] for item in items]
    answer = node('read.mjs', path, calls=calls)
    for item, given in zip(items, answer['results'], strict=True):
        wanted, cosines = bundle.similar_items(item, bundle.num_items)
        assert sorted(given['items']) == sorted(wanted)
        assert given['scores'] == pytest.approx(cosines.tolist(), abs=1e-12)


@needs_node
@pytest.mark.parametrize('named', [False, True])
def test_wrong_calls(named, tmp_path):
    path = tmp_path / 'model.c2f'
    path.write_bytes(random_bundle(1, ('NAME',) if named else ()))
    known = Bundle.load(path).item_ids[0] if named else '0'
    wrong = [[], [60], [-1], [1.5], ['x'], [known, 1], [None], [[0]], known, ['01']]
    calls = [['recommend', history] for history in wrong]
    calls += [['recommend', [0], k] for k in (0, -1, 1.5, '3')]
    calls += [['recommend', [0], 3, {'candidates': x}] for x in wrong]
    calls += [['similarItems', item] for item in (60, 'x', [0])]
    answers = node('read.mjs', path, calls=calls)['results']
    for call, given in zip(calls, answers, strict=True):
        assert given.get('kind') == 'BundleError', call
        assert re.fullmatch('bundle: .+; .+', given['error'])


def in_node(bundles, path):
    path.write_bytes(b''.join(bundles))
    answer = node('fuzz.mjs', path, lengths=[len(x) for x in bundles])
    assert answer['megabytes'] < 400
    return answer['results']


@needs_node
def test_what_breaks_a_rule_is_refused(tmp_path):
    good = [bundle_bytes(SIZES, GOOD), with_section(COAR=None), with_section(BIAS=None)]
    cut = [good[0][:x] for x in (0, 1, 3, 4, 8, 12, 35, 36, 39, 40, 100)]
    bundles = [*good, *BROKEN.values(), *cut, *(sealed(x) for x in cut[6:])]
    answers = in_node(bundles, tmp_path / 'bundles')
    for data, given in zip(good, answers[:3], strict=True):
        assert same_list(given, Bundle(data).recommend([0]))
    rest = answers[3:]
    for (name, data), given in zip(BROKEN.items(), rest[: len(BROKEN)], strict=True):
        assert re.fullmatch('bundle: .+; .+', given.get('error', '')), (name, given)
        with pytest.raises(BundleError):
            Bundle(data)
            pytest.fail(name)
    assert all('error' in given for given in rest[len(BROKEN) :])
    assert max(given['ms'] for given in answers) < 1000


@needs_node
@pytest.mark.parametrize('user_norm', [-3e38, 3e38])
def test_scores_that_are_not_finite(user_norm, tmp_path):
    path = tmp_path / 'model.c2f'
    path.write_bytes(bundle_bytes(SIZES, GOOD, user_norm=user_norm))
    (given,) = node('read.mjs', path, calls=[['recommend', [0, 1]]])['results']
    assert given['kind'] == 'BundleError' and 'finite' in given['error']
    with pytest.raises(BundleError):
        Bundle.load(path).recommend([0, 1])


@needs_node
def test_damage_is_the_same_to_both_readers(tmp_path):
    rng, bundles = np.random.default_rng(0), []
    for kind in ('plain', 'norm', 'fine', 'negative', 'all', 'one'):
        good = random_bundle(**KINDS[kind])
        for _ in range(150):
            data = damaged(rng, good)
            twice = len(data) > 100 and rng.random() < 0.3
            bundles.append(damaged(rng, data) if twice else data)
    refused = 0
    for data, given in zip(
        bundles, in_node(bundles, tmp_path / 'bundles'), strict=True
    ):
        assert 'crash' not in given, given
        assert given['ms'] < 2000
        try:
            expected = Bundle(data).recommend([0])
        except BundleError:
            refused += 1
            assert 'error' in given
        else:
            assert same_list(given, expected)
    assert 300 < refused < 890


def test_the_reader_is_small_and_keeps_to_itself():
    text = (PAGE_FOLDER / 'bundle.js').read_text()
    assert len(text.encode()) < 10_000
    code = re.sub(r'^\s*(//|/?\*).*$', '', text, flags=re.MULTILINE)
    assert not re.search(r'\b(import|require|eval|Function|XMLHttpRequest)\b', code)
    assert code.count('fetch') == 1
    assert 'fetch(url)' in code.split('static async load')[1].split('}\n')[0]


def test_the_page_asks_nobody_else():
    assert FILES <= {path.name for path in PAGE_FOLDER.iterdir()}
    for name in FILES:
        text = (PAGE_FOLDER / name).read_text()
        assert not re.search(r'(src|href|url|import)\W+(https?:)?//', text), name
    page = (PAGE_FOLDER / 'index.html').read_text()
    assert "default-src 'self'" in page
    assert not re.search(r'<style|style=|<script(?! type="module" src)|\son\w+=', page)
