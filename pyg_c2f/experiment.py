"""A run's folder: what it begins with, what it leaves, and how it goes on."""

import ctypes
import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

from pyg_c2f.baselines import evaluate_baselines
from pyg_c2f.checkpoint import load, model_bytes, phase_file, save
from pyg_c2f.datasets import DataSpec, get_dataset, with_validation_in_train
from pyg_c2f.datasets.registry import built_digest
from pyg_c2f.evaluate import evaluate_split, with_sampled_users
from pyg_c2f.files import whole_file, write_json, write_text
from pyg_c2f.nn.recommender import Recommender
from pyg_c2f.recipes import RECIPES, Recipe, TrainingOptions, check_run, train
from pyg_c2f.recipes.resume import RESUME_FILES, delete_resume, resume_files
from pyg_c2f.recipes.search import search
from pyg_c2f.report import write_report
from pyg_c2f.shards import Group
from pyg_c2f.typing import ITEM, RATES, SELECTION, USER, InputError, Stage
from pyg_c2f.vocabulary import NamedModel

logger = logging.getLogger(__name__)

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
    'size': str | None,
    'seconds': float | None,
    'seed': int,
    'stage': str,
    'init': str | None,
    'refit': bool,
    'eval_users': int | None,
    'device': str,
}
# What it holds beside.
FOUND = {
    'settings': dict,
    'fixed': list,
    'versions': dict,
    'call': str,
    'data_sha256': str,
}
# What a run leaves, beside the best models of its phases.
OUTPUTS = (
    'config.json',
    'history.jsonl',
    'metrics.json',
    'report.html',
    'model.safetensors',
    *RESUME_FILES,
)


@dataclass
class Experiment:
    """A run that is ready to train; :func:`begin` makes one."""

    out: Path
    config: dict[str, Any]  # the content of config.json
    data: HeteroData  # with the users to rank for
    group: Group  # the processes that share the run
    recipe: Recipe
    options: TrainingOptions
    log: 'TrainingLog'
    seconds: dict[str, float]  # so far, by step
    started: float  # by time.perf_counter

    def run(self, progress: bool = False) -> dict[str, Any]:
        """Trains, evaluates and leaves all files; returns the metrics.

        Processes other than the first one return an empty dictionary.
        """
        out, config, group = self.out, self.config, self.group
        options = replace(self.options, progress=progress)
        try:
            run = train(self.data, self.recipe, options)
        except (KeyboardInterrupt, InputError):
            with suppress(OSError):  # What has stopped the run is what to say.
                if group.is_main:
                    leave_best(out, self.log.lines)
            raise
        if group.is_main:
            save(run.model, out)
        seconds = self.seconds | run.seconds
        phases = run.phases
        del run  # From here on models are those in the files.
        start = time.perf_counter()
        metrics = self.describe(phases)
        seconds['evaluate'] += time.perf_counter() - start
        if config['refit']:
            start = time.perf_counter()
            model = self.refit(phases, options)
            seconds['train'] += time.perf_counter() - start
            if group.is_main:
                save(model, out)
            group.wait()
            metrics['test'] = self.test(out)
        start = time.perf_counter()
        refitted = with_validation_in_train(self.data) if config['refit'] else None
        users = group.rows(self.data[USER].num_nodes)
        baselines = evaluate_baselines(self.data, users, refitted)
        metrics['baselines'], metrics['left_out'] = baselines[:2]
        seconds['baselines'] = time.perf_counter() - start
        if not group.is_main:
            return {}
        model = load(out)
        metrics['bytes'] = model_bytes(model)
        # Of a resumed run the earlier sessions count too.
        seconds['total'] = max(
            time.perf_counter() - self.started, sum(seconds.values())
        )
        metrics['seconds'] = {key: round(value, 3) for key, value in seconds.items()}
        metrics['versions'] = config['versions']
        about = metrics | {'command': config['call']}
        write_report(out, about, self.log.lines, model, self.data, baselines.scores)
        write_json(out / 'metrics.json', metrics)  # Last: it says that all is there.
        delete_resume(out)
        return metrics

    def describe(
        self, stages: dict[Stage, dict[int, dict[str, Any]]]
    ) -> dict[str, Any]:
        """The metrics of the run, without baselines, sizes and times."""
        data, config = self.data, self.config
        keys = ('dataset', 'protocol', 'recipe', 'seed', 'split_seed', 'eval_users')
        metrics = {key: config[key] for key in keys}
        if 'search' in config:
            metrics['search'] = config['search']
        metrics |= {
            'num_users': data[USER].num_nodes,
            'num_items': data[ITEM].num_nodes,
            'num_train': data[RATES].edge_index.size(1),
        }
        for stage, phases in stages.items():
            metrics[stage] = {}
            for phase, result in phases.items():
                found = {'test': self.test(phase_file(self.out, stage, phase))}
                metrics[stage][f'phase{phase}'] = result | found
        last = list(metrics[stage].values())[-1]
        metrics |= {'val': last['val'], 'test': last['test']}
        return metrics

    def test(self, path: Path) -> dict[str, float]:
        """The figures of a model on the test items."""
        model = load(path).to(self.data[RATES].edge_index.device)
        users = self.group.rows(self.data[USER].num_nodes)
        return evaluate_split(model.scorer(), self.data, 'test', users=users)

    def refit(
        self,
        phases: dict[Stage, dict[int, dict[str, Any]]],
        options: TrainingOptions,
    ) -> NamedModel:
        """Trains again on train and validation items, for the epochs that were best."""
        epochs = {
            stage: (result[1]['last_epoch'], result[max(result)]['best_epoch'])
            for stage, result in phases.items()
        }
        options = replace(
            options, out=None, resume=False, on_evaluation=None, fixed_epochs=epochs
        )
        return train(with_validation_in_train(self.data), self.recipe, options).model


def begin(
    out: Path,
    config: dict[str, Any],
    resume: bool,
    is_distributed: bool,
    started: float,
) -> Experiment:
    """Loads what a run needs and makes its folder ready.

    The configuration gets the checksum of the data. To resume goes on with the run in
    the folder, whose configuration is given; otherwise what another run has left there
    is deleted. The processes of the default group of :mod:`torch.distributed` may share
    the run.
    """
    recipe = read_recipe(config)
    group = recipe.make_group(is_distributed)
    init = None if config['init'] is None else load_init(config)
    device = pick_device(config['device'])

    start = time.perf_counter()
    data, digest = load_data(config)
    data = data.to(device)
    if resume:
        check_data_of(out, config, digest)
    config['data_sha256'] = digest
    if config['init'] is not None:
        folder = Path(config['init'])
        check_data_of(folder, read_config(folder), digest)
    seconds = {'load': time.perf_counter() - start}
    log = TrainingLog(out)
    options = TrainingOptions(
        seed=config['seed'],
        stages=STAGES[config['stage']],
        init=init,
        out=out,
        resume=resume,
        on_evaluation=log.add,
        group=group,
    )
    check_run(data, recipe, options)
    wanted = {key: config[key] for key in ('size', 'seconds')}
    if any(wanted.values()) and not resume:
        if group.size > 1:
            raise InputError(
                'size and seconds: settings are chosen by one process; run one, and '
                'give the settings that it has found to several'
            )
        start = time.perf_counter()
        found = search(data, recipe, config['fixed'], seed=config['seed'], **wanted)
        recipe, seconds['search'] = found.recipe, time.perf_counter() - start
        config['settings'] = asdict(recipe)
        config['search'] = {'why': found.why, 'trials': found.trials}
    group.wait()  # All processes have looked for an earlier run.
    if not resume and group.is_main:
        clear(out)
        write_json(out / 'config.json', config)
    group.wait()
    if not (out / 'config.json').exists():
        raise InputError(
            f'--out {out}: process {group.rank} does not see what the first one writes '
            'there; name a directory that all machines share'
        )
    seed_everything(config['seed'])
    log.open(writes=group.is_main)
    return Experiment(out, config, data, group, recipe, options, log, seconds, started)


def data_spec(config: dict[str, Any]) -> DataSpec:
    """The data set that a configuration names, and its split."""
    columns = config['columns'].split(',')
    if len(columns) != 2:
        raise InputError(
            f'--columns {config["columns"]}: expected two names, as user_id,item_id'
        )
    keys = ('dataset', 'data_root', 'protocol', 'split_seed')
    return DataSpec(*(config[key] for key in keys), *columns)


def load_data(config: dict[str, Any]) -> tuple[HeteroData, str]:
    """The data set that a configuration names, with the users to rank for.

    Also its :func:`data_digest`, which a built form knows.
    """
    spec = data_spec(config)
    data = get_dataset(spec)
    if not data[RATES].val_edge_label_index.size(1):
        raise InputError(
            f'{config["dataset"]}: protocol {config["protocol"]} leaves no validation '
            'items to select the model on; give users more items, or a valid.txt'
        )
    digest = built_digest(spec) or data_digest(data)
    if config['eval_users'] is not None:
        data = with_sampled_users(data, config['eval_users'], spec.split_seed)
    return data, digest


def data_digest(data: HeteroData) -> str:
    """The SHA-256 of the pairs of a data set and its split."""
    digest = hashlib.sha256()
    for key in ('edge_index', 'val_edge_label_index', 'test_edge_label_index'):
        digest.update(data[RATES][key].contiguous().numpy().data)
    return digest.hexdigest()


def check_data_of(folder: Path, config: dict[str, Any], digest: str) -> None:
    """Refuses data that changed since a run began: test items would leak."""
    if digest != config['data_sha256']:
        raise InputError(
            f'{folder}: the data set {config["dataset"]} has changed since then; bring '
            'its files back, or train again in another --out'
        )


def pick_device(name: str) -> torch.device:
    """The device of an option, checked."""
    if name == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: torch finds no CUDA device; use --device cpu')
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    return torch.device(name)


def check_out(out: Path, init: str | None, resume: bool) -> None:
    """Refuses an output directory that cannot be written or must not be replaced."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = 'is not a directory' if not there.is_dir() else 'cannot be written'
        raise InputError(f'--out {out}: {there} {why}; name another directory')
    if init is not None and out.resolve() == Path(init).resolve():
        raise InputError(f'--out {out}: --init is read from there; name another --out')
    if resume_files(out) and not resume:
        raise InputError(
            f'{out}: holds an interrupted run; add --resume to continue it, name '
            f'another --out, or delete {" and ".join(RESUME_FILES)} there'
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


class TrainingLog:
    """The lines of history.jsonl, one per evaluation; a resumed run goes on in it."""

    def __init__(self, out: Path) -> None:
        self.path = out / 'history.jsonl'
        self.lines: list[dict[str, Any]] = []
        self.writer: Any = None

    def open(self, writes: bool) -> None:
        """Reads what is there and, in the process that writes, opens TensorBoard."""
        if self.path.exists():
            self.lines = read_json(self.path, lines=True)
            try:
                [(x['stage'], x['phase'], x['val'][SELECTION]) for x in self.lines]
            except (KeyError, TypeError) as error:
                raise InputError(
                    f'{self.path}: damaged ({error!r}); restore it, or train again'
                ) from None
        if not writes:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(self.path.with_name('tensorboard')))

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


def read_recipe(config: dict[str, Any]) -> Recipe:
    """The recipe of a configuration."""
    return RECIPES[config['recipe']](**config['settings'])


def load_init(config: dict[str, Any]) -> Recommender:
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
    model = load(next((path for path in phases if path.exists()), folder))
    if model.stage != 'coarse':
        raise InputError(
            f'{folder}: holds a fine stage only; name the run of its coarse stage'
        )
    return model.model


def reuse_freed_memory() -> None:
    """Lets this process keep freed memory for later tensors (glibc only).

    Each step frees and allocates tables of tens of megabytes. By default the C library
    returns such blocks to the system, and every step pays for new pages: on
    Gowalla a third of its time. It changes the whole process, so programs call it,
    never the library.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        logger.debug('no glibc: freed memory returns to the system')
