"""No file runs code, makes the package read other files, or exhausts memory."""

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_c2f import load, save
from pyg_c2f.bundle import Bundle, BundleError
from pyg_c2f.checkpoint import read_tensors, write_tensors
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.nn import C2F, LinearC2F
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.recipes.registry import fit
from pyg_c2f.typing import InputError
from pyg_c2f.vocabulary import NamedModel, Vocabulary
from tests.bundles import example
from tests.conftest import make_toy

ROOT = Path(__file__).parents[2]

# Hostile checkpoints ------------------------------------------------------------------


@contextmanager
def limited(seconds=10, size=10**9):
    """Limits additional memory, and time."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    start = time.perf_counter()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.perf_counter() - start < seconds


def refused(path):
    """The message of a file that must be refused before memory runs out."""
    with limited(), pytest.raises(InputError) as error:
        load(path)
    text = str(error.value)
    assert str(path) in text and '\n' not in text and len(text) < 1000
    assert 'alloc' not in text
    return text


@pytest.fixture(scope='module')
def linear(tmp_path_factory):
    """The files of a model of recipe fast, by their stored form."""
    data, files = SyntheticHierarchy(60, 80, 900, 4, 8)[0], {}
    for dtype in ('packed', 'float32'):
        recipe = FastRecipe(embedding_dim=18, num_fine=16, dtype=dtype)
        model = fit(data, recipe, seed=0)
        titles = map(str, range(80))
        model.vocabulary = Vocabulary(60, 80, range(60), range(80), titles)
        files[dtype] = tmp_path_factory.mktemp('linear') / f'{dtype}.safetensors'
        save(model, files[dtype])
    return files


@pytest.fixture(params=['c2f', 'packed', 'float32'])
def contents(request, linear, tmp_path):
    """Tensors and metadata of a good file, and the names of its settings."""
    if request.param == 'c2f':
        names = Vocabulary(6, 8, range(6), range(8), map(str, range(8)))
        save(
            NamedModel(make_toy(0).model('fine'), names), tmp_path / 'good.safetensors'
        )
        return *read_tensors(tmp_path / 'good.safetensors'), C2F.setting_kinds()
    return *read_tensors(linear[request.param]), LinearC2F.setting_kinds()


@pytest.fixture
def tampered(contents, tmp_path):
    """Writes the good file with other tensors or metadata."""

    def write(tensors=None, meta=None):
        path = tmp_path / 'model.safetensors'
        write_tensors(path, contents[0] | (tensors or {}), contents[1] | (meta or {}))
        return path

    return write


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('name', ['model.safetensors', 'model.pt', 'model.pkl'])
@pytest.mark.parametrize('form', ['pickle', 'torch', 'torch, old', 'numpy'])
def test_a_pickle_is_not_loaded(tmp_path, name, form):
    payload, path = Payload(tmp_path / 'pwned'), tmp_path / name
    if form == 'pickle':
        path.write_bytes(pickle.dumps(payload))
    elif form == 'numpy':
        with path.open('wb') as file:
            np.save(file, np.array([payload]), allow_pickle=True)
    else:
        zipped = form == 'torch'
        torch.save({'x': payload}, path, _use_new_zipfile_serialization=zipped)
    assert 'damaged or no safetensors file' in refused(path)
    with pytest.raises(BundleError):
        Bundle.load(path)
    assert [x.name for x in tmp_path.iterdir()] == [name]


def header_file(header, data=b'', size=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(content) if size is None else size
    return size.to_bytes(8, 'little') + content + data


def tensor(begin, end, shape=(4,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


@pytest.mark.parametrize(
    'content',
    [
        header_file({}, size=10**15),
        header_file({}, size=2**64 - 1),
        header_file({}, size=0),
        header_file(b'[' * 10**5),
        header_file(b'{"a":' * 10**5),
        header_file(b'{"__metadata__": {"format": [' + b'[' * 10**5),
        header_file(b'\xff\xfe{}'),
        header_file({'x': tensor(0, 4 * 10**15, [10**15])}),
        header_file({'x': tensor(0, 16, [10**15])}, bytes(16)),
        header_file({'x': tensor(0, 16, [2**63, 2**63])}, bytes(16)),
        header_file({'x': tensor(0, 16, [-4])}, bytes(16)),
        header_file({'x': tensor(16, 0)}, bytes(16)),
        header_file({'x': tensor(-16, 0)}, bytes(16)),
        header_file({'x': tensor(0, 16), 'y': tensor(0, 16)}, bytes(16)),
        header_file({'x': tensor(0, 16), 'y': tensor(8, 24)}, bytes(24)),
        header_file({'x': tensor(0, 16), 'y': tensor(32, 48)}, bytes(48)),
        header_file({'x': tensor(0, 16, dtype='PICKLE')}, bytes(16)),
        header_file({'x': tensor(0, 16)}, bytes(15)),
        header_file({'x': tensor(0, 16)}, bytes(17)),
        header_file({'__metadata__': {'format': 3}}),
        header_file({'__metadata__': {'format': 'pyg_c2f 2', 'x': 'y' * 10**7}}),
        header_file(b'{"x":1e999}'),
        b'',
        b'\0' * 7,
    ],
    ids=range(24),
)
def test_a_header_that_lies(tmp_path, content):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    refused(path)


def test_a_header_of_100_megabytes(tmp_path):
    path = tmp_path / 'model.safetensors'
    with path.open('wb') as file:
        file.write((10**8 + 1).to_bytes(8, 'little') + b'{')
        file.truncate(10**8 + 9)
    refused(path)
    path.write_bytes(header_file(b'{' + b' ' * 99_999_990 + b'}'))
    refused(path)


@pytest.mark.parametrize('what', ['fifo', 'folder', 'device', 'loop'])
def test_what_is_no_file(tmp_path, what):
    path = tmp_path / 'model.safetensors'
    if what == 'fifo':
        os.mkfifo(path)
    elif what == 'folder':
        path.mkdir()
    else:
        path.symlink_to('/dev/zero' if what == 'device' else path)
    assert 'no such checkpoint' in refused(path)


WHOLE = (
    'num_users', 'num_items', 'num_coarse', 'num_fine', 'embedding_dim', 'num_layers',
    'anchors_per_entity', 'fine_per_coarse', 'max_coarse_per_item', 'fine_per_item',
)  # fmt: skip
NO_SIZES = (
    '-1', '1000000000000', '1000000000', '2147483647', '4294967296', '9' * 5000, '1.5',
    '1e3', 'true', 'null', '"5"', '[5]', '{"a": 5}', 'NaN', 'Infinity', '-Infinity',
    '1e999', '', ' ', '5 5', '0x10', '[' * 10**5, '{"a":' * 10**5, '__import__("os")',
    '../../secret.txt', '\0',
)  # fmt: skip


@pytest.mark.parametrize('value', NO_SIZES, ids=range(len(NO_SIZES)))
def test_hostile_sizes(contents, tampered, value):
    for name in set(contents[2]) & set(WHOLE):
        assert 'does not fit together' in refused(tampered(meta={name: value}))


def is_safe(path):
    """A file is refused, or makes a model that recommends or says why not."""
    with limited():
        try:
            model = load(path)
        except InputError as error:
            assert '\n' not in str(error) and 'alloc' not in str(error)
            return
        try:
            model.recommend(history=[0], k=3)
        except ValueError as error:  # scores that are NaN
            assert '\n' not in str(error)


@pytest.mark.parametrize('value', NO_SIZES, ids=range(len(NO_SIZES)))
def test_hostile_settings(contents, tampered, value):
    for name in contents[1].keys() - set(WHOLE):
        is_safe(tampered(meta={name: value}))


@pytest.mark.parametrize('stage', ['', 'other', 'fine', '"FINE"'])
def test_a_stage_that_is_none(tampered, stage):
    refused(tampered(meta={'stage': stage}))


def rowptr(change):
    def spoil(tensors):
        yield {'fine.rowptr': change(tensors['fine.rowptr'].clone())}

    return spoil


def every(pattern, change):
    def spoil(tensors):
        for name, value in tensors.items():
            if pattern in name and value.numel():
                yield {name: change(value)}

    return spoil


def put(value, *places):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[list(places)] = value
        return tensor

    return change


TAMPERING = {
    'rows in disorder': rowptr(lambda x: x.flip(0)),
    'rows beyond the columns': rowptr(put(2**31 - 1, -1)),
    'rows that fall': rowptr(put(2**31 - 1, 1)),
    'rows below zero': rowptr(put(-(2**31), 1)),
    'rows that start late': rowptr(put(1, 0)),
    'no rows': rowptr(lambda x: x[:0]),
    'columns beyond': every('.col', lambda x: x.int() + 2**30),
    'columns below zero': every('.col', lambda x: -1 - x.int()),
    'ids, another number': every('ids.', lambda x: x[: len(x) // 2]),
    'ids, many': every('ids.', lambda x: torch.zeros(10**6, dtype=torch.uint8)),
    'ids, no text': every('ids.', lambda x: torch.full_like(x, 255)),
}  # fmt: skip


@pytest.mark.parametrize('name', TAMPERING)
def test_tensors_that_are_refused(contents, tampered, name):
    for change in TAMPERING[name](contents[0]):
        assert 'does not fit together' in refused(tampered(change)), list(change)


CHANGES = {
    'none': lambda x: x[:0],
    'a number': lambda x: x.flatten()[0].clone(),
    'of more dimensions': lambda x: x[None, :, None],
    'wide and empty': lambda x: torch.zeros(0, 10**15, dtype=x.dtype),
    'long': lambda x: x.flatten().repeat(3),
    'float': lambda x: x.float(),
    'double': lambda x: x.double(),
    'complex': lambda x: x.to(torch.complex64),
    'bool': lambda x: x.bool(),
    'int64': lambda x: x.long(),
    'uint8': lambda x: x.to(torch.uint8),
    'largest': lambda x: torch.full_like(x, 2**62, dtype=torch.int64),
    'large counts': lambda x: torch.full_like(x, 2**31 - 1, dtype=torch.int32),
    'below zero': lambda x: -1 - x.int(),
    'no numbers': lambda x: torch.full_like(x, float('nan'), dtype=torch.float32),
    'infinite': lambda x: torch.full_like(x, float('-inf'), dtype=torch.float32),
}


@pytest.mark.parametrize('name', CHANGES)
def test_tensors_of_another_kind(contents, tampered, name):
    for key, value in contents[0].items():
        is_safe(tampered({key: CHANGES[name](value)}))


# What is opened and run ---------------------------------------------------------------

WATCHED = """
import ctypes, json, os, struct, sys
from pyg_c2f import load
from pyg_c2f.bundle import Bundle

events, libc = [], ctypes.CDLL(None)


def attempt(path):
    # What the watch must see, though no file of ours does it.
    if '/open/' in path:
        libc.close(libc.open(path.replace('model.c2f', 'config.json').encode(), 0))
    if '/system/' in path:
        os.system('true')
    if '/unpickle/' in path:
        __import__('pickle').loads(b'cjson\\nJSONDecodeError\\n.')
    try:
        loaded = (Bundle.load if '.c2f' in path else load)(path)
        return type(getattr(loaded, 'model', loaded)).__name__
    except ValueError as error:
        return str(error)


def opened(watch, folders):
    # Whatever code opened them.
    raw, at, paths = os.read(watch, 1 << 20), 0, []
    while at < len(raw):
        number, _, _, length = struct.unpack_from('iIII', raw, at)
        file = raw[at + 16 : at + 16 + length].rstrip(b'\\0').decode()
        paths.append(os.path.join(folders[number], file))
        at += 16 + length
    return paths


paths, answers = json.load(sys.stdin), []
for path in paths:  # what is imported late is not what a file does
    attempt(path)
sys.addaudithook(lambda event, args: events.append((event, str(args[:1]))))
for path in paths:
    watch, folders = libc.inotify_init(), {}
    for folder in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        folders[libc.inotify_add_watch(watch, folder.encode(), 0x20)] = folder
    events.clear()
    outcome = attempt(path)
    happened = list(events)
    answers.append([outcome, happened, opened(watch, folders)])
print(json.dumps(answers))
"""
FORBIDDEN = (
    'compile', 'code.', 'ctypes.', 'exec', 'ftplib.', 'http.', 'import', 'marshal.',
    'os.exec', 'os.fork', 'os.posix_spawn', 'os.spawn', 'os.system', 'pickle.', 'pty.',
    'socket.', 'subprocess.', 'urllib.',
)  # fmt: skip


def watch(paths):
    """The outcome of loading each file, the events in Python, and what is opened."""
    out = subprocess.run(
        [sys.executable, '-c', WATCHED],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(out.stdout.splitlines()[-1])


def opens_itself_alone(path, events, opened):
    """Whether nothing is run and no other file opened."""
    ran = [event for event in events if event[0].startswith(FORBIDDEN)]
    # Python knows what it opens itself, the system all in these two folders.
    by_python = {args for event, args in events if event == 'open'}
    return (
        not ran
        and by_python <= {str((str(path),)), str((path,))}
        and {Path(x) for x in opened} - {path.parent} == {path}
    )


@pytest.fixture
def bait(tmp_path):
    """Makes folders of runs beside files that must not be read."""
    (tmp_path / 'secret.txt').write_text('secret')
    hostile = {'data_root': '../', 'init': '../secret.txt', 'resume': '/etc/passwd'}

    def make(name, file='model.safetensors'):
        (tmp_path / name).mkdir()
        for beside in ('config.json', 'metrics.json', 'history.jsonl', 'ids.json'):
            (tmp_path / name / beside).write_text(json.dumps(hostile))
        return tmp_path / name / file

    return make


CODE = '__import__("os").mkdir("pwned")'


def test_one_file_is_opened_and_nothing_run(linear, bait, tmp_path):
    good = tmp_path / 'good.safetensors'
    save(make_toy(0).model('fine'), good)
    paths, expected = [], []
    for name, file, kind in (('c2f', good, 'C2F'), *(
        (name, file, 'LinearC2F') for name, file in linear.items()
    )):  # fmt: skip
        tensors, meta = read_tensors(file)
        places = 'data_root', 'init', 'file', '__file__', 'ids', '__reduce__', 'config'
        for more, says in (
            ({}, kind),
            (dict.fromkeys(places, '"../secret.txt"'), kind),
            ({'num_users': CODE}, 'does not fit together'),
            ({'gate' if kind == 'C2F' else 'dtype': CODE}, 'does not fit together'),
            ({'threshold': '"../secret.txt"'}, 'does not fit together'),
        ):
            paths.append(bait(f'{name}{len(paths)}'))
            write_tensors(paths[-1], tensors, meta | more)
            expected.append(says)
    for name in ('model.safetensors', 'model.c2f'):
        paths.append(bait(f'pickle {name}', name))
        torch.save({'x': Payload(tmp_path / 'pwned')}, paths[-1])
        expected.append(str(paths[-1]))
    spied = {'open', 'system', 'unpickle'}
    for name in ('bundle', *sorted(spied)):
        paths.append(bait(name, 'model.c2f'))
        paths[-1].write_bytes(example()[0])
        expected.append('Bundle')

    for path, says, answer in zip(paths, expected, watch(paths), strict=True):
        outcome, *events = answer
        assert says in outcome
        is_alone = opens_itself_alone(path, *events)
        assert is_alone == (path.parent.name not in spied), events
    assert not list(tmp_path.rglob('pwned')) and not (ROOT / 'pwned').exists()
