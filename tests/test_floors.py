"""Imports go down the floors only, and optional packages wait for their function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'pyg_c2f'
# From the ground up. A room imports from rooms below its own and from itself.
FLOORS = (
    ('typing', 'finite', 'packing', 'bundle'),
    ('shards', 'sparse'),
    ('distributed', 'graph', 'anchors', 'codes'),
    ('spectral',),
    ('nn', 'datasets'),
    ('sampler', 'evaluate'),
    ('config',),
    ('checkpoint', 'fast'),
    ('resume', 'report', 'export'),
    ('train',),
    ('baselines',),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE = ('run', 'benchmarks', 'tests')
LAZY = (
    'torch_sparse',
    'torch_scatter',
    'pandas',
    'pyarrow',
    'matplotlib',
    'tensorboard',
    'torch.utils.tensorboard',
    'pymetis',
    'optuna',
    'implicit',
    'faiss',
    'onnx',
    'onnxruntime',
    'selenium',
)
MODULES = sorted(PACKAGE.rglob('*.py'))
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imports_of(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the full dotted names that one import statement of `package` asks for."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        module = '.'.join([*above, *filter(None, [node.module])])
        yield from (f'{module}.{alias.name}' for alias in node.names)


def waits(node: ast.AST) -> bool:
    """Return whether importing the module leaves the imports in `node` alone."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == 'TYPE_CHECKING'
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports(path: Path, everywhere: bool) -> set[str]:
    """Return what a module imports: everywhere, or only when it is itself imported."""
    package = list(path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding='utf-8'))]
    while nodes:
        node = nodes.pop()
        found.update(imports_of(node, package))
        if everywhere or not waits(node):
            nodes.extend(ast.iter_child_nodes(node))
    return found


def faults(room: str, names: set[str]) -> list[str]:
    """Return the names that `room` must not import."""
    wrong = []
    for name in sorted(names):
        top, _, rest = name.partition('.')
        target = rest.split('.')[0]
        if top in OUTSIDE:
            wrong.append(name)
        elif top == 'pyg_c2f' and room != '__init__' and target != room:
            # A name that is no room is taken from the top, `pyg_c2f` itself.
            if FLOOR.get(target, len(FLOORS)) >= FLOOR[room]:
                wrong.append(name)
    return wrong


def test_every_module_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} <= {'__init__', *FLOOR}


@pytest.mark.parametrize('path', MODULES, ids=IDS)
def test_imports_go_down(path: Path) -> None:
    assert faults(room_of(path), imports(path, everywhere=True)) == []


@pytest.mark.parametrize('path', MODULES, ids=IDS)
def test_optional_packages_are_imported_late(path: Path) -> None:
    tops = tuple(f'{name}.' for name in LAZY)
    early = imports(path, everywhere=False)
    assert [name for name in sorted(early) if f'{name}.'.startswith(tops)] == []


@pytest.mark.parametrize(
    ('room', 'name'),
    [
        ('typing', 'pyg_c2f.graph.to_csr'),
        ('graph', 'pyg_c2f.anchors.metis'),
        ('nn', 'pyg_c2f.datasets.Gowalla'),
        ('sampler', 'pyg_c2f.evaluate.evaluate'),
        ('config', 'pyg_c2f.checkpoint.save'),
        ('report', 'pyg_c2f.train.fit'),
        ('train', 'pyg_c2f.C2F'),
        ('train', 'pyg_c2f'),
        ('train', 'pyg_c2f.baselines.GFCF'),
        ('train', 'run.main'),
        ('__init__', 'benchmarks.speed'),
    ],
)
def test_a_wrong_import_is_found(room: str, name: str) -> None:
    assert faults(room, {name}) == [name]


def test_right_imports_pass() -> None:
    for room, below in (('nn', 'graph'), ('nn', 'nn'), ('train', 'checkpoint')):
        assert faults(room, {f'pyg_c2f.{below}.x', 'torch.nn'}) == []


def test_relative_and_absolute_imports_get_their_full_name() -> None:
    asked = {
        'from ..graph import x': 'pyg_c2f.graph.x',
        'from .. import graph': 'pyg_c2f.graph',
        'from .conv import x': 'pyg_c2f.nn.conv.x',
        'from pyg_c2f import C2F': 'pyg_c2f.C2F',
        'import pyg_c2f.typing': 'pyg_c2f.typing',
    }
    for text, name in asked.items():
        (statement,) = ast.parse(text).body
        assert list(imports_of(statement, ['pyg_c2f', 'nn'])) == [name]
