r"""The command line: train, evaluate, recommend, and what data there is."""

import argparse
import json
import logging
import logging.handlers
import os
import platform
import shlex
import shutil
import sys
import time
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn

import torch
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

import pyg_c2f
from pyg_c2f.checkpoint import (
    Model,
    model_bytes,
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
from pyg_c2f.evaluate import evaluate_split, popularity_score
from pyg_c2f.report import results_table, size_table, write_report
from pyg_c2f.train import (
    RESUME_FILE,
    Run,
    check_run,
    reuse_freed_memory,
    train,
)
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
    'device': str,
}
# What a run leaves, beside the best models of its phases.
OUTPUTS = (
    'config.json',
    'ids.json',
    'history.jsonl',
    'metrics.json',
    'report.html',
    'model.safetensors',
    RESUME_FILE,
)
EXAMPLES = """examples:
  python run.py                                    the embedded data set, in minutes
  python run.py train --dataset gowalla --out runs/gowalla
  python run.py evaluate --checkpoint runs/gowalla
  python run.py recommend --checkpoint runs/gowalla --user 12 7 -k 10
  python run.py train --help                       all options and settings

Without a command it trains."""


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
        '--resume',
        action='store_true',
        help='continue the interrupted run in --out, with the options it has',
    )
    call.add_argument('--quiet', action='store_true', help='no progress bars')
    call.set_defaults(func=run_train)

    call = commands.add_parser('evaluate', help='rank for all users once more')
    call.add_argument('--checkpoint', required=True, metavar='DIR')
    call.add_argument('--split', choices=['val', 'test'], default='test')
    call.set_defaults(func=run_evaluate)

    call = commands.add_parser('recommend', help='the best items for a person')
    call.add_argument('--checkpoint', required=True, metavar='DIR')
    who = call.add_mutually_exclusive_group(required=True)
    who.add_argument('--user', nargs='+', metavar='ID', help='known users')
    who.add_argument('--history', metavar='ITEM,ITEM', help='of an unknown person')
    call.add_argument('-k', type=int, default=20, help='length of the list')
    call.set_defaults(func=run_recommend)

    call = commands.add_parser('data', help='what is there of a data set')
    add_data_options(call)
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


def run_train(args: argparse.Namespace) -> int:
    """Trains and leaves everything in the output directory."""
    begin = time.perf_counter()
    reuse_freed_memory()
    out = Path(args.out or f'runs/{args.dataset}-{args.recipe}')
    check_out(out, args)
    config = resumed_config(out, args) if args.resume else make_config(args)
    recipe = read_recipe(config)
    init = None if config['init'] is None else load_init(config)
    device = pick_device(config['device'])

    start = time.perf_counter()
    data = load_data(config).to(device)
    seconds = {'load': time.perf_counter() - start}
    check_run(data, recipe, init)
    if not args.resume:
        clear(out)
        write_json(out / 'config.json', config)
        write_ids(data, out)

    seed_everything(config['seed'])
    history = History(out)
    show = sys.stderr.isatty() and not args.quiet
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
        )
        pyg_c2f.save(run.model, out)
        seconds |= run.seconds
        start = time.perf_counter()
        metrics = describe_run(config, data, run, out)
        seconds['evaluate'] += time.perf_counter() - start
        if config['refit']:
            start = time.perf_counter()
            model = refit(data, recipe, config, run.phases, init, show)
            seconds['train'] += time.perf_counter() - start
            pyg_c2f.save(model, out)
            metrics['test'] = test(model, data)
    except KeyboardInterrupt:
        leave_best(out, history.lines)
        again = shlex.join(['python', 'run.py', 'train', '--resume', '--out', str(out)])
        print(f'\ninterrupted; continue with: {again}', file=sys.stderr)
        return 130
    metrics['bytes'] = model_bytes(pyg_c2f.load(out))
    # Of a resumed run the earlier sessions count too.
    seconds['total'] = max(time.perf_counter() - begin, sum(seconds.values()))
    metrics['seconds'] = {key: round(value, 3) for key, value in seconds.items()}
    metrics['versions'] = config['versions']

    write_json(out / 'metrics.json', metrics)
    report = write_report(out, metrics | {'command': config['call']}, history.lines)
    (out / RESUME_FILE).unlink(missing_ok=True)
    print(results_table(metrics))
    print(size_table(metrics))
    print(f'report: {report}')
    return 0


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
    for name in ('seed', 'split_seed'):
        if not 0 <= getattr(args, name) < 2**32:
            raise InputError(
                f'--{name.replace("_", "-")} {getattr(args, name)}: expected a whole '
                f'number from 0 to {2**32 - 1}'
            )
    names = ('torch', 'torch-geometric', 'numpy', 'scipy', 'scikit-learn')
    return {
        'call': shlex.join(['python', 'run.py', *args.argv]),
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
    config = read_config(out)
    if (out / 'metrics.json').exists() and not (out / RESUME_FILE).exists():
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
    config: dict[str, Any], data: HeteroData, run: Run, out: Path
) -> dict[str, Any]:
    """The metrics of a run and of the popularity baseline, without sizes and times."""
    keys = ('dataset', 'protocol', 'recipe', 'seed', 'split_seed')
    metrics = {key: config[key] for key in keys}
    num_items = data[ITEM].num_nodes
    score = popularity_score(data[RATES].edge_index, num_items)
    metrics |= {
        'num_users': data[USER].num_nodes,
        'num_items': num_items,
        'num_train': data[RATES].edge_index.size(1),
        'popularity': {
            split: evaluate_split(score, data, split) for split in ('val', 'test')
        },
    }
    device = data[RATES].edge_index.device
    for stage, phases in run.phases.items():
        metrics[stage] = {}
        for phase, result in phases.items():
            model = pyg_c2f.load(phase_file(out, stage, phase)).to(device)
            metrics[stage][f'phase{phase}'] = result | {'test': test(model, data)}
    last = list(metrics[stage].values())[-1]
    metrics |= {'val': last['val'], 'test': last['test']}
    return metrics


def test(model: Model, data: HeteroData) -> dict[str, float]:
    """The figures on the test items."""
    return evaluate_split(model.scorer(), data, 'test')


def refit(
    data: HeteroData,
    recipe: Recipe | FastRecipe,
    config: dict[str, Any],
    phases: dict[Stage, dict[int, dict[str, Any]]],
    init: Model | None,
    progress: bool,
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
    ).model


class History:
    """The lines of history.jsonl, one per evaluation; a resumed run goes on in it."""

    def __init__(self, out: Path) -> None:
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
    if (out / RESUME_FILE).exists() and not args.resume:
        raise InputError(
            f'{out}: holds an interrupted run; add --resume to continue it, name '
            f'another --out, or delete {RESUME_FILE} there to start anew'
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


def write_ids(data: HeteroData, out: Path) -> None:
    """Keeps the names of users and items where they are not the numbers themselves."""
    if 'raw_id' in data[USER]:
        names = {'users': list(data[USER].raw_id), 'items': list(data[ITEM].raw_id)}
        if 'title' in data[ITEM]:
            names['titles'] = list(data[ITEM].title)
        write_json(out / 'ids.json', names)


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
    kinds = KEPT | {'settings': dict, 'versions': dict, 'call': str}
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
    folder = Path(args.checkpoint)
    config = read_config(folder)
    model, data = pyg_c2f.load(folder), load_data(config)
    ours = (model.num_users, model.num_items)
    theirs = (data[USER].num_nodes, data[ITEM].num_nodes)
    if ours != theirs:
        raise InputError(
            f'{folder}: the model knows {ours[0]} users and {ours[1]} items, the data '
            f'set {config["dataset"]} has {theirs[0]} and {theirs[1]}; bring the data '
            'back that it was trained on'
        )
    metrics = evaluate_split(model.scorer(), data, args.split)
    print(f'{config["dataset"]}, protocol {config["protocol"]}, {args.split} items')
    for name, value in metrics.items():
        print(f'{name:10} {value:.4f}')
    return 0


def run_recommend(args: argparse.Namespace) -> int:
    """Prints the best items of known users, or of a history."""
    folder = Path(args.checkpoint)
    model = pyg_c2f.load(folder)
    names = read_ids(folder, model)
    if not 1 <= args.k <= model.num_items:
        raise InputError(f'-k {args.k}: choose a length from 1 to {model.num_items}')
    if args.history is not None:
        tokens = [x.strip() for x in args.history.split(',') if x.strip()]
        history = to_numbers(tokens, names.get('items'), model.num_items, 'item')
        if not history:
            raise InputError('--history is empty: give item ids, such as 12,7,40')
        lists = {args.history: model.recommend(k=args.k, history=history)}
    else:
        users = to_numbers(args.user, names.get('users'), model.num_users, 'user')
        ids, scores = model.recommend(users, args.k)
        lists = dict(zip(args.user, zip(ids, scores, strict=True), strict=True))
    for who, (ids, scores) in lists.items():
        print(f'for {who}:')
        for rank, (item, score) in enumerate(zip(ids.tolist(), scores, strict=True), 1):
            if item < 0:
                break
            name = names['items'][item] if names else item
            title = names['titles'][item] if 'titles' in names else ''
            print(f'{rank:4}  {name!s:>10}  {score:8.4f}  {title}'.rstrip())
    return 0


def read_ids(folder: Path, model: Model) -> dict[str, list[str]]:
    """The names of users and items, if they are not the numbers themselves."""
    path = folder / 'ids.json'
    if not path.exists():
        return {}
    names = read_json(path)
    nums = {'users': model.num_users, 'items': model.num_items}
    if isinstance(names, dict) and 'titles' in names:
        nums['titles'] = model.num_items
    if not isinstance(names, dict) or any(
        not isinstance(names.get(key), list) or len(names[key]) != num
        for key, num in nums.items()
    ):
        raise InputError(
            f'{path}: does not name the {model.num_users} users and {model.num_items} '
            'items of the model; restore it, or train again'
        )
    return names


def to_numbers(
    tokens: list[str], names: list[str] | None, num: int, what: str
) -> list[int]:
    """The numbers of ids as they stand in the files."""
    if names is not None:
        known = {name: number for number, name in enumerate(names)}
    else:
        known = {str(number): number for number in range(num)}
    unknown = [token for token in tokens if token not in known]
    if unknown:
        raise InputError(
            f'unknown {what} {unknown[0]!r}: the model knows {num} {what}s, such as '
            f'{", ".join(list(known)[:3])}'
        )
    return [known[token] for token in tokens]


def run_data(args: argparse.Namespace) -> int:
    """Prints what there is of a data set."""
    facts = describe(*data_arguments(vars(args)))
    files = facts.pop('files')
    for key, value in facts.items():
        print(f'{key:17} {value if value is not None else "-"}')
    for file in files:
        size = '-' if file['bytes'] is None else f'{file["bytes"]:,} bytes'
        print(f'{file["file"]:17} {size}, checksum {file["state"]}')
    return 0


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
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Runs one call and returns its exit status; without a command it trains."""
    argv = argv or []
    if not argv or (argv[0].startswith('-') and argv[0] not in ('-h', '--help')):
        argv = ['train', *argv]
    log, package = HeldLog(), logging.getLogger('pyg_c2f')
    level = package.level
    package.addHandler(log)
    package.setLevel(logging.INFO)
    try:
        args = make_parser().parse_args(argv)
        args.argv = argv
        return int(args.func(args))
    except (InputError, ImportError, OSError) as error:
        log.buffer.clear()
        return fail(str(error))
    except (MemoryError, RuntimeError) as error:
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
