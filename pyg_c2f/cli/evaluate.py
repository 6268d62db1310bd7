"""``pyg-c2f evaluate``: the figures of a checkpoint."""

import argparse
from pathlib import Path

from pyg_c2f.checkpoint import load
from pyg_c2f.cli import torchrun
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.experiment import (
    check_data_of,
    digest_of,
    load_data,
    read_config,
    sampled,
)
from pyg_c2f.shards import one_block_each
from pyg_c2f.typing import ITEM, USER, InputError


def run(args: argparse.Namespace) -> int:
    """Prints the figures of a checkpoint."""
    group = one_block_each(torchrun.join_quietly())
    folder = Path(args.checkpoint)
    config = read_config(folder)
    model, data = load(folder), load_data(config)
    ours = (model.num_users, model.num_items)
    theirs = (data[USER].num_nodes, data[ITEM].num_nodes)
    if ours != theirs:
        raise InputError(
            f'{folder}: the model knows {ours[0]} users and {ours[1]} items, the data '
            f'set {config["dataset"]} has {theirs[0]} and {theirs[1]}; bring the data '
            'back that it was trained on'
        )
    names = model.vocabulary
    if any(
        ids is not None and 'raw_id' in store and list(store.raw_id) != ids
        for ids, store in (
            (names.user_ids, data[USER]),
            (names.item_ids, data[ITEM]),
        )
    ):
        raise InputError(
            f'{folder}: the model knows other users or items than the data set '
            f'{config["dataset"]} has; bring the data back that it was trained on'
        )
    check_data_of(folder, config, digest_of(config, data))
    if args.eval_users is not None:
        config['eval_users'] = args.eval_users or None
    data = sampled(data, config)
    users = group.rows(model.num_users)
    metrics = evaluate_split(model.scorer(), data, args.split, users=users)
    if group.rank > 0:
        return 0
    whom = '' if config['eval_users'] is None else ', of users drawn at random'
    print(
        f'{config["dataset"]}, protocol {config["protocol"]}, {args.split} items{whom}'
    )
    for name, value in metrics.items():
        print(f'{name:10} {value:.4f}')
    return 0
