import copy
import json
import os
import re
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pyg_c2f import load, save
from pyg_c2f.checkpoint import KINDS, TEXTS, model_bytes, read_tensors, write_tensors
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.files import write_json
from pyg_c2f.nn import C2F
from pyg_c2f.recipes import FastRecipe, TrainingOptions, train
from pyg_c2f.typing import Assignment, InputError
from pyg_c2f.vocabulary import NamedModel, Vocabulary

both_stages = pytest.mark.parametrize('stage', ['coarse', 'fine'])


def stored(path):
    """The tensors of a file, and their numbers of bytes according to its header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    header.pop('__metadata__')
    size = {}
    for key, entry in header.items():
        begin, end = entry['data_offsets']
        size[key] = end - begin
    assert 8 + length + sum(size.values()) == len(content)
    with safe_open(path, 'pt') as file:
        return {key: file.get_tensor(key) for key in file.keys()}, size


@both_stages
def test_round_trip(toy, stage, tmp_path):
    path = tmp_path / 'best.safetensors'
    save(toy.model('coarse'), path)
    model = toy.model(stage, gate=0.3, threshold=1.5, num_layers=2)
    save(model, str(path))
    assert [p.name for p in tmp_path.iterdir()] == ['best.safetensors']
    again = load(str(path))
    assert again.stage == stage and not again.training
    assert again.settings() == model.settings()
    users = torch.arange(toy.num_users)
    torch.testing.assert_close(
        again.scorer()(users), model.scorer()(users), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        again.recommend(history=[0, 7]), model.recommend(history=[0, 7])
    )
    # Further training would change the same tables.
    frozen = {name for name, p in again.model.named_parameters() if not p.requires_grad}
    assert frozen == {'fine.codebook' if stage == 'coarse' else 'coarse.codebook'}
    edges, given = (set(map(tuple, x.edge_index.T.tolist())) for x in (again, toy))
    assert edges == given


def test_many_anchors_need_larger_integers(toy, tmp_path):
    toy.num_coarse, toy.num_fine = 300, 257
    toy.coarse.index[0, 0] = 299
    fine = torch.randint(257, (300, 3))
    toy.fine = toy.fine._replace(index=fine, weight=torch.rand(300, 3))
    model = toy.model('fine')
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.coarse.index.equal(model.coarse.index)
    assert again.fine.index.equal(model.fine.index)


def test_the_fine_codebook_is_stored_sparse(toy, tmp_path):
    model = toy.model('fine')
    save(model, tmp_path)
    tensors, _ = stored(tmp_path / 'model.safetensors')
    alive = model.soft_threshold(model.fine.codebook) != 0
    assert 0 < int(alive.sum()) < alive.numel()
    assert tensors['fine.value'].equal(model.fine.codebook[alive])
    assert tensors['fine.rowptr'].diff().tolist() == alive.sum(dim=1).tolist()
    assert tensors['fine.col'].tolist() == alive.nonzero()[:, 1].tolist()
    # The file does not hold the dense table.
    assert not any(x.shape == alive.shape for x in tensors.values())
    thresholded = model.soft_threshold(load(tmp_path).fine.codebook)
    assert thresholded.equal(model.soft_threshold(model.fine.codebook))


@both_stages
def test_the_reported_bytes_are_those_of_the_file(toy, stage, tmp_path):
    model = toy.model(stage)
    save(model, tmp_path)
    tensors, size = stored(tmp_path / 'model.safetensors')
    assert set(tensors) <= {key for keys in KINDS.values() for key in keys}
    given = model_bytes(model)
    for kind, keys in KINDS.items():
        assert given[kind] == sum(size[key] for key in keys if key in size)
    assert sum(given[kind] for kind in KINDS) == sum(size.values())
    # A loaded model has the same size.
    assert model_bytes(load(tmp_path)) == given

    num_anchors = toy.num_coarse + (toy.num_fine if stage == 'fine' else 0)
    assert given['codebooks_dense'] == 4 * num_anchors * model.embedding_dim
    table = model.propagate()[: toy.num_entities]
    assert given['full_table'] == given['propagated_table'] == table.nbytes
    assert given['scalars'] == 4 * (toy.num_entities + 1)


def assert_refused(path, says):
    """Loading fails with one line that names the file."""
    with pytest.raises(InputError, match=says) as error:
        load(path)
    text = str(error.value)
    assert str(path) in text and '\n' not in text


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99, None])
def test_files_that_are_not_checkpoints(toy, tmp_path, share):
    path = tmp_path / 'model.safetensors'
    for missing in (path, tmp_path):
        assert_refused(missing, 'no such checkpoint')
    save_file({'weight': torch.ones(3)}, path, {'format': 'pyg_c2f 1'})
    assert_refused(path, 'not a checkpoint of this version')
    save(toy.model('fine'), path)
    content = path.read_bytes()
    text = b'0 1 2\n1 3 4\n' * 10
    path.write_bytes(text if share is None else content[: int(share * len(content))])
    assert_refused(path, 'damaged or no safetensors file')


def test_a_model_always_gives_the_same_file(toy, tmp_path):
    """The same bytes, which the safetensors library reads."""
    model = named(toy)
    paths = [tmp_path / f'{i}.safetensors' for i in range(9)]
    for path in paths:
        save(model, path)
    assert len({path.read_bytes() for path in paths}) == 1
    tensors, _ = stored(paths[0])
    given = model.to_tensors()
    assert all(tensors[key].equal(given[key]) for key in given)


def test_any_changed_byte_is_noticed(toy, tmp_path):
    path = tmp_path / 'model.safetensors'
    save(toy.model('fine', embedding_dim=2), path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], 'little')
    rng = np.random.default_rng(0)
    for at in [*range(start, len(content)), *rng.integers(0, start, 500)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert_refused(path, None)


def assert_untouched(write, folder, says):
    """A failed write leaves the folder as it was."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match=says) as error:
        write()
    assert '\n' not in str(error.value) and str(folder) in str(error.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk(toy, disk):
    save(toy.model('fine'), disk.folder)
    other, path = disk.folder / 'other', disk.folder / 'model.safetensors'
    other.write_bytes(bytes(200_000))
    tensors = {'x': torch.zeros(20_000)}

    def write():
        write_tensors(path, tensors, {})

    assert_untouched(write, disk.folder, 'No space left .* make room')
    other.unlink()
    write()
    assert read_tensors(path)[0]['x'].equal(tensors['x'])


def test_a_read_only_disk(toy, disk):
    model = toy.model('fine')
    save(model, disk.folder)
    disk.remount('ro')
    assert_untouched(lambda: save(model, disk.folder), disk.folder, 'Read-only')
    disk.remount('rw')
    save(model, disk.folder)


def test_a_folder_that_vanished(toy, tmp_path):
    with pytest.raises(OSError, match='there is no folder .*gone; make it'):
        save(toy.model('fine'), tmp_path / 'gone' / 'model.safetensors')


def test_files_are_on_the_disk_before_they_get_their_name(toy, tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file under the right name."""
    calls = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        calls.append(os.readlink(f'/proc/self/fd/{handle}'))
        sync(handle)

    def note_replace(source, target):
        calls.append('replace')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', note_sync)
    monkeypatch.setattr(os, 'replace', note_replace)
    path = tmp_path / 'model.safetensors'
    save(toy.model('fine'), path)
    assert calls == [f'{path}.part', 'replace', str(tmp_path)]


def without(name):
    return lambda tensors, meta: tensors.pop(name)


def other_meta(**kwargs):
    return lambda tensors, meta: meta.update(kwargs)


def other_tensor(name, change):
    return lambda tensors, meta: tensors.update({name: change(tensors[name])})


def cut(name, by=1):
    return other_tensor(name, lambda x: x[:-by])


def drop_meta(name):
    return lambda tensors, meta: meta.pop(name)


def as_bytes(content):
    ids = torch.tensor(list(content), dtype=torch.uint8)
    return other_tensor('ids.items', lambda x: ids)


def test_write_json(tmp_path):
    path = tmp_path / 'x.json'
    for content in ({'a': [1, 2.5, None]}, {'b': 'ä'}):
        write_json(path, content)
        assert json.loads(path.read_text()) == content
    with pytest.raises(TypeError, match=re.escape('not JSON serializable')):
        write_json(path, {'c': torch.ones(1)})
    assert json.loads(path.read_text()) == {'b': 'ä'}
    assert [p.name for p in tmp_path.iterdir()] == ['x.json']


USER_IDS = ['ann', 'bob', 'cem', 'dee', 'ève', '7']
ITEM_IDS = ['a', '', 'c d', 'e\nf', '\N{SNOWMAN}', '5', '"', '\t']
TITLES = ['The same', 'The same', '', '', '日本', 'x', 'y', '']


def named(toy, user_ids=USER_IDS, item_ids=ITEM_IDS, item_titles=TITLES):
    vocabulary = Vocabulary(6, 8, user_ids, item_ids, item_titles)
    return NamedModel(toy.model('fine'), vocabulary)


@pytest.mark.parametrize(
    'names',
    [(USER_IDS, ITEM_IDS, TITLES), (None, ITEM_IDS, None), (None, None, None)],
    ids=['all', 'item ids', 'none'],
)
def test_names_round_trip(toy, names, tmp_path):
    model = named(toy, *names)
    save(model, tmp_path)
    again = load(tmp_path)
    assert vars(again.vocabulary) == vars(model.vocabulary)
    # The file holds them, but no size counts them.
    tensors, size = stored(tmp_path / 'model.safetensors')
    texts = {key: getattr(model.vocabulary, name) for key, name in TEXTS.items()}
    texts = {key: lines for key, lines in texts.items() if lines is not None}
    assert set(tensors) - set(model.to_tensors()) == set(texts)
    for key, lines in texts.items():
        assert size[key] == len('\0'.join(lines).encode())
    assert model_bytes(again) == model_bytes(model) == model_bytes(model.model)
    if names[0] is not None:
        assert again.recommend('ève', 3)[0] == model.recommend('ève', 3)[0]


def test_one_empty_name_takes_no_bytes(tmp_path):
    alone = C2F(torch.tensor([[0], [0]]), 1, 1, 2, 4, 4)
    vocabulary = Vocabulary(1, 1, [''], ['x'], [''])
    save(NamedModel(alone, vocabulary), tmp_path)
    assert vars(load(tmp_path).vocabulary) == vars(vocabulary)


@cache
def linear(stage='fine', trained=False, **changes):
    """A model of recipe fast; if trained, with other codebooks and scalars."""
    sizes = {'embedding_dim': 18, 'num_fine': 16, 'coarse_per_item': 2.5}
    recipe = FastRecipe(**(sizes | changes))
    stages = ('coarse', 'fine') if stage == 'fine' else ('coarse',)
    data = SyntheticHierarchy(60, 80, 900, 4, 8)[0]
    model = train(data, recipe, TrainingOptions(0, stages)).model.model
    if trained:
        torch.manual_seed(0)
        with torch.no_grad():
            for table in (model.coarse.codebook, model.fine.codebook, model.bias):
                table += 0.1 * torch.randn(table.shape)
        model.round_()
    return model


@pytest.mark.parametrize(
    ('stage', 'changes'),
    [
        ('fine', {'dtype': 'packed', 'fine_per_item': 4}),
        ('coarse', {'dtype': 'packed'}),
        ('fine', {'dtype': 'packed', 'trained': True}),
        ('fine', {'dtype': 'float32', 'diffusion': 0.3, 'fine_per_item': 1}),
        ('coarse', {'dtype': 'float32'}),
    ],
    ids=str,
)
def test_linear_round_trip(stage, changes, tmp_path):
    model = linear(stage, **changes)
    assert bool(model.bias.any()) == ('trained' in changes)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.stage == stage and not again.training
    ours, theirs = (m.scorer()(torch.arange(60)) for m in (again, model))
    if changes['dtype'] == 'float32':
        assert again.settings() == model.settings() and ours.equal(theirs)
    else:  # The last digit of packed weights may differ.
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    ours, theirs = (m.recommend(history=[0, 7], k=9) for m in (again, model))
    assert ours[0].equal(theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-6, rtol=1e-6)

    tensors, size = stored(tmp_path / 'model.safetensors')
    assert set(tensors) <= {key for keys in KINDS.values() for key in keys}
    given = model_bytes(model)
    assert model_bytes(again) == given
    kinds = ('codebooks', 'assignments', 'scalars')
    for kind in kinds:
        assert given[kind] == sum(size.get(key, 0) for key in KINDS[kind])
    # Only diffusion needs the graph; otherwise it holds the histories.
    graph = sum(size[key] for key in KINDS['inference_extra'])
    needed = 'diffusion' in changes
    assert given['inference_extra'] == (graph if needed else 0)
    assert given['histories'] == (0 if needed else graph)
    assert sum(size.values()) == graph + sum(given[kind] for kind in kinds)
    # The loaded model is saved as the same tensors.
    save(again, tmp_path / 'twice.safetensors')
    twice, _ = stored(tmp_path / 'twice.safetensors')
    assert all(twice[key].equal(x) for key, x in tensors.items())


def test_fine_anchors_that_are_not_codes(tmp_path):
    model = copy.deepcopy(linear())
    index, weight = model.fine.assignment
    model.set_assignment(fine=Assignment(index.flip(1), weight))
    with pytest.raises(InputError, match='one fine anchor of each level'):
        save(model, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_axes_and_zeros_are_not_stored(tmp_path):
    path = tmp_path / 'model.safetensors'

    def names(**changes):
        save(linear(**changes), path)
        return set(stored(path)[0])

    coarse = {'coarse.count', 'coarse.index', 'coarse.weight', 'degree'}
    coarse |= {'graph.low', 'graph.high', 'graph.width'}
    fine = coarse | {'fine.rowptr', 'fine.col', 'fine.value', 'fine.index'}
    assert names(stage='coarse') == coarse
    assert names() == fine
    assert names(trained=True) == fine | {'coarse.codebook', 'bias'}
    # Bits: 5 for one of 18 anchors, 6 for a weight, 3 for one of 8 anchors of a level,
    # and 8 for a count. Without packing: 8, 32, 8 and 8.
    num_links, num_items = 200, 80
    packed, whole = (model_bytes(linear(dtype=x)) for x in ('packed', 'float32'))
    bits = num_links * (5 + 6) + num_items * (2 * 3 + 8)
    assert packed['assignments'] == bits // 8
    assert whole['assignments'] == num_links * (1 + 4) + num_items * (2 + 1)
    assert packed['codebooks'] < whole['codebooks']


@pytest.mark.parametrize(
    ('kind', 'spoil', 'says'),
    [
        ('paper', without('fine.col'), ''),
        ('paper', other_meta(num_items='-1'), ''),
        ('paper', other_meta(gate='nothing'), ''),
        ('paper', drop_meta('stage'), ''),
        ('paper', other_tensor('coarse.index', lambda x: x + 4), ''),
        ('paper', other_tensor('graph.width', lambda x: x + 1), ''),
        ('paper', other_tensor('graph.width', lambda x: x + 64), ''),
        ('paper', cut('graph.low'), ''),
        ('named', as_bytes(b'\0' * 8), '8 item ids'),
        ('named', as_bytes(b'a\0b\0c\0d\0e\0f\0g\0a'), "the same id 'a'"),
        ('named', as_bytes(b'a\0b\0c\0d\0e\0f\0g\0\xff'), "can't decode"),
        ('named', other_tensor('ids.users', lambda x: x[4:]), '6 user ids'),
        ('named', other_tensor('ids.users', lambda x: x.float()), ''),
        ('linear', without('coarse.count'), ''),
        ('linear', cut('coarse.index'), ''),
        ('linear', cut('coarse.weight'), ''),
        ('linear', cut('fine.index', by=3), ''),
        ('linear', cut('graph.low'), ''),
        ('linear', other_tensor('coarse.codebook', lambda x: x[:, :-1]), ''),
        ('linear', other_tensor('fine.col', lambda x: x + 18), ''),
        ('linear', other_meta(num_fine='4'), ''),
        ('linear', other_meta(fine_per_item='0'), ''),
        ('linear', other_meta(max_coarse_per_item='1'), ''),
        ('linear', other_meta(dtype='"none"'), ''),
        ('linear', other_meta(model='"cubic"'), ''),
        ('linear', drop_meta('score_power'), ''),
    ],
)
def test_tensors_and_settings_that_do_not_fit_together(
    toy, tmp_path, kind, spoil, says
):
    model = linear(trained=True) if kind == 'linear' else named(toy)
    path = tmp_path / 'model.safetensors'
    save(model.model if kind == 'paper' else model, path)
    tensors, meta = read_tensors(path)
    spoil(tensors, meta)
    write_tensors(path, tensors, meta)
    assert_refused(path, f'does not fit together .*{says}')
