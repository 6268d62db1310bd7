r"""The command line: train, evaluate, recommend, export, and a page to try it on."""

import argparse
import hashlib
import json
import logging
import logging.handlers
import os
import platform
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, NamedTuple, NoReturn

# Tables of gigabytes in pages of two megabytes: rows are gathered in no order, and with
# small pages each one waits for its address too. It is read when torch is imported.
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')

import torch
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from tqdm import tqdm

import pyg_c2f
from pyg_c2f.checkpoint import (
    Model,
    model_bytes,
    model_file,
    phase_file,
    whole_file,
    write_json,
    write_text,
)
from pyg_c2f.config import (
    DATASET_SETTINGS,
    RECIPES,
    FastRecipe,
    Recipe,
    get_recipe,
)
from pyg_c2f.datasets import (
    DEFAULT_ROOT,
    describe,
    get_dataset,
    with_validation_in_train,
)
from pyg_c2f.datasets.registry import build, built_digest
from pyg_c2f.distributed import (
    is_first_to_end,
    is_lost,
    join,
    leave,
    restarts,
    starts_anew,
)
from pyg_c2f.evaluate import evaluate_split, popularity_score, with_sampled_users
from pyg_c2f.export import write_bundle, write_onnx
from pyg_c2f.report import results_table, size_table, write_report
from pyg_c2f.resume import RESUME_FILES, delete_resume, resume_files
from pyg_c2f.shards import Group, one_block_each
from pyg_c2f.train import check_run, reuse_freed_memory, train
from pyg_c2f.typing import ITEM, RATES, SELECTION, USER, InputError, Stage

logger = logging.getLogger('pyg_c2f.run')

STAGES: dict[str, tuple[Stage, ...]] = {
    'coarse': ('coarse',),
    'fine': ('fine',),
    'both': ('coarse', 'fine'),
}
# What a configuration must hold, beside settings and versions: what --resume keeps.
KEPT: dict[str, type | UnionType] = {
    'dataset': str,
    'data_root': str | None,
    'columns': str,
    'protocol': str,
    'split_seed': int,
    'recipe': str,
    'seed': int,
    'stage': str,
    'init': str | None,
    'refit': bool,
    'eval_users': int | None,
    'device': str,
}
# What it holds beside.
FOUND = {'settings': dict, 'versions': dict, 'call': str, 'data_sha256': str}
# What a run leaves, beside the best models of its phases.
OUTPUTS = (
    'config.json',
    'history.jsonl',
    'metrics.json',
    'report.html',
    'model.safetensors',
    *RESUME_FILES,
)
EXAMPLES = """examples:
  python run.py                                    the embedded data set, in seconds
  python run.py train --dataset gowalla --out runs/gowalla
  python run.py evaluate --checkpoint runs/gowalla
  python run.py recommend --checkpoint runs/gowalla --user 12 7 -k 10
  python run.py recommend --checkpoint runs/gowalla --similar 12
  python run.py recommend --checkpoint runs/gowalla --all --out lists.jsonl
  python run.py export --checkpoint runs/gowalla --format bundle --out gowalla.c2f
  python run.py demo                               films, in your browser
  python run.py train --help                       all options and settings
  torchrun --nproc-per-node 2 run.py train ...     the same run on two processes

Without a command it trains."""

JSONL = """with --jsonl each line of standard input is a JSON object, and each line of
standard output the answer to it:
  {"user": "196"}                       {"items": ["50", "181"], "scores": [5.1, 4.8]}
  {"history": ["50", "1"], "k": 2}      and "titles", where the model knows them
"candidates" (a list) and "exclude_seen" (true or false) may stand beside; -k,
--candidates and --include-seen hold for the lines that do not say. A line that
cannot be answered gives {"error": "line 3: ..."}, and the exit status is 2."""
# The formats of an export, and the names of their files.
EXPORTS = {'bundle': 'model.c2f', 'onnx': 'model.onnx'}
# What a bundle takes beside a path, and the option that gives it.
BUNDLE_OPTIONS = {'weight_bits': '--weight-bits', 'names': '--no-names'}
# The files of the page in demo/.
PAGE = ('index.html', 'style.css', 'app.js', 'bundle.js')
# Titles of films that nobody made, where a data set has none.
FIRST_WORDS = (
    'Amber Borrowed Broken Crimson Distant Electric Final Forgotten Frozen Gentle '
    'Golden Hidden Hollow Iron Last Little Lonely Midnight Paper Quiet Restless Second '
    'Silver Sleepless Stolen Summer Velvet Wandering Winter'
).split()
SECOND_WORDS = (
    'Archive Bridge Carousel Cartographer Comet Confession Daughter Echo Empire Fever '
    'Frontier Garden Harbour Horizon Island Lantern Letters Masquerade Mirror Orchard '
    'Passenger Promise River Shadow Signal Stranger Symphony Tide Train Violin Voyage'
).split()
# Users whose lists are made at once for --all.
LIST_USERS = 256
# Lines of standard input that are answered at once, as far as they are there.
BLOCK_LINES = 256
BLOCK_BYTES = 1 << 16


class Parser(argparse.ArgumentParser):
    """A parser of whole option names, whose errors are one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs['allow_abbrev'] = False
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f'{message}; see {self.prog} --help')


def make_parser() -> Parser:
    """The calls and their options."""
    settings = '\n\n'.join(
        f'what --set takes with recipe {name}, and its values:\n'
        + '\n'.join(
            f'  {field.name:20} {getattr(recipe, field.name)}'
            for field in fields(recipe)
        )
        for name, recipe in RECIPES.items()
    )
    differ = '; '.join(f'{name} with {data}' for name, data in DATASET_SETTINGS)
    parser = Parser(
        'python run.py',
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', parser_class=Parser, required=True)

    call = commands.add_parser(
        'train',
        help='train, print the table, write the report',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'{settings}\n\nsome values differ for {differ}',
    )
    add_data_options(call)
    call.add_argument(
        '--recipe',
        default='fast',
        help=f'one of {", ".join(RECIPES)} (default: fast)',
    )
    call.add_argument('--stage', choices=STAGES, default='both', help='default: both')
    call.add_argument(
        '--init', metavar='DIR', help='a run with a coarse stage, for --stage fine'
    )
    call.add_argument('--seed', type=int, default=2024, metavar='N')
    call.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')
    call.add_argument(
        '--set',
        nargs='+',
        action='extend',
        default=[],
        metavar='name=value',
        help='settings, listed below',
    )
    call.add_argument(
        '--out',
        metavar='DIR',
        help='takes the result, in place of a complete run there (default: '
        'runs/DATASET-RECIPE)',
    )
    call.add_argument(
        '--refit',
        action='store_true',
        help='train once more with the validation items, as long as was best',
    )
    call.add_argument(
        '--eval-users',
        type=int,
        metavar='N',
        help='rank for so many users drawn at random (default: all)',
    )
    call.add_argument(
        '--resume',
        action='store_true',
        help='continue the interrupted run in --out, with the options it has',
    )
    call.add_argument('--quiet', action='store_true', help='no progress bars')
    call.set_defaults(func=run_train)

    call = commands.add_parser('evaluate', help='rank for all users once more')
    call.add_argument('--checkpoint', required=True, metavar='DIR')
    call.add_argument('--split', choices=['val', 'test'], default='test')
    call.add_argument(
        '--eval-users',
        type=int,
        metavar='N',
        help='rank for so many users drawn at random, 0 for all (default: as trained)',
    )
    call.set_defaults(func=run_evaluate)

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
    call.set_defaults(func=run_recommend)

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
    call.set_defaults(func=run_export)

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
    call.set_defaults(func=run_demo)

    call = commands.add_parser('data', help='what is there of a data set')
    add_data_options(call)
    call.add_argument(
        '--build',
        action='store_true',
        help='prepare it for being read from the disk: data that do not fit in memory',
    )
    call.set_defaults(func=run_data)
    return parser


def add_data_options(call: argparse.ArgumentParser) -> None:
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
        default='c2f',
        help='how items are held out and ranked (default: c2f)',
    )
    call.add_argument('--split-seed', type=int, default=2024, metavar='N')
    call.add_argument(
        '--columns',
        default='user_id,item_id',
        metavar='USER,ITEM',
        help='the columns of ids in a .inter, csv or parquet file',
    )


def data_arguments(config: dict[str, Any]) -> tuple[Any, ...]:
    """What :func:`get_dataset` and :func:`describe` take, from a configuration."""
    columns = config['columns'].split(',')
    if len(columns) != 2:
        raise InputError(
            f'--columns {config["columns"]}: expected two names, as user_id,item_id'
        )
    keys = ('dataset', 'data_root', 'protocol', 'split_seed')
    return *(config[key] for key in keys), *columns


def load_data(config: dict[str, Any]) -> HeteroData:
    """The data set that a configuration names."""
    data = get_dataset(*data_arguments(config))
    if not data[RATES].val_edge_label_index.size(1):
        raise InputError(
            f'{config["dataset"]}: protocol {config["protocol"]} leaves no validation '
            'items to select the model on; give users more items, or a valid.txt'
        )
    return data


def sampled(data: HeteroData, config: dict[str, Any]) -> HeteroData:
    """The data set with the users to rank for."""
    if config['eval_users'] is None:
        return data
    return with_sampled_users(data, config['eval_users'], config['split_seed'])


def data_digest(data: HeteroData) -> str:
    """The SHA-256 of the pairs of a data set and its split."""
    digest = hashlib.sha256()
    for key in ('edge_index', 'val_edge_label_index', 'test_edge_label_index'):
        digest.update(data[RATES][key].cpu().contiguous().numpy().data)
    return digest.hexdigest()


def digest_of(config: dict[str, Any], data: HeteroData) -> str:
    """The :func:`data_digest` of a data set, which a built form knows."""
    return built_digest(*data_arguments(config)) or data_digest(data)


def check_data_of(folder: Path, config: dict[str, Any], digest: str) -> None:
    """Refuses data that are no longer those of a run: test items would leak."""
    if digest != config['data_sha256']:
        raise InputError(
            f'{folder}: the data set {config["dataset"]} has changed since then; bring '
            'its files back, or train anew in another --out'
        )


def run_train(args: argparse.Namespace) -> int:
    """Trains and leaves everything in the output directory."""
    begin = time.perf_counter()
    reuse_freed_memory()
    is_distributed = join_quietly()
    out = out_of(args)
    if restarts() and is_begun(out, args):
        args.resume = True
    check_out(out, args)
    config = resumed_config(out, args) if args.resume else make_config(args)
    recipe = read_recipe(config)
    group = make_group(recipe, is_distributed)
    init = None if config['init'] is None else load_init(config)
    device = pick_device(config['device'])

    start = time.perf_counter()
    data = load_data(config).to(device)
    digest = digest_of(config, data)
    if args.resume:
        check_data_of(out, config, digest)
    config['data_sha256'] = digest
    if config['init'] is not None:
        folder = Path(config['init'])
        check_data_of(folder, read_config(folder), digest)
    data = sampled(data, config)
    seconds = {'load': time.perf_counter() - start}
    check_run(data, recipe, init, group)
    group.wait()  # Nobody looks for an earlier run any more.
    if not args.resume and group.rank == 0:
        clear(out)
        write_json(out / 'config.json', config)
    group.wait()
    if not (out / 'config.json').exists():
        raise InputError(
            f'--out {out}: process {group.rank} does not see what the first one writes '
            'there; name a folder that all machines share'
        )

    seed_everything(config['seed'])
    history = History(out, writes=group.rank == 0)
    show = sys.stderr.isatty() and not args.quiet and group.rank == 0
    again = call_again(out)
    try:
        try:
            run = train(
                data,
                recipe,
                config['seed'],
                STAGES[config['stage']],
                init,
                out,
                resume=args.resume,
                on_evaluation=history.add,
                progress=show,
                group=group,
            )
        except (KeyboardInterrupt, InputError):
            with suppress(OSError):  # What has stopped the run is what to say.
                if group.rank == 0:
                    leave_best(out, history.lines)
            raise
        if group.rank == 0:
            pyg_c2f.save(run.model, out)
        seconds |= run.seconds
        phases = run.phases
        del run  # From here on models are those in the files.
        start = time.perf_counter()
        metrics = describe_run(config, data, phases, out, group)
        seconds['evaluate'] += time.perf_counter() - start
        if config['refit']:
            start = time.perf_counter()
            model = refit(data, recipe, config, phases, init, show, group)
            seconds['train'] += time.perf_counter() - start
            if group.rank == 0:
                pyg_c2f.save(model, out)
            group.wait()
            metrics['test'] = test(pyg_c2f.load(out).to(device), data, group)
        if group.rank > 0:
            return 0
        metrics['bytes'] = model_bytes(pyg_c2f.load(out))
        # Of a resumed run the earlier sessions count too.
        seconds['total'] = max(time.perf_counter() - begin, sum(seconds.values()))
        metrics['seconds'] = {key: round(value, 3) for key, value in seconds.items()}
        metrics['versions'] = config['versions']
        report = write_report(out, metrics | {'command': config['call']}, history.lines)
        write_json(out / 'metrics.json', metrics)  # Last: it says that all is there.
    except KeyboardInterrupt:
        if is_distributed:  # torchrun sends another one.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if group.rank == 0:
            print(f'\ninterrupted; continue with: {again}', file=sys.stderr)
        return 130
    except OSError as error:
        there = (out / 'config.json').exists()
        return fail(f'{error}; then {f"continue with: {again}" if there else "repeat"}')
    delete_resume(out)
    print(results_table(metrics))
    if config['eval_users'] is not None:
        print(f'These are of {config["eval_users"]} users drawn at random.\n')
    print(size_table(metrics))
    print(f'report: {report}')
    return 0


def out_of(args: argparse.Namespace) -> Path:
    """The output directory of a training."""
    return Path(args.out or f'runs/{args.dataset}-{args.recipe}')


def is_begun(out: Path, args: argparse.Namespace) -> bool:
    """Whether this very call has begun a run there that is not complete."""
    try:
        config = read_config(out)
    except InputError:
        return False
    complete = (out / 'metrics.json').exists() and not resume_files(out)
    same = args.resume or config['call'] == call_of(args)
    return same and not complete


def call_of(args: argparse.Namespace) -> str:
    """The command line, as a configuration keeps it."""
    return shlex.join(['python', 'run.py', *args.argv])


def join_quietly() -> bool:
    """Joins the processes of torchrun, if any; only the first one logs."""
    is_distributed = join()
    if os.environ.get('RANK', '0') != '0' and is_distributed:
        logging.getLogger('pyg_c2f').setLevel(logging.ERROR)
    return is_distributed


def make_group(recipe: Recipe | FastRecipe, is_distributed: bool) -> Group:
    """The processes of a run, and the blocks that they share."""
    if isinstance(recipe, FastRecipe):
        return Group(recipe.partitions, is_distributed)
    return one_block_each(is_distributed)


def call_again(out: Path) -> str:
    """The call that continues a run on as many processes."""
    program = ['python']
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        program = ['torchrun', '--nproc-per-node', os.environ['LOCAL_WORLD_SIZE']]
        nodes = os.environ['GROUP_WORLD_SIZE']
        if nodes != '1':
            address = f'{os.environ["MASTER_ADDR"]}:29500'
            program += ['--nnodes', nodes, '--rdzv-backend', 'c10d']
            program += ['--rdzv-endpoint', address]
    return shlex.join([*program, 'run.py', 'train', '--resume', '--out', str(out)])


def make_config(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides what a run computes, resolved."""
    if args.refit and args.protocol == 'c2f':
        raise InputError('--refit belongs to --protocol standard: c2f has no refit')
    if args.stage == 'fine' and args.init is None:
        raise InputError('--stage fine needs --init DIR, a trained coarse stage')
    if args.stage != 'fine' and args.init is not None:
        raise InputError('--init goes with --stage fine')
    if args.stage == 'fine' and args.refit:
        raise InputError(
            '--refit trains both stages with the validation items: use --stage both'
        )
    if args.eval_users is not None and args.eval_users < 1:
        raise InputError(f'--eval-users {args.eval_users}: expected one user at least')
    for name in ('seed', 'split_seed'):
        if not 0 <= getattr(args, name) < 2**32:
            raise InputError(
                f'--{name.replace("_", "-")} {getattr(args, name)}: expected a whole '
                f'number from 0 to {2**32 - 1}'
            )
    names = ('torch', 'torch-geometric', 'numpy', 'scipy', 'scikit-learn')
    return {
        'call': call_of(args),
        **kept_values(args),
        'settings': asdict(
            get_recipe(args.recipe, args.dataset, parse_settings(args.set))
        ),
        'versions': {
            'python': platform.python_version(),
            'pyg_c2f': pyg_c2f.__version__,
        }
        | {name: version(name) for name in names},
    }


def kept_values(args: argparse.Namespace) -> dict[str, Any]:
    """The options in KEPT, with paths and device resolved."""
    values = {key: getattr(args, key) for key in KEPT}
    values['data_root'] = args.data_root or DEFAULT_ROOT
    for key in ('data_root', 'init'):
        if values[key] is not None:
            values[key] = str(Path(values[key]).expanduser().absolute())
    return values | {'device': str(pick_device(args.device))}


def read_recipe(config: dict[str, Any]) -> Recipe | FastRecipe:
    """The recipe of a configuration."""
    return type(RECIPES[config['recipe']])(**config['settings'])


def parse_settings(texts: list[str]) -> dict[str, str]:
    """The names and values of ``--set``."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition('=')
        if not equals:
            raise InputError(f'--set {text}: expected name=value')
        settings[name] = value
    return settings


def resumed_config(out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of an interrupted run; options that differ are refused."""
    if not (out / 'config.json').exists():
        raise InputError(
            f'{out}: no run there to go on with; leave --resume out to begin one'
        )
    config = read_config(out)
    if (out / 'metrics.json').exists() and not resume_files(out):
        raise InputError(
            f'{out}: this run is complete; leave --resume out to repeat it'
        )
    settings = parse_settings(args.set)
    given = asdict(get_recipe(config['recipe'], config['dataset'], settings))
    pairs = [
        (f'--set {name}', given[name], config['settings'][name]) for name in settings
    ]
    named = {word.partition('=')[0] for word in args.argv}
    for key, ours in kept_values(args).items():
        option = f'--{key.replace("_", "-")}'
        if option in named and key == 'device':
            config[key] = ours  # The one that may change: a run can move.
        elif option in named:
            pairs.append((option, ours, config[key]))
    for option, ours, theirs in pairs:
        if ours != theirs:
            raise InputError(
                f'--resume: the run in {out} has {option} {theirs}, not {ours}; leave '
                'the option out, or start anew in another --out'
            )
    return config


def describe_run(
    config: dict[str, Any],
    data: HeteroData,
    stages: dict[Stage, dict[int, dict[str, Any]]],
    out: Path,
    group: Group,
) -> dict[str, Any]:
    """The metrics of a run and of the popularity baseline, without sizes and times."""
    users = group.rows(data[USER].num_nodes)
    keys = ('dataset', 'protocol', 'recipe', 'seed', 'split_seed', 'eval_users')
    metrics = {key: config[key] for key in keys}
    num_items = data[ITEM].num_nodes
    score = popularity_score(data[RATES].edge_index, num_items)
    metrics |= {
        'num_users': data[USER].num_nodes,
        'num_items': num_items,
        'num_train': data[RATES].edge_index.size(1),
        'popularity': {
            split: evaluate_split(score, data, split, users=users)
            for split in ('val', 'test')
        },
    }
    device = data[RATES].edge_index.device
    for stage, phases in stages.items():
        metrics[stage] = {}
        for phase, result in phases.items():
            model = pyg_c2f.load(phase_file(out, stage, phase)).to(device)
            found = {'test': test(model, data, group)}
            metrics[stage][f'phase{phase}'] = result | found
    last = list(metrics[stage].values())[-1]
    metrics |= {'val': last['val'], 'test': last['test']}
    return metrics


def test(model: Model, data: HeteroData, group: Group) -> dict[str, float]:
    """The figures on the test items."""
    users = group.rows(data[USER].num_nodes)
    return evaluate_split(model.scorer(), data, 'test', users=users)


def refit(
    data: HeteroData,
    recipe: Recipe | FastRecipe,
    config: dict[str, Any],
    phases: dict[Stage, dict[int, dict[str, Any]]],
    init: Model | None,
    progress: bool,
    group: Group,
) -> Model:
    """Trains once more on train and validation items, for the epochs that were best."""
    epochs = {
        stage: (result[1]['last_epoch'], result[max(result)]['best_epoch'])
        for stage, result in phases.items()
    }
    return train(
        with_validation_in_train(data),
        recipe,
        config['seed'],
        STAGES[config['stage']],
        init,
        progress=progress,
        fixed_epochs=epochs,
        group=group,
    ).model


class History:
    """The lines of history.jsonl, one per evaluation; a resumed run goes on in it."""

    def __init__(self, out: Path, writes: bool = True) -> None:
        self.path = out / 'history.jsonl'
        self.lines: list[dict[str, Any]] = []
        if self.path.exists():
            self.lines = read_json(self.path, lines=True)
            try:
                [(x['stage'], x['phase'], x['val'][SELECTION]) for x in self.lines]
            except (KeyError, TypeError) as error:
                raise InputError(
                    f'{self.path}: damaged ({error!r}); restore it, or train again'
                ) from None
        self.writer = None
        if not writes:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(out / 'tensorboard'))

    def add(self, line: dict[str, Any]) -> None:
        # A run that goes on from the end of an epoch evaluates once more.
        at = (line['stage'], line['epoch'])
        self.lines = [x for x in self.lines if (x['stage'], x['epoch']) != at]
        self.lines.append(line)
        write_text(self.path, ''.join(json.dumps(x) + '\n' for x in self.lines))
        logger.info(
            '%s phase %d epoch %3d  ndcg@5 %.4f  recall@20 %.4f  %5.0f s',
            line['stage'],
            line['phase'],
            line['epoch'],
            line['val']['ndcg@5'],
            line['val']['recall@20'],
            line['seconds'],
        )
        if self.writer is not None:
            for name, value in line['val'].items():
                self.writer.add_scalar(f'{line["stage"]}/{name}', value, line['epoch'])
            if line['loss'] is not None:
                self.writer.add_scalar(
                    f'{line["stage"]}/loss', line['loss'], line['epoch']
                )
            self.writer.flush()


def pick_device(name: str) -> torch.device:
    """The device of an option, checked."""
    if name == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: torch finds no CUDA device; use --device cpu')
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    return torch.device(name)


def check_out(out: Path, args: argparse.Namespace) -> None:
    """Refuses an output directory that cannot be written or must not be replaced."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = 'is no directory' if not there.is_dir() else 'cannot be written'
        raise InputError(f'--out {out}: {there} {why}; name another directory')
    if args.init is not None and out.resolve() == Path(args.init).resolve():
        raise InputError(f'--out {out}: --init is read from there; name another --out')
    if resume_files(out) and not args.resume:
        raise InputError(
            f'{out}: holds an interrupted run; add --resume to continue it, name '
            f'another --out, or delete {" and ".join(RESUME_FILES)} there to start anew'
        )


def clear(out: Path) -> None:
    """Makes the output directory, without what an earlier run has left there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'--out {out}: cannot be made ({error.strerror}); name another directory'
        ) from error
    phases = (phase_file(out, s, phase) for s in STAGES['both'] for phase in (1, 2))
    for path in (*phases, *(out / name for name in OUTPUTS)):
        path.unlink(missing_ok=True)
    shutil.rmtree(out / 'tensorboard', ignore_errors=True)


def leave_best(out: Path, history: list[dict[str, Any]]) -> None:
    """Makes the best model so far the result of an interrupted run."""
    # Recipe fast keeps a stage's model at its end.
    kept = [x for x in history if phase_file(out, x['stage'], x['phase']).exists()]
    if kept:
        best = max(kept, key=lambda line: line['val'][SELECTION])
        with whole_file(out / 'model.safetensors') as part:
            shutil.copyfile(phase_file(out, best['stage'], best['phase']), part)


def read_json(path: Path, lines: bool = False) -> Any:
    """The content of a JSON file, or the list of its lines' contents."""
    try:
        text = path.read_text(encoding='utf-8')
        return [json.loads(x) for x in text.splitlines()] if lines else json.loads(text)
    except ValueError as error:
        raise InputError(
            f'{path}: damaged ({error}); restore it, or train again'
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run."""
    path = folder / 'config.json'
    if not path.is_file():
        raise InputError(
            f'{folder}: no run there; name a directory that train wrote to'
        )
    config = read_json(path)
    if isinstance(config, dict):
        config.setdefault('eval_users', None)  # older runs do not have it
    kinds = KEPT | FOUND
    try:
        wrong = {
            key for key, kind in kinds.items() if not isinstance(config[key], kind)
        }
        read_recipe(config)
    except (KeyError, TypeError) as error:
        wrong = {f'an entry ({error})'}
    if wrong:
        raise InputError(
            f'{path}: damaged in {", ".join(sorted(wrong))}; restore it, or train again'
        )
    return config


def load_init(config: dict[str, Any]) -> Model:
    """The coarse model that a fine stage starts from."""
    folder = Path(config['init'])
    theirs = read_config(folder)
    if theirs['recipe'] != config['recipe']:
        raise InputError(
            f'{folder}: trained by recipe {theirs["recipe"]}, this run has '
            f'{config["recipe"]}: give --recipe {theirs["recipe"]}'
        )
    for key in ('dataset', 'protocol', 'split_seed'):
        if theirs[key] != config[key]:
            raise InputError(
                f'{folder}: trained with {key}={theirs[key]}, this run has '
                f'{config[key]}; the test items would leak, set them alike'
            )
    phases = (phase_file(folder, 'coarse', phase) for phase in (2, 1))
    model = pyg_c2f.load(next((path for path in phases if path.exists()), folder))
    if model.stage != 'coarse':
        raise InputError(
            f'{folder}: holds a fine stage only; name the run of its coarse stage'
        )
    return model


def run_evaluate(args: argparse.Namespace) -> int:
    """Prints the figures of a checkpoint."""
    group = one_block_each(join_quietly())
    folder = Path(args.checkpoint)
    config = read_config(folder)
    model, data = load_model(folder), load_data(config)
    ours = (model.num_users, model.num_items)
    theirs = (data[USER].num_nodes, data[ITEM].num_nodes)
    if ours != theirs:
        raise InputError(
            f'{folder}: the model knows {ours[0]} users and {ours[1]} items, the data '
            f'set {config["dataset"]} has {theirs[0]} and {theirs[1]}; bring the data '
            'back that it was trained on'
        )
    if any(
        ids is not None and 'raw_id' in store and list(store.raw_id) != ids
        for ids, store in ((model.user_ids, data[USER]), (model.item_ids, data[ITEM]))
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


def load_model(path: str | Path) -> Model:
    """The model of a run or a file, with the ids that it was trained with."""
    model = pyg_c2f.load(path)
    if model.item_ids is None and (Path(path) / 'ids.json').exists():
        raise InputError(
            f'{path}: a run of an older version, whose ids are in ids.json and not in '
            'the model; train again'
        )
    return model


def run_recommend(args: argparse.Namespace) -> int:
    """Prints lists for people, or the items most alike."""
    model = load_model(args.checkpoint)
    if args.k is None:
        args.k = min(20, model.num_items)
    check_length(args.k, '-k', model)
    if args.all != (args.out is not None):
        raise InputError('--all and --out FILE go together')
    if args.all:
        return write_lists(model, args)
    # Titles are shown as far as the other side can show them.
    sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    try:
        status = answer_lines(model, args) if args.jsonl else print_lists(model, args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has seen enough. What is left is said to nobody, or Python
        # complains of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    return status


def check_length(k: int, name: str, model: Model) -> None:
    """Refuses the length of a list that the model cannot fill."""
    if not 1 <= k <= model.num_items:
        raise InputError(f'{name} {k}: choose a length from 1 to {model.num_items}')


def print_lists(model: Model, args: argparse.Namespace) -> int:
    """The lists of a call, to be read."""
    options: dict[str, Any] = {'exclude_seen': not args.include_seen}
    if args.candidates is not None:
        options['candidates'] = read_items(model, args.candidates, '--candidates')
    if args.similar is not None:
        if args.include_seen or args.candidates is not None:
            raise InputError('--similar goes without --include-seen and --candidates')
        items = read_items(model, args.similar, '--similar')
        who = [item_id(model, x) for x in items.tolist()]
        lists = model.similar_items(items, args.k)
    elif args.history is not None:
        history = read_items(model, args.history, '--history')
        who = [' '.join(args.history)]
        lists = model.recommend(k=args.k, history=history.unsqueeze(0), **options)
    else:
        who = args.user
        lists = model.recommend(model.numbers(who, USER), args.k, **options)
    for name, ids, scores in zip(who, *lists, strict=True):
        print(f'for {name}:')
        for rank, (item, score) in enumerate(zip(*filled(ids, scores), strict=True), 1):
            title = model.item_titles[item] if model.item_titles else ''
            text = f'{rank:4}  {item_id(model, item):>10}  {score:8.4f}  {title}'
            print(text.rstrip())
    return 0


def write_lists(model: Model, args: argparse.Namespace) -> int:
    """Lists for all known users into a file; several processes share the users."""
    options: dict[str, Any] = {'exclude_seen': not args.include_seen}
    if args.candidates is not None:
        options['candidates'] = read_items(model, args.candidates, '--candidates')
    group, out = one_block_each(join_quietly()), Path(args.out)
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise InputError(f'--out {out}: name a file in a folder that is there')
    if out.resolve() == model_file(args.checkpoint).resolve():
        raise InputError(f'--out {out}: is the checkpoint itself; name another file')
    # The same blocks whoever has them: last digits depend on who is scored together.
    blocks = torch.arange(model.num_users).split(LIST_USERS)
    own = group.rows(len(blocks)).local(blocks)
    parts = [out.with_name(f'{out.name}.part-{rank}') for rank in range(group.size)]
    show = sys.stderr.isatty() and group.rank == 0
    try:
        with parts[group.rank].open('w', encoding='utf-8') as file:
            for block in tqdm(own, disable=not show, leave=False):
                lists = model.recommend(block, args.k, **options)
                for user, ids, scores in zip(block.tolist(), *lists, strict=True):
                    name = str(user) if model.user_ids is None else model.user_ids[user]
                    answer = as_answer(model, *filled(ids, scores))
                    file.write(json.dumps({'user': name} | answer) + '\n')
        group.wait()
        if group.rank == 0:
            with whole_file(out) as target, target.open('wb') as file:
                for part in parts:
                    with part.open('rb') as read:
                        shutil.copyfileobj(read, file)
        group.wait()
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f'{out}: cannot be written ({why}); make room, or name another file'
        ) from error
    finally:
        parts[group.rank].unlink(missing_ok=True)
    if group.rank == 0:
        print(f'wrote {out}')
    return 0


def read_items(model: Model, words: list[str], option: str) -> torch.Tensor:
    """The numbers of the items in an option."""
    tokens = [x.strip() for word in words for x in word.split(',') if x.strip()]
    if not tokens:
        raise InputError(f'{option} is empty: give item ids, such as 12 7 40')
    return model.numbers(tokens, ITEM)


def filled(ids: torch.Tensor, scores: torch.Tensor) -> tuple[list[int], list[float]]:
    """Items and scores of a list, without the places that are left."""
    return ids[ids >= 0].tolist(), scores[ids >= 0].tolist()


def item_id(model: Model, item: int) -> str:
    """What an item is called."""
    return str(item) if model.item_ids is None else model.item_ids[item]


class Request(NamedTuple):
    """What a line asks for, with the numbers of its ids."""

    who: int | list[int]
    k: int
    exclude_seen: bool
    candidates: tuple[int, ...] | None


def answer_lines(model: Model, args: argparse.Namespace) -> int:
    """Answers standard input line by line, in blocks."""
    given = {'k': args.k, 'exclude_seen': not args.include_seen}
    if args.candidates is not None:
        candidates = read_items(model, args.candidates, '--candidates')
        given['candidates'] = [item_id(model, x) for x in candidates.tolist()]
    num_lines = num_wrong = 0
    for lines in blocks_of_lines(sys.stdin.buffer):
        requests: list[Request | str] = []
        for number, line in enumerate(lines, num_lines + 1):
            try:
                requests.append(read_request(model, line, given))
            except InputError as error:
                requests.append(f'line {number}: {error}')
        num_lines += len(lines)
        num_wrong += sum(isinstance(x, str) for x in requests)
        for answer in answer_block(model, requests):
            print(json.dumps(answer))
        sys.stdout.flush()
    if num_wrong:
        return fail(f'{num_wrong} of {num_lines} lines have an error for an answer')
    return 0


def blocks_of_lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a stream, as many at once as are there; it waits for one only."""
    rest = b''
    while chunk := stream.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
        *lines, rest = (rest + chunk).split(b'\n')
        for start in range(0, len(lines), BLOCK_LINES):
            yield lines[start : start + BLOCK_LINES]
    if rest:
        yield [rest]


def read_request(model: Model, line: bytes, given: dict[str, Any]) -> Request:
    """What a line asks for, the options of the call where it does not say."""
    try:
        asked = json.loads(line.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'no JSON ({error})') from None
    if not isinstance(asked, dict) or ('user' in asked) == ('history' in asked):
        raise InputError('expected an object with either a "user" or a "history"')
    unknown = set(asked) - {'user', 'history', 'k', 'candidates', 'exclude_seen'}
    if unknown:
        raise InputError(f'unknown key {min(unknown)!r}')
    asked = given | asked
    if type(asked['k']) is not int:
        raise InputError(f'"k" is a whole number, not {asked["k"]!r}')
    check_length(asked['k'], '"k"', model)
    if type(asked['exclude_seen']) is not bool:
        raise InputError(
            f'"exclude_seen" is true or false, not {asked["exclude_seen"]!r}'
        )
    who: int | list[int]
    if 'user' in asked:
        who = int(model.numbers(read_id(asked['user']), USER))
    else:
        who = read_ids(model, asked['history'], 'history')
    candidates = None
    if 'candidates' in asked:
        candidates = tuple(read_ids(model, asked['candidates'], 'candidates'))
    return Request(who, asked['k'], asked['exclude_seen'], candidates)


def read_id(value: Any) -> str:
    """An id of a line."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise InputError(f'an id is a text or a number, not {value!r}')
    return str(value)


def read_ids(model: Model, values: Any, key: str) -> list[int]:
    """The numbers of the items in a list of a line."""
    if not isinstance(values, list) or not values:
        raise InputError(f'"{key}" is a list of item ids, not {values!r}')
    return model.numbers([read_id(value) for value in values], ITEM).tolist()


def answer_block(model: Model, requests: list[Request | str]) -> list[dict[str, Any]]:
    """The answers to some requests, those of one kind by one call of the model."""
    answers = [{'error': x} if isinstance(x, str) else {} for x in requests]
    groups: dict[tuple[Any, ...], list[tuple[int, Request]]] = {}
    for place, ask in enumerate(requests):
        if not isinstance(ask, str):
            kind = (isinstance(ask.who, list), ask.exclude_seen, ask.candidates)
            groups.setdefault(kind, []).append((place, ask))
    for (is_new, exclude_seen, candidates), group in groups.items():
        who: list[Any] = [ask.who for _, ask in group]
        lists = model.recommend(
            None if is_new else who,
            # The longest list for all: a shorter one is its beginning.
            max(ask.k for _, ask in group),
            history=who if is_new else None,
            exclude_seen=exclude_seen,
            candidates=candidates,
        )
        for (place, ask), ids, scores in zip(group, *lists, strict=True):
            answers[place] = as_answer(model, *filled(ids[: ask.k], scores[: ask.k]))
    return answers


def as_answer(model: Model, ids: list[int], scores: list[float]) -> dict[str, Any]:
    """A list as a line says it; scores have the digits of single precision."""
    answer: dict[str, Any] = {
        'items': [item_id(model, item) for item in ids],
        'scores': [float(f'{score:.7g}') for score in scores],
    }
    if model.item_titles is not None:
        answer['titles'] = [model.item_titles[item] for item in ids]
    return answer


def run_export(args: argparse.Namespace) -> int:
    """Writes a file that recommends without this package."""
    if args.format is None:
        args.format = 'onnx' if Path(args.out or '').suffix == '.onnx' else 'bundle'
    options = {}
    for name, option in BUNDLE_OPTIONS.items():
        if vars(args)[name] is None:
            continue
        if args.format != 'bundle':
            raise InputError(f'{option} is no option of --format {args.format}')
        options[name] = vars(args)[name]
    model = load_model(args.checkpoint)
    path = Path(args.out or Path(args.checkpoint) / EXPORTS[args.format])
    if path.resolve() == model_file(args.checkpoint).resolve():
        raise InputError(f'--out {path}: is the checkpoint itself; name another file')
    if args.format == 'onnx':
        size = write_onnx(model, path)
    else:
        parts = write_bundle(model, path, **options)
        size = parts.pop('all')
        for name, part in parts.items():
            print(f'{name:8} {part:12,} bytes')
    print(f'{path}: {size:,} bytes')
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """Trains where there is no model yet, puts the page together and serves it."""
    out = Path(args.out)
    if args.checkpoint and args.data_root:
        raise InputError('--checkpoint needs no --data-root; give one of the two')
    model = load_model(args.checkpoint or demo_run(args.data_root, out))
    if args.checkpoint is None and model.item_titles is None:
        titles = map(made_up, range(model.num_items))
        model.set_ids(model.user_ids, model.item_ids, titles)
    site = out / 'site'
    site.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copyfile(Path(__file__).parent / 'demo' / name, site / name)
    size = write_bundle(model, site / 'model.c2f')['all']
    serve(site, args.port, f'{model.num_items:,} items in {size:,} bytes')
    return 0


def demo_run(data_root: str | None, out: Path) -> Path:
    """The directory of the demo's run, which is trained where it is not complete."""
    root = Path(data_root or DEFAULT_ROOT)
    is_there = (root / 'ml-100k/ml-100k.inter').exists()
    dataset = 'ml-100k' if is_there else 'synthetic'
    if dataset == 'synthetic':
        logger.info(
            'no ml-100k/ml-100k.inter in %s: the films are made up; --data-root names '
            'another folder',
            root,
        )
    folder = out / dataset
    if resume_files(folder):
        options = ['--resume']
    elif (folder / 'model.safetensors').exists():
        logger.info('%s: trained before; delete it to train anew', folder)
        return folder
    else:
        options = ['--dataset', dataset]
        options += [] if data_root is None else ['--data-root', data_root]
    call = ['train', *options, '--out', str(folder)]
    args = make_parser().parse_args(call)
    args.argv = call
    if run_train(args):
        raise KeyboardInterrupt
    return folder


def made_up(item: int) -> str:
    """The title of a film that does not exist; each has its own."""
    rest, first = divmod(item, len(FIRST_WORDS))
    part, second = divmod(rest, len(SECOND_WORDS))
    title = f'{FIRST_WORDS[first]} {SECOND_WORDS[(first + second) % len(SECOND_WORDS)]}'
    return title if not part else f'{title}, part {part + 1}'


def serve(site: Path, port: int, what: str) -> None:
    """Serves a folder on this machine alone, until it is interrupted."""
    handler = partial(QuietHandler, directory=site)
    try:
        server = ThreadingHTTPServer(('127.0.0.1', port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(
            f'--port {port}: cannot be served on ({error}); name another, or 0 for any'
        ) from None
    with server:
        print(
            f'{what}, in {site}\nopen http://127.0.0.1:{server.server_port}/ in a '
            'browser; Ctrl-C ends it',
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            server.serve_forever()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, fresh ones each time, and says nothing of it."""

    # What Windows makes of these is up to its registry.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        '.js': 'text/javascript',
        '.c2f': 'application/octet-stream',
    }

    def end_headers(self) -> None:
        self.send_header('Cache-Control', 'no-cache')
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def run_data(args: argparse.Namespace) -> int:
    """Prints what there is of a data set, once it is built if that is asked for."""
    if args.build:
        build_it = partial(build, progress=sys.stderr.isatty())
        print(f'built             {build_it(*data_arguments(vars(args)))}')
    facts = describe(*data_arguments(vars(args)))
    files = facts.pop('files')
    for key, value in facts.items():
        print(f'{key:17} {value if value is not None else "-"}')
    for file in files:
        size = '-' if file['bytes'] is None else f'{file["bytes"]:,} bytes'
        print(f'{file["file"]:17} {size}, checksum {file["state"]}')
    return 0


def is_shared(args: argparse.Namespace) -> bool:
    """Whether several processes share the work of a call."""
    return args.func in (run_train, run_evaluate) or vars(args).get('all', False)


class HeldLog(logging.handlers.MemoryHandler):
    """Holds the package's lines back until this program has one of its own.

    By then a call is known to be right: one that is not prints its error alone.
    """

    def __init__(self) -> None:
        super().__init__(10_000, target=logging.StreamHandler())

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802
        return record.name == logger.name


def fail(message: str) -> int:
    """Prints an error in one line and returns its exit status."""
    if is_first_to_end():
        print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Runs one call and returns its exit status; without a command it trains."""
    argv = argv or []
    if not argv or (argv[0].startswith('-') and argv[0] not in ('-h', '--help')):
        argv = ['train', *argv]
    # What torch says of a kind of tensor that whoever trains has not chosen.
    warnings.filterwarnings('ignore', 'Sparse CSR tensor support')
    log, package = HeldLog(), logging.getLogger('pyg_c2f')
    level = package.level
    package.addHandler(log)
    package.setLevel(logging.INFO)
    try:
        args = make_parser().parse_args(argv)
        args.argv = argv
        if not is_shared(args) and os.environ.get('RANK', '0') != '0':
            return 0  # One process of torchrun's is enough.
        status = int(args.func(args))
        leave()
        return status
    except (InputError, ImportError, OSError) as error:
        log.buffer.clear()
        return fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_lost(error):
            again = ''
            if starts_anew():
                again = '; torchrun starts them anew, unless it was stopped itself'
            elif args.func is run_train and is_begun(out_of(args), args):
                again = f'; continue with: {call_again(out_of(args))}'
            return fail(
                'a process of this run has gone (stopped, killed, out of memory, or '
                f'with its machine), and the others stop{again}'
            )
        if isinstance(error, RuntimeError) and 'memory' not in str(error):
            raise
        return fail(
            'out of memory; lower --set embedding_dim, num_coarse or the batch sizes'
        )
    except KeyboardInterrupt:
        return 130
    finally:
        package.removeHandler(log)
        package.setLevel(level)
        log.close()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
