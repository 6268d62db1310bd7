"""Tables that lose digits in single precision."""

import torch


def planted(num_rows, values, seed=0):
    """A float64 table of given singular values, along no columns."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(num_rows, len(values), generator=generator).double()
    right = torch.randn(len(values), len(values), generator=generator).double()
    return torch.linalg.qr(left).Q * values @ torch.linalg.qr(right).Q


def tables(num_rows, dim):
    """The float32 tables by name."""
    generator = torch.Generator().manual_seed(1)
    ones = torch.ones(dim, dtype=torch.double)
    found = {'equal values': planted(num_rows, ones)}
    for ratio in (1e2, 1e5):
        values = ratio ** -torch.linspace(0, 1, dim).double()
        found[f'values from {ratio:g}'] = planted(num_rows, values)
        values = torch.where(torch.arange(dim) == 0, 1, ones / ratio)
        found[f'one value {ratio:g} times the others'] = planted(num_rows, values)
    of_rank = torch.where(torch.arange(dim) < dim // 3, ones, 0)
    found['a third of the rank'] = planted(num_rows, of_rank)
    centre = torch.randn(12, dim, generator=generator).double()
    near = torch.randn(num_rows, dim, generator=generator).double() / 10
    clusters = centre[torch.arange(num_rows) % 12] + near
    found['clusters'] = clusters
    for far in (1e2, 1e4):
        found[f'clusters {far:g} away'] = clusters + far
    apart = 1e4 * torch.randn(3, dim, generator=generator).double()
    found['far groups of clusters'] = clusters + apart[torch.arange(num_rows) % 3]
    found['ten rows again and again'] = centre[torch.arange(num_rows) % 10]
    for scale in (1e-15, 1e15):
        found[f'clusters times {scale:g}'] = clusters * scale
    return {name: table.float() for name, table in found.items()}


def weights(num_rows, ratio):
    """Shuffled weights from 1 to a ratio."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(2))
    return ratio ** (order / num_rows)


HARD = tables(600, 16)
