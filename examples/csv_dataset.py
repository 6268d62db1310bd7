"""A data set of your own, from a csv to lists of recommendations, in ten lines.

The lines numbered 1 to 10 are all that it takes, where a folder ``root`` holds the file
``shop/shop.csv`` with a header that names its two columns. The others write such a
file, of 600 customers and what they bought, and print.
"""

import tempfile
from pathlib import Path

import pyg_c2f  # 1
from pyg_c2f.datasets import InteractionDataset  # 2
from pyg_c2f.datasets.synthetic import SyntheticHierarchy
from pyg_c2f.evaluate import evaluate_split  # 3
from pyg_c2f.recipes import FastRecipe  # 4

folder = tempfile.TemporaryDirectory()
root = folder.name
bought = SyntheticHierarchy(600, 400, 12000, 8, 40)[0]['user', 'rates', 'item']
Path(root, 'shop').mkdir()
with open(Path(root, 'shop', 'shop.csv'), 'w') as file:
    file.write('customer,product\n')
    file.writelines(f'C{u:03},P{i:03}\n' for u, i in bought.edge_index.T.tolist())

columns = {'user_column': 'customer', 'item_column': 'product'}  # 5
data = InteractionDataset(root, 'shop', **columns)[0]  # 6
model = pyg_c2f.fit(data, FastRecipe(embedding_dim=32, num_fine=64))  # 7
result = evaluate_split(model.scorer(), data, 'test')  # 8
known, scores = model.recommend('C007', k=3)  # 9
new, scores = model.recommend(history=['P001', 'P002'], k=3)  # 10

print(f'test NDCG@20 {result["ndcg@20"]:.4f}, Recall@20 {result["recall@20"]:.4f}')
print('for C007:', *known)
print('for somebody who bought P001 and P002:', *new)
