"""Mini-batches of ``LinkNeighborLoader`` over a data set of this package.

Every data set here is a plain ``HeteroData``: PyG's loader draws pairs, a negative item
for each, and neighbours of all of them, and the model never sees more of the graph.
Users and items are rows of ``MetaEmbedding``, looked up by the global ids of a batch,
and ``AnchorConv`` carries them over the relations. ``--dataset gowalla`` reads (or
downloads) Gowalla below ``--data-root``; without it the data are made up.
"""

import argparse
from itertools import islice

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything, typing
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkNeighborLoader
from torch_geometric.nn import HeteroConv

from pyg_c2f.anchors.paper import metis_partition, partition_assignment
from pyg_c2f.datasets import get_dataset
from pyg_c2f.nn import AnchorConv, MetaEmbedding
from pyg_c2f.typing import RATED_BY, RATES

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--dataset', default='synthetic')
parser.add_argument('--data-root', default='datasets')
parser.add_argument('--max-batches', type=int, default=100)
args = parser.parse_args()

if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
    raise SystemExit(
        'LinkNeighborLoader draws neighbours with pyg-lib or torch-sparse: install '
        'pyg-lib from https://data.pyg.org/whl, or build torch-sparse with '
        'pip install --no-build-isolation "pyg-c2f[sparse]"'
    )

seed_everything(0)
data = get_dataset(args.dataset, args.data_root)
sizes = [data['user'].num_nodes, data['item'].num_nodes]
tables = torch.nn.ModuleDict()
labels = metis_partition(data[RATES].edge_index, *sizes, 256).split(sizes)
for key, size, label in zip(('user', 'item'), sizes, labels, strict=True):
    tables[key] = MetaEmbedding(size, 256, 32)
    tables[key].set_assignment(partition_assignment(label, 256, 2))
conv = HeteroConv({rel: AnchorConv(aggr='mean') for rel in (RATES, RATED_BY)})


def make_loader(pairs: torch.Tensor) -> LinkNeighborLoader:
    """Batches of pairs, each with a random item and the neighbours of all three."""
    return LinkNeighborLoader(
        data,
        num_neighbors=[15, 10],
        edge_label_index=(RATES, pairs),
        neg_sampling='triplet',
        batch_size=512,
        shuffle=True,
    )


def score(batch: HeteroData) -> torch.Tensor:
    """The scores of the positive and of the negative pairs, ``[2, batch_size]``."""
    x_dict = {key: table(batch[key].n_id) for key, table in tables.items()}
    sent = conv(x_dict, batch.edge_index_dict)
    user, item = (x_dict[key] + sent[key] for key in ('user', 'item'))
    both = torch.stack([batch['item'].dst_pos_index, batch['item'].dst_neg_index])
    return (user[batch['user'].src_index] * item[both]).sum(dim=-1)


@torch.no_grad()
def in_order() -> float:
    """The share of validation pairs that score higher than a random item."""
    batches = islice(make_loader(data[RATES].val_edge_label_index), 10)
    found = [positive > negative for positive, negative in map(score, batches)]
    return torch.cat(found).float().mean().item()


before = in_order()
optimizer = torch.optim.Adam(tables.parameters(), lr=0.02)
losses = []
for batch in islice(make_loader(data[RATES].edge_index), args.max_batches):
    positive, negative = score(batch)
    loss = F.softplus(negative - positive).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
after = in_order()
print(f'{len(losses)} batches: loss {losses[0]:.3f} to {losses[-1]:.3f}')
print(f'validation pairs in order: {before:.3f} to {after:.3f}')
