"""Singular vectors of any spectrum and of real data, against dense decompositions."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_c2f.anchors.spectral import SharedInteractions, right_vectors
from pyg_c2f.datasets import get_dataset
from pyg_c2f.graph import normalized_interactions
from pyg_c2f.shards import Group
from pyg_c2f.typing import ITEM, RATES, USER
from tests.anchors.test_spectral import (
    assert_orthonormal,
    captured,
    generator,
    planted,
    spectrum_of,
    to_dense,
)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-4, 0), min_size=2, max_size=90),
    rank=st.integers(1, 60),
    seed=st.integers(0, 100),
)
def test_any_spectrum(values, rank, seed):
    values = torch.tensor(sorted((10**x for x in values), reverse=True))
    matrix = planted(values, 110, 100, seed)
    found = spectrum_of(matrix, rank, seed)
    s = torch.linalg.svdvals(matrix)
    # Rounding the matrix leaves some values where there were none.
    num = min(rank, int((values > 1e-5 * values[0]).sum()))
    assert found.residual <= 1e-3
    torch.testing.assert_close(found.value[:num].double(), s[:num], rtol=1e-3, atol=0)
    right = found.right[:, :num].double()
    torch.testing.assert_close(
        right.T @ right, torch.eye(num).double(), atol=1e-5, rtol=0
    )
    # Energy, which no choice of vectors within a cluster changes.
    energy = (matrix @ right).square().sum(dim=0)
    torch.testing.assert_close(energy, s[:num].square(), rtol=1e-3, atol=0)


@pytest.mark.dataset
@pytest.mark.parametrize(
    'name, norms, rank',
    [
        ('ml-1m', (0.4, 0.4), 128),
        ('lastfm', (0.5, 0.3), 256),
    ],
)
def test_real_data(name, norms, rank, data_root):
    data = get_dataset(name, data_root)
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    interactions = normalized_interactions(
        data[RATES].edge_index, num_users, num_items, *norms
    )
    matrix = to_dense(interactions, num_items).double()
    # The eigenvectors of the smaller Gram matrix, taken over to the items.
    is_wide = num_items > num_users
    gram = matrix @ matrix.T if is_wide else matrix.T @ matrix
    few = (len(gram) - rank, len(gram) - 1)
    value, vector = scipy.linalg.eigh(gram.numpy(), subset_by_index=few)
    value, vector = (torch.from_numpy(x).flip(-1) for x in (value, vector))
    if is_wide:
        vector = matrix.T @ vector / value.sqrt()
    both = interactions, interactions.transpose(num_items)
    rows = [Group().rows(size) for size in (num_users, num_items)]
    found = right_vectors(SharedInteractions(*both, *rows), rank, generator())
    assert found.residual <= 1e-3
    assert captured(found, vector) >= 0.999
    torch.testing.assert_close(found.value.double().square(), value, atol=0, rtol=1e-3)
    assert_orthonormal(found.right, 1e-5)
