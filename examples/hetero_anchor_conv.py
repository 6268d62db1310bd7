"""``AnchorConv`` inside a ``HeteroConv`` of a node classifier.

A fake graph of three node types with features of different widths, and a class for each
node of the first type that only the features of its neighbours tell. Each type has a
linear layer of its own; ``AnchorConv``, which has no parameters, carries the features
along every relation, weighted so that a node gets the mean of its neighbours.
"""

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import FakeHeteroDataset
from torch_geometric.nn import HeteroConv, HeteroDictLinear
from torch_geometric.utils import degree, scatter

from pyg_c2f.nn import AnchorConv

NUM_CLASSES = 4

seed_everything(0)
data = FakeHeteroDataset(
    num_edge_types=9, avg_num_nodes=600, avg_num_channels=8, num_classes=0
)[0]
for store in data.edge_stores:
    deg = degree(store.edge_index[1], data[store._key[2]].num_nodes)
    store.edge_weight = 1 / deg[store.edge_index[1]]
# The class: which of the first features is largest among the neighbours of type v1.
src, dst = data['v1', 'e0', 'v0'].edge_index
told = scatter(data['v1'].x[src, :NUM_CLASSES], dst, 0, data['v0'].num_nodes)
label = told.argmax(dim=1)
is_train = torch.rand(len(label)) < 0.7


class Classifier(torch.nn.Module):
    """A linear layer for each type, a step along all relations, and a linear layer."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = {key: x.size(1) for key, x in data.x_dict.items()}
        self.enter = HeteroDictLinear(widths, channels)
        self.conv = HeteroConv({rel: AnchorConv() for rel in data.edge_types}, 'cat')
        into = sum(rel[2] == 'v0' for rel in data.edge_types)
        self.leave = torch.nn.Linear(into * channels, NUM_CLASSES)

    def forward(self) -> torch.Tensor:
        x_dict = self.enter(data.x_dict)
        weights = data.edge_weight_dict
        x_dict = self.conv(x_dict, data.edge_index_dict, edge_weight_dict=weights)
        return self.leave(x_dict['v0'])


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
losses = []
for _ in range(60):
    loss = F.cross_entropy(model()[is_train], label[is_train])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
is_right = model().argmax(dim=1) == label
accuracy = is_right[~is_train].float().mean().item()
majority = label[~is_train].bincount().max().item() / int((~is_train).sum())
print(f'loss {losses[0]:.3f} to {losses[-1]:.3f}')
print(
    f'accuracy {accuracy:.3f} on new nodes, of the most frequent class {majority:.3f}'
)
