from pyg_c2f.nn.c2f import C2F
from pyg_c2f.nn.conv import AnchorConv, C2FConv
from pyg_c2f.nn.embedding import MetaEmbedding, SoftThreshold
from pyg_c2f.nn.linear import LinearC2F
from pyg_c2f.nn.loss import BPRLoss, SampledSoftmaxLoss, WholeDataLoss
from pyg_c2f.nn.sampled import Pairs, build_pairs, sampled_dot

__all__ = [
    'AnchorConv',
    'BPRLoss',
    'C2F',
    'C2FConv',
    'LinearC2F',
    'MetaEmbedding',
    'Pairs',
    'SampledSoftmaxLoss',
    'SoftThreshold',
    'WholeDataLoss',
    'build_pairs',
    'sampled_dot',
]
