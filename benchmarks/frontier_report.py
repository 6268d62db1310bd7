"""The tables and pictures of frontier.py."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import METRICS, header_text, markdown_table
from frontier_methods import SIZES

OURS = ('ours', 'ours with graph')
# NDCG@20, full test file, uncompressed, as published.
PUBLISHED = {
    'gowalla': {'LightGCN': 0.1554, 'GF-CF': 0.1518, 'BSPM': 0.1597, 'EASE': 0.1467}
}
SHOWN = ('embedding_dim', 'coarse_per_item', 'fine_per_item', 'user_norm', 'item_norm')
SHOWN += ('spectral_power', 'score_power', 'diffusion')
MARKERS = 'osD^v<>PX*hpd'


class Point(NamedTuple):
    """A method at one size."""

    method: str
    final: dict[str, Any]

    @property
    def size(self) -> int:
        return self.final['summary']['bytes']

    def quality(self, protocol: str = 'standard') -> float:
        return self.final['summary'][protocol][METRICS[0]][0]


def points(methods: dict[str, Any]) -> list[Point]:
    """All points with figures on test items, by size."""
    found = [
        Point(name, final)
        for name, entry in methods.items()
        for final in entry['finals']
        if 'summary' in final
    ]
    return sorted(found, key=lambda x: (x.size, -x.quality()))


def front(found: Sequence[Point]) -> list[Point]:
    """The points that are better than every smaller one."""
    out: list[Point] = []
    for point in found:
        if not out or point.quality() > out[-1].quality():
            out.append(point)
    return out


def best(found: Sequence[Point], size: int, protocol: str) -> Point | None:
    """The best on test items of the points, chosen on validation, that fit a size."""
    fits = [x for x in found if x.size <= size]
    return max(fits, key=lambda x: x.quality(protocol), default=None)


def figures(point: Point, protocol: str) -> str:
    """Both measures with their spread."""
    cells = point.final['summary'][protocol]
    (n, n_sd), (r, r_sd) = (cells[name] for name in METRICS)
    return f'{n:.4f} ± {n_sd:.4f} / {r:.4f} ± {r_sd:.4f}'


def size_rows(found: Sequence[Point], protocol: str) -> Iterator[list[str]]:
    """Ours against the best other method, at each size at which either is another."""
    ours = [x for x in found if x.method in OURS]
    others = [x for x in found if x.method not in OURS]
    last: tuple[Point | None, Point | None] = (None, None)
    for size in SIZES[:-1]:
        left, right = (best(x, size, protocol) for x in (ours, others))
        if right is None or (left, right) == last:
            continue
        last = left, right
        cells = [f'{size / 1e6:g} MB']
        for point in (left, right):
            cells += (
                ['', 'too small', '']
                if point is None
                else [point.method, figures(point, protocol), f'{point.size:,}']
            )
        gain = '' if left is None else left.quality(protocol) / right.quality(protocol)
        yield [*cells, f'{100 * (gain - 1):+.1f} %' if gain else '']


def readable(final: dict[str, Any]) -> str:
    """The settings of a trial in short form."""
    if 'FastRecipe(' in final['settings']:
        # The links, and as many levels as there was room for, come from the size.
        settings = ast.parse(final['settings'], mode='eval').body
        recipe = {
            x.arg: ast.unparse(x.value) for x in settings.keywords[0].value.keywords
        }
        return ', '.join(f'{name} {recipe[name]}' for name in SHOWN)
    parts = []
    for name, value in final['params'].items():
        text = f'{value:.3g}' if isinstance(value, float) else str(value)
        parts.append(f'{name} {text}'.replace('"', '').replace('|', ' '))
    return ', '.join(parts)


def tables(result: dict[str, Any]) -> str:
    """All figures as Markdown."""
    runs = [
        run
        for data in result['datasets'].values()
        for point in points(data['methods'])
        for run in point.final['runs'].values()
    ]
    out = ['# Quality against bytes, every method\n', header_text(result, runs)]
    out.append(
        'NDCG@20 / Recall@20 on test items, mean ± standard deviation over seeds.'
        ' Bytes are those of the file with all that a list needs beside the '
        'history of the person who asks (which every method needs, to leave out '
        'what he has): tables, codes, item-item lists, and the train graph '
        '(Elias-Fano, about 13 bits an interaction on Gowalla) where scores need '
        'it. Methods that serve *anyone* need no more for people they have never '
        'seen; the others serve the known users only. Settings were chosen on '
        'validation items of protocol standard; the fit to train.txt is the same '
        'for both protocols. Seconds are of one fit, milliseconds of one list for'
        ' one user, both beside another job.\n'
    )
    for name, data in result['datasets'].items():
        found = points(data['methods'])
        on_front = front(found)
        for protocol in ('standard', 'c2f'):
            out += [
                f'## {name}, protocol {protocol}: the best of what fits a size\n',
                markdown_table(
                    'size|ours|NDCG@20 / Recall@20|bytes|best other|'
                    'NDCG@20 / Recall@20|bytes|NDCG@20 of ours'.split('|'),
                    size_rows(found, protocol),
                ),
            ]
        out.append(f'## {name}: everything (bold: on the front of protocol standard)\n')
        rows = []
        for method, entry in data['methods'].items():
            for point in (x for x in found if x.method == method):
                s = point.final['summary']
                mark = '**' if point in on_front else ''
                rows.append(
                    [
                        f'{mark}{method}{mark}',
                        f'{point.size:,}',
                        f'{point.size:,}' if point.final['serves_anyone'] else 'cannot',
                        figures(point, 'standard'),
                        figures(point, 'c2f'),
                        str(s['seeds']),
                        f'{s["seconds"]:.1f}',
                        f'{s["milliseconds"]:.2f}',
                        readable(point.final),
                        entry['published'],
                    ]
                )
        columns = 'method|bytes, known users|bytes, anyone|standard|c2f|seeds|'
        columns += (
            'seconds|ms a list|settings|to compare with (published, Gowalla, standard)'
        )
        out.append(markdown_table(columns.split('|'), rows))
        spent = [
            f'{method} {len(entry["trials"])}'
            for method, entry in data['methods'].items()
        ]
        out.append(f'Trials: {", ".join(spent)}.\n')
    return '\n'.join(out)


def draw(name: str, methods: dict[str, Any], path: Path) -> None:
    """Quality against bytes as a picture."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found = points(methods)
    if not found:
        return
    figure = Figure(figsize=(10, 6.5), layout='constrained')
    ax = figure.subplots()
    others = [x for x in methods if x not in OURS]
    for place, method in enumerate([*others, *OURS]):
        mine = [x for x in found if x.method == method]
        if not mine:
            continue
        style: dict[str, Any] = {'lw': 0.8, 'ms': 4, 'alpha': 0.75}
        style['color'] = colormaps['tab20'](place % 20)
        if method in OURS:
            style = {'lw': 2.5, 'ms': 8, 'color': 'black'}
            style['ls'] = '-' if method == 'ours' else '--'
        ax.plot(
            [x.size for x in mine],
            [x.quality() for x in mine],
            marker=MARKERS[place % len(MARKERS)],
            label=method,
            **style,
        )
    steps = front(found)
    ax.step(
        [x.size for x in steps],
        [x.quality() for x in steps],
        where='post',
        color='crimson',
        lw=5,
        alpha=0.25,
        label='front of all',
    )
    for label, value in PUBLISHED.get(name, {}).items():
        ax.axhline(value, color='grey', lw=0.8, ls=':')
        ax.annotate(
            f'{label}, published, uncompressed',
            (1, value),
            xycoords=('axes fraction', 'data'),
            ha='right',
            va='bottom',
            fontsize=7,
            color='grey',
        )
    ax.set_xscale('log')
    ax.set_xlabel('bytes of everything that a list needs')
    ax.set_ylabel('NDCG@20, test items, protocol standard')
    ax.set_title(f'{name}: quality against total bytes')
    ax.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside right center', fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
