"""The writer of bundles: lists of the reader are lists of the model."""

import os
import zlib

import numpy as np
import pytest
import torch

from pyg_c2f import fit, load, save
from pyg_c2f.bundle import Bundle
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.export import write_bundle, write_onnx
from pyg_c2f.export.bundle import fit_table
from pyg_c2f.nn import C2F, LinearC2F
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.typing import Assignment, InputError
from tests.bundles import contents, sections_of

NUM_USERS, NUM_ITEMS = 50, 30
KINDS = {
    'coarse': dict(),
    'scaled': dict(user_norm=0.3, item_norm=0.2, score_power=0.7),
    'one level': dict(fine_per_item=1),
    'two levels': dict(fine_per_item=2, threshold=0.3),
    'codebook': dict(num_coarse=9),
    'square codebook': dict(num_coarse=6, axes=False, fine_per_item=3),
    'codes': dict(num_coarse=9, codes=True, fine_per_item=1),
    'bias': dict(bias=True, user_norm=0.7),
    'all': dict(num_coarse=9, fine_per_item=2, bias=True, item_norm=0.3),
}


def few_valued(shape, num_values=16):
    return torch.randn(num_values)[torch.randint(num_values, shape)]


def make_model(
    num_coarse=6, fine_per_item=0, bias=False, codes=False, axes=True, seed=0, **options
):
    """A model whose numbers are few, so that tables hold them as they are."""
    torch.manual_seed(seed)
    # Every user has four items, so that the item-item matrix has few values too.
    item = torch.rand(NUM_USERS, NUM_ITEMS - 1).argsort(dim=1)[:, :4]
    user = torch.arange(NUM_USERS).repeat_interleave(4)
    model = LinearC2F(
        torch.stack([user, item.flatten()]),
        *(NUM_USERS, NUM_ITEMS, num_coarse, 12, 6),
        max_coarse_per_item=3,
        fine_per_item=fine_per_item or 1,
        **options,
    )

    def of_levels(num_anchors, levels):
        index = torch.randint(num_anchors // levels, (NUM_ITEMS, levels))
        index += num_anchors // levels * torch.arange(levels)
        return Assignment(index, torch.ones(index.shape))

    links = of_levels(num_coarse, 3)
    if not codes:
        index = torch.randint(num_coarse, links.index.shape)
        weight = few_valued(index.shape) * (torch.rand(index.shape) < 0.8)
        links = Assignment(index, weight)
    model.set_assignment(links, of_levels(12, fine_per_item) if fine_per_item else None)
    with torch.no_grad():
        model.coarse.codebook.copy_(few_valued((num_coarse, 6)))
        if axes and num_coarse == 6:
            model.coarse.codebook.copy_(torch.eye(6))
        model.fine.codebook.copy_(few_valued((12, 6)))
        if bias:
            model.bias.copy_(few_valued((NUM_ITEMS,)))
    model.set_stage('fine' if fine_per_item else 'coarse')
    return model


def exported(model, path, **options):
    """The bytes of a bundle that keeps all of a model, and their counts."""
    counted = write_bundle(model, path, 8, **options)
    return path.read_bytes(), counted


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('kind', KINDS)
def test_lists_are_those_of_the_model(kind, seed, tmp_path):
    model = make_model(**KINDS[kind], seed=seed)
    data, counted = exported(model, tmp_path / 'model.c2f')
    bundle = Bundle(data)
    for size in range(1, 20):
        history = torch.randperm(NUM_ITEMS)[:size].tolist()
        items, scores = bundle.recommend(history, NUM_ITEMS - size)
        expected, of_model = model.recommend(history=history, k=NUM_ITEMS - size)
        assert items.tolist() == expected.tolist()
        np.testing.assert_allclose(scores, of_model, rtol=1e-4, atol=1e-5)
        items, cosines = bundle.similar_items(size, NUM_ITEMS)
        expected, of_model = model.similar_items(size, NUM_ITEMS)
        np.testing.assert_allclose(cosines, of_model, atol=1e-5)
        by_item, of_model = cosines[items.argsort()], of_model[expected.argsort()]
        np.testing.assert_allclose(by_item, of_model, atol=1e-5)
    sections = sections_of(data)
    assert counted.pop('all') == len(data) == sum(counted.values())
    assert [*counted] == ['header', *sections]
    for tag, content in sections.items():
        assert counted[tag] == 8 + len(content) + -len(content) % 4


def test_sections_are_those_that_the_model_needs(tmp_path):
    tags = {
        kind: ' '.join(sections_of(exported(make_model(**options), tmp_path / 'x')[0]))
        for kind, options in KINDS.items()
    }
    assert tags == {
        'coarse': 'ITEM LINK',
        'scaled': 'ITEM LINK',
        'one level': 'ITEM LINK FINE CODE',
        'two levels': 'ITEM LINK FINE CODE',
        'codebook': 'ITEM LINK COAR',
        'square codebook': 'ITEM LINK COAR FINE CODE',
        'codes': 'ITEM LINK COAR FINE CODE',
        'bias': 'ITEM LINK BIAS',
        'all': 'ITEM LINK COAR FINE CODE BIAS',
    }


def test_no_links(tmp_path):
    model = make_model()
    model.coarse.assignment_weight.zero_()
    bundle = Bundle(exported(model, tmp_path / 'model.c2f')[0])
    items, scores = bundle.recommend([1], 3)
    assert items.tolist() == [0, 2, 3] and scores.tolist() == [0, 0, 0]


# Models as training leaves them -------------------------------------------------------


@pytest.fixture(scope='module')
def trained():
    data = SyntheticHierarchy(300, 600, 6000, 4, 8)[0]
    data['item'].raw_id = [f'id {x} é' for x in range(600)]
    data['item'].title = [f'{x % 50}' for x in range(600)]
    return fit(data, FastRecipe(embedding_dim=48, num_fine=32, coarse_per_item=6))


def test_lists_of_a_trained_model(trained, tmp_path):
    write_bundle(trained, path := tmp_path / 'model.c2f')
    links = contents(path.read_bytes()).S
    index, weight = trained.coarse.assignment
    assert (
        links == torch.zeros(links.shape).scatter_add_(1, index, weight).numpy()
    ).all()
    bundle, (rowptr, col) = Bundle.load(path), trained.train_items()
    overlap = []
    for history in np.split(col.numpy(), rowptr[1:-1]):
        expected, _ = trained.recommend(history=history.tolist(), k=20)
        items, _ = bundle.recommend(history, 20)
        overlap.append(len({*items.tolist()} & {*expected.tolist()}) / 20)
    assert np.mean(overlap) >= 0.95


def test_ids_and_titles(trained, tmp_path):
    write_bundle(trained, path := tmp_path / 'model.c2f')
    bundle = Bundle.load(path)
    assert bundle.item_ids == trained.vocabulary.item_ids is not None
    assert bundle.item_titles == trained.vocabulary.item_titles is not None
    counted = write_bundle(trained, path, names=False)
    assert not {'NAME', 'TITL'} & {*counted}
    bundle = Bundle.load(path)
    assert bundle.item_ids is None and bundle.item_titles is None


def test_two_exports_are_the_same(trained, tmp_path):
    save(trained, tmp_path)
    first, second, loaded = (tmp_path / name for name in ('first', 'second', 'loaded'))
    counted = write_bundle(trained, first)
    assert write_bundle(trained, second) == counted
    assert write_bundle(load(tmp_path), loaded) == counted
    assert first.read_bytes() == second.read_bytes() == loaded.read_bytes()


# Tables -------------------------------------------------------------------------------


@pytest.mark.parametrize('bits', [2, 5, 8])
@pytest.mark.parametrize('has_zeros', [False, True])
def test_tables(bits, has_zeros):
    torch.manual_seed(bits)
    values = torch.randn(5000).exp() * torch.randn(5000).sign()
    if has_zeros:
        values[::7] = 0
    code, table = fit_table(values, bits)
    assert (table.diff() > 0).all() and table.dtype == torch.float32
    assert code.dtype == torch.int64 and code.min() == 0
    # Most of the table is used, and relative errors are even.
    assert 2**bits / 2 < len(table) == code.max() + 1 <= 2**bits
    decoded, size = table[code], values[values != 0].abs().log()
    assert decoded.sign().equal(values.sign())
    error = (decoded[values != 0].abs().log() - size).abs().max()
    num_steps = (len(table) - has_zeros) / 2
    assert error < 1.5 * float(size.max() - size.min()) / num_steps


def test_a_table_of_few_values_is_exact():
    values = few_valued((1000,), 31) * (torch.rand(1000) < 0.9)
    code, table = fit_table(values, 5)
    assert table[code].equal(values) and table.equal(values.unique())


# What is refused, and what a failure leaves -------------------------------------------

REFUSED = {
    'one bit': (dict(), dict(weight_bits=1), 'choose 2 to 8'),
    'nine bits': (dict(), dict(weight_bits=9), 'choose 2 to 8'),
    'half a bit': (dict(), dict(weight_bits=6.5), 'choose 2 to 8'),
    'too large': (dict(user_norm=1e39), dict(), 'not finite'),
}
TOO_LARGE = {
    'num_items': 2**26,
    'embedding_dim': 4096,
    'num_coarse': 65536,
    'num_fine': 4096,
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_refused(kind, tmp_path):
    of_model, options, match = REFUSED[kind]
    with pytest.raises(InputError, match=match) as error:
        write_bundle(make_model(**of_model), tmp_path / 'model.c2f', **options)
    assert '\n' not in str(error.value) and not [*tmp_path.iterdir()]


@pytest.mark.parametrize('write', [write_bundle, write_onnx])
def test_models_that_need_more_than_a_history(write, tmp_path):
    edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
    fine, swapped = make_model(fine_per_item=2), make_model(fine_per_item=2)
    index, weight = fine.fine.assignment
    fine.set_assignment(fine=Assignment(index, weight / 2))
    swapped.set_assignment(fine=Assignment(index.flip(1), weight))
    for model, match in (
        (C2F(edge_index, 3, 4, 2, 2, 8, fine_per_coarse=2), 'recipe=fast'),
        (make_model(diffusion=0.5), 'needs the train graph.*diffusion=0'),
        (fine, 'one fine anchor of each level'),
        (swapped, 'one fine anchor of each level'),
    ):
        with pytest.raises(InputError, match=match):
            write(model, tmp_path / 'model')
    assert not [*tmp_path.iterdir()]
    fine.set_stage('coarse')  # which has none
    write_bundle(fine, tmp_path / 'model')


@pytest.mark.parametrize('name', TOO_LARGE)
def test_more_than_the_format_holds(name, tmp_path):
    model = make_model(fine_per_item=1)
    setattr(model, name, TOO_LARGE[name] + 1)
    with pytest.raises(InputError, match=f'to {TOO_LARGE[name]}; train'):
        write_bundle(model, tmp_path / 'model.c2f')
    assert not [*tmp_path.iterdir()]


def test_a_large_codebook(tmp_path):
    model = make_model(num_coarse=9)
    model.num_coarse, model.embedding_dim = 8192, 2049
    with pytest.raises(InputError, match='8192 coarse anchors of 2049 columns'):
        write_bundle(model, tmp_path / 'model.c2f')


@pytest.mark.parametrize('module, name', [(zlib, 'crc32'), (os, 'replace')])
def test_a_failure_leaves_what_was_there(module, name, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    model, path = make_model(), tmp_path / 'model.c2f'
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match='disk full'):
        write_bundle(model, path)
    assert not [*tmp_path.iterdir()]
    path.write_bytes(b'older')
    with pytest.raises(OSError, match='disk full'):
        write_bundle(model, path)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b'older'


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        write_bundle(make_model(), tmp_path / 'nowhere/model.c2f')
    assert not [*tmp_path.iterdir()]
