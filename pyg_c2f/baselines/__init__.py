"""Other ways to recommend from little memory, all behind one interface."""

from pyg_c2f.baselines.als import IALS
from pyg_c2f.baselines.base import Baseline, Histories, file_bytes, histories_of
from pyg_c2f.baselines.codec import (
    Codec,
    ColumnWise,
    Half,
    Plain,
    ProductCodes,
    Pruned,
    RowWise,
)
from pyg_c2f.baselines.ease import EASE
from pyg_c2f.baselines.embedding import (
    CompressedEmbedding,
    DHEmbedding,
    HashEmbedding,
    PEPEmbedding,
    QREmbedding,
    TTEmbedding,
)
from pyg_c2f.baselines.filters import GFCF, LowPass, TurboCF, TwoHop
from pyg_c2f.baselines.lightgcn import (
    CompressedLightGCN,
    LightGCN,
    LightGCNFromItems,
)
from pyg_c2f.baselines.neighbors import ItemKNN
from pyg_c2f.baselines.ours import Fast, Paper
from pyg_c2f.baselines.popularity import Popularity

__all__ = [
    'EASE',
    'GFCF',
    'IALS',
    'Baseline',
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
    'TwoHop',
    'file_bytes',
    'histories_of',
]
