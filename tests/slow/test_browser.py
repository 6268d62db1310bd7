"""The page in a browser: its lists are those of Python, and it contacts no one else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer

import pytest

from pyg_c2f.bundle import Bundle
from pyg_c2f.cli.demo import PAGE_FOLDER, QuietHandler
from tests.bundles import KINDS, random_bundle
from tests.test_demo import FILES, ROOT

# What the tests look for in the page; whatever else is in it may change.
SEARCH, OPTIONS, PICKS = '#search', '#results [role=option]', '#picks li'
ITEMS, STATUS, MESSAGE = '#list li[data-item]', '#status', '#message'
SECONDS = 20


@pytest.fixture
def site(tmp_path):
    """A folder with the page, served, and its address."""
    folder = tmp_path / 'site'
    folder.mkdir()
    for name in FILES:
        shutil.copy(PAGE_FOLDER / name, folder)
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
        # Children of a shell in the background ignore the signal.
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
        assert 0 < float(page.status('ms')) < 1000
        site = tmp_path / 'out/site'
        assert page.status('items') == str(bundle.num_items)
        assert page.status('bytes') == str((site / 'model.c2f').stat().st_size)
        size = sum(path.stat().st_size for path in site.iterdir())
        assert page.status('page-bytes') == str(size)
        requests = page.requests()
        assert len(requests) > len(FILES)
        assert all(x.startswith((url, 'data:', 'about:')) for x in requests)
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
    # On a phone all of it fits.
    page.size(360, 740)
    page.all(SEARCH)[0].click()
    page.type(*[page.keys.BACKSPACE] * 12, 'film')
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
