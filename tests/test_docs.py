"""README and docs: code runs, commands exist, links have targets."""

import importlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import pyg_c2f
import run
from pyg_c2f.checkpoint import model_meta, save
from pyg_c2f.cli.options import make_parser
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.export import write_bundle, write_onnx
from pyg_c2f.nn import C2F
from pyg_c2f.recipes import RECIPES, FastRecipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(DOCS.rglob('*.md'))]
# What else is read on GitHub: the links of these are tested too.
LINKED = [
    ROOT / 'CHANGELOG.md',
    ROOT / 'benchmarks/README.md',
    *sorted((ROOT / 'examples').glob('*.md')),
    *sorted((ROOT / 'datasets').glob('*.md')),
]
PACKAGES = ['', '.nn', '.datasets', '.export', '.recipes']
# Calls of run.py that are only parsed, and why.
NOT_RUN = {
    r'train .*--dataset gowalla': 'downloads Gowalla',
    r'runs/gowalla': 'needs a model of Gowalla',
    r'my-shop': 'needs the data of whoever reads',
    r'--jsonl': 'waits for standard input',
    r'^demo': 'serves until it is stopped',
}
# What pages find in the folder they run in, beside what they make themselves.
GIVEN = {
    'README.md': 'data/shop/shop.csv',
    'docs/bundle.md': 'model.c2f',
    'docs/onnx.md': 'model.onnx',
    'docs/files.md': 'runs/synthetic-fast',
}
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\[[^]]*\]\(([^)\s]+)\)')


@dataclass(frozen=True)
class Narrow(FastRecipe):
    embedding_dim: int = 64
    num_fine: int = 64


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, language):
    """The blocks of a language, with the number of their first line."""
    text = page.read_text()
    return [
        (text.count('\n', 0, block.start(2)), block[2])
        for block in BLOCK.finditer(text)
        if block[1] == language
    ]


def calls(text):
    """The arguments of each call of run.py in a block."""
    # What torchrun starts on several processes is run on one here.
    lines = re.findall(r'^(?:python |torchrun .*| +)run\.py(.*)$', text, re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return [x[: x.index('<')] if '<' in x else x for x in words]


def is_run(call):
    return not any(re.search(pattern, ' '.join(call)) for pattern in NOT_RUN)


def steps_of(page):
    """The blocks that run, in their order: first line, language and text."""
    python = [(line, 'python', text) for line, text in blocks(page, 'python')]
    bash = [
        (line, 'bash', text)
        for line, text in blocks(page, 'bash')
        if any(map(is_run, calls(text)))
    ]
    return sorted(python + bash)


CALLS = [
    (page, call)
    for page in PAGES
    for _, text in blocks(page, 'bash')
    for call in calls(text)
]


# Code and commands --------------------------------------------------------------------


@pytest.fixture(scope='session')
def given(tmp_path_factory):
    """What a reader has before the first block of some pages."""
    folder = tmp_path_factory.mktemp('given')
    data = SyntheticHierarchy(300, 1500, 6000, 4, 8, protocol='c2f')[0]
    model = pyg_c2f.fit(data, FastRecipe(embedding_dim=32, num_fine=32))
    write_bundle(model, folder / 'model.c2f')
    rows = SyntheticHierarchy()[0]['user', 'rates', 'item'].edge_index.T.tolist()
    (folder / 'data/shop').mkdir(parents=True)
    (folder / 'data/shop/shop.csv').write_text(
        '\n'.join(['user_id,item_id', *(f'C{u:03},P{i:03}' for u, i in rows)]) + '\n'
    )
    out = folder / 'runs/synthetic-fast'
    assert run.main(['--quiet', '--set', 'embedding_dim=32', '--out', str(out)]) == 0
    return SimpleNamespace(folder=folder, model=model, out=out)


@pytest.mark.parametrize('page', [*filter(steps_of, PAGES)], ids=name_of)
def test_code_and_commands_run(page, request, tmp_path, monkeypatch):
    """Block after block in one folder; the Python of a page shares its names."""
    if name := GIVEN.get(name_of(page)):
        given = request.getfixturevalue('given')
        if name == 'model.onnx':
            pytest.importorskip('onnxruntime', reason='runs ONNX models')
            pytest.importorskip('onnx', reason='writes ONNX models')
            write_onnx(given.model, given.folder / name)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(given.folder / name)
    monkeypatch.chdir(tmp_path)
    # The widths of the page are those of large data; that it runs is the same.
    monkeypatch.setitem(RECIPES, 'fast', Narrow)
    names = {'__name__': '__main__'}
    for line, language, text in steps_of(page):
        if language == 'python':
            # The lines of an error are those of the page.
            exec(compile('\n' * line + text, page, 'exec'), names)
            continue
        for call in filter(is_run, calls(text)):
            assert run.main(call) == 0, f'python run.py {shlex.join(call)}'


@pytest.mark.parametrize('call', [' '.join(call) for _, call in CALLS if call])
def test_calls_parse(call):
    args = make_parser().parse_args(shlex.split(call))
    command = importlib.import_module(f'pyg_c2f.cli.{args.command}')
    assert callable(command.run)


def test_there_is_something_to_test():
    with_code = {name_of(page) for page in PAGES if blocks(page, 'python')}
    assert {'README.md', 'docs/layers.md', 'docs/loaders.md', *GIVEN} <= with_code
    lines = [' '.join(call) for _, call in CALLS]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern
    assert sum(is_run(call) for _, call in CALLS) >= 10


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_json_parses(page):
    for _, text in blocks(page, 'json'):
        json.loads(text)


def test_the_citation_is_of_this_version_and_the_readme_short():
    text = (ROOT / 'CITATION.cff').read_text()
    assert re.search(r'^version: (\S+)$', text, re.M)[1] == pyg_c2f.__version__
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 130


# Links --------------------------------------------------------------------------------


def prose(page):
    """A page without its blocks."""
    return re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r'^#+ (.+)$', prose(page), re.MULTILINE)
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')
        for heading in headings
    }


def is_public(name):
    """Whether there is such a thing, and its module or itself is on an API page."""
    module = name.rpartition('.')[0]
    is_there = hasattr(importlib.import_module(module), name.rpartition('.')[2])
    return is_there and bool({name, module} & documented())


@pytest.mark.parametrize('page', [*PAGES, *LINKED], ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(('http://', 'https://')):
            continue
        path, _, anchor = target.partition('#')
        if not path and anchor.startswith('pyg_c2f.'):
            assert is_public(anchor), target
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(there), target


# The API pages and the tables of names ------------------------------------------------


def documented():
    """The names and the modules that have an entry in the API pages."""
    found = set()
    for page in (DOCS / 'api').glob('*.md'):
        module = ''
        for kind, name in re.findall(r'^\.\. (\w+):: (\S+)$', page.read_text(), re.M):
            if kind == 'currentmodule':
                module = f'{name}.'
            elif kind == 'automodule' or name.startswith('pyg_c2f.'):
                found.add(name)
            else:
                found.add(module + name)
    return found


@pytest.mark.parametrize('name', [*(f'pyg_c2f{x}' for x in PACKAGES), 'methods'])
def test_public_names_have_an_entry(name):
    public = {f'{name}.{x}' for x in importlib.import_module(name).__all__}
    assert public - documented() == set()


def test_all_packages_are_tested():
    found = [path.parent for path in (ROOT / 'pyg_c2f').rglob('__init__.py')]
    with_all = {x for x in found if '__all__' in (x / '__init__.py').read_text()}
    assert {ROOT / f'pyg_c2f{x.replace(".", "/")}' for x in PACKAGES} == with_all


def table_below(heading):
    """The names in the first columns of the tables below a heading of files.md."""
    text = (DOCS / 'files.md').read_text()
    text = text.partition(f' {heading}\n')[2]
    text = re.split(r'^#', text, flags=re.MULTILINE)[0]
    cells = re.findall(r'^\| (`[^|]*) \|', text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r'`([^`]+)`', cell)}


def test_tables_of_keys_and_files(given):
    metrics = json.loads((given.out / 'metrics.json').read_text())
    assert table_below('metrics.json') == {*metrics, *metrics['bytes'], 'search'}
    config = json.loads((given.out / 'config.json').read_text())
    assert table_below('config.json') == {*config}
    # And what else a run of recipe fast leaves.
    left = {path.name for path in given.out.iterdir()} - {'tensorboard'}
    assert left <= table_below('What `--out` receives')


def test_tables_of_tensors(given, tmp_path):
    assert table_below('Recipe fast') == {*given.model.to_tensors()}
    edge_index = given.model.edge_index
    paper = C2F(edge_index, 300, 1500, num_coarse=9, num_fine=4, embedding_dim=8)
    paper.set_stage('fine')
    assert table_below('Recipe paper') == {*paper.to_tensors()}
    save(paper, tmp_path)
    known = {'stage', 'model', 'weight_grid', 'format', 'sha256'}
    assert table_below('model.safetensors') == known
    assert known - {'format', 'sha256'} <= {*model_meta(given.model)}
    assert model_meta(paper)['model'] == '"C2F"'
