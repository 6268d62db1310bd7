"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import methods
import pytest
import torch

import pyg_c2f
import pyg_c2f.datasets
import pyg_c2f.nn

PACKAGES = (pyg_c2f, methods)
MODULES = [
    *PACKAGES,
    *(
        importlib.import_module(info.name)
        for package in PACKAGES
        for info in pkgutil.walk_packages(package.__path__, f'{package.__name__}.')
    ),
]
PUBLIC = {'torch': torch} | {
    name: getattr(room, name)
    for room in (pyg_c2f, pyg_c2f.nn, pyg_c2f.datasets)
    for name in room.__all__
}
EXAMPLES = [
    example
    for module in MODULES
    for example in doctest.DocTestFinder().find(module, globs=vars(module) | PUBLIC)
    if example.examples
]


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda example: example.name)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.failed == 0, ''.join(report)


def test_there_are_examples():
    names = {example.name.rpartition('.')[2] for example in EXAMPLES}
    assert {'methods', *pyg_c2f.nn.__all__} <= names
