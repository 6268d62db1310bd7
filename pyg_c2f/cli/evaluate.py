"""``pyg-c2f evaluate``: the metrics of a checkpoint."""

import argparse
from pathlib import Path

from pyg_c2f import experiment
from pyg_c2f.checkpoint import load
from pyg_c2f.cli import torchrun
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.shards import one_block_each
from pyg_c2f.typing import ITEM, USER, InputError


def run(args: argparse.Namespace) -> int:
    """Prints the metrics of a checkpoint."""
    group, folder = one_block_each(torchrun.join_quietly()), Path(args.checkpoint)
    config = experiment.read_config(folder)
    if args.eval_users is not None:
        config['eval_users'] = args.eval_users or None
    model = load(folder)
    data, digest = experiment.load_data(config)
    names = model.vocabulary
    for size, ids, store in (
        (model.num_users, names.user_ids, data[USER]),
        (model.num_items, names.item_ids, data[ITEM]),
    ):
        other_ids = ids is not None and 'raw_id' in store and list(store.raw_id) != ids
        if size != store.num_nodes or other_ids:
            raise InputError(
                f'{folder}: the model knows other users or items than the data set '
                f'{config["dataset"]} has; restore the data that it was trained on'
            )
    experiment.check_data_of(folder, config, digest)
    users = group.rows(model.num_users)
    metrics = evaluate_split(model.scorer(), data, args.split, users=users)
    if group.rank > 0:
        return 0
    drawn = '' if config['eval_users'] is None else ', of users drawn at random'
    about = f'{config["dataset"]}, protocol {config["protocol"]}'
    print(f'{about}, {args.split} items{drawn}')
    for name, value in metrics.items():
        print(f'{name:10} {value:.4f}')
    return 0
