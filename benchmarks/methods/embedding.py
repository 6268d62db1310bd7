"""Embedding tables that are trained in a compressed form."""

from abc import ABC, abstractmethod
from itertools import pairwise
from math import cbrt, ceil, isqrt
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from methods.base import Tensors, pack_pairs, unpack_pairs
from pyg_c2f.typing import InputError

Granularity = Literal['global', 'dimension', 'feature']

PRIME = 2**31 - 1
FACTOR, OFFSET = 1_327_217_885, 1_013_904_223  # of the hash of HashEmbedding
HASH_SEED = 0  # of the hashes of DHEmbedding
HASH_VALUES = 1_000_000


class CompressedEmbedding(torch.nn.Module, ABC):
    """A table of embeddings with fewer parameters than entries.

    It stands where a :class:`torch.nn.Embedding` does: :attr:`weight` is the whole
    table, recomposed each time it is asked for, with its gradient.

    Args:
        num_embeddings (int): The number of rows.
        embedding_dim (int): The width of a row.

    Raises:
        InputError: If a size is impossible.
    """

    std: ClassVar[float] = 0.1
    """The standard deviation of the table's entries before training."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self._expect(
            min(num_embeddings, embedding_dim) >= 1,
            'positive sizes',
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
        )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The whole table ``[num_embeddings, embedding_dim]``, with its gradient."""

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the parameters, with a generator on the CPU."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def stored(self) -> Tensors:
        """The tensors of a file: the parameters as float16."""
        return {
            name: parameter.detach().half().cpu()
            for name, parameter in self.named_parameters()
        }

    def load(self, stored: Tensors) -> None:
        """Puts the values of :meth:`stored` back.

        Raises:
            InputError: If they are those of another module.
        """
        parameters = dict(self.named_parameters())
        expected = {name: tuple(x.shape) for name, x in parameters.items()}
        got = {name: tuple(x.shape) for name, x in stored.items()}
        self._expect(got == expected, f'tensors {expected}', stored=got)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])

    def _expect(self, holds: bool, expected: str, **got: object) -> None:
        if not holds:
            values = ', '.join(f'{name}={value}' for name, value in got.items())
            name = type(self).__name__
            raise InputError(f"'{name}' expected {expected} (got {values})")


class HashEmbedding(CompressedEmbedding):
    r"""Rows shared by hashing.

    .. math::
        \mathbf{e}_i = \mathbf{T}_{\pi(i) \bmod m}

    where :math:`\pi(i)` is the :math:`i`-th id in the order of the hash :math:`(a i +
    b) \bmod p`. It is fixed (:math:`p = 2^{31} - 1`, :math:`a = 1327217885`, :math:`b =
    1013904223`), so that a file holds only the rows. Their order fills all buckets
    alike; the hashes themselves modulo :math:`m` leave most of them empty for some
    :math:`m`.

    Args:
        num_embeddings (int): The number of rows.
        embedding_dim (int): The width of a row.
        num_buckets (int): The number :math:`m` of rows that are there.

    Raises:
        InputError: If a size is not positive or there are more buckets than rows.

    Example:
        >>> emb = HashEmbedding(1000, 16, num_buckets=50)
        >>> emb.weight.shape, emb.stored()['table'].shape
        (torch.Size([1000, 16]), torch.Size([50, 16]))
    """

    bucket: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, num_buckets: int
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self._expect(
            1 <= num_buckets <= num_embeddings,
            f'1 to {num_embeddings} buckets',
            num_buckets=num_buckets,
        )
        self.num_buckets = num_buckets
        self.table = Parameter(torch.empty(num_buckets, embedding_dim))
        key = _hash(torch.arange(num_embeddings), FACTOR, OFFSET)
        self.register_buffer('bucket', key.argsort() % num_buckets, persistent=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        _draw(self.table, self.std, generator)

    @property
    def weight(self) -> Tensor:
        return F.embedding(self.bucket, self.table)


class QREmbedding(CompressedEmbedding):
    r"""The quotient-remainder trick: each id has its own product of two shared rows.

    .. math::
        \mathbf{e}_i = \mathbf{Q}_{\lfloor i / m \rfloor} \odot \mathbf{R}_{i \bmod m}

    From `"Compositional Embeddings Using Complementary Partitions for Memory-Efficient
    Recommendation Systems" <https://arxiv.org/abs/1909.02107>`_. Both factors start
    around zero: with one of them around one, the ids that share the other would start
    as one row.

    Args:
        num_embeddings (int): The number of rows.
        embedding_dim (int): The width of a row.
        num_remainders (int): The number :math:`m` of rows of :math:`\mathbf{R}`.

    Raises:
        InputError: If a size is not positive or there are more remainders than rows.

    Example:
        >>> emb = QREmbedding(1000, 16, num_remainders=30)
        >>> emb.quotient.shape, emb.remainder.shape
        (torch.Size([34, 16]), torch.Size([30, 16]))
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, num_remainders: int
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self._expect(
            1 <= num_remainders <= num_embeddings,
            f'1 to {num_embeddings} remainders',
            num_remainders=num_remainders,
        )
        self.num_remainders = num_remainders
        num_quotients = ceil(num_embeddings / num_remainders)
        self.quotient = Parameter(torch.empty(num_quotients, embedding_dim))
        self.remainder = Parameter(torch.empty(num_remainders, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for factor in (self.quotient, self.remainder):
            _draw(factor, self.std**0.5, generator)

    @property
    def weight(self) -> Tensor:
        table = self.quotient.unsqueeze(1) * self.remainder
        return table.flatten(0, 1)[: self.num_embeddings]


class TTEmbedding(CompressedEmbedding):
    r"""A table as a tensor train of three cores.

    .. math::
        e_{(i_1 i_2 i_3), (j_1 j_2 j_3)} = \mathbf{A}_{i_1 j_1} \mathbf{B}_{i_2 j_2}
        \mathbf{C}_{i_3 j_3}

    with :math:`\mathbf{A}_{i_1 j_1}` a row of :math:`r` numbers, :math:`\mathbf{B}_{i_2
    j_2}` a matrix and :math:`\mathbf{C}_{i_3 j_3}` a column; :math:`i_1 i_2 i_3` and
    :math:`j_1 j_2 j_3` are the digits of the row and the column. From `"TT-Rec: Tensor
    Train Compression for Deep Learning Recommendation Models"
    <https://arxiv.org/abs/2101.11714>`_, whose cores start from a Gaussian without its
    middle; ours start from all of it.

    Args:
        num_embeddings (int): The number of rows; the product of the three row factors
            is at least that.
        embedding_dim (int): The width of a row, the product of the column factors.
        rank (int): The rank :math:`r`.

    Raises:
        InputError: If a size is not positive.

    Example:
        >>> emb = TTEmbedding(1000, 16, rank=4)
        >>> emb.row_factors, emb.col_factors
        ((10, 10, 10), (2, 2, 4))
        >>> sum(core.numel() for core in emb.parameters())
        560
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, rank: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self._expect(rank >= 1, 'a positive rank', rank=rank)
        self.rank = rank
        self.row_factors = _row_factors(num_embeddings)
        self.col_factors = _col_factors(embedding_dim)
        (n1, n2, n3), (d1, d2, d3) = self.row_factors, self.col_factors
        self.first = Parameter(torch.empty(n1, d1, rank))
        self.middle = Parameter(torch.empty(rank, n2, d2, rank))
        self.last = Parameter(torch.empty(rank, n3, d3))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        # An entry is a sum of rank^2 products of three.
        std = cbrt(self.std / self.rank)
        for core in (self.first, self.middle, self.last):
            _draw(core, std, generator)

    @property
    def weight(self) -> Tensor:
        left = torch.tensordot(self.first, self.middle, 1)  # [n1, d1, n2, d2, r]
        # The digits of a row are brought together while the tensor is small.
        left = left.transpose(1, 2)
        table = torch.tensordot(left, self.last, 1)  # [n1, n2, d1, d2, n3, d3]
        table = table.permute(0, 1, 4, 2, 3, 5).reshape(-1, self.embedding_dim)
        return table[: self.num_embeddings]


class DHEmbedding(CompressedEmbedding):
    r"""A deep hash embedding: a network computes a row from many hashes of the id.

    .. math::
        \mathbf{e}_i = \mathrm{MLP} \left( \frac{2 \, \mathbf{h}(i)}{m - 1} - 1 \right),
        \quad h_k(i) = ((a_k i + b_k) \bmod p) \bmod m

    with :math:`p = 2^{31} - 1` and :math:`m = 10^6`. From `"Learning to Embed
    Categorical Features without Embedding Tables for Recommendation"
    <https://arxiv.org/abs/2010.10784>`_, without its batch norm: instead, the last
    layer starts such that each column of the table has mean zero. The :math:`a_k` and
    :math:`b_k` come from a fixed seed, so that a file holds only the network.

    Args:
        num_embeddings (int): The number of rows, at least 2.
        embedding_dim (int): The width of a row.
        num_hashes (int, optional): The number of hashes. (default: ``256``)
        hidden (tuple, optional): The widths of the hidden layers, with Mish.
            (default: ``(64,)``)

    Raises:
        InputError: If a size is not positive or there is only one row.

    Example:
        >>> emb = DHEmbedding(1000, 16, num_hashes=32, hidden=(8,))
        >>> emb.weight.shape
        torch.Size([1000, 16])
        >>> sum(x.numel() for x in emb.stored().values())
        408
    """

    encoding: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_hashes: int = 256,
        hidden: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self._expect(
            min(num_hashes, *hidden, num_embeddings - 1) >= 1,
            'positive sizes and at least two rows',
            num_embeddings=num_embeddings,
            num_hashes=num_hashes,
            hidden=hidden,
        )
        self.num_hashes = num_hashes
        self.hidden = hidden
        layers: list[torch.nn.Module] = []
        for size in pairwise((num_hashes, *hidden, embedding_dim)):
            layers += [torch.nn.Linear(*size), torch.nn.Mish()]
        self.layers = torch.nn.Sequential(*layers[:-1])
        encoding = _encode(num_embeddings, num_hashes)
        self.register_buffer('encoding', encoding, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        linears = [x for x in self.layers if isinstance(x, torch.nn.Linear)]
        for linear in linears:
            _draw(linear.weight, linear.in_features**-0.5, generator)
            linear.bias.zero_()
        table = self.weight
        mean = table.mean(dim=0)
        scale = self.std / (table - mean).square().mean().sqrt()
        linears[-1].weight.mul_(scale)
        linears[-1].bias.copy_(-mean * scale)

    @property
    def weight(self) -> Tensor:
        return self.layers(self.encoding)


class PEPEmbedding(CompressedEmbedding):
    r"""A table that learns which of its entries are zero.

    .. math::
        \mathbf{E} = \mathrm{sign}(\mathbf{V}) \cdot \max(|\mathbf{V}| - \sigma(s), 0)

    From `"Learnable Embedding Sizes for Recommender Systems"
    <https://arxiv.org/abs/2101.07577>`_. The thresholds :math:`s` are learned: a
    penalty on the size of the table, such as weight decay in the loss, pushes them up.
    A file holds the entries that are not zero. After :meth:`load` the thresholds are
    zero (:math:`s = -\infty`), the entries as they are, and training goes on among
    these entries only.

    Args:
        num_embeddings (int): The number of rows.
        embedding_dim (int): The width of a row.
        init_threshold (float, optional): The :math:`s` to start from.
            (default: ``-8.0``)
        granularity (str, optional): One threshold for all (``'global'``), for each
            column (``'dimension'``) or for each row (``'feature'``).
            (default: ``'dimension'``)

    Raises:
        InputError: If a size is not positive or the granularity unknown.

    Example:
        >>> emb = PEPEmbedding(1000, 16, init_threshold=-2.2)
        >>> stored = emb.stored()
        >>> len(stored['value']) == int((emb.weight != 0).sum()) < 16_000
        True
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        init_threshold: float = -8.0,
        granularity: Granularity = 'dimension',
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        names = get_args(Granularity)
        self._expect(
            granularity in names, f'one of {names}', granularity=repr(granularity)
        )
        self.init_threshold = init_threshold
        self.granularity = granularity
        size = {
            'global': (1, 1),
            'dimension': (1, embedding_dim),
            'feature': (num_embeddings, 1),
        }[granularity]
        self.value = Parameter(torch.empty(num_embeddings, embedding_dim))
        self.threshold = Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        _draw(self.value, self.std, generator)
        torch.nn.init.constant_(self.threshold, self.init_threshold)

    @property
    def weight(self) -> Tensor:
        size = self.value.abs() - self.threshold.sigmoid()
        return self.value.sign() * size.relu()

    def stored(self) -> Tensors:
        """The tensors of a file: the entries that are not zero in float16."""
        table = self.weight.detach().half().cpu()
        row, col = table.nonzero(as_tuple=True)
        places = pack_pairs(row, col, self.embedding_dim)
        return places | {'value': table[row, col]}

    @torch.no_grad()
    def load(self, stored: Tensors) -> None:
        names = {'low', 'high', 'width', 'value'}
        self._expect(stored.keys() == names, f'{sorted(names)}', stored=sorted(stored))
        row, col = unpack_pairs(stored, self.embedding_dim)
        value = stored['value']
        num_rows = int(row[-1]) + 1 if row.numel() else 0
        self._expect(
            num_rows <= self.num_embeddings and len(row) == len(value),
            f'entries of {self.num_embeddings} rows',
            num_rows=num_rows,
            num_places=len(row),
            num_values=len(value),
        )
        table = torch.zeros(self.num_embeddings, self.embedding_dim)
        table[row, col] = value.float()
        self.value.copy_(table)
        self.threshold.fill_(-torch.inf)


@torch.no_grad()
def _draw(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _hash(ids: Tensor, factor: Tensor | int, offset: Tensor | int) -> Tensor:
    return (ids * factor + offset) % PRIME


def _encode(num_ids: int, num_hashes: int) -> Tensor:
    # The numbers of RandomState are the same in all versions; those of torch need not
    # be, and a file would not fit its hashes any more.
    draw = np.random.RandomState(HASH_SEED).randint
    factor = torch.from_numpy(draw(1, PRIME, num_hashes, np.int64))
    offset = torch.from_numpy(draw(0, PRIME, num_hashes, np.int64))
    ids = torch.arange(num_ids).unsqueeze(1)
    code = _hash(ids, factor, offset) % HASH_VALUES
    return code.float() * (2 / (HASH_VALUES - 1)) - 1


def _row_factors(num_rows: int) -> tuple[int, int, int]:
    first = ceil(round(cbrt(num_rows), 6))
    last = isqrt(ceil(num_rows / first) - 1) + 1
    # The least one in the middle, where the core is largest.
    return first, ceil(num_rows / (first * last)), last


def _col_factors(num_cols: int) -> tuple[int, int, int]:
    divisors = [n for n in range(1, num_cols + 1) if num_cols % n == 0]
    return min(
        (
            (first, middle, num_cols // (first * middle))
            for first in divisors
            for middle in divisors
            if num_cols % (first * middle) == 0
        ),
        key=lambda factors: (sum(factors), factors[1], factors),
    )
