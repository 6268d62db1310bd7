"""The calls and their options; parsing them needs no torch."""

import argparse
import ast
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

from pyg_c2f.typing import InputError, Stage

DESCRIPTION = (
    'The command line: train, evaluate, recommend, export, and a page to try it on.'
)
# Calls, and what they do.
EXAMPLES = {
    '': 'the embedded data set, in seconds',
    'train --dataset gowalla --out runs/gowalla': '',
    'evaluate --checkpoint runs/gowalla': '',
    'recommend --checkpoint runs/gowalla --user 12 7 -k 10': '',
    'recommend --checkpoint runs/gowalla --similar 12': '',
    'recommend --checkpoint runs/gowalla --all --out lists.jsonl': '',
    'export --checkpoint runs/gowalla --format bundle --out gowalla.c2f': '',
    'demo': 'films, in your browser',
    'train --help': 'all options and settings',
}

JSONL = """with --jsonl each line of standard input is a JSON object, and each line of
standard output the answer to it:
  {"user": "196"}                       {"items": ["50", "181"], "scores": [5.1, 4.8]}
  {"history": ["50", "1"], "k": 2}      and "titles", where the model knows them
"candidates" (a list) and "exclude_seen" (true or false) may stand beside; -k,
--candidates and --include-seen hold for the lines that do not say. A line that
cannot be answered gives {"error": "line 3: ..."}, and the exit status is 2."""
# The formats of an export, and the names of their files.
EXPORTS = {'bundle': 'model.c2f', 'onnx': 'model.onnx'}
# The recipes, and the files that help reads their settings in: importing them takes
# seconds.
RECIPES = ('fast', 'paper')
RECIPE_FOLDER = Path(__file__).parents[1] / 'recipes'
# The headings that help puts settings below.
SETTINGS = {
    'size of the model': (
        'embedding_dim',
        'num_coarse',
        'num_fine',
        'anchors_per_entity',
        'fine_per_coarse',
        'coarse_per_item',
        'fine_per_item',
        'dtype',
    ),
    'exponents': (
        'user_norm',
        'item_norm',
        'spectral_power',
        'importance_power',
        'score_power',
    ),
    'propagation': ('num_layers', 'gate', 'threshold', 'diffusion'),
    'first anchors': ('anchors', 'own_weight', 'pca_components'),
    'training': (
        'lr_coarse',
        'lr_fine',
        'batch_size_coarse',
        'batch_size_fine',
        'num_neg_samples',
        'lambda_reg',
        'clip',
        'eval_every',
        'patience',
        'max_epochs',
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser of whole option names, whose errors are one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs['allow_abbrev'] = False
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f'{message}; see {self.prog} --help')


def make_parser(program: tuple[str, ...] = ('pyg-c2f',)) -> Parser:
    """The calls and their options.

    Args:
        program (Tuple, optional): The words before them. (default: ``('pyg-c2f',)``)
    """
    parser = Parser(
        ' '.join(program),
        description=DESCRIPTION,
        epilog=examples(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(program=program)
    commands = parser.add_subparsers(dest='command', parser_class=Parser, required=True)

    call = commands.add_parser(
        'train',
        help='train, print the table, write the report',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=settings_help(),
    )
    add_data_options(call.add_argument_group('data'))
    group = call.add_argument_group('recipe')
    group.add_argument(
        '--recipe',
        default='fast',
        help=f'one of {", ".join(RECIPES)} (default: fast)',
    )
    group.add_argument(
        '--stage',
        choices=[*get_args(Stage), 'both'],
        default='both',
        help='default: both',
    )
    group.add_argument(
        '--init', metavar='DIR', help='a run with a coarse stage, for --stage fine'
    )
    group.add_argument(
        '--seed', type=int, default=2024, metavar='N', help='default: 2024'
    )
    group.add_argument(
        '--set',
        nargs='+',
        action='extend',
        default=[],
        metavar='name=value',
        help='settings, listed below',
    )
    group = call.add_argument_group('run')
    group.add_argument(
        '--device',
        choices=['auto', 'cpu', 'cuda'],
        default='auto',
        help='default: auto',
    )
    group.add_argument(
        '--out',
        metavar='DIR',
        help='takes the result, in place of a complete run there (default: '
        'runs/DATASET-RECIPE)',
    )
    group.add_argument(
        '--refit',
        action='store_true',
        help='train once more with the validation items, as long as was best',
    )
    group.add_argument(
        '--eval-users',
        type=int,
        metavar='N',
        help='rank for so many users drawn at random (default: all)',
    )
    group.add_argument(
        '--resume',
        action='store_true',
        help='continue the interrupted run in --out, with the options it has',
    )
    group.add_argument('--quiet', action='store_true', help='no progress bars')

    call = commands.add_parser('evaluate', help='rank for all users once more')
    call.add_argument('--checkpoint', required=True, metavar='DIR')
    call.add_argument('--split', choices=['val', 'test'], default='test')
    call.add_argument(
        '--eval-users',
        type=int,
        metavar='N',
        help='rank for so many users drawn at random, 0 for all (default: as trained)',
    )

    call = commands.add_parser(
        'recommend',
        help='the best items for a person, or the items most alike',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=JSONL,
    )
    call.add_argument('--checkpoint', required=True, metavar='DIR')
    who = call.add_mutually_exclusive_group(required=True)
    who.add_argument('--user', nargs='+', metavar='ID', help='known users')
    who.add_argument(
        '--history', nargs='+', metavar='ITEM', help='of an unknown person'
    )
    who.add_argument('--similar', nargs='+', metavar='ITEM', help='items like these')
    who.add_argument('--jsonl', action='store_true', help='many people, see below')
    who.add_argument(
        '--all', action='store_true', help='all known users: lines of JSON in --out'
    )
    call.add_argument('--out', metavar='FILE', help='for --all')
    call.add_argument('-k', type=int, help='length of the list (default: 20)')
    call.add_argument(
        '--include-seen', action='store_true', help='train items and history too'
    )
    call.add_argument(
        '--candidates', nargs='+', metavar='ITEM', help='what to choose from'
    )

    call = commands.add_parser('export', help='one small file that recommends')
    call.add_argument('--checkpoint', required=True, metavar='DIR')
    call.add_argument(
        '--format',
        choices=EXPORTS,
        help='docs/bundle.md and docs/onnx.md describe them (default: by the name of '
        '--out, or bundle)',
    )
    call.add_argument(
        '--out', metavar='FILE', help='default: model.c2f or model.onnx in DIR'
    )
    call.add_argument(
        '--weight-bits', type=int, metavar='N', help='bundle: of a link (default: 8)'
    )
    call.add_argument(
        '--no-names',
        dest='names',
        action='store_const',
        const=False,
        help='bundle: without ids and titles',
    )

    call = commands.add_parser(
        'demo', help='a page that recommends in your browser: trains, exports, serves'
    )
    call.add_argument(
        '--data-root',
        metavar='DIR',
        help='the folder that holds ml-100k/ml-100k.inter and .item, as RecBole has '
        'them; without these, made-up films (default: datasets)',
    )
    call.add_argument(
        '--checkpoint', metavar='DIR', help='show this model, without training'
    )
    call.add_argument(
        '--out',
        default='runs/demo',
        metavar='DIR',
        help='takes the model and the page, a folder to put on any web server '
        '(default: runs/demo)',
    )
    call.add_argument('--port', type=int, default=8000, help='default: 8000; 0: any')

    call = commands.add_parser('data', help='what is there of a data set')
    add_data_options(call)
    call.add_argument(
        '--build',
        action='store_true',
        help='prepare it for being read from the disk: data that do not fit in memory',
    )
    return parser


def add_data_options(call: argparse._ActionsContainer) -> None:
    """The options that name a data set and its split."""
    call.add_argument(
        '--dataset',
        default='synthetic',
        metavar='NAME',
        help='synthetic (the default, embedded), gowalla, yelp2018, yelp2020, '
        'amazon-book (downloaded where missing), or a folder in --data-root',
    )
    call.add_argument(
        '--data-root',
        metavar='DIR',
        help='the folder that holds the folder NAME (default: datasets)',
    )
    call.add_argument(
        '--protocol',
        choices=['c2f', 'standard'],
        default='standard',
        help='how items are held out and ranked (default: standard)',
    )
    call.add_argument(
        '--split-seed', type=int, default=2024, metavar='N', help='default: 2024'
    )
    call.add_argument(
        '--columns',
        default='user_id,item_id',
        metavar='USER,ITEM',
        help='the columns of ids in a .inter, csv or parquet file',
    )


def script_of(program: tuple[str, ...]) -> tuple[str, ...]:
    """The words by which ``torchrun`` starts a program."""
    return program[1:] or ('-m', 'pyg_c2f')


def examples(program: tuple[str, ...]) -> str:
    """Some calls of a program, and what they do."""
    calls = {' '.join([*program, call]): text for call, text in EXAMPLES.items()}
    several = ' '.join(
        ['torchrun --nproc-per-node 2', *script_of(program), 'train ...']
    )
    calls[several] = 'the same run on two processes'
    lines = [f'  {call:48} {text}'.rstrip() for call, text in calls.items()]
    return '\n'.join(['examples:', *lines, '\nWithout a command it trains.'])


def settings_help() -> str:
    """The settings of the recipes: names, defaults, and what they do."""
    blocks = [
        f'what --set takes with recipe {name}, its default, and what it does:\n'
        + settings_of(name)
        for name in RECIPES
    ]
    some = 'some defaults differ for data sets that were tried (recipes/presets.py)'
    return '\n\n'.join([*blocks, some])


def settings_of(recipe: str) -> str:
    """The settings of one recipe, below headings."""
    lines, rest = [], read_settings(recipe)
    for heading, names in (*SETTINGS.items(), ('other', tuple(rest))):
        here = {name: rest.pop(name) for name in names if name in rest}
        lines += [f' {heading}:'] if here else []
        for name, (value, text) in here.items():
            lines += textwrap.wrap(
                f'  {name:18} {value!s:7} {text}',
                width=80,
                subsequent_indent=' ' * 29,
            )
    return '\n'.join(lines)


def read_settings(recipe: str) -> dict[str, tuple[Any, str]]:
    """The default of each setting, and the text below it in the recipe's class."""
    tree = ast.parse((RECIPE_FOLDER / f'{recipe}.py').read_text(encoding='utf-8'))
    return {
        field.target.id: (ast.literal_eval(field.value), ast.literal_eval(text.value))
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for field, text in pairwise(node.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(field.value, ast.Constant)
        and isinstance(text, ast.Expr)
    }
