"""Other ways to recommend from little memory, with one interface.

A method is fitted to histories, what it returns is what a file holds, and scores come
from that and from the histories of those who ask.

Example:
    >>> from pyg_c2f.evaluate import evaluate_split
    >>> data = SyntheticHierarchy(100, 80, num_interactions=2_000)[0]
    >>> sizes = data['user'].num_nodes, data['item'].num_nodes
    >>> train = histories_of(data['user', 'rates', 'item'].edge_index, *sizes)
    >>> method = LowPass(embedding_dim=8, codec=RowWise(8))
    >>> stored = method.fit(train, torch.Generator().manual_seed(0))
    >>> len(file_bytes(stored)) < 2_000
    True
    >>> score = method.scorer(stored, train)
    >>> score(torch.tensor([3, 7])).shape
    torch.Size([2, 80])
    >>> evaluate_split(score, data, 'test')['recall@20'] > 0.3
    True
    >>> somebody = histories_of(torch.tensor([[0, 0], [5, 9]]), 1, 80)
    >>> method.scorer(stored, somebody)(torch.tensor([0])).shape
    torch.Size([1, 80])
"""

from methods.base import Baseline, Histories, file_bytes, histories_of
from methods.codec import (
    Codec,
    ColumnWise,
    Half,
    Plain,
    ProductCodes,
    Pruned,
    RowWise,
)
from methods.embedding import (
    CompressedEmbedding,
    DHEmbedding,
    HashEmbedding,
    PEPEmbedding,
    QREmbedding,
    TTEmbedding,
)
from methods.filters import GFCF, ChebyCF, LinkProp, LowPass, Popularity, TurboCF
from methods.items import IALS, ItemKNN
from methods.lightgcn import (
    CompressedLightGCN,
    LightGCN,
    LightGCNFromItems,
)
from methods.linear import EASE, FSAI
from methods.ours import Fast, Paper

__all__ = [
    'EASE',
    'FSAI',
    'GFCF',
    'IALS',
    'Baseline',
    'ChebyCF',
    'Codec',
    'ColumnWise',
    'CompressedEmbedding',
    'CompressedLightGCN',
    'DHEmbedding',
    'Fast',
    'Half',
    'HashEmbedding',
    'Histories',
    'ItemKNN',
    'LightGCN',
    'LightGCNFromItems',
    'LinkProp',
    'LowPass',
    'PEPEmbedding',
    'Paper',
    'Plain',
    'Popularity',
    'ProductCodes',
    'Pruned',
    'QREmbedding',
    'RowWise',
    'TTEmbedding',
    'TurboCF',
    'file_bytes',
    'histories_of',
]
