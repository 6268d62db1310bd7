"""The README's code runs, and its commands are calls that exist."""

import re
import shlex
from pathlib import Path

import pytest

import run

README = (Path(__file__).parent.parent / 'README.md').read_text()
PYTHON = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
CALLS = re.findall(r'^python run.py (.+)$', README, re.MULTILINE)


@pytest.mark.parametrize('code', PYTHON, ids=range(len(PYTHON)))
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, 'README.md', 'exec'), {})


@pytest.mark.parametrize('call', CALLS)
def test_calls_parse(call):
    args = run.make_parser().parse_args(shlex.split(call, comments=True))
    assert callable(args.func)


def test_there_is_something_to_test():
    assert len(PYTHON) >= 3 and len(CALLS) >= 8
