"""Data and settings at the edge: each is defined, or refused with a way to mend it."""

import json
import math
import re
from dataclasses import dataclass, field

import pytest
import torch
from torch_geometric.data import HeteroData

import pyg_c2f
import run
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.recipes import FastRecipe, PaperRecipe, get_recipe
from pyg_c2f.typing import ITEM, RATED_BY, RATES, USER, InputError

SETTINGS = {
    'paper': {
        'num_coarse': 4,
        'num_fine': 3,
        'embedding_dim': 5,
        'num_layers': 2,
        'fine_per_coarse': 2,
        'pca_components': 3,
        'num_neg_samples': 1,
        'lr_coarse': 0.1,
        'lr_fine': 0.1,
        'max_epochs': 4,
        'patience': 1,
        'eval_every': 1,
    },
    'fast': {'embedding_dim': 4, 'coarse_per_item': 2.0, 'num_fine': 4},
}
# Train and held-out items of each user.
USUAL = {u: ([u, u + 1, u + 3], [u + 4, u + 6]) for u in range(6)}
ONE_PAIR = {0: ([0], [1, 2, 6])}
COMPLETE = {u: ([0, 1, 2, 3], [0, 1]) for u in range(3)}


@dataclass
class Case:
    """Rows, settings beside SETTINGS, and what is said where they are refused.

    ``refused`` is by recipe; ``in_files`` is what the command line says of the files,
    which come before any recipe.
    """

    rows: dict[int, tuple[list[int], list[int]]] = field(default_factory=lambda: USUAL)
    paper: dict[str, object] = field(default_factory=dict)
    fast: dict[str, object] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    in_files: str | None = None


MORE = 'more anchors than the {}.*lower it'
CASES = {
    'usual': Case(),
    'users without items': Case({0: USUAL[0], 2: ([], []), 5: USUAL[5]}),
    'held-out items of users without others': Case(USUAL | {2: ([], [0, 1, 5])}),
    'items without users': Case(USUAL | {0: ([0, 1], [11, 12, 14])}),
    'most users without items': Case(
        {0: USUAL[0], 99: ([], [])},
        refused={
            'paper': '1 of 100 users have train items.*without gaps',
        },
    ),
    'a single user': Case({0: ([0, 1, 2], [3, 4, 8])}),
    'a single item': Case(
        {0: ([0], []), 1: ([], [0])},
        refused={'paper': '1 of 2 users have train items.*without gaps'},
        in_files='leaves no test interaction; give users more',
    ),
    'one pair': Case(ONE_PAIR),
    'all pairs': Case(
        COMPLETE,
        refused={
            'paper': 'user 0 leaves 0 of 4 items unrated; drop the user$',
            'fast': 'no held-out pairs.*check the split',
        },
        in_files='leaves no test interaction; give users more',
    ),
    'a user with all items': Case(
        USUAL | {3: (list(range(12)), [])},
        refused={'paper': 'user 3 leaves 0 of 12 items unrated; drop the user$'},
    ),
    'no pairs': Case(
        {0: ([], [0, 1]), 1: ([], [0, 2])},
        refused=dict.fromkeys(SETTINGS, 'no train pairs'),
        in_files='holds no interaction',
    ),
    'one anchor': Case(
        paper={'num_coarse': 1, 'anchors_per_entity': 1}, fast={'embedding_dim': 1}
    ),
    'one fine anchor': Case(
        paper={'num_fine': 1, 'fine_per_coarse': 1},
        fast={'num_fine': 1, 'fine_per_item': 1},
        refused=dict.fromkeys(SETTINGS, 'num_fine=1: expected a whole number from 2'),
    ),
    'two fine anchors': Case(
        paper={'num_fine': 2, 'fine_per_coarse': 2}, fast={'num_fine': 2}
    ),
    'as many anchors as users and items': Case(
        paper={'num_coarse': 18, 'num_fine': 18},
        fast={'embedding_dim': 12},
    ),
    'more coarse anchors than there are': Case(
        paper={'num_coarse': 19},
        refused={'paper': 'num_coarse=19: ' + MORE.format('6 users and 12 items')},
    ),
    'more columns and fine anchors than there are': Case(
        paper={'num_fine': 19},
        fast={'embedding_dim': 512, 'num_fine': 512},
        refused={'paper': 'num_fine=19: ' + MORE.format('6 users and 12 items')},
    ),
    'all anchors of each': Case(
        paper={'anchors_per_entity': 4, 'fine_per_coarse': 3},
        fast={'coarse_per_item': 4.0},
    ),
    'more anchors of each than there are': Case(
        paper={'anchors_per_entity': 5},
        fast={'coarse_per_item': 9.0},
        refused={'paper': 'anchors_per_entity=5 needs .* raise .*num_coarse=4'},
    ),
    'more fine anchors of each than there are': Case(
        paper={'fine_per_coarse': 4},
        fast={'fine_per_item': 5, 'num_fine': 4},
        refused={
            'paper': 'fine_per_coarse=4 needs .* raise .*num_fine=3',
            'fast': 'num_fine=4 cannot be divided into .*=5.*set a multiple',
        },
    ),
    'more fine anchors than coarse ones': Case(
        paper={'num_coarse': 2, 'num_fine': 9},
        fast={'embedding_dim': 2, 'num_fine': 9} | {'fine_per_item': 3},
    ),
    'a coarse codebook of one direction': Case(
        paper={'embedding_dim': 1, 'num_coarse': 6},
        fast={'embedding_dim': 1, 'coarse_per_item': 1.0},
    ),
    'a fine codebook of zeros': Case(paper={'threshold': 100.0}),
    'more components than columns': Case(paper={'pca_components': 9}),
    'no layers': Case(paper={'num_layers': 0}),
    'no weight of the own anchor': Case(paper={'own_weight': 0.0}),
    'all weight of the own anchor': Case(paper={'own_weight': 1.0}),
    'a closed gate': Case(paper={'gate': 0.0}),
    'an open gate': Case(paper={'gate': 1.0}),
    'a learning rate far too large': Case(
        paper={'lr_coarse': 1e9, 'lr_fine': 1e9},
    ),
    'more negatives than items': Case(
        paper={'num_neg_samples': 10},
        refused={'paper': 'leaves 9 of 12 items .*lower num_neg_samples from 10'},
    ),
}
EACH = pytest.mark.parametrize(
    ('name', 'recipe'), [(name, recipe) for name in CASES for recipe in SETTINGS]
)


def settings_of(case, recipe):
    return SETTINGS[recipe] | getattr(case, recipe)


def data_of(rows):
    """The graph of the rows, all that is held out in both splits."""

    def pairs(part):
        found = [(user, item) for user, row in rows.items() for item in row[part]]
        return torch.tensor(found, dtype=torch.long).view(-1, 2).T

    train, held_out = pairs(0), pairs(1)
    data = HeteroData()
    data[USER].num_nodes = max(rows) + 1
    data[ITEM].num_nodes = int(torch.cat([train, held_out], dim=1)[1].max()) + 1
    data[RATES].edge_index, data[RATED_BY].edge_index = train, train.flip(0)
    data[RATES].val_edge_label_index = data[RATES].test_edge_label_index = held_out
    data.protocol = 'c2f'
    return data


def assert_in_range(figures):
    assert all(math.isfinite(x) and 0 <= x <= 1 for x in figures.values())


def assert_numbers(model):
    scores = model.scorer()(torch.arange(model.num_users))
    assert scores.shape == (model.num_users, model.num_items)
    assert scores.isfinite().all()


@EACH
def test_fit(name, recipe):
    case = CASES[name]
    data = data_of(case.rows)

    def fit():
        kind = {'paper': PaperRecipe, 'fast': FastRecipe}[recipe]
        return pyg_c2f.fit(data, kind(**settings_of(case, recipe)))

    if recipe in case.refused:
        with pytest.raises(InputError, match=case.refused[recipe]):
            fit()
        return
    model = fit()
    assert_numbers(model)
    assert_in_range(evaluate_split(model.scorer(), data, 'test'))


@EACH
def test_command_line(name, recipe, tmp_path, capsys):
    case, folder, out = CASES[name], tmp_path / 'data', tmp_path / 'out'
    folder.mkdir()
    for part, file in enumerate(('train.txt', 'test.txt')):
        lines = (
            f'{u} {" ".join(map(str, row[part]))}\n' for u, row in case.rows.items()
        )
        (folder / file).write_text(''.join(lines))
    options = (f'{key}={value}' for key, value in settings_of(case, recipe).items())
    data = ['--dataset', 'data', '--data-root', str(tmp_path), '--protocol', 'c2f']
    status = run.main(
        ['train', *data]
        + ['--recipe', recipe, '--out', str(out), '--quiet', '--set', *options]
    )
    shown = capsys.readouterr()
    if case.in_files is not None or recipe in case.refused:
        assert status == 2 and shown.out == ''
        (line,) = shown.err.splitlines()
        assert line.startswith('error: ')
        assert re.search(case.in_files or case.refused[recipe], line)
        assert 'Traceback' not in shown.err
        assert not (out / 'metrics.json').exists()
        assert not (out / 'model.safetensors').exists()
        return
    assert status == 0
    metrics = json.loads((out / 'metrics.json').read_text())
    for split in ('val', 'test'):
        assert_in_range(metrics[split])
    assert run.main(['evaluate', '--checkpoint', str(out)]) == 0
    # Everyone gets a list, and a device with the bundle too.
    users = map(str, range(max(case.rows) + 1))
    call = ['recommend', '--checkpoint', str(out), '-k', '3', '--user', *users]
    assert run.main(call) == 0
    status = run.main(['export', '--checkpoint', str(out)])
    assert status == (0 if recipe == 'fast' else 2)
    shown = capsys.readouterr()
    assert 'nan' not in shown.out and 'Traceback' not in shown.err


def test_settings_are_those_of_the_recipes():
    for recipe, values in SETTINGS.items():
        texts = {key: str(value) for key, value in values.items()}
        kind = {'paper': PaperRecipe, 'fast': FastRecipe}[recipe]
        assert get_recipe(recipe, settings=texts) == kind(**values)
