"""What several processes send for a step, in bytes on the wire.

`distributed.py` checks these formulas, `plan.py` works with them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from pyg_c2f.anchors import codes, spectral
from pyg_c2f.anchors.spectral import (
    OVERSAMPLING,
    VARIMAX_ITERATIONS,
    SharedInteractions,
)
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.typing import KS


class Vectors(NamedTuple):
    """How singular vectors were found."""

    width: int
    """The columns of the basis."""
    columns: Mapping[int, int]
    """The columns that R'R was multiplied with, by the bytes of a number."""
    rounds: int
    """The Rayleigh-Ritz steps."""


def basis_width(rank: int, num_users: int, num_items: int) -> int:
    """The columns that so many singular vectors are found among."""
    return min(rank + max(OVERSAMPLING, rank // 8), num_users, num_items)


@contextmanager
def counted_columns() -> Iterator[Counter[int]]:
    """Counts the columns that R'R is multiplied with, by the bytes of a number.

    How many these are depends on the spectrum.
    """
    counts: Counter[int] = Counter()
    times_gram = spectral._times_gram

    def counted(interactions: SharedInteractions, x: Tensor) -> Tensor:
        counts[x.element_size()] += x.size(1)
        return times_gram(interactions, x)

    spectral._times_gram = counted
    try:
        yield counts
    finally:
        spectral._times_gram = times_gram


def moved(num_bytes: int, size: int) -> int:
    r"""Bytes on the wire of a table that goes to its place once.

    :math:`n (W - 1)`: each of :math:`W` processes sends its part of :math:`n` bytes to
    all others (a gathered table), or each gets its part from all others (a table
    reduced to its rows), or one sends all to all others.
    """
    return num_bytes * (size - 1)


def summed(num_bytes: int, size: int) -> int:
    r"""Bytes on the wire of a sum that all get, :math:`2 n (W - 1)`.

    gloo's ring passes each of :math:`W` parts to :math:`W - 1` processes to be added
    up, and then the sum to as many.
    """
    return 2 * num_bytes * (size - 1)


def product_bytes(
    num_items: int, num_columns: int, size: int, number_bytes: int = 4
) -> int:
    """Products with R'R: numbers of so many bytes there, doubles back."""
    return moved((number_bytes + 8) * num_items * num_columns, size)


def eigh_bytes(width: int, size: int) -> int:
    """A Gram matrix in double precision, its eigenvalues and vectors."""
    square = 8 * width**2
    return summed(square, size) + moved(square + 8 * width, size)


def ritz_bytes(width: int, size: int) -> int:
    """A Rayleigh-Ritz step: an orthonormal basis, and a rotation of it."""
    return 2 * eigh_bytes(width, size)


def vectors_bytes(num_items: int, vectors: Vectors, size: int) -> int:
    """The right singular vectors: start, products, Rayleigh-Ritz steps.

    Gram matrices are counted as if no vector was ever set aside.
    """
    width = vectors.width
    start = moved(8 * num_items * width, size) + eigh_bytes(width, size)
    products = sum(
        product_bytes(num_items, columns, size, number_bytes)
        for number_bytes, columns in vectors.columns.items()
    )
    return start + products + vectors.rounds * ritz_bytes(width, size)


def varimax_bytes(rank: int, size: int) -> int:
    """The rotation: lengths, then means, a gradient and a rotation each iteration."""
    square = rank**2
    each = summed(8 * (square + rank), size) + moved(4 * square, size)
    return summed(8 * rank, size) + VARIMAX_ITERATIONS * each


def threshold_bytes(size: int) -> int:
    """The threshold of all links: two tables of counts, and the widest row."""
    return summed(8 * ((1 << 15) + (1 << 16) + 1), size)


def kmeans_bytes(
    num_items: int, num_centroids: int, width: int, num_iterations: int, size: int
) -> int:
    """A k-means: chances of all rows, the start, sums of each iteration, the error."""
    centroids = num_centroids * width
    each = summed(8 * (centroids + num_centroids), size)
    start = moved(4 * num_items, size) + summed(4 * centroids, size)
    return start + num_iterations * each + summed(8, size)


def refill_bytes(num_items: int, num_empty: int, width: int, size: int) -> int:
    """Centroids without rows: the errors of all rows, and the worst of these."""
    return moved(4 * num_items, size) + summed(4 * num_empty * width, size)


def anchors_bytes(
    recipe: FastRecipe,
    num_items: int,
    rank: int,
    vectors: Vectors,
    links: int,
    size: int,
) -> int:
    """All anchors of recipe fast, but for centroids that were empty on the way.

    Args:
        recipe (FastRecipe): The settings.
        num_items (int): The number of items.
        rank (int): The width of the model.
        vectors (Vectors): How the singular vectors were found.
        links (int): Coarse links of the row with most of them.
        size (int): The number of processes.
    """
    degrees = summed(8 * (num_items + 1), size)
    coarse = threshold_bytes(size) + moved((4 + 4) * num_items * links, size)
    out = degrees + vectors_bytes(num_items, vectors, size)
    out += varimax_bytes(rank, size) + coarse
    if recipe.fine_per_item:
        level = min(recipe.num_fine // recipe.fine_per_item, num_items), rank
        runs = [4] + [codes.KMEANS_ITERATIONS] * recipe.fine_per_item
        out += sum(kmeans_bytes(num_items, *level, n, size) for n in runs)
        out += moved((4 + 4) * num_items * recipe.fine_per_item, size)
    return out


def paper_step_bytes(batch_size: int, size: int) -> int:
    """A step of recipe paper: parts of both scores of each triple and the penalty."""
    return summed(4 * (2 * batch_size + 1), size)


def evaluation_bytes(size: int) -> int:
    """The sums of all figures, and the number of users."""
    return summed(8 * (2 * len(KS) + 1), size)
