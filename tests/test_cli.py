"""The command line as a program: what it answers at once, and what its wheel holds."""

import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from pyg_c2f.cli.options import (
    SETTINGS,
    make_parser,
    read_settings,
    setting_names,
    settings_of,
    with_flags,
)
from pyg_c2f.cli.train import call_again
from pyg_c2f.recipes import RECIPES

ROOT = Path(__file__).parents[1]
COMMANDS = ('train', 'evaluate', 'recommend', 'export', 'demo', 'data')
# Says whether torch was imported for an answer.
PARSE = """
import sys
from pyg_c2f.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print('torch' if 'torch' in sys.modules else 'no torch')
sys.exit(status)
"""
# What an installed script does.
SCRIPT = """
import sys
from importlib.metadata import distribution
(script,) = distribution('pyg-c2f').entry_points.select(group='console_scripts')
sys.argv = [script.name, '--help']
try:
    script.load()()
finally:
    print(sys.modules[script.module].__file__)
"""


def answer(call, **options):
    """What a program prints and returns, and the seconds it takes of a CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *call], capture_output=True, text=True, timeout=120, **options
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done, seconds


@pytest.mark.parametrize(
    ('words', 'status', 'says'),
    [
        ('--help', 0, 'usage: pyg-c2f '),
        ('--version', 0, 'pyg_c2f '),
        *((f'{name} --help', 0, f'usage: pyg-c2f {name} ') for name in COMMANDS),
        ('train --wrong', 2, 'error: unknown argument --wrong; see pyg-c2f train --h'),
        ('--seed one', 2, 'error: argument --seed: expected a whole number from 0 to'),
        ('export', 2, 'error: the following arguments are required: --checkpoint'),
        ('nonsense', 2, "error: argument command: invalid choice: 'nonsense'"),
    ],
)
def test_parsing_needs_no_torch(words, status, says):
    done, seconds = answer(['-c', PARSE, *words.split()], cwd=ROOT)
    assert done.returncode == status
    assert (done.stderr or done.stdout).startswith(says)
    assert done.stdout.splitlines()[-1] == 'no torch'
    assert seconds < 1


def test_public_names_come_when_they_are_asked_for():
    program = (
        'import sys, pyg_c2f\n'
        'assert "torch" not in sys.modules\n'
        'from pyg_c2f import C2F, fit, load, save\n'
        'print(*(x.__name__ for x in (C2F, fit, load, save)))'
    )
    done, _ = answer(['-c', program], cwd=ROOT)
    assert done.stdout.split() == ['C2F', 'fit', 'load', 'save'], done.stderr


@pytest.mark.parametrize(
    ('program', 'called'),
    [(['run.py'], 'python run.py'), (['-m', 'pyg_c2f'], 'python -m pyg_c2f')],
)
def test_programs_call_themselves_by_their_name(program, called):
    done, _ = answer([*program, '--help'], cwd=ROOT)
    assert done.stdout.startswith(f'usage: {called} [-h]')
    assert f'\n  {called} recommend ' in done.stdout
    done, _ = answer([*program, 'data', '--wrong'], cwd=ROOT)
    assert done.stderr.endswith(f'; see {called} data --help\n')


@pytest.mark.parametrize(
    ('program', 'script'),
    [
        ('python run.py', 'run.py'),
        ('pyg-c2f', '-m pyg_c2f'),
        ('python -m pyg_c2f', '-m pyg_c2f'),
    ],
)
def test_the_call_that_goes_on(program, script, monkeypatch):
    words = tuple(program.split())
    assert call_again(Path('a b'), words) == f"{program} train --resume --out 'a b'"
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    monkeypatch.setenv('GROUP_WORLD_SIZE', '1')
    assert call_again(Path('a'), words) == (
        f'torchrun --nproc-per-node 2 {script} train --resume --out a'
    )


@pytest.mark.parametrize('name', RECIPES)
def test_help_has_all_settings(name):
    """Each with its default and what its class says of it, below a heading."""
    recipe, found = RECIPES[name](), read_settings(name)
    assert {x: value for x, (value, _) in found.items()} == asdict(recipe)
    lines = ' '.join(settings_of(name).split())
    for setting, (value, text) in found.items():
        assert f' {setting} {value} {text}' in lines
    headings = re.findall(r'^ (\S.*):$', settings_of(name), re.MULTILINE)
    assert len(headings) > 3


def test_headings_are_of_settings():
    below = ' '.join(SETTINGS.values()).split()
    assert set(below) <= setting_names() and len(set(below)) == len(below)


def test_help_says_what_each_option_does():
    """With its default, if it has one; those of train in groups."""
    for call in make_parser()._subparsers._group_actions[0].choices.values():
        text = ' '.join(call.format_help().split())
        for action in call._actions:
            assert action.help and ' '.join(action.help.split()) in text
            if action.default not in (None, False, '==SUPPRESS==', []):
                assert f'(default: {action.default})' in text
        if call.prog.endswith('train'):
            for option in ('data: --dataset', 'recipe: --recipe', 'run: --device'):
                assert f' {option} ' in text


@pytest.mark.parametrize(
    ('message', 'shown'),
    [
        ('num_fine=3 does not fit', '--set num_fine=3 does not fit'),
        ('lower --set gate=3, or gate=2', 'lower --set gate=3, or --set gate=2'),
        ('recipe=fast, split_seed=3', '--recipe fast, --split-seed 3'),
        (
            'name them with user_column and item_column',
            'name them with --columns USER,',
        ),
        (
            'runs/seed=3: x.seed=3, k=3, num_seed=4',
            'runs/seed=3: x.seed=3, k=3, num_seed=4',
        ),
    ],
)
def test_messages_name_flags(message, shown):
    assert with_flags(message).startswith(shown)


# The wheel ----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of this package, unpacked."""
    source, out = (tmp_path_factory.mktemp(name) for name in ('source', 'wheel'))
    ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
    shutil.copytree(ROOT / 'pyg_c2f', source / 'pyg_c2f', ignore=ignore)
    for name in ('pyproject.toml', 'setup.cfg', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    build = 'import sys, setuptools.build_meta as m; m.build_wheel(sys.argv[1])'
    done, _ = answer(['-c', build, out], cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob('pyg_c2f-*-py3-none-any.whl')
    zipfile.ZipFile(path).extractall(out / 'unpacked')
    return out / 'unpacked'


def test_the_wheel_has_the_whole_package(wheel):
    def files(root):
        paths = {path for path in (root / 'pyg_c2f').rglob('*') if path.is_file()}
        return {str(x.relative_to(root)) for x in paths if x.suffix != '.pyc'}

    assert files(wheel) == files(ROOT)
    page = {'index.html', 'style.css', 'app.js', 'bundle.js'}
    assert page <= {path.name for path in (wheel / 'pyg_c2f/cli/page').iterdir()}
    tops = {path.name.split('-')[0] for path in wheel.iterdir()}
    assert tops == {'pyg_c2f'}


def test_the_wheel_has_the_program(wheel, tmp_path):
    env = os.environ | {'PYTHONPATH': str(wheel), 'PYTHONSAFEPATH': '1'}
    done, _ = answer(['-c', SCRIPT], cwd=tmp_path, env=env)
    assert done.stdout.startswith('usage: pyg-c2f [-h]'), done.stderr
    assert Path(done.stdout.split()[-1]).is_relative_to(wheel)
