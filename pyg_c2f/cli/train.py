"""``pyg-c2f train``: trains and writes everything to a folder."""

import argparse
import os
import platform
import shlex
import signal
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyg_c2f
from pyg_c2f.cli import torchrun
from pyg_c2f.cli.common import fail
from pyg_c2f.cli.options import script_of
from pyg_c2f.datasets import DEFAULT_ROOT
from pyg_c2f.experiment import (
    KEPT,
    begin,
    check_out,
    pick_device,
    read_config,
    reuse_freed_memory,
)
from pyg_c2f.recipes import get_recipe
from pyg_c2f.recipes.resume import resume_files
from pyg_c2f.report import baselines_note, results_table, size_table
from pyg_c2f.typing import InputError


def run(args: argparse.Namespace) -> int:
    """Trains and writes everything to the output directory."""
    started = time.perf_counter()
    reuse_freed_memory()
    is_distributed = torchrun.join_quietly()
    out = out_of(args)
    if torchrun.restarts() and is_begun(out, args):
        args.resume = True
    check_out(out, args.init, args.resume)
    config = resumed_config(out, args) if args.resume else make_config(args)
    experiment = begin(out, config, args.resume, is_distributed, started)
    is_first = experiment.group.rank == 0
    again = call_again(out, args.program)
    try:
        metrics = experiment.run(sys.stderr.isatty() and not args.quiet and is_first)
    except KeyboardInterrupt:
        if is_distributed:  # torchrun sends a second SIGINT.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if is_first:
            print(f'\ninterrupted; continue with: {again}', file=sys.stderr)
        return 130
    except OSError as error:
        there = (out / 'config.json').exists()
        return fail(f'{error}; then {f"continue with: {again}" if there else "repeat"}')
    if not is_first:
        return 0
    if 'search' in metrics:
        print(f'settings: {metrics["search"]["why"]}\n')
    print(results_table(metrics))
    print(f'\n{baselines_note(metrics)}\n')
    if config['eval_users'] is not None:
        print(f'These are for {config["eval_users"]} users drawn at random.\n')
    print(size_table(metrics))
    print(f'report: {out / "report.html"}')
    return 0


def out_of(args: argparse.Namespace) -> Path:
    """The output directory of a training."""
    return Path(args.out or f'runs/{args.dataset}-{args.recipe}')


def is_begun(out: Path, args: argparse.Namespace) -> bool:
    """Whether this same call has begun a run there that is not complete."""
    try:
        config = read_config(out)
    except InputError:
        return False
    complete = (out / 'metrics.json').exists() and not resume_files(out)
    same = args.resume or config['call'] == call_of(args)
    return same and not complete


def call_of(args: argparse.Namespace) -> str:
    """The command line, as a configuration keeps it."""
    return shlex.join([*args.program, *args.argv])


def call_again(out: Path, program: tuple[str, ...]) -> str:
    """The call that continues a run on the same number of processes."""
    words = [*program]
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        words = ['torchrun', '--nproc-per-node', os.environ['LOCAL_WORLD_SIZE']]
        nodes = os.environ['GROUP_WORLD_SIZE']
        if nodes != '1':
            address = f'{os.environ["MASTER_ADDR"]}:29500'
            words += ['--nnodes', nodes, '--rdzv-backend', 'c10d']
            words += ['--rdzv-endpoint', address]
        words += script_of(program)
    return shlex.join([*words, 'train', '--resume', '--out', str(out)])


def make_config(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides what a run computes, resolved."""
    if args.refit and args.protocol == 'c2f':
        raise InputError('--refit is for --protocol standard: add it')
    if args.refit and args.stage == 'fine':
        raise InputError('--refit trains both stages again: use --stage both')
    if args.stage == 'fine' and args.init is None:
        raise InputError('--stage fine needs --init DIR, a trained coarse stage')
    if args.stage != 'fine' and args.init is not None:
        raise InputError('--init is for --stage fine: add it')
    names = ('torch', 'torch-geometric', 'numpy', 'scipy', 'scikit-learn')
    return {
        'call': call_of(args),
        **kept_values(args),
        'settings': settings_of(args, args.recipe),
        'fixed': [text.partition('=')[0] for text in args.set],
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


def settings_of(args: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """All settings of a recipe, with those of ``--set``."""
    given = [text.partition('=') for text in args.set]
    for name, equals, _ in given:
        if not equals:
            raise InputError(f'--set {name}: expected NAME=VALUE, without spaces')
    changes = {name: value for name, _, value in given}
    return asdict(get_recipe(recipe, changes))


def resumed_config(out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of an interrupted run; options that differ are refused."""
    if not (out / 'config.json').exists():
        raise InputError(f'{out}: no run to resume; omit --resume to begin one')
    config = read_config(out)
    if (out / 'metrics.json').exists() and not resume_files(out):
        raise InputError(f'{out}: this run is complete; omit --resume to repeat it')
    given = settings_of(args, config['recipe'])
    names = [text.partition('=')[0] for text in args.set]
    pairs = [(f'--set {x}', given[x], config['settings'][x]) for x in names]
    named = {word.partition('=')[0] for word in args.argv}
    for key, ours in kept_values(args).items():
        option = f'--{key.replace("_", "-")}'
        if option in named and key == 'device':
            config[key] = ours  # The only one that may change: a run can move.
        elif option in named:
            pairs.append((option, ours, config[key]))
    for option, ours, theirs in pairs:
        if ours != theirs:
            raise InputError(
                f'--resume: the run in {out} has {option} {theirs}, not {ours}; omit '
                'the option, or start a new run in another --out'
            )
    return config
