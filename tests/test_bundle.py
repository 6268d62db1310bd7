"""The reader of bundles that needs NumPy alone."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bundle_damage import damaged, sealed

from pyg_c2f.bundle import Bundle, BundleError
from tests.bundles import (
    BROKEN,
    GOOD,
    KINDS,
    SIZES,
    bundle_bytes,
    contents,
    example,
    matrix,
    random_bundle,
    random_sections,
    table,
)
from tests.memory import peak

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings('error')
every_kind = pytest.mark.parametrize('kind', KINDS)


# Lists --------------------------------------------------------------------------------


def formula(c, history):
    """Keys and scores of all items, line by line as in docs/bundle.md."""
    r, n = sorted(set(history)), len(set(history))
    m = (c.w[r, None] * c.S[r]).sum(axis=0)
    f = np.zeros(len(c.B))
    for i in r:
        f[c.code[i]] += c.w[i]
    h = m @ c.A + f @ c.B
    q, t = c.A @ h, c.B @ h
    z = ((c.S * q).sum(axis=1) + t[c.code].sum(axis=1)) / 4
    key = c.g * z + c.b * n**c.a
    return key, key * n**-c.a


def best(key, allowed, k):
    return sorted(allowed, key=lambda j: (-key[j], j))[:k]


@every_kind
def test_lists_are_those_of_the_formula(kind):
    data = random_bundle(**KINDS[kind])
    bundle, dense, rng = Bundle(data), contents(data), np.random.default_rng(0)
    for turn in range(30):
        history, candidates = rng.integers(dense.N, size=(2, 1 + 2 * turn)).tolist()
        key, score = formula(dense, history)
        allowed = {*(candidates if turn % 3 == 0 else range(dense.N))}
        allowed -= {*(history if turn % 2 else ())}
        options = dict(exclude_seen=bool(turn % 2))
        if turn % 3 == 0:
            options['candidates'] = candidates
        for k in (1, 20, 2 * dense.N):
            items, scores = bundle.recommend(history, k, **options)
            assert items.tolist() == best(key, allowed, k)
            np.testing.assert_allclose(scores, score[items], rtol=1e-9, atol=1e-12)


@every_kind
def test_similar_items_are_those_of_the_cosine(kind):
    data = random_bundle(**KINDS[kind])
    bundle, c = Bundle(data), contents(data)
    x = c.S @ c.A + c.B[c.code].sum(axis=1)
    length = np.linalg.norm(x, axis=1)
    for item in range(0, c.N, 1 + c.N // 10):
        items, cosines = bundle.similar_items(item, c.N)
        assert sorted([item, *items]) == list(range(c.N))
        dots, both = x[items] @ x[item], length[items] * length[item]
        is_zero = both == 0
        np.testing.assert_allclose(cosines * both, dots, atol=1e-12)
        assert (cosines[is_zero] == 0).all()
        # Best first, those without a cosine last.
        assert (np.diff(cosines[~is_zero]) <= 0).all()
        assert is_zero.tolist() == sorted(is_zero)
        few = bundle.similar_items(item, 3)
        assert few[0].tolist() == items[:3].tolist()


def test_the_example_of_the_page():
    data, rows = example()
    assert len(data) == 168 and len(rows) == 3
    for history, expected in rows:
        items, scores = Bundle(data).recommend(history, exclude_seen=False)
        assert scores.tolist() == [expected[x] for x in items]
        assert sorted(items) == [0, 1, 2, 3]


def equal_items(num_items=40, low_bits=1, **more):
    """Even items are alike, and so are odd ones."""
    item = np.arange(num_items)
    links = matrix(2 * item + item % 2, 0 * item, [1], low_bits)
    sections = {'ITEM': table(0 * item, [1], [1]), 'LINK': links} | more
    return Bundle(bundle_bytes((num_items, 2, 2, 0, 0), sections))


@pytest.mark.parametrize('k', [1, 7, 19, 20, 33, 39, 40])
def test_equal_scores_are_by_lower_number(k):
    even, odd = list(range(0, 40, 2)), list(range(1, 40, 2))
    bundle = equal_items()
    for history in ([4], [0, 2, 38]):
        unseen = [x for x in even if x not in history]
        assert bundle.recommend(history, k)[0].tolist() == (unseen + odd)[:k]
    assert bundle.recommend([1], k, False)[0].tolist() == (odd + even)[:k]
    assert bundle.similar_items(0, k)[0].tolist() == (even[1:] + odd)[:k]


@pytest.mark.parametrize('low_bits', [0, 2, 7, 8, 9, 15, 16, 17, 31])
def test_any_number_of_low_bits(low_bits):
    bias = table([0] * 69_998 + [1, 0], [0, 2])
    bundle = equal_items(70_000, low_bits, BIAS=bias)
    items, scores = bundle.recommend([2, 0], 35_000)
    assert items.tolist() == [69_998, *range(4, 69_998, 2), 1, 3]
    expected = np.array([0.5] * 34_998 + [0, 0]) / 2**0.5 + ([2] + [0] * 34_999)
    np.testing.assert_allclose(scores, expected, rtol=1e-15)


@every_kind
def test_a_history_is_a_set(kind):
    bundle = Bundle(random_bundle(**KINDS[kind]))
    rng = np.random.default_rng(1)
    history = rng.integers(bundle.num_items, size=30)
    items, scores = bundle.recommend(sorted({*history.tolist()}), 30)
    for same in (history, history[::-1].tolist(), tuple(rng.permutation(history))):
        again, to_the_last_bit = bundle.recommend(same, 30)
        assert again.tolist() == items.tolist()
        assert to_the_last_bit.tolist() == scores.tolist()


@pytest.mark.parametrize('kind', ['all', 'one', 'plain'])
def test_original_ids_in_and_out(kind):
    bundle = Bundle(random_bundle(**KINDS[kind]))
    names = bundle.item_ids or [str(x) for x in range(bundle.num_items)]
    history, candidates = [0, bundle.num_items - 1], range(bundle.num_items // 2)
    for among in (None, list(candidates) or [0]):
        items, scores = bundle.recommend(history, 10, candidates=among)
        named, same = bundle.recommend(
            [names[x] for x in history],
            10,
            candidates=among and [names[x] for x in among],
        )
        assert named == [names[x] for x in items] and same.tolist() == scores.tolist()
    items, cosines = bundle.similar_items(0, 10)
    named, same = bundle.similar_items(names[0], 10)
    assert named == [names[x] for x in items] and same.tolist() == cosines.tolist()


def test_ids_and_titles():
    bundle = Bundle(bundle_bytes(SIZES, GOOD))
    assert bundle.item_ids == ['a', 'b', 'c', 'd']
    assert bundle.item_titles == ['A', '', 'é', 'A']
    plain = Bundle(random_bundle(**KINDS['plain']))
    assert plain.item_ids is None and plain.item_titles is None
    # The answer is in the form of the history, whatever that of the candidates.
    assert bundle.recommend(['a'], candidates=[2])[0] == ['c']
    assert bundle.recommend([0], candidates=['c'])[0].tolist() == [2]


def test_nothing_is_left():
    bundle = equal_items(3)
    for items, scores in (
        bundle.recommend([0, 1, 2]),
        bundle.recommend([0], candidates=[0]),
        Bundle(random_bundle(**KINDS['one'])).similar_items(0),
    ):
        assert len(items) == len(scores) == 0
    assert bundle.recommend(['0', '1', '2'])[0] == []


# Wrong calls --------------------------------------------------------------------------

WRONG_IDS = {
    'none': [],
    'too high': [60],
    'negative': [0, -1],
    'huge': [2**70],
    'text of a number': ['01'],
    'unknown': ['x'],
    'text and number': ['0', 1],
    'fraction': [1.0],
    'truth': [True],
    'nothing': [None],
    'nested': [[0]],
    'ragged': [[0], [1, 2]],
    'one id': 0,
    'one text': '0',
    'bytes': [b'0'],
    'two lines': ['0\n1'],
}


def assert_refused(function, *args, **kwargs):
    """A line that says what to do, and no warning."""
    with pytest.raises(BundleError) as error:
        function(*args, **kwargs)
        pytest.fail('not refused')
    text = str(error.value)
    assert '\n' not in text
    assert re.search('expected|the bundle knows|; .*(again|another file)', text), text
    return text


@pytest.mark.parametrize('ids', WRONG_IDS.values(), ids=WRONG_IDS)
def test_wrong_ids(ids):
    bundle = Bundle(random_bundle(**KINDS['plain']))
    assert assert_refused(bundle.recommend, ids).startswith('history')
    assert assert_refused(bundle.recommend, [0], candidates=ids).startswith('candid')
    if isinstance(ids, list) and len(ids) == 1:
        assert assert_refused(bundle.similar_items, ids[0]).startswith('item')


@pytest.mark.parametrize('k', [0, -1, 1.5, 2.0, '3', None, True])
def test_wrong_k(k):
    bundle = Bundle(random_bundle(**KINDS['plain']))
    for call in (bundle.recommend, bundle.similar_items):
        text = assert_refused(call, [0] if call == bundle.recommend else 0, k)
        assert f'got {k!r}' in text


def test_ids_in_an_error_are_short():
    sections = GOOD | {'NAME': b'a\nb\0' + 1000 * b'c' + b'\0d\0e'}
    bundle = Bundle(bundle_bytes(SIZES, sections))
    text = assert_refused(bundle.recommend, [1_000_000 * 'x'])
    assert len(text) < 250
    text = assert_refused(bundle.recommend, np.array([60]))
    assert 'item 60; the bundle knows the numbers 0 to 3' in text


@pytest.mark.parametrize('user_norm', [-3e38, 3e38, 1000])
def test_scores_that_are_not_finite(user_norm):
    # With the last exponent it is the score of item 0 alone.
    sections = GOOD | {'BIAS': table([1, 0, 0, 0], [0, 3e38])}
    bundle = Bundle(bundle_bytes(SIZES, sections, user_norm=user_norm))
    for history in ([0, 1], [2, 3]):
        text = assert_refused(bundle.recommend, history, candidates=[1, 2])
        assert 'finite' in text
    # One to any power is one.
    assert len(bundle.recommend([0])[0]) == 3


# Broken files -------------------------------------------------------------------------


@pytest.mark.parametrize('name', BROKEN)
def test_what_breaks_a_rule_is_refused(name):
    data = BROKEN[name]
    # Nor do lies about counts cost memory.
    assert peak(lambda: assert_refused(Bundle, data)) < 5_000_000


def test_a_file_cut_short():
    data = bundle_bytes(SIZES, GOOD)
    for end in range(len(data)):
        assert_refused(Bundle, data[:end])
    # Under a right checksum, the rest is whole if it ends before an optional section.
    optional = {data.index(tag) + 4 for tag in (b'BIAS', b'NAME', b'TITL')}
    for end in range(40, len(data)):
        if end in optional:
            Bundle(sealed(data[:end])).recommend([0])
        else:
            assert_refused(Bundle, sealed(data[:end]))


def test_a_file_is_named_in_the_error(tmp_path):
    path = tmp_path / 'model.c2f'
    path.write_bytes(b'PK' + bytes(100))
    assert assert_refused(Bundle.load, path).startswith(f'{path}: ')
    with pytest.raises(FileNotFoundError, match='no.c2f'):
        Bundle.load(str(tmp_path / 'no.c2f'))


def test_damage_is_refused_or_gives_a_list():
    rng, refused, start = np.random.default_rng(3), 0, time.perf_counter()
    kinds = [random_bundle(**KINDS[x]) for x in KINDS if x != 'large']
    for turn in range(2000):
        data = kinds[turn % len(kinds)]
        for _ in range(1 + turn % 2):
            data = damaged(rng, data) if len(data) > 100 else data
        try:
            bundle = Bundle(data)
            items, scores = bundle.recommend([0])
            similar, cosines = bundle.similar_items(0)
        except BundleError:
            refused += 1
            continue
        for ids, values in ((items, scores), (similar, cosines)):
            assert {*ids.tolist()} <= {*range(1, bundle.num_items)}
            assert len({*ids.tolist()}) == min(20, bundle.num_items - 1)
            assert np.isfinite(values).all()
        assert (np.diff(scores) <= 0).all()
    assert 1000 < refused < 1990
    assert time.perf_counter() - start < 10


# A device -----------------------------------------------------------------------------


def test_memory(tmp_path):
    sizes, rng = (20_000, 512, 512, 512, 2), np.random.default_rng(0)
    extra = ('BIAS', 'NAME', 'TITL')
    sections = random_sections(rng, sizes, extra, links=8)
    path = tmp_path / 'model.c2f'
    path.write_bytes(bundle_bytes(sizes, sections))

    def use():
        Bundle.load(path).recommend(range(0, 20_000, 100))

    assert peak(use) < 20e6 + path.stat().st_size


ALONE = """
import importlib, sys
name, path = sys.argv[1:]

class Nothing:
    def find_spec(self, name, *_):
        room = name.partition('.')[0]
        if room not in {*sys.stdlib_module_names, 'numpy', 'pyg_c2f', 'bundle'}:
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
module = importlib.import_module(name)
assert not {'torch', 'scipy', 'sklearn'} & {*sys.modules}
bundle = module.Bundle.load(path)
print(*bundle.recommend([0], 5)[0], *bundle.similar_items(0, 5)[0])
"""


@pytest.mark.parametrize('name', ['pyg_c2f.bundle', 'bundle'])
def test_numpy_is_enough(name, tmp_path):
    (tmp_path / 'model.c2f').write_bytes(data := random_bundle(**KINDS['all']))
    shutil.copy(ROOT / 'pyg_c2f/bundle.py', tmp_path)
    out = subprocess.run(
        [sys.executable, '-c', ALONE, name, tmp_path / 'model.c2f'],
        cwd=ROOT if name == 'pyg_c2f.bundle' else tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.returncode == 0, out.stderr
    bundle = Bundle(data)
    expected = [*bundle.recommend([0], 5)[0], *bundle.similar_items(0, 5)[0]]
    assert out.stdout.split() == [str(x) for x in expected]
