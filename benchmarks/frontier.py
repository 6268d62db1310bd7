r"""Ways to make a recommender small: quality against bytes.

    python benchmarks/frontier.py --dataset lastfm --data-root ../shared/data

Each method gets the same number of trials (Optuna; validation items of protocol
standard), fewer where it has used up ``--seconds``, over what sets its size and what
sets its quality together; no settings are chosen on test items. For each of a row of
sizes, the best trial that fits is fitted again to train.txt with several seeds and
evaluated on test items of both protocols. Its bytes are those of the file with its
tensors, which is read again before the evaluation. Tables that are compressed after
training are the best ones of each width of the uncompressed method.

Finished work is kept in frontier.json, so that a second call continues where the first
one stopped; ``--only`` runs some methods, and several such calls may run beside each
other. ``--quick`` takes minutes and writes frontier-quick.json.
"""

import fcntl
import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import (
    METRICS,
    header,
    make_parser,
    read_result,
    remembered,
    result_path,
    spectrum_key,
    spread,
    stamp,
)
from frontier_methods import METHODS, SIZES, SLOW, Data, Known, sizes_of_ours
from frontier_report import OURS, draw, tables
from methods import (
    GFCF,
    Baseline,
    ChebyCF,
    CompressedLightGCN,
    Histories,
    file_bytes,
    histories_of,
)
from methods.base import Tensors
from methods.codec import Plain
from methods.linear import Linear
from safetensors.torch import load
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.datasets import get_dataset
from pyg_c2f.datasets.interactions import with_validation_in_train
from pyg_c2f.evaluate import Score, evaluate, exclude_edges, rank_items
from pyg_c2f.experiment import reuse_freed_memory
from pyg_c2f.files import whole_file, write_json, write_text
from pyg_c2f.typing import ITEM, RATES, USER, InputError

# Of a size: the last fit has more interactions than the trials, and its seeds differ.
FULL = 0.985
TUNE_USERS = 6_000  # whose validation items trials look at, of a large data set
TIMED_LISTS = 30
FEWEST_TRIALS = 3
RANDOM_TRIALS = 20
K = 20


def load_frontier_data(name: str, root: str | None) -> Data:
    """Both protocols of a data set: the trials' train items and all of train.txt."""
    standard = get_dataset(name, root, 'standard')
    c2f = get_dataset(name, root, 'c2f')
    num_users, num_items = standard[USER].num_nodes, standard[ITEM].num_nodes
    tune, final = (
        histories_of(x[RATES].edge_index, num_users, num_items) for x in (standard, c2f)
    )
    test = standard
    if final.col.numel() > tune.col.numel():
        # Validation items were taken out of train.txt, and go back into it.
        test = with_validation_in_train(standard)
    return Data(name, tune, final, standard, test, c2f)


class Store:
    """Fitted methods on disk, by their settings: nothing is fitted twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def fit(
        self, method: Baseline, histories: Histories, seed: int
    ) -> tuple[Tensors, float, bool]:
        """The stored tensors, the seconds of fitting, and whether the seed mattered."""
        if isinstance(method, Linear):
            return self._fit_linear(method, histories, seed)
        codec = getattr(method, 'codec', None)
        # These put their codecs to tables of other names, or to none.
        if codec is None or isinstance(method, GFCF | CompressedLightGCN):
            return self._fit(method, histories, seed)
        plain_method = replace(method, codec=Plain())
        if isinstance(method, ChebyCF):
            # Of its settings the graph and the vectors have one only.
            plain_method = ChebyCF(method.rank)
        plain, seconds, random = self._fit(plain_method, histories, seed)
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        stored = {}
        for name, x in plain.items():
            prefix, _, kind = name.partition('.')
            coded = codec.encode(x, generator) if kind == 'table' else None
            stored |= (
                {name: x}
                if coded is None
                else {f'{prefix}.{key}': value for key, value in coded.items()}
            )
        return stored, seconds + time.perf_counter() - start, random

    def _fit_linear(
        self, method: Linear, histories: Histories, seed: int
    ) -> tuple[Tensors, float, bool]:
        """Inverses are what takes time: one for all scales, sizes and bits."""
        free = {'num_neighbors': None, 'weight_bits': 8}
        plain = replace(method, item_norm=0.0, item_power=0.0, **free)
        whole, seconds, random = self._fit(plain, histories, seed)
        start = time.perf_counter()
        stored = method.kept(whole, histories)
        return stored, seconds + time.perf_counter() - start, random

    def _fit(
        self, method: Baseline, histories: Histories, seed: int
    ) -> tuple[Tensors, float, bool]:
        key = f'{method} {histories.col.numel()}'
        paths = [
            self.folder / hashlib.sha256(x.encode()).hexdigest()[:24]
            for x in (key, f'{key} {seed}')
        ]
        path = next((x for x in paths if x.with_suffix('.json').exists()), None)
        if path is None:
            generator = torch.Generator().manual_seed(seed)
            before = generator.get_state()
            start = time.perf_counter()
            if isinstance(method, Linear):
                stored = method.whole(histories)
            else:
                stored = method.fit(histories, generator)
            seconds = time.perf_counter() - start
            # What has drawn nothing is the same for every seed.
            path = paths[not torch.equal(before, generator.get_state())]
            with whole_file(path.with_suffix('.safetensors')) as part:
                part.write_bytes(file_bytes(stored))
            write_json(path.with_suffix('.json'), {'method': key, 'seconds': seconds})
        content = path.with_suffix('.safetensors').read_bytes()
        seconds = json.loads(path.with_suffix('.json').read_text())['seconds']
        return load(content), seconds, path == paths[1]


def label_index(data: HeteroData, split: str, most_users: int = 0) -> Tensor:
    """Held-out pairs, of some users only where there are many."""
    pairs = data[RATES][f'{split}_edge_label_index']
    users = pairs[0].unique()
    if not most_users or len(users) <= most_users:
        return pairs
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    return pairs[:, torch.isin(pairs[0], users[order[:most_users]])]


def look(
    score: Score, pairs: Tensor, exclude: Tensor, histories: Histories
) -> dict[str, float]:
    """Recall and NDCG of the first twenty."""
    sizes = histories.num_users, histories.num_items
    out = evaluate(score, pairs, exclude, *sizes, ks=(K,))
    return {name: out[name] for name in METRICS}


def ranked(score: Score, users: Tensor, exclude: Tensor, histories: Histories) -> Score:
    """Scores with the same first twenty items, without computing them again."""
    top = rank_items(score, users, histories.num_items, exclude, K)
    place = torch.full((histories.num_users,), -1)
    place[users] = torch.arange(len(users))
    falling = torch.arange(K, 0, -1).float()

    def again(users: Tensor) -> Tensor:
        out = torch.zeros(len(users), histories.num_items)
        return out.scatter_(1, top[place[users]], falling.expand(len(users), -1))

    return again


def milliseconds(score: Score, histories: Histories) -> float:
    """The median time of one list for one user."""
    times = []
    for user in torch.arange(histories.num_users)[:TIMED_LISTS].split(1):
        start = time.perf_counter()
        score(user).topk(K)
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def on_validation(method: Baseline, data: Data, store: Store) -> dict[str, Any]:
    """Bytes, seconds and validation figures of a trial."""
    stored, seconds, _ = store.fit(method, data.tune, 0)
    file = file_bytes(stored)
    score = method.scorer(load(file), data.tune)
    pairs = label_index(data.validation, 'val', TUNE_USERS)
    val = look(score, pairs, data.tune.edge_index, data.tune)
    return {'bytes': len(file), 'seconds': round(seconds, 3), 'val': val}


def on_test(method: Baseline, data: Data, store: Store, seed: int) -> dict[str, Any]:
    """Bytes, seconds and test figures, both protocols, of a last fit."""
    stored, seconds, random = store.fit(method, data.final, seed)
    file = file_bytes(stored)
    score = method.scorer(load(file), data.final)
    out: dict[str, Any] = {'bytes': len(file), 'seconds': round(seconds, 3)}
    out['random'] = random
    out['milliseconds'] = round(milliseconds(score, data.final), 3)
    known: tuple[Tensor, Tensor, Score] | None = None
    for name, graph in (('standard', data.standard), ('c2f', data.c2f)):
        pairs, exclude = label_index(graph, 'test'), exclude_edges(graph, 'test')
        users = pairs[0].unique()
        if (
            known is None
            or not torch.equal(known[0], exclude)
            or not torch.isin(users, known[1]).all()
        ):
            known = exclude, users, ranked(score, users, exclude, data.final)
        out[name] = look(known[2], pairs, exclude, data.final)
    return out | stamp()


# Trials, and the best of them again.


def starts(
    name: str, data: Data, bases: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Parameters of the first trials; Optuna draws those that are not given."""
    num_users, num_items = data.tune.num_users, data.tune.num_items
    width = 512 if num_items > 30_000 else 256 if num_items > 10_000 else 96
    for params in METHODS[name].starts:
        if name in OURS:
            for size in sizes_of_ours(data):
                yield params | {'size': size, 'embedding_dim': width}
        elif METHODS[name].base:
            # The two best tables come last.
            for base in bases[:-3:-1]:
                yield params | {'source': json.dumps(base, sort_keys=True)}
        elif params.get('loss') == 'whole':
            # All pairs together weigh ten times what the positives do.
            density = data.tune.col.numel() / (num_users * num_items)
            yield params | {'alpha': 10 * density}
        else:
            yield params


def tune(
    name: str,
    data: Data,
    store: Store,
    entry: dict[str, Any],
    bases: list[dict[str, Any]],
    args: Namespace,
) -> Iterator[None]:
    """Adds trials to an entry; yields after each so that it can be saved.

    In a second call the sampler draws the same trials again, and finds their results.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=RANDOM_TRIALS)
    study = optuna.create_study(directions=['minimize', 'maximize'], sampler=sampler)
    for params in starts(name, data, bases):
        study.enqueue_trial(params)
    known = {json.dumps(x['params'], sort_keys=True): x for x in entry['trials']}
    fewest = 1 if args.quick else FEWEST_TRIALS
    for place in range(args.trials):
        fresh = place >= len(entry['trials'])
        # Of trials before the seconds were kept nothing is known: no more of these.
        unknown = entry['spent'] is None
        over = args.seconds and (unknown or entry['spent'] > args.seconds)
        if fresh and place >= fewest and over:
            break
        start = time.perf_counter()
        trial = study.ask()
        try:
            method = METHODS[name].suggest(trial, data, bases)
            key = json.dumps(trial.params, sort_keys=True)
            if known.get(key, {}).get('settings') != str(method):
                result = {'params': trial.params, 'settings': str(method)}
                known[key] = result | on_validation(method, data, store)
        except InputError as error:
            key = json.dumps(trial.params, sort_keys=True)
            known[key] = {'params': trial.params, 'refused': str(error)}
        result = known[key]
        if fresh:
            entry['trials'].append(result)
            spent = time.perf_counter() - start
            entry['spent'] = (entry['spent'] or 0.0) + spent
            yield
        if 'refused' in result:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, [result['bytes'], result['val'][METRICS[0]]])
        if not trial.params:
            break  # nothing to choose


def _quality(trial: dict[str, Any]) -> float:
    return trial['val'][METRICS[0]]


def choose(trials: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[dict]:
    """For each size the best trial that fits, by validation NDCG@20; each once."""
    chosen: list[dict[str, Any]] = []
    for size in sizes:
        fits = [x for x in trials if 'val' in x and x['bytes'] <= FULL * size]
        if fits:
            best = max(fits, key=lambda x: (_quality(x), -x['bytes']))
            if best not in chosen:
                chosen.append(best)
    return chosen


def sources(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is compressed after training: of each width (or penalty) the best trial."""
    best: dict[Any, dict[str, Any]] = {}
    for trial in sorted((x for x in trials if 'val' in x), key=_quality):
        params = trial['params']
        best[params.get('embedding_dim', params.get('l2'))] = params
    return list(best.values())


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    out: dict[str, Any] = {
        'bytes': max(x['bytes'] for x in runs),
        'seconds': sum(x['seconds'] for x in runs) / len(runs),
        'milliseconds': median(x['milliseconds'] for x in runs),
        'seeds': len(runs),
    }
    for protocol in ('standard', 'c2f'):
        out[protocol] = {m: spread([x[protocol][m] for x in runs]) for m in METRICS}
    return out


def finish(
    method: Baseline, data: Data, store: Store, seeds: int, final: dict[str, Any]
) -> Iterator[None]:
    """Runs the seeds that a chosen point lacks; yields after each.

    One seed is enough for a method without randomness.
    """
    runs = final['runs']
    for seed in range(seeds):
        if str(seed) not in runs and all(x['random'] for x in runs.values()):
            runs[str(seed)] = on_test(method, data, store, seed)
            final['summary'] = summary(list(runs.values()))
            final['serves_anyone'] = bool(method.serves_anyone)
            yield


@contextmanager
def result_file(path: Path) -> Iterator[dict[str, Any]]:
    """The figures, to be changed: one process at a time."""
    with open(path.with_suffix('.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = read_result(path, ['datasets'])
        yield result
        write_json(path, result)


def run_method(
    name: str, data: Data, store: Store, path: Path, args: Namespace, bar: tqdm
) -> None:
    """Tunes a method, fits the chosen settings and saves all results."""

    def entries(result: dict[str, Any]) -> dict[str, Any]:
        found = result['datasets'].setdefault(data.name, {'methods': {}})
        return found['methods']

    with result_file(path) as result:
        known = entries(result)
        entry = known.get(name, {'trials': [], 'spent': 0.0, 'finals': []})
        base = METHODS[name].base
        bases = sources(known.get(base, {}).get('trials', []))

    def write() -> None:
        with result_file(path) as result:
            entries(result)[name] = entry

    entry['published'] = METHODS[name].published
    if base and not bases:
        raise InputError(f'{name} starts from {base}: run that first')
    bar.set_description(f'{name}: trials')
    # Where last fits are others than the trials', no seconds that count are saved.
    apart = data.tune.col.numel() != data.final.col.numel()
    with remembered('spectral_features', spectrum_key, 2) if apart else nullcontext():
        for _ in tune(name, data, store, entry, bases, args):
            write()
    done = {json.dumps(x['params'], sort_keys=True): x for x in entry['finals']}
    chosen = choose(entry['trials'], args.sizes)
    for place, best in enumerate(chosen):
        bar.set_description(f'{name}: {place + 1} of {len(chosen)} sizes')
        method = METHODS[name].suggest(Known(best['params']), data, bases)
        key = json.dumps(best['params'], sort_keys=True)
        final = done.get(key, {})
        if final.get('settings') != str(method):
            final = done[key] = best | {'runs': {}}
        for _ in finish(method, data, store, args.seeds, final):
            entry['finals'] = list(done.values())
            write()
    keys = [json.dumps(best['params'], sort_keys=True) for best in chosen]
    entry['finals'] = [done[key] for key in keys]
    write()


def order_of(names: Sequence[str]) -> list[str]:
    """The methods, each after the one whose tables it starts from."""
    return [x for x in METHODS if x in names and not METHODS[x].base] + [
        x for x in METHODS if x in names and METHODS[x].base
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the unfinished work, then writes tables and pictures."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument('--dataset', default='lastfm')
    parser.add_argument('--data-root')
    parser.add_argument('--trials', type=int, default=40)
    parser.add_argument(
        '--seconds', type=float, help='no new trial of a method after so many'
    )
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--only', nargs='+', choices=list(METHODS), metavar='NAME')
    parser.add_argument(
        '--quick', action='store_true', help='takes minutes: few trials, one seed'
    )
    parser.add_argument('--runs', type=Path, default='runs/frontier')
    parser.add_argument(
        '--sizes', nargs='+', type=int, default=SIZES, help='in bytes, to choose for'
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.trials, args.seconds, args.seeds = 3, 3.0, 1
    reuse_freed_memory()
    try:
        data = load_frontier_data(args.dataset, args.data_root)
    except InputError as error:
        parser.error(str(error))
    store = Store(args.runs / args.dataset)
    path = result_path(args, 'frontier-quick' if args.quick else 'frontier')
    names = args.only or [x for x in METHODS if x not in SLOW]
    for name in (bar := tqdm(order_of(names))):
        try:
            run_method(name, data, store, path, args, bar)
        except (InputError, ImportError) as error:
            tqdm.write(f'{name}: {error}')
    with result_file(path) as result:
        result |= header('frontier', args, argv)
        result |= {'dataset': ', '.join(result['datasets']), 'protocol': 'both'}
        for name, found in result['datasets'].items():
            draw(name, found['methods'], path.with_name(f'{path.stem}-{name}.png'))
        write_text(path.with_suffix('.md'), tables(result))
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
