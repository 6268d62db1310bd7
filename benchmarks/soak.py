r"""Half an hour of everything in one process: does its memory stay flat?

    python benchmarks/soak.py --minutes 30

Each round loads the embedded data set, trains both recipes (few epochs of ``paper``),
evaluates, saves and loads the models, recommends to known and to new people, asks for
similar items, and writes and reads a bundle. After each round it notes the memory of
this process; the slope of a line through the second half of the rounds says what is
lost.
"""

import argparse
import gc
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from ablation import header, header_text, markdown_table, stamp
from tqdm import tqdm

import pyg_c2f
from pyg_c2f.bundle import Bundle
from pyg_c2f.checkpoint import whole_file, write_json, write_text
from pyg_c2f.config import get_recipe
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.export import write_bundle

RESULTS = Path(__file__).parent / 'results'
PAPER = {'max_epochs': '3', 'eval_every': '1', 'patience': '1'}
MEGABYTE = 1e6


def resident() -> float:
    """The memory of this process, in megabytes."""
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * 4096 / MEGABYTE


def work(folder: Path, seed: int) -> None:
    """One round."""
    data = get_dataset('synthetic', protocol='c2f')
    for recipe in ('fast', 'paper'):
        settings = PAPER if recipe == 'paper' else None
        chosen = get_recipe(recipe, 'synthetic', settings)
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


def picture(path: Path, minutes: np.ndarray, memory: np.ndarray) -> None:
    """The memory against time."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout='constrained')
    axes.plot(minutes, memory, color='#1f5fa8', marker='.', markersize=3, linewidth=1)
    axes.set(
        xlabel='minutes',
        ylabel='memory of the process, MB',
        ylim=(0, 1.15 * memory.max()),
        title='Training, evaluating, recommending, over and over',
    )
    axes.grid(alpha=0.3)
    with whole_file(path) as part:
        figure.savefig(part, dpi=150, format='png')
    plt.close(figure)


def main(argv: list[str]) -> None:
    """Works, notes, writes the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--minutes', type=float, default=30.0, metavar='N')
    args = parser.parse_args(argv)
    begin, points = time.monotonic(), []
    with TemporaryDirectory() as folder, tqdm(unit='round') as bar:
        while not points or points[-1][0] < args.minutes:
            work(Path(folder), len(points))
            points.append(((time.monotonic() - begin) / 60, resident()))
            bar.set_postfix(MB=round(points[-1][1]))
            bar.update()
    minutes, memory = np.array(points).T
    half = len(points) // 2
    slope = np.polyfit(minutes[half:], memory[half:], 1)[0] if half > 1 else 0.0
    result = header('soak', args, argv) | stamp()
    result |= {
        'dataset': 'synthetic',
        'minutes': minutes.round(2).tolist(),
        'megabytes': memory.round(1).tolist(),
        'megabytes_per_hour': float(60 * slope),
    }
    write_json(RESULTS / 'soak.json', result)
    rows = [
        ('rounds', str(len(points))),
        ('minutes', f'{minutes[-1]:.1f}'),
        ('memory after the first round', f'{memory[0]:.0f} MB'),
        ('in the middle', f'{memory[half]:.0f} MB'),
        ('at the end', f'{memory[-1]:.0f} MB'),
        ('slope of the second half', f'{60 * slope:+.1f} MB an hour'),
    ]
    text = f'# Soak\n\n{header_text(result, [result])}\n'
    text += markdown_table(['what', 'figure'], rows) + '\n![memory](soak.png)\n'
    write_text(RESULTS / 'soak.md', text)
    picture(RESULTS / 'soak.png', minutes, memory)
    print(text)


if __name__ == '__main__':
    main(sys.argv[1:])
