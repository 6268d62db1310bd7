"""The approximate index: exact with all cells, nearly so with a few."""

import sys

import pytest
import torch
from torch_geometric.testing import withPackage

from pyg_c2f.index import ItemIndex
from pyg_c2f.vocabulary import NamedModel
from tests.models import HISTORIES, MODELS, make_model


@withPackage('faiss')
@pytest.mark.parametrize('name', [x for x in MODELS if x != 'diffusion'])
@pytest.mark.parametrize(('exclude_seen', 'k'), [(True, 100), (False, 3)])
def test_all_cells_give_the_exact_list(toy, name, exclude_seen, k, monkeypatch):
    inner = make_model(toy, name)
    model = NamedModel(inner)
    monkeypatch.setattr('pyg_c2f.nn.recommender.BLOCK_SCORES', 20)
    options = {'k': k, 'exclude_seen': exclude_seen}
    asked = [{'users': range(6)}, {'users': 3}]
    asked += [{'history': HISTORIES}, {'history': [3, 0, 3]}]
    exact = [model.recommend(**who, **options) for who in asked]
    indexes = [ItemIndex(model, cells, cells) for cells in (1, 3)]
    for index in indexes:
        items = model.recommend(['4', '0'], **options, index=index)[0]
        assert items == model.recommend(['4', '0'], **options)[0]
    # An index does not change when the model does.
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.normal_()
    for index in indexes:
        for who, (ids, scores) in zip(asked, exact, strict=True):
            ours = index.recommend(**who, **options)
            assert ours[0].equal(ids)
            torch.testing.assert_close(ours[1], scores, atol=1e-5, rtol=1e-5)


@withPackage('faiss')
def test_recall_of_the_index(fast_model):
    index = ItemIndex(fast_model)
    # The catalogue is small, so all cells are visited.
    assert (index.num_cells, index.num_cells_to_visit) == (76, 76)
    index = ItemIndex(fast_model, num_cells_to_visit=10)
    rowptr, col = fast_model.train_items()
    users = range(fast_model.num_users)
    histories = [col[rowptr[i] : rowptr[i + 1]] for i in range(500)]
    for who in ({'users': users}, {'history': histories}):
        ids, scores = fast_model.recommend(**who)
        found, values = fast_model.recommend(**who, index=index)
        hit = (found.unsqueeze(2) == ids.unsqueeze(1)) & (found.unsqueeze(2) >= 0)
        assert hit.any(dim=1).float().mean() > 0.9
        # The items found have their exact scores, in descending order.
        right = hit.nonzero()
        torch.testing.assert_close(
            values[right[:, 0], right[:, 1]],
            scores[right[:, 0], right[:, 2]],
            atol=1e-5,
            rtol=1e-5,
        )
        assert (values.diff(dim=1) <= 0).nan_to_num().all()
    # Nobody gets an item that they have.
    found, _ = fast_model.recommend(users, index=index)
    row = torch.arange(len(users)).repeat_interleave(rowptr.diff())
    seen = row * fast_model.num_items + col
    key = torch.arange(len(users)).unsqueeze(1) * fast_model.num_items + found
    assert not torch.isin(key[found >= 0], seen).any()
    # A list ends when the visited cells have no more items.
    index = ItemIndex(fast_model, num_cells=1000, num_cells_to_visit=1)
    ids, scores = fast_model.recommend(range(100), k=50, index=index)
    assert ids.shape == (100, 50)
    assert (ids == -1).any() and (ids[:, 0] >= 0).any()
    assert ((ids == -1) == (scores == -torch.inf)).all()
    assert ((ids >= 0).int().diff(dim=1) <= 0).all()


@withPackage('faiss')
def test_wrong_index(toy, fast_model):
    model = NamedModel(make_model(toy, 'linear'))
    with pytest.raises(ValueError, match='an ItemIndex .got int'):
        model.recommend(0, index=5)
    with pytest.raises(ValueError, match='6 users and 8 items .got 2000 and 3000'):
        model.recommend(0, index=ItemIndex(fast_model, 1))
    with pytest.raises(ValueError, match='either candidates or an index'):
        model.recommend(0, candidates=[1], index=ItemIndex(model, 1))
    for cells, visited in ((0, 0), (9, 1), (2, 3), (2, 0)):
        with pytest.raises(ValueError, match=f'<= 8 .got {visited} and {cells}'):
            ItemIndex(model, cells, visited)


def test_without_faiss_and_with_diffusion(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ImportError, match=r'pip install pyg-c2f\[faiss\]'):
        ItemIndex(make_model(toy, 'fine'))
    with pytest.raises(ValueError, match=r'diffusion=0 for an index .got 0.7'):
        ItemIndex(make_model(toy, 'diffusion'))
