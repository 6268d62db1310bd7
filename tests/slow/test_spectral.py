"""Singular vectors of any spectrum and of real data, against dense decompositions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.anchors.test_spectral import (
    planted,
    spectrum_of,
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
