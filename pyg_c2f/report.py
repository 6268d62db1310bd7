"""The result of a run, as plain-text tables and as one self-contained HTML page."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyg_c2f.files import write_text
from pyg_c2f.typing import KS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = list[str]

_STAGES = ('coarse', 'fine')
_MEASURES = [f'{name}@{k}' for name in ('ndcg', 'recall') for k in KS]
_DRAWN = ('ndcg@5', 'recall@20')
_MISSING = '-'

# What is stored or needed to serve the model, and then what it is compared with.
_PARTS = {
    'codebooks': 'the meta-embeddings as stored, the thresholded fine ones sparse',
    'assignments': 'anchor ids and weights of users, items and coarse anchors',
    'scalars': 'biases, and the degrees of items where scores need them',
    'inference_extra': 'what inference needs besides these',
}
_COMPARED = {
    'histories': 'what known users have rated, where that is all of the graph in use',
    'codebooks_dense': 'the codebooks with every entry stored',
    'propagated_table': 'all propagated user and item vectors, ready to serve',
    'full_table': 'one plain fp32 vector for each user and item',
}

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = {'coarse': '#0072B2', 'fine': '#D55E00'}
_GREY = '#7A7A7A'
_BEST_MARKERS = {1: 'o', 2: '*'}

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff;
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p.about { color: #5b6068; margin: .2rem 0 1.2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; }
.tile { border: 1px solid #dde1e6; border-radius: .5rem; padding: .5rem .8rem; }
.tile b { display: block; font-size: 1.3rem; }
.tile span { color: #5b6068; font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e6e9ed;
  white-space: nowrap; }
th { color: #5b6068; font-weight: 600; }
th:first-child, td:first-child, .sizes :last-child { text-align: left; }
.sizes td:last-child { color: #5b6068; white-space: normal; }
img { max-width: 100%; height: auto; margin-top: .8rem; }
pre { background: #f5f6f8; padding: .8rem; border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""


def results_table(metrics: dict[str, Any]) -> str:
    """Return the ranking metrics as aligned plain text, test before validation.

    Args:
        metrics: The run's metrics, as ``metrics.json`` holds them. Stages and phases
            that did not run are left out.

    Returns:
        One block of lines for each split that has results, or an empty string.
    """
    blocks = []
    for split in ('test', 'val'):
        header, rows = _result_rows(metrics, split)
        if rows:
            blocks.append(_align([split, *header[1:]], rows))
    return '\n\n'.join(blocks)


def size_table(metrics: dict[str, Any]) -> str:
    """Return the sizes in bytes as aligned plain text.

    Args:
        metrics: The run's metrics, as ``metrics.json`` holds them.

    Returns:
        One line for each part, their total, and what they are compared with; or an
        empty string when nothing was measured.
    """
    header, rows = _size_rows(metrics)
    return _align(header, rows) if rows else ''


def write_report(
    out: Path, metrics: dict[str, Any], history: list[dict[str, Any]]
) -> Path:
    """Write ``report.html``: metrics, training curves, sizes, seconds and versions.

    The page is one file that loads nothing else. It replaces an older one in a single
    step, so a reader never sees half a page. Whatever is missing, because a stage did
    not run or the run was interrupted, is left out.

    Args:
        out: The folder of the run; made if it is not there.
        metrics: The run's metrics, as ``metrics.json`` holds them.
        history: One entry for each evaluation, as ``history.jsonl`` holds them.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / 'report.html'
    write_text(path, _page(metrics, history))
    return path


def _results(metrics: dict[str, Any], split: str) -> list[tuple[str, str, dict]]:
    """Return (label, best epoch, values) of everything that was evaluated on a split.

    The run's own result comes last where it is none of the phases' (after a refit).
    """
    found = [('popularity', '', (metrics.get('popularity') or {}).get(split))]
    for stage in _STAGES:
        for phase in (1, 2):
            result = (metrics.get(stage) or {}).get(f'phase{phase}') or {}
            epoch = str(result.get('best_epoch', ''))
            found.append((f'{stage}, phase {phase}', epoch, result.get(split)))
    final = metrics.get(split)
    if all(final != values for _, _, values in found):
        found.append(('final model', '', final))
    return [(label, epoch, values) for label, epoch, values in found if values]


def _result_rows(metrics: dict[str, Any], split: str) -> tuple[Row, list[Row]]:
    names = [
        name.replace('ndcg', 'NDCG').replace('recall', 'Recall') for name in _MEASURES
    ]
    rows = [
        [label, epoch, *(_score(values.get(name)) for name in _MEASURES)]
        for label, epoch, values in _results(metrics, split)
    ]
    return ['', 'epoch', *names], rows


def _size_rows(metrics: dict[str, Any]) -> tuple[Row, list[Row]]:
    header = ['part', 'bytes', 'size', 'of full_table']
    sizes = metrics.get('bytes')
    if not sizes:
        return header, []
    total = 'total of the above'
    sizes = sizes | {total: _total(sizes)}
    rows = [
        [name, f'{size:,}', _readable(size), f'{size / sizes["full_table"]:.2%}']
        for name in (*_PARTS, total, *_COMPARED)
        if (size := sizes.get(name)) is not None
    ]
    return header, rows


def _total(sizes: dict[str, int]) -> int:
    return sum(sizes[part] for part in _PARTS)


def _score(value: float | None) -> str:
    return _MISSING if value is None else f'{value:.4f}'


def _readable(size: float) -> str:
    """Return a number of bytes in decimal units, as the published accounting does."""
    if size < 1000:
        return f'{size:.0f} B'
    for unit in ('kB', 'MB'):
        size /= 1000
        if size < 1000:
            return f'{size:.1f} {unit}'
    return f'{size / 1000:.1f} GB'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.1f} s'
    if seconds < 7200:
        return f'{seconds / 60:.1f} min'
    return f'{seconds / 3600:.1f} h'


def _align(header: Row, rows: list[Row]) -> str:
    """Lay rows out in columns: the first one to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.rjust(width) if j else cell.ljust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    )


def _curves(metrics: dict[str, Any], history: list[dict[str, Any]]) -> 'Figure':
    """Draw a column for each stage: NDCG@5, Recall@20 and loss against its epochs."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    stages = [s for s in _STAGES if any(line['stage'] == s for line in history)]
    popularity = (metrics.get('popularity') or {}).get('val')
    figure = Figure(figsize=(10, 8), layout='constrained')
    axes = figure.subplots(3, len(stages), sharex='col', sharey='row', squeeze=False)
    for column, stage in zip(axes.T, stages, strict=True):
        _draw_stage(column, stage, [line for line in history if line['stage'] == stage])
        if popularity:
            for ax, name in zip(column, _DRAWN, strict=False):
                ax.axhline(popularity[name], color=_GREY, linestyle=':', linewidth=1.4)
    labels = ('validation NDCG@5', 'validation Recall@20', 'training loss')
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    keys = [
        Line2D([], [], label=f'best of phase {phase}', **_best_style(phase, _GREY))
        for phase in sorted({line['phase'] for line in history})
    ]
    keys.append(Line2D([], [], color=_GREY, linestyle='--', label='phase 2 begins'))
    if popularity:
        keys.append(Line2D([], [], color=_GREY, linestyle=':', label='popularity'))
    figure.legend(handles=keys, loc='outside lower center', ncols=4, frameon=False)
    return figure


def _draw_stage(
    column: Sequence['Axes'], stage: str, lines: list[dict[str, Any]]
) -> None:
    """Draw one stage's evaluations into its column of axes."""
    epochs = [line['epoch'] for line in lines]
    series = [[line['val'][name] for line in lines] for name in _DRAWN]
    series.append(
        [math.nan if line['loss'] is None else line['loss'] for line in lines]
    )
    for ax, values in zip(column, series, strict=True):
        ax.plot(epochs, values, color=_COLOURS[stage], linewidth=1.6, marker='.')
        _lighten(ax)
    for phase in _BEST_MARKERS:
        ran = [line for line in lines if line['phase'] == phase]
        if ran:
            best = max(ran, key=lambda line: line['val']['ndcg@5'])
            style = _best_style(phase, _COLOURS[stage])
            for ax, name in zip(column, _DRAWN, strict=False):
                ax.plot(best['epoch'], best['val'][name], **style)
    if len({line['phase'] for line in lines}) == 2:
        # Phase 2 takes over from the last evaluation of phase 1.
        change = max(line['epoch'] for line in lines if line['phase'] == 1)
        for ax in column:
            ax.axvline(change, color=_GREY, linestyle='--', linewidth=1.2)
    column[0].set_title(f'{stage} stage', color=_COLOURS[stage])
    column[-1].set_xlabel(f'epoch of the {stage} stage')


def _lighten(ax: 'Axes') -> None:
    ax.grid(color='#e3e6ea', linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)


def _best_style(phase: int, colour: str) -> dict[str, Any]:
    return {
        'marker': _BEST_MARKERS[phase],
        'markersize': 9 if phase == 1 else 15,
        'markerfacecolor': 'white' if phase == 1 else colour,
        'markeredgecolor': colour,
        'linestyle': 'none',
        'zorder': 3,
    }


def _size_bars(metrics: dict[str, Any]) -> 'Figure':
    """Draw the stored parts and the full table as bars on a logarithmic axis."""
    from matplotlib.figure import Figure

    sizes = metrics['bytes']
    names = [*_PARTS, 'full_table']
    # A logarithmic axis has no zero: it starts below the smallest part, where an
    # empty part has its label, but no bar.
    start = min((sizes[name] for name in names if sizes[name]), default=1) / 10
    widths = [max(sizes[name], start) for name in names]
    figure = Figure(figsize=(10, 0.5 * len(names) + 1), layout='constrained')
    ax = figure.subplots()
    colours = [_GREY if name == 'full_table' else _COLOURS['coarse'] for name in names]
    bars = ax.barh(names, widths, color=colours, height=0.65)
    ax.bar_label(bars, [_readable(sizes[name]) for name in names], padding=4)
    ax.set_xscale('log')
    ax.set_xlim(start, 5 * max(widths))
    ax.set_xlabel('bytes (logarithmic)')
    ax.invert_yaxis()
    _lighten(ax)
    ax.grid(axis='y', visible=False)
    return figure


def _image(figure: 'Figure', alt: str) -> str:
    """Return a figure as an ``img`` element that carries its own SVG."""
    import matplotlib

    buffer = io.BytesIO()
    # A fixed salt and no date: the same run gives the same page.
    with matplotlib.rc_context({'svg.hashsalt': 'pyg_c2f'}):
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    data = base64.b64encode(buffer.getvalue()).decode('ascii')
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def _html_table(header: Row, rows: list[Row], kind: str = '') -> str:
    def line(tag: str, row: Row) -> str:
        cells = ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)
        return f'<tr>{cells}</tr>'

    body = ''.join(line('td', row) for row in rows)
    head = f'<thead>{line("th", header)}</thead>'
    table = f'<table class="{kind}">{head}<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _tiles(metrics: dict[str, Any]) -> str:
    split = 'test' if metrics.get('test') else 'val'
    values = metrics.get(split) or {}
    sizes, seconds = metrics.get('bytes') or {}, metrics.get('seconds') or {}
    tiles = [
        (_score(values[name]), f'{label} on {split}')
        for name, label in (('ndcg@20', 'NDCG@20'), ('recall@20', 'Recall@20'))
        if name in values
    ]
    if sizes:
        tiles += [
            (_readable(sizes['codebooks']), 'codebooks'),
            (_readable(_total(sizes)), 'with all else it needs'),
            (_readable(sizes['full_table']), 'a full embedding table'),
        ]
    if 'total' in seconds:
        tiles.append((_duration(seconds['total']), 'total time'))
    cells = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _page(metrics: dict[str, Any], history: list[dict[str, Any]]) -> str:
    title = f'C2F on {metrics.get("dataset", "unknown data")}'
    named = ('protocol', 'recipe', 'seed', 'split_seed')
    about = [
        f'{name.replace("_", " ")} {metrics[name]}' for name in named if name in metrics
    ]
    counts = {
        'num_users': 'users',
        'num_items': 'items',
        'num_train': 'train interactions',
    }
    about += [
        f'{metrics[name]:,} {label}'
        for name, label in counts.items()
        if name in metrics
    ]
    parts = [
        f'<h1>{escape(title)}</h1>',
        f'<p class="about">{escape(" · ".join(about))}</p>',
        _tiles(metrics),
        '<h2>Ranking</h2>',
    ]
    for split, label in (('test', 'Test'), ('val', 'Validation')):
        header, rows = _result_rows(metrics, split)
        if rows:
            parts += [f'<h3>{label}</h3>', _html_table(header, rows)]
    parts.append('<h2>Training</h2>')
    if history:
        alt = 'Validation NDCG@5, Recall@20 and training loss against epochs'
        parts.append(_image(_curves(metrics, history), alt))
    else:
        parts.append('<p>No evaluation was recorded.</p>')
    header, rows = _size_rows(metrics)
    if rows:
        meanings = _PARTS | _COMPARED
        rows = [[*row, meanings.get(row[0], '')] for row in rows]
        parts += [
            '<h2>Size</h2>',
            _html_table([*header, 'what it is'], rows, kind='sizes'),
            _image(_size_bars(metrics), 'Bytes of each part on a logarithmic axis'),
        ]
    seconds = metrics.get('seconds') or {}
    if seconds:
        rows = [[name, f'{s:,.1f}', _duration(s)] for name, s in seconds.items()]
        parts += ['<h2>Time</h2>', _html_table(['step', 'seconds', ''], rows)]
    if metrics.get('versions'):
        rows = [[name, str(version)] for name, version in metrics['versions'].items()]
        parts += ['<h2>Versions</h2>', _html_table(['package', 'version'], rows)]
    if metrics.get('command'):
        parts += ['<h2>Command</h2>', f'<pre>{escape(metrics["command"])}</pre>']
    body = '\n'.join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f'<body>\n{body}\n</body>\n</html>\n'
    )
