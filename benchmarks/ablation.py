r"""What each part of recipe fast brings: one setting after the other is changed.

    python benchmarks/ablation.py --dataset gowalla --data-root ../shared/data

Every variant is recipe fast with a few settings changed, run with several seeds. Test
figures are reported and choose nothing. What is done is kept in the JSON, so that a
second call goes on where the first one stopped; a variant whose settings have changed
since is done again.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common import (
    base_recipe,
    data_arguments,
    header,
    header_text,
    load_data,
    markdown_table,
    quality_cells,
    read_result,
    result_path,
    run_seeds,
    write_result,
)
from tqdm import tqdm

from pyg_c2f.checkpoint import write_json

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ('default', {}),
    ('no fine levels', {'fine_links': 0}),
    ('no fine levels, 11 links', {'fine_links': 0, 'coarse_links': 11}),
    ('power 0.5', {'power': 0.5}),
    ('power 0', {'power': 0.0}),
    ('popularity 0', {'popularity': 0.0}),
    ('item power 0.5', {'item_power': 0.5}),
    ('diffusion channel', {'diffusion': 1.0}),
    ('32-bit storage', {'dtype': 'float32'}),
]


def table(result: dict[str, Any]) -> str:
    """The variants as Markdown."""
    rows, figures = [], []
    for name, entry in result['variants'].items():
        settings = ', '.join(f'{k}={v}' for k, v in entry['settings'].items())
        figures += entry['runs'].values()
        s = entry['summary']
        cells = [name, settings, str(s['seeds'])]
        cells += quality_cells(s, 'val') + quality_cells(s, 'test')
        cells += [f'{s["stored"]:,.0f}', f'{s["inference_extra"]:,.0f}']
        rows.append([*cells, f'{s["seconds"]:.1f}'])
    names = 'variant|settings|seeds|val NDCG@20|val Recall@20|test NDCG@20|'
    names += 'test Recall@20|stored bytes|inference extra|seconds'
    out = ['# What each part of recipe fast brings\n', header_text(result, figures)]
    out += [
        'Mean ± standard deviation over seeds. Test figures choose nothing. Seconds '
        'are those of the anchors, without loading and ranking; inference '
        'extra is the train graph, where recommending needs more than a history.\n',
        markdown_table(names.split('|'), rows),
    ]
    return '\n'.join(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the variants that are not done yet."""
    argv = sys.argv[1:] if argv is None else argv
    parser = data_arguments(__doc__)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument(
        '--only',
        nargs='+',
        choices=[name for name, _ in VARIANTS],
        metavar='NAME',
        help='variants to run: ' + ', '.join(name for name, _ in VARIANTS),
    )
    args = parser.parse_args(argv)
    data, base = load_data(args), base_recipe(args)
    path = result_path(args, f'ablation-{args.dataset}-{args.protocol}')
    result = header('ablation', args, argv) | read_result(path, ['variants'])

    def write() -> None:
        order = [name for name, _ in VARIANTS if name in result['variants']]
        result['variants'] = {name: result['variants'][name] for name in order}
        write_json(path, result)

    chosen = [x for x in VARIANTS if not args.only or x[0] in args.only]
    for name, settings in (bar := tqdm(chosen)):
        bar.set_description(name)
        entry = result['variants'].get(name, {})
        for _ in run_seeds(data, replace(base, **settings), args.seeds, entry):
            entry['settings'] = settings
            result['variants'][name] = entry
            write()
    write()
    write_result(path, result, table(result))


if __name__ == '__main__':
    main()
