"""A data set and settings that train in a second."""

from dataclasses import replace

import numpy as np
import torch

from pyg_c2f.recipes import PaperRecipe, TrainingOptions, train

SETTINGS = {
    'num_coarse': 6,
    'num_fine': 4,
    'embedding_dim': 8,
    'pca_components': 4,
    'fine_per_coarse': 2,
    'num_layers': 2,
    'lr_coarse': 0.1,
    'lr_fine': 0.1,
    'batch_size_coarse': 512,
    'batch_size_fine': 1024,
    'max_epochs': 3,
    'patience': 1,
    'eval_every': 1,
}
FAST = ['--set', 'embedding_dim=16', 'coarse_per_item=3', 'num_fine=16']


def data_options(root, name='shop'):
    return ['--data-root', str(root), '--dataset', name, '--protocol', 'c2f']


def settings(**changes):
    values = (f'{k}={v}' for k, v in (SETTINGS | changes).items())
    return ['--recipe', 'paper', '--set', *values]


def as_text(rows, part):
    return ''.join(f'{u} {" ".join(map(str, row[part]))}\n' for u, row in rows.items())


def write_text_data(root):
    """Writes the data set ``root/text``; returns each user's items, test items last."""
    rng = np.random.default_rng(0)
    rows = {user: rng.permutation(50)[:12].tolist() for user in range(40)}
    (root / 'text').mkdir()
    (root / 'text/train.txt').write_text(as_text(rows, slice(8)))
    (root / 'text/test.txt').write_text(as_text(rows, slice(8, None)))
    return rows


def write_table_data(root, rows):
    """The data set ``root/table``: those rows with names, and titles of the items."""
    (root / 'table').mkdir()
    table = ''.join(f'u{u:02}\ti{i:02}\t5\n' for u, row in rows.items() for i in row)
    header = 'user_id:token\titem_id:token\trating:float\n'
    (root / 'table/table.inter').write_text(header + table)
    titles = ''.join(f'i{i:02}\tThe item {i}\n' for i in range(50))
    (root / 'table/table.item').write_text(f'item_id:token\ttitle:token\n{titles}')


TINY = replace(
    PaperRecipe(**SETTINGS),
    lr_coarse=0.3,
    lr_fine=0.3,
    batch_size_coarse=1024,
    batch_size_fine=2048,
    patience=2,
    max_epochs=12,
)


def run_of(data, recipe=TINY, **options):
    return train(data, recipe, TrainingOptions(**options))


def epochs_of(results):
    return {k: (v['best_epoch'], v['last_epoch']) for k, v in results.items()}


def assert_same_model(one, other):
    """Two models have the same bytes in a file."""
    ours, theirs = one.to_tensors(), other.to_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
