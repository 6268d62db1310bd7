"""The calls and their options; parsing them needs no torch."""

import argparse
import ast
import re
import textwrap
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

from pyg_c2f import __version__
from pyg_c2f.typing import InputError, Protocol, Split, Stage

EXAMPLES = """examples:
  {0}  # the embedded data set, in seconds
  {0} train --dataset gowalla --out runs/gowalla
  {0} evaluate --checkpoint runs/gowalla
  {0} recommend --checkpoint runs/gowalla --user 12 7 -k 10
  {0} recommend --checkpoint runs/gowalla --similar 12
  {0} recommend --checkpoint runs/gowalla --all --out lists.jsonl
  {0} export --checkpoint runs/gowalla --format bundle --out gowalla.c2f
  {0} demo  # films, in your browser
  {0} train --help  # all options and settings
  torchrun --nproc-per-node 2 {1} train ...  # the same run on two processes

Without a command it trains."""
JSONL = """with --jsonl, each line of standard input is a JSON object, and each line of
standard output is its answer:
  {"user": "196"}                       {"items": ["50", "181"], "scores": [5.1, 4.8]}
  {"history": ["50", "1"], "k": 2}      and "titles", if the model has them
A line may also have "candidates" (a list) and "exclude_seen" (true or false). For
lines without them, -k, --candidates and --include-seen apply. A line that cannot be
answered gives {"error": "line 3: ..."}, and the exit status is 2."""
# The formats of an export, and the names of their files.
EXPORTS = {'bundle': 'model.c2f', 'onnx': 'model.onnx'}
# The recipes, and the files that help reads their settings in: importing them takes
# seconds.
RECIPES = ('fast', 'paper')
RECIPE_FOLDER = Path(__file__).parents[1] / 'recipes'
# The headings of the settings in the help; those in no group come last.
SETTINGS = {
    'size of the model': 'embedding_dim num_coarse num_fine anchors_per_entity '
    'fine_per_coarse coarse_per_item fine_per_item dtype',
    'exponents': 'user_norm item_norm spectral_power importance_power score_power',
    'propagation': 'num_layers gate threshold diffusion',
    'first anchors': 'anchors own_weight pca_components',
    'training': 'lr_coarse lr_fine batch_size_coarse batch_size_fine num_neg_samples '
    'lambda_reg clip eval_every patience max_epochs',
}

# What the library calls otherwise than the command line: arguments that options set,
# and words.
OPTIONS = (
    'dataset',
    'protocol',
    'split_seed',
    'recipe',
    'stage',
    'seed',
    'size',
    'seconds',
    'weight_bits',
)
WORDS = {
    'user_column and item_column (run.py: --columns USER,ITEM)': '--columns USER,ITEM',
    'user_column and item_column': '--columns USER,ITEM',
    'the data root': '--data-root',
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or action.default == []:
            return action.help
        return f'{action.help} (default: %(default)s)'


class Parser(argparse.ArgumentParser):
    """A parser that takes whole option names only and reports errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {'formatter_class': Help, 'allow_abbrev': False}
        super().__init__(*args, **(kwargs | own))

    def error(self, message: str) -> NoReturn:
        raise InputError(f'{message}; see {self.prog} --help')

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:  # The parser of a command knows best what was meant.
            self.error(f'unknown argument {unknown[0]}{self.hint(unknown[0])}')
        return found, unknown

    def hint(self, word: str) -> str:
        """What may have been meant by an unknown word."""
        name = word.lstrip('-').partition('=')[0]
        setting = name.replace('-', '_')
        if '--set' in self._option_string_actions and setting in setting_names():
            return f': a setting of the recipe is given as --set {setting}=VALUE'
        known = [x.lstrip('-') for x in self._option_string_actions]
        close = get_close_matches(name, known, 1, 0.7)
        return f': did you mean --{close[0]}?' if close else ''


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes whole numbers in a range."""
    span = f'of at least {least}' if most is None else f'from {least} to {most}'

    def read(text: str) -> int:
        is_whole = text.lstrip('-').isdecimal()
        if not is_whole or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(
                f'expected a whole number {span}, got {text!r}'
            )
        return int(text)

    return read


COUNT, SEED = whole(1), whole(0, 2**32 - 1)


def make_parser(program: tuple[str, ...] = ('pyg-c2f',)) -> Parser:
    """The calls and their options; ``program`` is the words before them."""
    parser = Parser(
        ' '.join(program),
        description='Train, evaluate, recommend, export, and try it in a browser.',
        epilog=EXAMPLES.format(' '.join(program), ' '.join(script_of(program))),
    )
    version = f'pyg_c2f {__version__}'
    parser.add_argument('--version', action='version', version=version)
    parser.set_defaults(program=program)
    commands = parser.add_subparsers(dest='command', required=True)
    call = commands.add_parser(
        'train', help='train, print the results, write a report', epilog=settings_help()
    )
    add_train_options(call)
    call = commands.add_parser('evaluate', help='compute the metrics of a checkpoint')
    add_checkpoint(call)
    add = call.add_argument
    add('--split', choices=get_args(Split), default='test', help='the held-out items')
    text = 'rank for N users drawn at random, 0 for all (default: as in training)'
    add('--eval-users', type=whole(0), metavar='N', help=text)
    call = commands.add_parser(
        'recommend',
        help='list the best items for people, or similar ones',
        epilog=JSONL,
    )
    add_recommend_options(call)
    call = commands.add_parser('export', help='write one small file that recommends')
    add_checkpoint(call)
    add = call.add_argument
    text = (
        'see docs/bundle.md and docs/onnx.md (default: by the name of --out, or bundle)'
    )
    add('--format', choices=EXPORTS, help=text)
    text = 'the file (default: model.c2f or model.onnx beside the model)'
    add('--out', metavar='FILE', help=text)
    text = 'bundle: bits of the weight of a link, 2 to 8 (default: 8)'
    add('--weight-bits', type=whole(2, 8), metavar='N', help=text)
    text = 'bundle: leave out ids and titles'
    add('--no-names', dest='names', action='store_const', const=False, help=text)
    call = commands.add_parser(
        'demo', help='serve a page that recommends in your browser; trains if needed'
    )
    add = call.add_argument
    text = 'the folder with ml-100k/ml-100k.inter and ml-100k.item as published by '
    text += 'RecBole; without them, the films are invented (default: datasets)'
    add('--data-root', metavar='DIR', help=text)
    add('--checkpoint', metavar='DIR', help='show this model instead of training one')
    text = 'where the model and the page go; the page works on any web server'
    add('--out', default='runs/demo', metavar='DIR', help=text)
    text = 'the port to serve on, 0 for any free one'
    add('--port', type=whole(0, 65535), default=8000, metavar='N', help=text)
    call = commands.add_parser('data', help='describe a data set')
    add_data_options(call)
    text = 'convert it to files that are read in parts: for data larger than memory'
    call.add_argument('--build', action='store_true', help=text)
    return parser


def add_checkpoint(call: Parser) -> None:
    """The option that names a trained model."""
    text = 'the folder of a run'
    call.add_argument('--checkpoint', required=True, metavar='DIR', help=text)


def add_data_options(call: argparse._ActionsContainer) -> None:
    """The options that name a data set and its split."""
    add = call.add_argument
    text = (
        'synthetic (embedded); gowalla, yelp2018, yelp2020 or amazon-book (downloaded '
    )
    text += 'if missing); or the name of a folder in --data-root'
    add('--dataset', default='synthetic', metavar='NAME', help=text)
    text = 'the folder that holds the folder NAME (default: datasets)'
    add('--data-root', metavar='DIR', help=text)
    text = 'how items are held out and ranked'
    add('--protocol', choices=get_args(Protocol), default='standard', help=text)
    text = 'the seed of the split into train, validation and test items'
    add('--split-seed', type=SEED, default=2024, metavar='N', help=text)
    text = 'the columns with the ids in a .inter, csv or Parquet file'
    add('--columns', default='user_id,item_id', metavar='USER,ITEM', help=text)


def add_train_options(call: Parser) -> None:
    """The options of a training, in three groups."""
    add_data_options(call.add_argument_group('data'))
    add = call.add_argument_group('recipe').add_argument
    add('--recipe', choices=RECIPES, default='fast', help='how the model is trained')
    text = 'train the coarse or the fine stage alone, or both'
    add('--stage', choices=[*get_args(Stage), 'both'], default='both', help=text)
    add('--init', metavar='DIR', help='for --stage fine: a run with the coarse stage')
    text = 'the seed of the training'
    add('--seed', type=SEED, default=2024, metavar='N', help=text)
    text = 'choose settings on validation items so that the model takes no more: 0.5MB'
    add('--size', metavar='BYTES', help=text)
    text = 'choose settings on validation items for so long'
    add('--seconds', type=float, metavar='N', help=text)
    more: dict[str, Any] = dict(nargs='+', action='extend', default=[])
    text = 'settings of the recipe, listed below'
    add('--set', metavar='NAME=VALUE', help=text, **more)
    add = call.add_argument_group('run').add_argument
    text = 'where to compute; auto takes CUDA if there is a device'
    add('--device', choices=['auto', 'cpu', 'cuda'], default='auto', help=text)
    text = 'the folder for the results; a complete run there is replaced (default: '
    text += 'runs/DATASET-RECIPE)'
    add('--out', metavar='DIR', help=text)
    text = 'train again with the validation items, for as many epochs as were best'
    add('--refit', action='store_true', help=text)
    text = 'rank for N users drawn at random (default: all)'
    add('--eval-users', type=COUNT, metavar='N', help=text)
    text = 'continue the interrupted run in --out, with its own options'
    add('--resume', action='store_true', help=text)
    add('--quiet', action='store_true', help='show no progress bars')


def add_recommend_options(call: Parser) -> None:
    """The options of lists: for whom, and of what."""
    add_checkpoint(call)
    group = call.add_argument_group('for whom (one of these)')
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add('--user', nargs='+', metavar='ID', help='known users')
    add('--history', nargs='+', metavar='ITEM', help='one person with these items')
    add('--similar', nargs='+', metavar='ITEM', help='items similar to each of these')
    add('--jsonl', action='store_true', help='one request per line, see below')
    text = 'all known users; writes lines of JSON to --out'
    add('--all', action='store_true', help=text)
    add = call.add_argument_group('lists').add_argument
    add('--out', metavar='FILE', help='the file, for --all')
    add('-k', type=COUNT, metavar='N', help='length of a list (default: 20)')
    text = 'also list train items and items of the history'
    add('--include-seen', action='store_true', help=text)
    add('--candidates', nargs='+', metavar='ITEM', help='choose from these items only')


def script_of(program: tuple[str, ...]) -> tuple[str, ...]:
    """The words by which ``torchrun`` starts a program."""
    return program[1:] or ('-m', 'pyg_c2f')


def setting_names() -> set[str]:
    """The settings of all recipes."""
    return {name for recipe in RECIPES for name in read_settings(recipe)}


def with_flags(message: str) -> str:
    """A message of the library, which names fields, with the flags that set them."""

    def flag(match: re.Match[str]) -> str:
        name = match[1]
        if name in OPTIONS:
            return f'--{name.replace("_", "-")} '
        return f'--set {name}=' if name in setting_names() else match[0]

    for words, flags in WORDS.items():
        message = message.replace(words, flags)
    return re.sub(r'(?<![-\w./])(?<!--set )([a-z]\w*)=', flag, message)


def settings_help() -> str:
    """The settings of the recipes: names, defaults, and what they do."""
    blocks = [
        f'settings of recipe {name} (--set NAME=VALUE), with their defaults:\n'
        + settings_of(name)
        for name in RECIPES
    ]
    return '\n\n'.join([*blocks, 'Some defaults differ for data sets that were tried.'])


def settings_of(recipe: str) -> str:
    """The settings of one recipe, below headings."""
    lines, rest = [], dict(read_settings(recipe))
    for heading, names in (*SETTINGS.items(), ('other', ' '.join(rest))):
        here = {name: rest.pop(name) for name in names.split() if name in rest}
        lines += [f' {heading}:'] if here else []
        for name, (value, text) in here.items():
            lines += textwrap.wrap(
                f'  {name:18} {value!s:7} {text}',
                width=80,
                subsequent_indent=' ' * 29,
            )
    return '\n'.join(lines)


@cache
def read_settings(recipe: str) -> dict[str, tuple[Any, str]]:
    """The default of each setting, and the docstring below it in the recipe's class."""
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
