r"""Gathers finished and running trainings into ``benchmarks/results``.

    python benchmarks/collect.py runs/*

Each directory that ``run.py train --out`` wrote becomes ``runs-NAME.json`` (call,
metrics if the run is complete, the history); from all of these, also earlier ones, come
``training.md`` (tables) and ``training.png`` (validation curves, with the published
trajectory where there is one).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pyg_c2f.files import write_json

RESULTS = Path(__file__).parent / 'results'
PHASES = [(stage, f'phase{phase}') for stage in ('coarse', 'fine') for phase in (1, 2)]
# Validation NDCG@5 and Recall@20 of the published coarse run on Gowalla, by epoch.
PUBLISHED = {
    0: (0.0065, 0.0246),
    5: (0.0295, 0.0718),
    10: (0.0367, 0.0852),
    15: (0.0397, 0.0907),
    20: (0.0420, 0.0941),
    30: (0.0446, 0.0975),
    65: (0.0459, 0.0989),
}


def gather(folder: Path) -> dict[str, Any]:
    """The call, the metrics and the history of a run."""
    config = json.loads((folder / 'config.json').read_text())
    lines = (folder / 'history.jsonl').read_text().splitlines()
    path = folder / 'metrics.json'
    return {
        'call': config['call'],
        'dataset': config['dataset'],
        'protocol': config['protocol'],
        'seed': config['seed'],
        'metrics': json.loads(path.read_text()) if path.exists() else None,
        'history': [json.loads(line) for line in lines],
    }


def popularity(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of the baseline, also of runs that had no other one."""
    return metrics.get('baselines', metrics)['popularity']


def tables(runs: dict[str, dict[str, Any]]) -> str:
    """The figures of all runs as Markdown."""
    out = ['# Trainings\n', 'Made by `python benchmarks/collect.py RUN_DIR ...`.\n']
    for name, run in sorted(runs.items()):
        out.append(f'## {name}\n\n`{run["call"]}`\n')
        metrics = run['metrics']
        if metrics is None:
            where = 'before its first evaluation'
            if run['history']:
                last = run['history'][-1]
                where = (
                    f'{last["stage"]} stage, phase {last["phase"]}, last evaluation at '
                    f'epoch {last["epoch"]} after {last["seconds"]:,.0f} s of training'
                )
            out.append(f'Not complete: {where}.\n')
        else:
            out.append(test_table(metrics))
        out.append(trajectory(run))
    return '\n'.join(out)


def test_table(metrics: dict[str, Any]) -> str:
    """Test figures of each phase, and what the fine stage changed."""
    rows = ['| test | best epoch | NDCG@5 | NDCG@20 | Recall@5 | Recall@20 |']
    rows.append('|---|---|---|---|---|---|')
    names = ('ndcg@5', 'ndcg@20', 'recall@5', 'recall@20')

    def add(label: str, epoch: object, test: dict[str, float]) -> None:
        figures = ' | '.join(f'{test[name]:.4f}' for name in names)
        rows.append(f'| {label} | {epoch} | {figures} |')

    add('popularity', '', popularity(metrics)['test'])
    for stage, phase in PHASES:
        result = metrics.get(stage, {}).get(phase)
        if result is not None:
            add(f'{stage}, phase {phase[-1]}', result['best_epoch'], result['test'])
    seconds = metrics['seconds']
    text = (
        f'\nTraining {seconds["train"]:,.0f} s, all {seconds["total"]:,.0f} s. Bytes: '
        + ', '.join(f'{key} {value:,}' for key, value in metrics['bytes'].items())
        + '.\n'
    )
    coarse = metrics.get('coarse', {}).get('phase2')
    if coarse is not None and 'fine' in metrics:
        change = metrics['test']['ndcg@20'] / coarse['test']['ndcg@20'] - 1
        verdict = 'better' if change > 0 else 'not better'
        text += (
            f'\nThe fine stage is {verdict} than the coarse one on test NDCG@20 '
            f'({change:+.1%}).\n'
        )
    return '\n'.join(rows) + '\n' + text


def trajectory(run: dict[str, Any]) -> str:
    """The validation figures beside the published ones, where there are any."""
    if (run['dataset'], run['protocol']) != ('gowalla', 'c2f'):
        return ''
    rows = ['| epoch | NDCG@5 | published | | Recall@20 | published | |']
    rows.append('|---|---|---|---|---|---|---|')
    for line in run['history']:
        if line['stage'] == 'coarse' and line['epoch'] in PUBLISHED:
            row = [f'{line["epoch"]}']
            for name, theirs in zip(
                ('ndcg@5', 'recall@20'), PUBLISHED[line['epoch']], strict=True
            ):
                ours = line['val'][name]
                row += [f'{ours:.4f}', f'{theirs:.4f}', f'{ours / theirs - 1:+.0%}']
            rows.append('| ' + ' | '.join(row) + ' |')
    return '\n'.join(['Validation, coarse stage:\n', *rows, ''])


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel a run: validation NDCG@5 against the epoch, stages side by side."""
    from matplotlib.figure import Figure

    columns = 3
    height = -(-len(runs) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * height), layout='constrained')
    panels = figure.subplots(height, columns, squeeze=False).flat
    for ax, (name, run) in zip(panels, sorted(runs.items()), strict=False):
        offset = 0
        for stage, colour in (('coarse', '#0072B2'), ('fine', '#D55E00')):
            lines = [x for x in run['history'] if x['stage'] == stage]
            for phase, style in ((1, '--'), (2, '-')):
                part = [x for x in lines if x['phase'] == phase]
                ax.plot(
                    [offset + x['epoch'] for x in part],
                    [x['val']['ndcg@5'] for x in part],
                    style,
                    color=colour,
                    label=f'{stage}, phase {phase}' if part else None,
                )
            offset += lines[-1]['epoch'] if lines else 0
        if (run['dataset'], run['protocol']) == ('gowalla', 'c2f'):
            known = [epoch for epoch in PUBLISHED if epoch <= max(offset, 10)]
            ax.plot(
                known, [PUBLISHED[x][0] for x in known], 'kx', label='published run'
            )
        if run['metrics'] is not None:
            ax.axhline(
                popularity(run['metrics'])['val']['ndcg@5'],
                color='#7A7A7A',
                linestyle=':',
                label='popularity',
            )
        ax.set_title(name + ('' if run['metrics'] else ' (not complete)'))
        ax.set_xlabel('epoch')
        ax.set_ylabel('validation NDCG@5')
        ax.legend(fontsize=7, frameon=False)
    for ax in list(figure.axes)[len(runs) :]:
        ax.set_axis_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Gathers the given directories and redraws everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folders', nargs='*', type=Path)
    RESULTS.mkdir(exist_ok=True)
    for folder in parser.parse_args().folders:
        write_json(RESULTS / f'runs-{folder.name}.json', gather(folder))
    runs = {
        path.stem.removeprefix('runs-'): json.loads(path.read_text())
        for path in RESULTS.glob('runs-*.json')
    }
    (RESULTS / 'training.md').write_text(tables(runs))
    draw(runs, RESULTS / 'training.png')


if __name__ == '__main__':
    main()
