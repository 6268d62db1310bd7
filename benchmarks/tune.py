r"""Searches settings of recipe fast for a data set, below a stored size.

    python benchmarks/tune.py --dataset gowalla --data-root ../shared/data \
        --megabytes 1 --trials 100

Optuna's TPE with a median pruner that looks at the coarse stage. The objective is the
validation NDCG@20 of the last stage, at one seed; test items are taken out of the data
before the search. The study is kept in a database below ``runs``, so that a second call
continues it: ``--trials`` includes those of earlier calls, ``--seconds`` is per call.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common import (
    MEGABYTE,
    METRICS,
    PER_LEVEL,
    WIDTHS,
    as_settings,
    base_recipe,
    data_arguments,
    estimated_bytes,
    header,
    header_text,
    load_data,
    markdown_table,
    remembered,
    result_path,
    spectrum_key,
    stamp,
    stored_bytes,
    svd_key,
    write_result,
)
from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import model_bytes
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.recipes import FastRecipe, TrainingOptions, check_run, fast
from pyg_c2f.typing import ITEM, RATES, USER, InputError

METRIC = METRICS[0]
SLACK = 1.1  # of the size before the model is built, which is an estimate
TOO_LARGE, WORSE = 'too large', 'coarse stage below the median'
RANGES: dict[str, tuple[float, float, bool]] = {  # the last: on a logarithmic scale
    'coarse_per_item': (1.5, 24.0, True),
    'user_norm': (0.3, 0.8, False),
    'item_norm': (0.25, 0.55, False),
    'spectral_power': (0.0, 0.6, False),
    'importance_power': (0.2, 1.2, False),
    'score_power': (0.1, 0.8, False),
    'diffusion': (0.0, 2.0, False),
}
MOST_LEVELS = 4
NARROW = (32, 64, 96, 128)  # beside the widths of the sizes: for small sets


def without_test(data: HeteroData) -> HeteroData:
    """Takes the test items out of a data set."""
    if 'test_edge_label_index' in data[RATES]:
        del data[RATES].test_edge_label_index
    return data


def suggest(
    trial: Any, data: HeteroData, base: FastRecipe, graph: bool
) -> tuple[FastRecipe, dict[str, Any]]:
    """A recipe to try, and the settings in which it differs."""
    settings: dict[str, Any] = {
        'embedding_dim': trial.suggest_categorical('embedding_dim', widths(data)),
        'fine_per_item': trial.suggest_int('fine_per_item', 0, MOST_LEVELS),
    }
    for name, (low, high, log) in RANGES.items():
        if name != 'diffusion' or graph:
            # Three digits: the line to repeat a run with is the run itself.
            value = float(f'{trial.suggest_float(name, low, high, log=log):.3g}')
            settings[name] = min(max(value, low), high)
    if settings['fine_per_item']:
        per_level = min(PER_LEVEL, data[ITEM].num_nodes)
        settings['num_fine'] = per_level * settings['fine_per_item']
    return replace(base, **settings), settings


def widths(data: HeteroData) -> list[int]:
    """The widths that a data set has singular vectors for."""
    most = min(data[USER].num_nodes, data[ITEM].num_nodes)
    return sorted({min(width, most) for width in (*NARROW, *WIDTHS)})


class Objective:
    """Validation NDCG@20 of a trial, or a pruned trial with its reason."""

    def __init__(
        self,
        data: HeteroData,
        base: FastRecipe,
        limit: float,
        graph: bool,
        pruned: type[Exception],
        seed: int,
    ) -> None:
        self.data, self.base, self.limit = data, base, limit
        self.graph, self.pruned, self.seed = graph, pruned, seed

    def __call__(self, trial: Any) -> float:
        start = time.perf_counter()
        try:
            return self.run(trial)
        except InputError as error:
            self.prune(trial, f'refused: {error}')
        finally:
            trial.set_user_attr('seconds', time.perf_counter() - start)
        raise AssertionError

    def prune(self, trial: Any, reason: str) -> None:
        """Ends a trial."""
        trial.set_user_attr('reason', reason)
        raise self.pruned(reason)

    def look(self, recipe: FastRecipe) -> tuple[dict[str, float], dict[str, int]]:
        """Validation figures and bytes of a recipe's last stage."""
        generator = torch.Generator().manual_seed(2 * self.seed)  # as train_fast
        model = fast.build_fast(self.data, recipe, generator)
        model.set_stage('fine' if recipe.fine_per_item else 'coarse')
        sizes = model_bytes(model)
        if stored_bytes(sizes) > self.limit:
            return {}, sizes
        return evaluate_split(model.scorer(), self.data, 'val', ks=(20,)), sizes

    def run(self, trial: Any) -> float:
        """One trial."""
        recipe, settings = suggest(trial, self.data, self.base, self.graph)
        trial.set_user_attr('settings', settings)
        if estimated_bytes(self.data, recipe) > SLACK * self.limit:
            self.prune(trial, TOO_LARGE)
        val, sizes = self.look(replace(recipe, fine_per_item=0))
        if val:
            trial.report(val[METRIC], 0)
            if trial.should_prune():
                self.prune(trial, WORSE)
            if recipe.fine_per_item:
                val, sizes = self.look(recipe)
        if not val:
            self.prune(trial, TOO_LARGE)
        trial.set_user_attr('val', {name: val[name] for name in METRICS})
        trial.set_user_attr('stored', stored_bytes(sizes))
        trial.set_user_attr('inference_extra', sizes['inference_extra'])
        return val[METRIC]


def summary(study: Any) -> dict[str, Any]:
    """The outcome of a study."""
    trials = [x for x in study.trials if x.state.is_finished()]
    done = [x for x in trials if x.state.name == 'COMPLETE']
    reasons = Counter(x.user_attrs.get('reason', '') for x in trials if x not in done)
    keys = ('settings', 'val', 'stored', 'inference_extra')
    ordered = sorted(done, key=lambda x: -x.value)
    return {
        'trials': len(trials),
        'complete': len(done),
        'pruned': {reason.partition(':')[0]: n for reason, n in reasons.items()},
        'seconds': sum(x.user_attrs.get('seconds', 0.0) for x in trials),
        'best': [
            {'trial': x.number} | {key: x.user_attrs[key] for key in keys}
            for x in ordered[:10]
        ],
    }


def table(result: dict[str, Any]) -> str:
    """The best trials as Markdown."""
    pruned = ', '.join(f'{n} {reason}' for reason, n in result['pruned'].items())
    out = [
        f'# Settings below {result["megabytes"]:g} MB\n',
        header_text(result, [result]),
        f'{result["trials"]} trials in {result["seconds"]:,.0f} s: '
        f'{result["complete"]} complete; pruned: {pruned or "none"}. Chosen by '
        'validation NDCG@20; test items were not in the data.\n',
    ]
    if not result['best']:
        return '\n'.join([*out, 'No trial fits the size.\n'])
    rows = [
        [
            str(x['trial']),
            f'`{as_settings(x["settings"])}`',
            *(f'{value:.4f}' for value in x['val'].values()),
            f'{x["stored"]:,}',
            f'{x["inference_extra"]:,}',
        ]
        for x in result['best']
    ]
    names = 'trial|settings|val NDCG@20|val Recall@20|stored bytes|inference extra'
    return '\n'.join(
        [
            *out,
            f'Best: `{as_settings(result["best"][0]["settings"])}`\n',
            markdown_table(names.split('|'), rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Searches until the trials or the seconds are spent."""
    try:
        import optuna
    except ImportError:
        sys.exit('tune.py searches with Optuna: pip install optuna')
    argv = sys.argv[1:] if argv is None else argv
    parser = data_arguments(__doc__)
    parser.add_argument('--megabytes', type=float, default=1.0)
    parser.add_argument('--trials', type=int, help='of all calls together')
    parser.add_argument('--seconds', type=float, help='of this call')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--graph',
        action='store_true',
        help='allow the diffusion channel, which needs the train graph',
    )
    parser.add_argument('--runs', type=Path, default='runs', help='for the study')
    args = parser.parse_args(argv)
    if args.trials is None and args.seconds is None:
        parser.error('how long? Give --trials or --seconds')
    data, base = without_test(load_data(args)), base_recipe(args)
    check_run(data, base, TrainingOptions())
    name = f'tune-{args.dataset}-{args.protocol}-{args.megabytes:g}MB'
    name += '-graph' if args.graph else ''

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    args.runs.mkdir(parents=True, exist_ok=True)
    database = f'sqlite:///{args.runs.resolve() / name}.db'
    study = optuna.create_study(
        storage=database,
        study_name=name,
        load_if_exists=True,
        direction='maximize',
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
    )
    before = [x for x in study.trials if x.state.is_finished()]
    # Every call draws its own numbers, or a second one would repeat the first.
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(before))
    if not before:
        start = {key: getattr(base, key) for key in ('fine_per_item', *RANGES)}
        start['embedding_dim'] = min(base.embedding_dim, widths(data)[-1])
        study.enqueue_trial(start, skip_if_exists=True)
    left = None if args.trials is None else max(args.trials - len(before), 0)
    objective = Objective(
        data,
        base,
        args.megabytes * MEGABYTE,
        args.graph,
        optuna.TrialPruned,
        args.seed,
    )
    with (
        remembered('right_vectors', svd_key, len(NARROW + WIDTHS)),
        remembered('spectral_features', spectrum_key),
    ):
        study.optimize(objective, left, args.seconds, show_progress_bar=True)
    result = header('tune', args, argv) | {'megabytes': args.megabytes} | stamp()
    result |= {'base': asdict(base)} | summary(study)
    write_result(result_path(args, name), result, table(result))


if __name__ == '__main__':
    main()
