"""Models that are none of ours, to compare with: GF-CF, and LightGCN as PyG has it.

    python benchmarks/references.py --dataset lastfm --data-root ../shared/data

writes GF-CF's figures on the test items down.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import LGConv, LightGCN
from torch_geometric.utils import degree

from pyg_c2f.checkpoint import write_json
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import Score, evaluate_split
from pyg_c2f.graph import (
    CSR,
    csr_matmul,
    entity_csr,
    inverse_sqrt,
    ranges,
    unique_pairs,
)
from pyg_c2f.sampler import TripletSampler
from pyg_c2f.spectral import normalized_interactions, randomized_svd
from pyg_c2f.typing import ITEM, RATES, USER


def gfcf_scorer(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    rank: int = 256,
    weight: float = 0.3,
    generator: torch.Generator | None = None,
) -> Score:
    r"""GF-CF, a filter of the interactions that nothing is trained for.

    .. math::
        \mathbf{s}_u = \mathbf{r}_u \left( \tilde{R}^{\top} \tilde{R} + w \,
        D_I^{-1/2} V V^{\top} D_I^{1/2} \right)

    with the binary row :math:`\mathbf{r}_u` of the interactions, :math:`\tilde{R} =
    D_U^{-1/2} R D_I^{-1/2}` and its leading right singular vectors :math:`V` (`Shen et
    al., 2021 <https://arxiv.org/abs/2108.07567>`_). Scoring needs the train graph.

    Args:
        edge_index (Tensor): The train pairs, users in row 0, items in row 1.
        num_users (int): The number of users.
        num_items (int): The number of items.
        rank (int, optional): The number of singular vectors. (default: ``256``)
        weight (float, optional): The weight :math:`w`. (default: ``0.3``)
        generator (torch.Generator, optional): Draws the start of the SVD.

    Returns:
        Callable: Maps user ids ``[B]`` to scores ``[B, num_items]``.
    """
    edge_index = unique_pairs(edge_index, num_items)
    interactions = normalized_interactions(edge_index, num_users, num_items)
    by_user, by_item = interactions
    _, _, right = randomized_svd(interactions, rank, generator)
    deg = degree(edge_index[1], num_items, right.dtype).unsqueeze(1)
    rated = by_user._replace(weight=torch.ones_like(by_user.weight))
    low_user = weight * csr_matmul(rated, right * inverse_sqrt(deg))
    low_item = right * deg.sqrt()
    rowptr = by_user.rowptr.long()

    def score(users: Tensor) -> Tensor:
        column, place = ranges(rowptr[users], rowptr[users + 1] - rowptr[users])
        rows = low_item.new_zeros(num_items, len(users))
        rows[by_user.col[place].long(), column] = 1
        linear = csr_matmul(by_item, csr_matmul(by_user, rows))
        return torch.addmm(linear.T, low_user[users], low_item.T)

    return score


class _SymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, adj: CSR) -> Tensor:
        ctx.adj = adj
        return csr_matmul(adj, x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return csr_matmul(ctx.adj, grads[0].contiguous()), None


class SymmetricLGConv(LGConv):
    """PyG's layer for a symmetric CSR matrix, by the product that our training uses.

    Forward and backward of a layer take a fifth of what they take by ``torch.sparse``,
    which transposes the matrix in each backward pass.
    """

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        adj = CSR(adj_t.crow_indices(), adj_t.col_indices(), adj_t.values())
        return _SymmetricProduct.apply(x, adj)


class LightGCNRun:
    """A training of :class:`torch_geometric.nn.LightGCN` by its own BPR loss.

    All embeddings are propagated for each batch. As in PyG's example, the penalty is on
    the nodes of the batch. So that the method is compared and not its kernel, the
    layers are :class:`SymmetricLGConv`.

    Args:
        edge_index (Tensor): The train pairs, users in row 0, items in row 1.
        num_users (int): The number of users.
        num_items (int): The number of items.
        generator (torch.Generator, optional): Draws the start and the triples.
        embedding_dim (int, optional): The width. (default: ``64``)
        num_layers (int, optional): The number of layers. (default: ``3``)
        lr (float, optional): The learning rate of Adam. (default: ``1e-3``)
        lambda_reg (float, optional): The strength of the penalty. (default: ``1e-4``)
        batch_size (int, optional): The triples in a batch. (default: ``8192``)
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_users: int,
        num_items: int,
        generator: torch.Generator | None = None,
        embedding_dim: int = 64,
        num_layers: int = 3,
        lr: float = 1e-3,
        lambda_reg: float = 1e-4,
        batch_size: int = 8192,
    ) -> None:
        start = time.perf_counter()
        self.num_users, self.num_items = num_users, num_items
        self.lambda_reg, self.batch_size = lambda_reg, batch_size
        num_nodes = num_users + num_items
        edge_index = unique_pairs(edge_index, num_items)
        rowptr, _, col, weight = entity_csr(edge_index, num_users, num_items)
        self.adj = torch.sparse_csr_tensor(
            rowptr.int(), col.int(), weight, (num_nodes, num_nodes)
        )
        self.model = LightGCN(num_nodes, embedding_dim, num_layers)
        self.model.convs = torch.nn.ModuleList(
            SymmetricLGConv(normalize=False) for _ in range(num_layers)
        )
        embedding = self.model.embedding.weight
        torch.nn.init.xavier_uniform_(embedding, generator=generator)
        self.optimizer = torch.optim.Adam([embedding], lr=lr, fused=True)
        self.sampler = TripletSampler(edge_index, num_users, num_items, 1, generator)
        self.seconds = time.perf_counter() - start

    def epoch(self) -> float:
        """Trains on as many triples as there are train pairs; the mean loss."""
        start = time.perf_counter()
        losses = []
        batches = (x.split(self.batch_size) for x in self.sampler.sample_epoch())
        for user, positive, negative in zip(*batches, strict=True):
            items = torch.cat([positive, negative]) + self.num_users
            pairs = torch.stack([user.repeat(2), items])
            rank = self.model(self.adj, pairs)
            loss = self.model.recommendation_loss(
                *rank.chunk(2), node_id=pairs.unique(), lambda_reg=self.lambda_reg
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        self.seconds += time.perf_counter() - start
        return sum(losses) / len(losses)

    def run(self, every: int = 1) -> Iterator[tuple[float, Score]]:
        """Trains without an end.

        Args:
            every (int, optional): The epochs between two results. (default: ``1``)

        Yields:
            Tuple: The seconds of training so far, the set-up included and whatever the
            caller does in between excluded, and the scores of the model.
        """
        while True:
            yield self.seconds, self.scorer()
            for _ in range(every):
                self.epoch()

    @torch.no_grad()
    def scorer(self) -> Score:
        """Maps user ids ``[B]`` to the scores of all items, ``[B, num_items]``."""
        out = self.model.get_embedding(self.adj)
        user, item = out.split([self.num_users, self.num_items])
        return lambda users: user[users] @ item.T


def main(argv: list[str] | None = None) -> None:
    """Fits GF-CF to the train items and looks at the test items."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--dataset', default='lastfm')
    parser.add_argument('--data-root')
    parser.add_argument('--protocol', choices=('c2f', 'standard'), default='standard')
    parser.add_argument('--out', default='benchmarks/results', type=Path)
    args = parser.parse_args(argv)
    data = get_dataset(args.dataset, args.data_root, args.protocol)
    score = gfcf_scorer(
        data[RATES].edge_index,
        data[USER].num_nodes,
        data[ITEM].num_nodes,
        generator=torch.Generator().manual_seed(0),
    )
    result = {
        'call': shlex.join(['python', 'benchmarks/references.py', *argv]),
        'method': 'GF-CF, rank 256, weight 0.3, not tuned',
        'test': evaluate_split(score, data, 'test'),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / f'gfcf-{args.dataset}-{args.protocol}.json', result)
    print(json.dumps(result['test']))


if __name__ == '__main__':
    main()
