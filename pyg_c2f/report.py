"""The result of a run, as plain-text tables and as one self-contained HTML page."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import count
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.checkpoint import model_file, text_tensors
from pyg_c2f.evaluate import Lists, rank_split, with_sampled_users
from pyg_c2f.files import write_text
from pyg_c2f.sparse import degree
from pyg_c2f.typing import ITEM, KS, RATES, USER, Score
from pyg_c2f.vocabulary import NamedModel

Point = tuple[float, float]
Bar = tuple[str, str, Sequence[float]]  # label, note and values

_MEASURES = [f'{name}@{k}' for name in ('ndcg', 'recall') for k in KS]

# What is stored or needed to serve the model, and then what it is compared with.
_PARTS = ('codebooks', 'assignments', 'scalars', 'inference_extra')
_COMPARED = ('histories', 'codebooks_dense', 'propagated_table', 'full_table')

# The tensors of a checkpoint, by what they are for.
_TENSORS = {
    'coarse assignment': ('coarse.index', 'coarse.count', 'coarse.weight'),
    'fine assignment': ('fine.index', 'fine.weight'),
    'coarse codebook': ('coarse.codebook',),
    'fine codebook': ('fine.rowptr', 'fine.col', 'fine.value'),
    'degrees and biases': ('degree', 'bias', 'global_bias'),
    'interactions of known users': ('graph.low', 'graph.high', 'graph.width'),
}

# The length of the lists that the page describes, and how many items of an example it
# shows; the most users it ranks for, whose mean recall is then known to about .003.
_LENGTH, _SHOWN, MOST_USERS, _NUM_BUCKETS = 20, 10, 5000, 4

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BARS = '#0072B2', '#C9CDD2', '#9AA0A6', '#5B6068'  # the model, then baselines
_STAGES = {'coarse': '#0072B2', 'fine': '#D55E00'}

# The names of baselines and of their settings.
_NAMES = {'popularity': 'popularity', 'item_knn': 'ItemKNN', 'ease': 'EASE'}
_SETTINGS = {'k': 'k', 'shrinkage': 'shrinkage', 'l2': 'penalty'}

_PAGE = Path(__file__).with_suffix('.html')


def results_table(metrics: dict[str, Any]) -> str:
    """The metrics in ``metrics.json`` as plain text: a block for test, one for val."""
    return '\n\n'.join(_results(metrics, split) for split in ('test', 'val'))


def baselines_note(metrics: dict[str, Any]) -> str:
    """How the baselines were made, which are left out, and whether one is better."""
    parts = [
        f'{_NAMES[name]}: '
        + ', '.join(f'{_SETTINGS[key]} {value:g}' for key, value in settings.items())
        + ' (chosen on validation items).'
        for name, x in metrics['baselines'].items()
        if (settings := x.get('settings'))
    ]
    parts += [f'No {_NAMES[x]}: {why}.' for x, why in metrics['left_out'].items()]
    parts += [_warning(metrics)] * bool(_warning(metrics))
    return '\n'.join(parts)


def _warning(metrics: dict[str, Any]) -> str:
    """What to try if a baseline is better on validation items, else nothing."""
    quality = {x: y['val']['ndcg@20'] for x, y in metrics['baselines'].items()}
    best, ours = max(quality, key=lambda x: quality[x]), metrics['val']['ndcg@20']
    if quality[best] <= ours:
        return ''
    if metrics['recipe'] != 'fast':
        what = 'try --recipe fast'
    elif 'search' in metrics:
        what = 'try more --seconds, or a larger --size'
    else:
        what = 'try --seconds 60, which chooses settings on validation items'
    return (
        f'{_NAMES[best]} is better than this model by validation NDCG@20 '
        f'({quality[best]:.4f} against {ours:.4f}): {what}.'
    )


def size_table(metrics: dict[str, Any]) -> str:
    """The sizes in ``metrics.json`` as plain text: parts, total and comparisons."""
    total = 'total of the above'
    sizes = metrics['bytes'] | {total: sum(metrics['bytes'][x] for x in _PARTS)}
    rows = [['part', 'bytes', 'size', 'of full_table']]
    for name in (*_PARTS, total, *_COMPARED):
        size, share = sizes[name], sizes[name] / sizes['full_table']
        rows.append([name, f'{size:,}', _readable(size), f'{share:.2%}'])
    return _align(rows)


def write_report(
    out: Path,
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
    model: NamedModel,
    data: HeteroData,
    baselines: dict[str, Score],
) -> Path:
    """Write ``report.html``: what a person wants to know of a run within two minutes.

    The page is one file that loads nothing else. Lists are those of at most
    ``MOST_USERS`` users, drawn at random. The metrics are those of ``metrics.json`` and
    the run's ``'command'``, the history is that of ``history.jsonl``; the folder holds
    the ``model.safetensors``. Baselines are the scores of
    :func:`~pyg_c2f.baselines.evaluate_baselines`.
    """
    found, file_size = _find(model, data, baselines), model_file(out).stat().st_size
    about = [
        f'protocol {metrics["protocol"]}',
        *(f'{metrics[f"num_{x}"]:,} {x}' for x in ('users', 'items')),
        f'{metrics["num_train"]:,} train interactions',
        f'seed {metrics["seed"]}, split seed {metrics["split_seed"]}',
    ]
    parts = [
        f'<p class="about">{escape(" · ".join(about))}</p>',
        _tiles(metrics, file_size),
        _ranking(metrics, data, found),
        _who_is_served(found),
        _examples(model, data, found),
        _curves(metrics, history),
        _size(metrics, model, file_size),
        _how(metrics),
    ]
    title = f'{metrics["dataset"]}: recommendations by recipe {metrics["recipe"]}'
    page = Template(_PAGE.read_text(encoding='utf-8'))
    path = out / 'report.html'
    write_text(path, page.substitute(title=escape(title), body='\n'.join(parts)))
    return path


# Tables -------------------------------------------------------------------------------


def _results(metrics: dict[str, Any], split: str) -> str:
    """A table of everything that was evaluated on a split.

    The run's own result comes last if it is none of the phases' (after a refit).
    """
    found = [(_NAMES[x], '', y[split]) for x, y in metrics['baselines'].items()]
    for stage in _STAGES:
        for phase, result in metrics.get(stage, {}).items():
            label = f'{stage}, phase {phase[-1]}'
            found.append((label, str(result['best_epoch']), result[split]))
    if all(metrics[split] != values for _, _, values in found):
        found.append(('final model', '', metrics[split]))
    rows = [[split, 'epoch', *map(_title, _MEASURES)]]
    for label, epoch, values in found:
        rows.append([label, epoch, *(f'{values[name]:.4f}' for name in _MEASURES)])
    return _align(rows)


def _title(name: str) -> str:
    return name.replace('ndcg', 'NDCG').replace('recall', 'Recall')


def _readable(size: float) -> str:
    """A number of bytes in decimal units, as the published accounting does."""
    if size < 1000:
        return f'{size:.0f} B'
    for unit in ('kB', 'MB'):
        size /= 1000
        if size < 1000:
            return f'{size:.1f} {unit}'
    return f'{size / 1000:.1f} GB'


def _align(rows: list[list[str]]) -> str:
    """Lay rows out in columns: the first one to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        numbers = (x.rjust(y) for x, y in zip(cells, widths[1:], strict=True))
        lines.append('  '.join([first.ljust(widths[0]), *numbers]))
    return '\n'.join(lines)


# What the lists are like --------------------------------------------------------------


class _Found(NamedTuple):
    """The lists of the model and of the baselines for the same users."""

    lists: Lists
    others: dict[str, Lists]  # by the baseline's name
    activity: Tensor  # [num_users], train interactions
    popularity: Tensor  # [num_items]


def _find(model: NamedModel, data: HeteroData, baselines: dict[str, Score]) -> _Found:
    users, num_items = data[USER], data[ITEM].num_nodes
    num_ranked = users.is_ranked.sum() if 'is_ranked' in users else users.num_nodes
    if num_ranked > MOST_USERS:
        data = with_sampled_users(data, MOST_USERS, seed=0)
    edge_index = data[RATES].edge_index
    scores = [model.to(edge_index.device).scorer(), *baselines.values()]
    lists, *others = (
        Lists(*(x.cpu() for x in rank_split(score, data, 'test', _LENGTH)))
        for score in scores
    )
    by_name = {_NAMES[x]: y for x, y in zip(baselines, others, strict=True)}
    activity = degree(edge_index[0], users.num_nodes).cpu()
    return _Found(lists, by_name, activity, degree(edge_index[1], num_items).cpu())


def _ranking(metrics: dict[str, Any], data: HeteroData, found: _Found) -> str:
    held_out = data[RATES].test_edge_label_index
    if 'is_ranked' in data[USER]:
        held_out = held_out[:, data[USER].is_ranked[held_out[0]]]
    drawn = '' if metrics['eval_users'] is None else ' (drawn at random)'
    known = 'train' if metrics['protocol'] == 'c2f' else 'train and validation'
    num_lists, num_items = len(found.lists.users), metrics['num_items']
    listed = len(found.lists.items.unique())
    others = ', '.join(
        f'{len(x.items.unique()):,} by {name}' for name, x in found.others.items()
    )
    notes = escape(baselines_note(metrics)).replace('\n', '</p><p>')
    return f"""<h2>How good the lists are</h2>
<p>Evaluated on {len(held_out[0].unique()):,} users{drawn} with {held_out.size(1):,}
test interactions. For each user, all items but the user's {known} items are ranked.</p>
<pre>{_results(metrics, 'test')}</pre>
<p>{notes}</p>
<details><summary>on validation items</summary>
<pre>{_results(metrics, 'val')}</pre></details>
<p>Coverage: {num_lists:,} lists of {_LENGTH} hold {listed:,} of {num_items:,} items
({listed / num_items:.0%}); other lists {others}.</p>"""


def _buckets(
    ids: Tensor, degree: Tensor, what: str, values: Sequence[Tensor]
) -> list[Bar]:
    """Means of values, in ranges of the degree with about as many values each."""
    bars: list[Bar] = []
    last, of_id = -1, degree[ids]
    ends = torch.arange(1, _NUM_BUCKETS + 1) * len(ids) // _NUM_BUCKETS - 1
    for most in of_id.sort().values[ends.clamp(min=0)].unique().tolist():
        inside = (of_id > last) & (of_id <= most)
        least, last = int(of_id[inside].min()), most
        label = f'{most:,}' if least == most else f'{least:,}–{most:,}'
        note = f'{len(ids[inside].unique()):,} {what}'
        bars.append((label, note, [float(x[inside].mean()) for x in values]))
    return bars


def _who_is_served(found: _Found) -> str:
    """Recall by users' activity, and the share that is found by items' popularity."""
    users, pairs = found.lists.users, found.lists.pairs
    row = torch.searchsorted(users, pairs[0])
    hits = [x.is_found.double() for x in (found.lists, *found.others.values())]
    recalls = [torch.bincount(row, x) / torch.bincount(row) for x in hits]
    by_user = _buckets(users, found.activity, 'users', recalls)
    by_item = _buckets(pairs[1], found.popularity, 'items', hits)
    legend = '\n'.join(
        f'<b style="color:{colour}">■</b> {name}'
        for colour, name in zip(_BARS, ('this model', *found.others), strict=False)
    )
    return f"""<h2>Whom it serves well</h2>
<p>{legend}</p>
<div class="row">
<div><h3>Recall@{_LENGTH}, by the user's train interactions</h3>
{_bars(by_user, '{:.3f}'.format, "Recall by users' activity")}</div>
<div><h3>Test interactions found, by the item's train interactions</h3>
{_bars(by_item, '{:.1%}'.format, "Interactions found by items' popularity")}</div>
</div>"""


def _examples(model: NamedModel, data: HeteroData, found: _Found) -> str:
    """The lists of three users: of low, median and high activity."""
    lists, edge_index = found.lists, data[RATES].edge_index
    vocabulary = model.vocabulary
    names = vocabulary.item_titles or vocabulary.item_ids
    names = names or [f'item {item}' for item in range(model.num_items)]
    order, columns = found.activity[lists.users].argsort(stable=True), []
    for place in sorted({len(order) * part // 6 for part in (1, 3, 5)}):
        user, items = int(lists.users[order[place]]), lists.items[order[place]].tolist()
        history = edge_index[1, edge_index[0] == user].tolist()
        wanted = set(lists.pairs[1, lists.pairs[0] == user].tolist())
        seen = '; '.join(names[item] for item in history[:5]) or 'no item'
        more = f' and {len(history) - 5:,} more' if len(history) > 5 else ''
        listed = ''.join(
            f'<li{" class=found" if x in wanted else ""}>{escape(names[x])}</li>'
            for x in items[:_SHOWN]
        )
        name = vocabulary.name(user, USER)
        columns.append(f"""<div><h3>User {escape(name)}</h3>
<p>has {escape(seen)}{more}</p><ol>{listed}</ol>
<small>{len(wanted & {*items})} of {len(wanted)} test items are among the first
{len(items)} (✓)</small></div>""")
    return f'<h2>What lists look like</h2><div class="row">{"".join(columns)}</div>'


# Pictures -----------------------------------------------------------------------------


def _text(x: float, y: float, text: str, more: str = '') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _svg(width: int, height: int, alt: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(alt)}" xmlns="http://www.w3.org/2000/svg">'
        f'{"".join(parts)}</svg>'
    )


def _bars(rows: Sequence[Bar], show: Callable[[float], str], alt: str) -> str:
    """Horizontal bars, one group below the other."""
    most, parts = max(max(values) for *_, values in rows) or 1, []
    height = max(40, 10 + 15 * len(rows[0][2]))
    for y, (label, note, values) in zip(count(0, height), rows, strict=False):
        parts.append(_text(0, y + 14, label))
        parts.append(_text(0, y + 29, note, 'class="note"'))
        for top, value, colour in zip(count(y + 3, 15), values, _BARS, strict=False):
            width = 200 * value / most
            box = f'x="190" y="{top}" width="{width:.1f}" height="13"'
            parts.append(f'<rect {box} fill="{colour}"/>')
            parts.append(_text(195 + width, top + 11, show(value)))
    return _svg(470, height * len(rows), alt, parts)


def _curves(metrics: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """The curves of the stages that were trained; a closed form has none."""
    parts = []
    for stage, colour in _STAGES.items():
        lines = [x for x in history if x['stage'] == stage]
        losses = [(x['epoch'], x['loss']) for x in lines if x['loss'] is not None]
        if not losses:
            continue
        best = [x['best_epoch'] for x in metrics[stage].values()]
        for name in ('ndcg@5', 'recall@20'):
            points = [(x['epoch'], x['val'][name]) for x in lines]
            marks = [point for point in points if point[0] in best]
            label = f'{stage} stage: validation {_title(name)}'
            parts.append(_curve(label, colour, points, marks))
        parts.append(_curve(f'{stage} stage: training loss', colour, losses))
    if not parts:
        return ''
    note = 'By epoch. Circles: the best epoch of each phase.'
    pictures = ''.join(f'<div>{x}</div>' for x in parts)
    return f'<h2>Training</h2><p>{note}</p><div class="row">{pictures}</div>'


def _curve(
    label: str, colour: str, points: Sequence[Point], marks: Sequence[Point] = ()
) -> str:
    """One curve, with the ranges of its axes."""
    low, *_, high = sorted(y for _, y in (points[0], *points))
    first, last = points[0][0], points[-1][0]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first or 1)
        return 52 + 240 * across, 140 - 110 * (y - low) / (high - low or 1)

    path = ' '.join('{:.1f},{:.1f}'.format(*at(*point)) for point in points)
    circles = ''.join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="4.5" fill="#fff"/>'.format(*at(*point))
        for point in marks
    )
    parts = [
        _text(0, 12, label),
        _text(0, 34, f'{high:.4f}'),
        _text(0, 144, f'{low:.4f}'),
        _text(52, 160, str(first)),
        _text(292, 160, str(last), 'text-anchor="end"'),
        '<path d="M52 26V142H296" fill="none" stroke="#c4c9cf"/>',
        f'<g stroke="{colour}" stroke-width="2" fill="none">',
        f'<polyline points="{path}"/>{circles}</g>',
    ]
    return _svg(300, 164, label, parts)


# The rest -----------------------------------------------------------------------------


def _tiles(metrics: dict[str, Any], file_size: int) -> str:
    tiles = [
        (_readable(file_size), 'model.safetensors'),
        (_readable(metrics['bytes']['full_table']), 'an embedding table of this width'),
        (f'{metrics["seconds"]["total"]:,.0f} s', 'in total'),
    ]
    for name in ('ndcg@20', 'recall@20'):
        others = ', '.join(
            f'{_NAMES[x]} {y["test"][name]:.4f}'
            for x, y in metrics['baselines'].items()
        )
        label = f'{_title(name)} on test ({others})'
        tiles.insert(0, (f'{metrics["test"][name]:.4f}', label))
    cells = (f'<div class="tile"><b>{x}</b><span>{y}</span></div>' for x, y in tiles)
    return f'<div class="row tiles">{"".join(cells)}</div>'


def _size(metrics: dict[str, Any], model: NamedModel, file_size: int) -> str:
    """Where the bytes of the file go, and what the paper counts."""
    sizes = {key: x.nbytes for key, x in model.to_tensors().items()}
    groups = {x: sum(sizes.pop(key, 0) for key in _TENSORS[x]) for x in _TENSORS}
    groups['other tensors'] = sum(sizes.values())
    groups['ids and titles'] = sum(
        x.nbytes for x in text_tensors(model.vocabulary).values()
    )
    groups['header of the file'] = file_size - sum(groups.values())
    bars: list[Bar] = [
        (name, f'{size / file_size:.1%}', [size])
        for name, size in sorted(groups.items(), key=lambda x: -x[1])
        if size
    ]
    return f"""<h2>Where the bytes go</h2>
<p>model.safetensors has {file_size:,} bytes.</p>
{_bars(bars, _readable, 'Bytes of the file by group of tensors')}
<details><summary>as the paper counts</summary>
<pre>{size_table(metrics)}</pre></details>"""


def _how(metrics: dict[str, Any]) -> str:
    """The call, seconds and versions."""
    seconds = (f'{key} {value:,.1f} s' for key, value in metrics['seconds'].items())
    versions = (f'{key} {value}' for key, value in metrics['versions'].items())
    why = metrics.get('search', {}).get('why', '')
    return f"""<h2>How it was made</h2>
<pre class="call">{escape(metrics['command'])}</pre>
<p>{escape(why)}</p><p>{' · '.join(seconds)}</p><p>{escape(' · '.join(versions))}</p>"""
