from pyg_c2f.nn.conv import AnchorConv, C2FConv
from pyg_c2f.nn.embedding import MetaEmbedding, SoftThreshold
from pyg_c2f.nn.loss import BPRLoss
from pyg_c2f.nn.model import C2F

__all__ = ['AnchorConv', 'BPRLoss', 'C2F', 'C2FConv', 'MetaEmbedding', 'SoftThreshold']
