"""The page in demo/: its reader gives the lists of the one in Python."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_damage import damaged, sealed

from pyg_c2f.bundle import Bundle, BundleError
from pyg_c2f.export import write_bundle
from pyg_c2f.nn import LinearC2F
from pyg_c2f.typing import Assignment
from run import QuietHandler
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
DEMO = ROOT / 'demo'
FILES = {'index.html', 'app.js', 'bundle.js', 'style.css'}
# What the tests look for in the page; whatever else is in it may change.
SEARCH, OPTIONS, PICKS = '#search', '#results [role=option]', '#picks li'
ITEMS, STATUS, MESSAGE = '#list li[data-item]', '#status', '#message'
SECONDS = 20

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
def test_lists_of_a_model(tmp_path):
    torch.manual_seed(0)
    pairs = torch.rand(40, 30).lt(0.2).nonzero().T
    model = LinearC2F(pairs, 40, 30, 12, 6, 12, coarse_links=4, fine_links=2)
    model.set_stage('fine')
    codes = torch.tensor([0, 3]) + torch.randint(3, (30, 2))
    model.fine.set_assignment(Assignment(codes, torch.ones(30, 2)))
    write_bundle(model, path := tmp_path / 'model.c2f')
    bundle = Bundle.load(path)
    calls = [['recommend', list(range(1, x)), 10] for x in range(2, 20)]
    answers = node('read.mjs', path, calls=calls)['results']
    for call, given in zip(calls, answers, strict=True):
        assert same_list(given, bundle.recommend(*call[1:]))


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
    text = (DEMO / 'bundle.js').read_text()
    assert len(text.encode()) < 10_000
    code = re.sub(r'^\s*(//|/?\*).*$', '', text, flags=re.MULTILINE)
    assert not re.search(r'\b(import|require|eval|Function|XMLHttpRequest)\b', code)
    assert code.count('fetch') == 1
    assert 'fetch(url)' in code.split('static async load')[1].split('}\n')[0]


def test_the_page_asks_nobody_else():
    assert FILES <= {path.name for path in DEMO.iterdir()}
    for name in FILES:
        text = (DEMO / name).read_text()
        assert not re.search(r'(src|href|url|import)\W+(https?:)?//', text), name
    page = (DEMO / 'index.html').read_text()
    assert "default-src 'self'" in page
    assert not re.search(r'<style|style=|<script(?! type="module" src)|\son\w+=', page)


# In a browser.


@pytest.fixture
def site(tmp_path):
    """A folder with the page, served, and its address."""
    folder = tmp_path / 'site'
    folder.mkdir()
    for name in FILES:
        shutil.copy(DEMO / name, folder)
    (folder / 'model.c2f').write_bytes(random_bundle(**KINDS['large']))
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(QuietHandler, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    thread.join()
    server.server_close()


class Page:
    """A browser with a page, by what the tests look for in it."""

    def __init__(self, driver):
        from selenium.webdriver.common.keys import Keys

        self.driver, self.keys = driver, Keys

    def size(self, width, height):
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1}
        metrics['mobile'] = width < 500
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)

    def open(self, url):
        # A new address after the hash alone would not load the page again.
        self.driver.get('about:blank')
        self.driver.get(url)

    def all(self, selector):
        return self.driver.find_elements('css selector', selector)

    def wait(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: condition())

    def texts(self, selector):
        return [x.text.split('\n')[0] for x in self.all(selector)]

    def numbers(self, selector=ITEMS):
        return [int(x.get_attribute('data-item')) for x in self.all(selector)]

    def status(self, name):
        return self.all(STATUS)[0].get_attribute(f'data-{name}')

    def type(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def ready(self):
        self.wait(lambda: self.status('items'))

    def pick(self, title):
        """By the keyboard alone."""
        before = len(self.all(PICKS))
        self.type(title)
        self.wait(lambda: title in self.texts(OPTIONS))
        place = self.texts(OPTIONS).index(title)
        self.type(*[self.keys.ARROW_DOWN] * (place + 1), self.keys.ENTER)
        self.wait(lambda: len(self.all(PICKS)) == before + 1)

    def requests(self):
        """The addresses that were asked for."""
        events = self.driver.get_log('performance')
        messages = [json.loads(event['message'])['message'] for event in events]
        return [
            message['params'].get('request', message['params'])['url']
            for message in messages
            if message['method']
            in ('Network.requestWillBeSent', 'Network.webSocketCreated')
        ]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver', reason='needs selenium')
    browser, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if browser is None or driver is None:
        pytest.skip('needs chromium and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    profile = tmp_path_factory.mktemp('profile')
    for option in (
        f'user-data-dir={profile}',
        'headless=new',
        'no-sandbox',
        'disable-gpu',
        'disable-quic',
        'disable-dev-shm-usage',
        'no-first-run',
        'disable-background-networking',
        'disable-component-update',
        'disable-sync',
    ):
        options.add_argument(f'--{option}')
    service = webdriver.ChromeService(driver)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(SECONDS)
    yield Page(driver)
    driver.quit()


def test_a_list_by_keyboard_in_a_browser(page, site):
    folder, url = site
    bundle = Bundle.load(folder / 'model.c2f')
    page.size(1280, 900)
    page.requests()
    page.open(url)
    page.ready()
    assert page.status('items') == str(bundle.num_items)
    assert page.status('bytes') == str((folder / 'model.c2f').stat().st_size)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert page.status('page-bytes') == str(size)
    page.type(page.keys.TAB)
    picks = [2025, 4, 1733]
    for number in picks:
        page.pick(bundle.item_titles[number])
    expected, _ = bundle.recommend(picks, 20)
    assert page.numbers() == expected.tolist()
    assert page.texts(f'{ITEMS} bdi') == [bundle.item_titles[x] for x in expected]
    assert 0 < float(page.status('ms')) < 1000
    requests = page.requests()
    assert len(requests) >= len(FILES) + 1
    assert all(x.startswith((url, 'data:', 'about:')) for x in requests)


@contextmanager
def demo(*options):
    """The address that ``run.py demo`` serves on."""
    call = [sys.executable, ROOT / 'run.py', 'demo', '--port', '0', *options]
    with subprocess.Popen(
        call,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # Started in the background, shells have their children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            lines = iter(process.stdout.readline, '')
            yield next(x.split()[1] for x in lines if x.startswith('open http'))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)


@pytest.mark.parametrize(
    'dataset', [pytest.param('ml-100k', marks=pytest.mark.dataset), 'made up']
)
def test_the_demo_in_a_browser(dataset, page, request, tmp_path):
    root = tmp_path
    if dataset == 'ml-100k':
        root = request.getfixturevalue('data_root')
        if not (root / dataset).is_dir():
            pytest.skip(f'no {dataset} in {root}')
    page.size(1100, 620)
    page.requests()
    with demo('--data-root', root, '--out', tmp_path / 'out') as url:
        bundle = Bundle.load(tmp_path / 'out/site/model.c2f')
        page.open(url)
        page.ready()
        page.type(page.keys.TAB)
        films = ['Alien', 'Blade Runner', 'Brazil']
        picks = [3, 14, 159]
        if dataset == 'ml-100k':
            picks = [bundle.item_titles.index(film) for film in films]
        for number in picks:
            page.pick(bundle.item_titles[number])
        expected, _ = bundle.recommend(picks, 20)
        assert page.numbers() == expected.tolist()
        assert page.texts(f'{ITEMS} bdi') == [bundle.item_titles[x] for x in expected]
        assert all(x.startswith((url, 'data:', 'about:')) for x in page.requests())
        if dataset == 'ml-100k' and 'PYG_C2F_SCREENSHOT' in os.environ:
            page.driver.save_screenshot(os.environ['PYG_C2F_SCREENSHOT'])


def test_picks_come_and_go_in_a_browser(page, site):
    folder, url = site
    bundle = Bundle.load(folder / 'model.c2f')
    page.size(1280, 900)
    page.open(f'{url}#picks=7,12,99999,7')
    page.wait(lambda: len(page.all(ITEMS)) == 20)
    assert page.numbers(PICKS) == [7, 12]
    assert page.numbers() == bundle.recommend([7, 12])[0].tolist()
    added = page.numbers()[2]
    page.all(f'{ITEMS} button')[2].click()
    assert page.numbers(PICKS) == [7, 12, added]
    assert page.driver.current_url.endswith(f'#picks=7,12,{added}')
    assert page.numbers() == bundle.recommend([7, 12, added])[0].tolist()
    page.all(f'{PICKS} button')[0].send_keys(page.keys.ENTER)
    assert page.numbers(PICKS) == [12, added]
    assert page.driver.switch_to.active_element == page.all(f'{PICKS} button')[0]
    page.all(SEARCH)[0].click()
    page.type('film 31 (')
    page.wait(lambda: page.all(OPTIONS))
    page.all(OPTIONS)[0].click()
    assert page.numbers(PICKS) == [12, added, 31]
    page.type('no such film', page.keys.ENTER)
    assert page.numbers(PICKS) == [12, added, 31]


def test_a_phone_in_a_browser(page, site):
    page.size(360, 740)
    page.open(site[1] + '#picks=1,2,3')
    page.wait(lambda: len(page.all(ITEMS)) == 20)
    page.all(SEARCH)[0].click()
    page.type('film')
    page.wait(lambda: page.all(OPTIONS))
    width = 'return document.documentElement.scrollWidth'
    assert page.driver.execute_script(width) <= 360
    assert page.driver.execute_script('return innerWidth') == 360


@pytest.mark.parametrize('kind', ['damaged', 'missing', 'from the disk'])
def test_no_model_in_a_browser(kind, page, site):
    folder, url = site
    path = folder / 'model.c2f'
    if kind == 'damaged':
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif kind == 'missing':
        path.unlink()
    else:
        url = (folder / 'index.html').as_uri()
    says = {'damaged': 'checksum', 'missing': '404', 'from the disk': 'http.server'}
    page.size(1280, 900)
    page.open(url)
    page.wait(lambda: says[kind] in page.all(MESSAGE)[0].text)
    assert not page.all(SEARCH)[0].is_displayed()
