r"""Half an hour of everything in one process: does its memory stay constant?

    python benchmarks/soak.py --minutes 30

Each round loads the embedded data set, trains both recipes (few epochs of ``paper``),
evaluates, saves and loads the models, recommends to known and to new people, asks for
similar items, and writes and reads a bundle. After each round it notes the memory of
this process (which goes up and down, as its heap has holes of many sizes), and what of
it is in use by the C library's count: a leak is a slope of that.
"""

import ctypes
import gc
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import (
    header,
    header_text,
    make_parser,
    markdown_table,
    result_path,
    stamp,
    write_result,
)
from tqdm import tqdm

import pyg_c2f
from pyg_c2f.bundle import Bundle
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.export import write_bundle
from pyg_c2f.files import whole_file
from pyg_c2f.recipes import get_recipe

PAPER = {'max_epochs': '3', 'eval_every': '1', 'patience': '1'}
MEGABYTE = 1e6


class Heap(ctypes.Structure):
    """What ``mallinfo2`` of glibc says."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            'arena',
            'ordblks',
            'smblks',
            'hblks',
            'hblkhd',
            'usmblks',
            'fsmblks',
            'uordblks',
            'fordblks',
            'keepcost',
        )
    ]


LIBC = ctypes.CDLL('libc.so.6')
LIBC.mallinfo2.restype = Heap


def memory_now() -> tuple[float, float]:
    """The memory of this process, and what of its heap is in use, in megabytes."""
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    heap = LIBC.mallinfo2()
    return pages * 4096 / MEGABYTE, (heap.uordblks + heap.hblkhd) / MEGABYTE


def work(folder: Path, seed: int) -> None:
    """One round."""
    data = get_dataset('synthetic', protocol='c2f')
    for recipe in ('fast', 'paper'):
        settings = PAPER if recipe == 'paper' else None
        chosen = get_recipe(recipe, settings)
        pyg_c2f.fit(data, chosen, seed=seed, out=folder / recipe)
        model = pyg_c2f.load(folder / recipe)
        evaluate_split(model.scorer(), data, 'test')
        model.recommend(list(range(500)))
        for item in range(20):
            model.recommend(history=[item, item + 1], k=10)
        model.similar_items(torch.arange(20), 10)
        if recipe == 'fast':
            write_bundle(model, folder / 'model.c2f')
            bundle = Bundle.load(folder / 'model.c2f')
            for item in range(200):
                bundle.recommend([item, item + 1], 10)


def picture(path: Path, minutes: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """The memory against time."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout='constrained')
    for name, memory in columns.items():
        axes.plot(minutes, memory, marker='.', markersize=3, linewidth=1, label=name)
    axes.legend(loc='center right')
    axes.set(
        xlabel='minutes',
        ylabel='MB',
        ylim=(0, 1.15 * max(memory.max() for memory in columns.values())),
        title='Training, evaluating, recommending, over and over',
    )
    axes.grid(alpha=0.3)
    with whole_file(path) as part:
        figure.savefig(part, dpi=150, format='png')
    plt.close(figure)


def summary(name: str, memory: np.ndarray) -> list[str]:
    """A row of the table: the median of each third of the rounds."""
    return [name, *(f'{np.median(part):.1f}' for part in np.array_split(memory, 3))]


def main(argv: list[str]) -> None:
    """Works, notes, writes the table and the picture."""
    parser = make_parser(__doc__)
    parser.add_argument('--minutes', type=float, default=30.0, metavar='N')
    args = parser.parse_args(argv)
    begin, points = time.monotonic(), []
    with TemporaryDirectory() as folder, tqdm(unit='round') as bar:
        while not points or points[-1][0] < 60 * args.minutes:
            work(Path(folder), len(points))
            points.append((time.monotonic() - begin, *memory_now()))
            bar.set_postfix(MB=round(points[-1][1]), in_use=round(points[-1][2], 1))
            bar.update()
    seconds, *memory = np.array(points).T
    columns = dict(zip(('memory of the process', 'in use'), memory, strict=True))
    result = header('soak', args, argv) | stamp() | {'dataset': 'synthetic'}
    result |= {'seconds': seconds.round(1).tolist()}
    result |= {f'{name}, MB': x.round(3).tolist() for name, x in columns.items()}
    text = f'# Soak\n\n{header_text(result, [result])}\n'
    text += f'{len(points)} rounds in {seconds[-1] / 60:.1f} minutes; medians.\n\n'
    heads = ['MB', 'first third', 'second third', 'last third']
    text += markdown_table(heads, (summary(*x) for x in columns.items()))
    text += '\n![memory](soak.png)\n'
    path = result_path(args, 'soak')
    picture(path.with_suffix('.png'), seconds / 60, columns)
    write_result(path, result, text)


if __name__ == '__main__':
    main(sys.argv[1:])
