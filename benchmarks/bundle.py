r"""How good a bundle is: quality through its reader, bytes, milliseconds, new users.

    python benchmarks/bundle.py curve --dataset gowalla --data-root ../shared/data
    python benchmarks/bundle.py bits --dataset gowalla --data-root ../shared/data
    python benchmarks/bundle.py newcomers --dataset gowalla --data-root ../shared/data
    python benchmarks/bundle.py index --dataset gowalla --data-root ../shared/data
    python benchmarks/bundle.py onnx --dataset gowalla --data-root ../shared/data
    python benchmarks/bundle.py cost --dataset gowalla --data-root ../shared/data
    python benchmarks/bundle.py fuzz --dataset ml-100k --data-root ../shared/data

``curve``: for each size and each shape of a grid, the mean number of links that fills
the file; the shape with the best validation NDCG@20 is chosen and evaluated on all test
users with several seeds. ``bits``: the same model with other bits of a weight.
``newcomers``: users who are held out entirely, against the same users in training.
``index`` and ``onnx``: lists of these beside the model's own. ``cost``: time and memory
of the readers, with the files that ``curve`` has left.
``fuzz``: damaged bundles in both readers.

Unless stated otherwise, lists come from :class:`pyg_c2f.bundle.Bundle` and from a
user's own train items. Ids are left out of the files, a megabyte is a
million bytes. Finished parts are kept in the JSON, and a second call continues there.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from math import floor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bundle_damage import damaged
from common import (
    MEGABYTE,
    METRICS,
    ROOT,
    as_settings,
    base_recipe,
    data_arguments,
    header,
    header_text,
    load_data,
    markdown_table,
    remembered,
    result_path,
    spectrum_key,
    spread,
    stamp,
    write_result,
)
from methods import ItemKNN, Popularity, histories_of
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.bundle import Bundle, BundleError
from pyg_c2f.evaluate import Score, evaluate, evaluate_split
from pyg_c2f.export import write_bundle, write_onnx
from pyg_c2f.files import write_json
from pyg_c2f.index import ItemIndex
from pyg_c2f.nn import LinearC2F
from pyg_c2f.packing import WEIGHT_BITS
from pyg_c2f.recipes import FastRecipe, fast
from pyg_c2f.typing import ITEM, RATES, USER

LENGTH = 20
SIZES = (0.25, 0.5, 0.75, 1.0, 1.5)
# Width, fine levels, and the least size that is worth a try.
SHAPES = ((512, 0, 0.25), (512, 2, 0.5), (1024, 0, 0.5))
PER_LEVEL = 256
BITS = (3, 4, 5, 6, 8)
# Users whose validation items choose; all have a say in what is reported.
NUM_CHOOSERS = 3000
NUM_NEWCOMERS = 1000
KNN = {
    '0.49 MB': ItemKNN(5, 'tfidf', 0.471, 4),
    '6.96 MB': ItemKNN(80, 'tfidf', 0.56, 6),
}  # chosen by benchmarks/frontier.py
FULLEST, EMPTIEST, ATTEMPTS = 0.999, 0.985, 4
NUM_LISTS = 300
NUM_DAMAGED, FUZZ_BLOCK = 10_000, 500


def reader_score(bundle: Bundle, rowptr: Tensor, col: Tensor) -> Score:
    """Scores that rank as a reader's lists do; items outside a list come last."""

    def score(users: Tensor) -> Tensor:
        out = torch.zeros(len(users), bundle.num_items)
        for row, user in enumerate(users.tolist()):
            history = col[rowptr[user] : rowptr[user + 1]].numpy()
            items, _ = bundle.recommend(history, LENGTH)
            out[row, torch.from_numpy(items)] = torch.arange(len(items), 0.0, -1)
        return out

    return score


def read_score(path: Path, data: HeteroData) -> Score:
    """:func:`reader_score` of a file, for the users of a data set."""
    rows = histories_of(
        data[RATES].edge_index, data[USER].num_nodes, data[ITEM].num_nodes
    )
    return reader_score(Bundle.load(path), rows.rowptr, rows.col)


def quality(score: Score, data: HeteroData, split: str, users: int = 0) -> Any:
    """Figures of a split, of all users or of a sample of that many."""
    pairs = data[RATES][f'{split}_edge_label_index']
    if users:
        order = torch.randperm(data[USER].num_nodes, generator=seeded(0))
        pairs = pairs[:, torch.isin(pairs[0], order[:users])]
    sizes = data[USER].num_nodes, data[ITEM].num_nodes
    out = evaluate(score, pairs, data[RATES].edge_index, *sizes, ks=(LENGTH,))
    return {name: out[name] for name in METRICS}


def askers(data: HeteroData) -> tuple[Tensor, list[Tensor]]:
    """Users who ask for lists, drawn at random, and their train items."""
    sizes = data[USER].num_nodes, data[ITEM].num_nodes
    rowptr, col, _ = histories_of(data[RATES].edge_index, *sizes)
    users = torch.randperm(sizes[0], generator=seeded(0))[:NUM_LISTS]
    return users, [col[rowptr[u] : rowptr[u + 1]] for u in users.tolist()]


def share_kept(lists: Sequence[Any], exact: Tensor) -> float:
    """The mean share of a list's items that are in the exact list."""
    pairs = zip(lists, exact.numpy(), strict=True)
    return float(np.mean([np.isin(found, items).mean() for found, items in pairs]))


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def build(data: HeteroData, recipe: FastRecipe, seed: int = 0) -> LinearC2F:
    """The model in its last stage, its weights as a checkpoint has them."""
    model = fast.build_fast(data, recipe, seeded(seed))
    model.set_stage('fine' if recipe.fine_per_item else 'coarse')
    return model


def export(model: LinearC2F, path: Path, bits: int = WEIGHT_BITS) -> int:
    """The bytes of the file."""
    return write_bundle(model, path, bits, names=False)['all']


def fill(data: HeteroData, recipe: FastRecipe, target: float, path: Path) -> Any:
    """The links that fill the size, and the figures of the choosers."""
    links = 1.0
    each = data[ITEM].num_nodes * (WEIGHT_BITS + 9) / 8
    for _ in range(ATTEMPTS):
        recipe = replace(recipe, coarse_per_item=floor(100 * links) / 100)
        size = export(build(data, recipe), path)
        too_large = links == 1 and size > target
        if too_large or EMPTIEST * target <= size <= FULLEST * target:
            break
        links = max(links + (target * (FULLEST + EMPTIEST) / 2 - size) / each, 1.0)
    names = ('embedding_dim', 'coarse_per_item', 'fine_per_item', 'num_fine')
    cell = {'settings': {x: getattr(recipe, x) for x in names}, 'file': size}
    if size > target:
        return cell
    return cell | {'val': quality(read_score(path, data), data, 'val', NUM_CHOOSERS)}


def curve(data: HeteroData, base: FastRecipe, result: Any, args: Any) -> Iterator[None]:
    """Quality on test items against the size of the file."""
    cells = result.setdefault('cells', {})
    with remembered('spectral_features', spectrum_key):
        for width, levels, least in tqdm(SHAPES, 'shapes'):
            shape = {'embedding_dim': width, 'fine_per_item': levels}
            shape |= {'num_fine': PER_LEVEL * levels} if levels else {}
            for size in [x for x in SIZES if x >= least]:
                name = f'{size:g} MB, {width} wide, {levels} levels'
                if name not in cells:
                    recipe, target = replace(base, **shape), size * MEGABYTE
                    path = args.files / 'cell.c2f'
                    cells[name] = fill(data, recipe, target, path)
                    cells[name]['size'] = size
                    yield
    runs = result.setdefault('runs', {})
    for seed, size in tqdm([*product(range(args.seeds), SIZES)], 'runs'):
        known = [x for x in cells.values() if x['size'] == size and 'val' in x]
        best = max(known, key=lambda x: x['val'][METRICS[0]])
        chosen = {x: best[x] for x in ('size', 'settings')}
        name = f'{size:g} MB, seed {seed}'
        if chosen.items() <= runs.get(name, {}).items():
            continue
        model = build(data, replace(base, **chosen['settings']), seed)
        path = args.files / f'{size:g}-{seed}.c2f'
        file = export(model, path)
        of_model = evaluate_split(model.scorer(), data, 'test', ks=(LENGTH,))
        runs[name] = chosen | {
            'file': file,
            'model': {x: of_model[x] for x in METRICS},
            'test': quality(read_score(path, data), data, 'test'),
            **stamp(),
        }
        yield


def curve_rows(result: Any) -> tuple[str, list[list[str]]]:
    """Means over the seeds."""
    rows = []
    for size in SIZES:
        runs = [x for x in result['runs'].values() if x['size'] == size]
        if not runs:
            continue
        figures = [
            [f'{m:.4f} ± {s:.4f}' for m, s in
             (spread([x[which][metric] for x in runs]) for metric in METRICS)]
            for which in ('test', 'model')
        ]  # fmt: skip
        kept = spread([x['test']['recall@20'] / x['model']['recall@20'] for x in runs])
        cells = [x for x in result['cells'].values() if x['size'] == size]
        val = max(x['val'][METRICS[0]] for x in cells if 'val' in x)
        rows.append([
            f'{size:g}', f'{spread([x["file"] for x in runs])[0]:,.0f}',
            *figures[0], *figures[1], f'{kept[0]:.1%}', f'{val:.4f}', str(len(runs)),
            f'`{as_settings(runs[0]["settings"])}`',
        ])  # fmt: skip
    names = 'MB|file, bytes|NDCG@20|Recall@20|NDCG@20 of the model|'
    names += 'Recall@20 of the model|share of Recall kept|val NDCG@20|seeds|settings'
    return names, rows


def draw(result: Any, path: Path) -> None:
    """Recall@20 on test items against the size of the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout='constrained')
    axes = figure.subplots()
    for which, label, colour, style in (
        ('model', 'the model, before packing', '#999999', 's--'),
        ('test', 'the file, through its reader', '#0072B2', 'o-'),
    ):
        points = []
        for size in SIZES:
            runs = [x for x in result['runs'].values() if x['size'] == size]
            recall = spread([x[which]['recall@20'] for x in runs])
            points.append((spread([x['file'] for x in runs])[0] / MEGABYTE, *recall))
        x, y, error = zip(*points, strict=True)
        axes.errorbar(x, y, error, fmt=style, color=colour, capsize=3, label=label)
    axes.set_xlabel('megabytes of the file')
    axes.set_ylabel('Recall@20, test items')
    axes.set_title(f'{result["dataset"]}, protocol {result["protocol"]}')
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def bits(data: HeteroData, base: FastRecipe, result: Any, args: Any) -> Iterator[None]:
    """What the bits of a weight keep of the model's lists and figures."""
    cells, path = result.setdefault('cells', {}), args.files / 'bits.c2f'
    users, histories = askers(data)
    with remembered('spectral_features', spectrum_key):
        for dtype, num in tqdm(
            [*product(('packed', 'float32'), (None, *BITS))], 'bits'
        ):
            model = build(data, replace(base, dtype=dtype))
            name = f'{dtype}, {num or "the model"}'
            if name in cells:
                continue
            score, cells[name] = model.scorer(), stamp()
            if num:
                cells[name]['file'] = export(model, path, num)
                score = read_score(path, data)
                bundle, (exact, _) = Bundle.load(path), model.recommend(users, LENGTH)
                lists = [bundle.recommend(x, LENGTH)[0] for x in histories]
                cells[name]['kept'] = share_kept(lists, exact)
            cells[name]['val'] = quality(score, data, 'val', NUM_CHOOSERS)
            yield


def bits_rows(result: Any) -> tuple[str, list[list[str]]]:
    """A line for each stored form and number of bits."""
    rows = [
        [
            *name.split(', '),
            f'{x["file"]:,}' if 'file' in x else '',
            f'{x["kept"]:.1%}' if 'kept' in x else '',
            *(f'{x["val"][m]:.4f}' for m in METRICS),
        ]
        for name, x in result['cells'].items()
    ]
    names = 'dtype of the model|bits of a weight|file, bytes|items of lists kept|'
    return names + 'val NDCG@20|val Recall@20', rows


def split_newcomers(data: HeteroData, draw: int) -> tuple[Tensor, Tensor, Tensor]:
    """Users drawn at random, and their train items cut into history and rest."""
    edges, generator = data[RATES].edge_index, seeded(draw)
    users = torch.randperm(data[USER].num_nodes, generator=generator)[:NUM_NEWCOMERS]
    pairs = torch.cat(
        [edges, *(data[RATES][f'{x}_edge_label_index'] for x in ('val', 'test'))], 1
    )
    pairs = pairs[:, torch.isin(pairs[0], users)]
    pairs = pairs[:, torch.randperm(pairs.size(1), generator=generator)]
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    count = torch.bincount(pairs[0], minlength=data[USER].num_nodes)
    rank = torch.arange(pairs.size(1)) - (count.cumsum(0) - count)[pairs[0]]
    is_history = rank < (0.8 * count[pairs[0]]).round()
    return edges[:, ~torch.isin(edges[0], users)], *(
        pairs[:, x] for x in (is_history, ~is_history)
    )


def newcomers(
    data: HeteroData, base: FastRecipe, result: Any, args: Any
) -> Iterator[None]:
    """Quality for users who were never in training, and for the same users in it."""
    sizes = data[USER].num_nodes, data[ITEM].num_nodes
    runs = result.setdefault('runs', {})
    for drawn in tqdm(range(args.seeds), 'draws'):
        if str(drawn) in runs:
            continue
        others, history, rest = split_newcomers(data, drawn)
        figures: dict[str, Any] = {}
        sizes_of: dict[str, int] = {}
        for where, edges in (
            ('never in training', others),
            ('in training', torch.cat([others, history], dim=1)),
        ):
            known = HeteroData()
            known[USER].num_nodes, known[ITEM].num_nodes = sizes
            known[RATES].edge_index = edges
            model = build(known, base)
            path = args.files / 'newcomers.c2f'
            asking, trained = histories_of(history, *sizes), histories_of(edges, *sizes)
            size = export(model, path)
            scores: dict[str, Score] = {
                'bundle': reader_score(Bundle.load(path), asking.rowptr, asking.col)
            }
            if where == 'in training':
                scores['the model, as known users'] = model.scorer()
            for name, method in KNN.items():
                scores[f'ItemKNN, {name}'] = method.scorer(method.fit(trained), asking)
            method = Popularity()
            scores['popularity'] = method.scorer(method.fit(trained), asking)
            figures[where], sizes_of[where] = {}, size
            for name, score in scores.items():
                out = evaluate(score, rest, history, *sizes, ks=(LENGTH,))
                figures[where][name] = {x: out[x] for x in METRICS}
        runs[str(drawn)] = {'figures': figures, 'files': sizes_of, **stamp()}
        yield


def newcomers_rows(result: Any) -> tuple[str, list[list[str]]]:
    """A line for each method."""
    runs = [x['figures'] for x in result['runs'].values()]
    rows = []
    for name in runs[0]['in training']:
        cells = []
        for where in ('never in training', 'in training'):
            for metric in METRICS:
                values = [x[where][name][metric] for x in runs if name in x[where]]
                # None but a known user's list is for those in training alone.
                assert len(values) in (0, len(runs))
                m, sd = spread(values) if values else (0.0, 0.0)
                cells.append(f'{m:.4f} ± {sd:.4f}' if values else '')
        rows.append([name, *cells])
    names = 'method|NDCG@20, never in training|Recall@20, never in training|'
    return names + 'NDCG@20, in training|Recall@20, in training', rows


def cost(data: HeteroData, base: FastRecipe, result: Any, args: Any) -> Iterator[None]:
    """Milliseconds and memory of the readers, from users' own histories."""
    histories = [x.tolist() for x in askers(data)[1]]
    cells = result.setdefault('cells', {})
    for size in tqdm(SIZES, 'files'):
        path = args.files / f'{size:g}-0.c2f'
        if f'{size:g}' in cells or not path.exists():
            continue
        cell = in_numpy(path, histories) | {'file': path.stat().st_size, **stamp()}
        with served(path) as url:
            cell |= {'node': in_node(path, histories), 'browser': in_browser(url)}
        cells[f'{size:g}'] = cell
        yield


def in_numpy(path: Path, histories: list[list[int]]) -> dict[str, Any]:
    """The NumPy reader, in a process of its own with one thread."""
    call = [sys.executable, __file__, '--measure-numpy', str(path)]
    env = os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    out = subprocess.run(
        call, input=json.dumps(histories), env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(out.stdout)


def measure_numpy(path: Path, histories: list[list[int]]) -> dict[str, Any]:
    """Times, then the peak of what NumPy and Python allocate beside the file."""
    loads, lists = [], []
    for _ in range(5):
        loads.append(timed(lambda: Bundle.load(path)))
    bundle = Bundle.load(path)
    for history in histories:
        lists.append(timed(partial(bundle.recommend, history)))
    num_links = len(bundle._links.col)
    del bundle
    tracemalloc.start()
    bundle = Bundle.load(path)
    for history in histories[:50]:
        bundle.recommend(history)
    peak = tracemalloc.get_traced_memory()[1] - path.stat().st_size
    ms = median(lists)
    return {
        'links': num_links,
        'load_ms': median(loads),
        'list_ms': ms,
        'slowest_list_ms': max(lists),
        'ns_per_link': 1e6 * ms / num_links,
        'peak_mb': peak / MEGABYTE,
        'process_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def timed(function: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def in_node(path: Path, histories: list[list[int]]) -> dict[str, float] | None:
    """The reader in JavaScript, where node is there."""
    if shutil.which('node') is None:
        return None
    calls = [['recommend', history, LENGTH] for history in histories]
    out = subprocess.run(
        ['node', ROOT / 'benchmarks/js/read.mjs'],
        input=json.dumps({'path': str(path.resolve()), 'calls': calls}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(out.stdout)
    ms = [x['ms'] for x in answer['results']]
    return {'load_ms': answer['decode'], 'list_ms': median(ms)}


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The page with a bundle, and its address."""
    folder = path.with_suffix('.site')
    shutil.copytree(ROOT / 'pyg_c2f/cli/page', folder, dirs_exist_ok=True)
    shutil.copyfile(path, folder / 'model.c2f')
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()
    shutil.rmtree(folder)


def in_browser(url: str) -> dict[str, float] | None:
    """The page in Chromium, where it and selenium are there."""
    browser, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if browser is None or driver is None:
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic'):
        options.add_argument(f'--{option}')
    page = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        page.get(f'{url}#picks=1')
        ms = []
        for turn in range(41):
            script = f"location.hash = 'picks={turn},{turn + 50},{turn + 900}'"
            page.execute_script(script)
            time.sleep(0.1)
            status = page.find_element('id', 'status')
            ms.append(float(status.get_attribute('data-ms')))
        # The first lists are those of code that is not compiled yet.
        return {'first_list_ms': ms[0], 'list_ms': median(ms[10:])}
    finally:
        page.quit()


def index(data: HeteroData, base: FastRecipe, result: Any, args: Any) -> Iterator[None]:
    """How much of the exact lists a faiss index finds, and how fast."""
    model, cells = build(data, base), result.setdefault('cells', {})
    _, histories = askers(data)
    exact, _ = model.recommend(history=histories, k=LENGTH)
    for share in tqdm((None, 32, 16, 8, 4), 'index'):
        made, name, visited = None, 'exact, all items', model.num_items
        if share is not None:
            num_cells = ItemIndex(model).num_cells
            made = ItemIndex(model, num_cells, -(-num_cells // share))
            name = f'1 of {share} cells'
            visited = model.num_items // share
        recommend = model.recommend if made is None else made.recommend
        found, _ = recommend(history=histories, k=LENGTH)
        ms = [timed(partial(recommend, history=x, k=LENGTH)) for x in histories[:100]]
        cells[name] = {
            'visited': visited,
            'kept': share_kept(found.numpy(), exact),
            'ms': median(ms),
            **stamp(),
        }
        yield


def index_rows(result: Any) -> tuple[str, list[list[str]]]:
    """A line for each share of the cells."""
    rows = [
        [name, f'{x["visited"]:,}', f'{x["kept"]:.1%}', f'{x["ms"]:.1f}']
        for name, x in result['cells'].items()
    ]
    return 'search|items looked at, about|items of lists kept|a list, ms', rows


def onnx(data: HeteroData, base: FastRecipe, result: Any, args: Any) -> Iterator[None]:
    """Lists of onnxruntime beside those of the model, and their milliseconds."""
    import onnxruntime

    model, cells = build(data, base), result.setdefault('cells', {})
    users, histories = askers(data)
    exact, scores = model.recommend(users, LENGTH)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path, lists, off, ms = args.files / 'model.onnx', [], [], []
    size = write_onnx(model, path)
    session = onnxruntime.InferenceSession(path, options)
    for history, expected in zip(histories, scores.numpy(), strict=True):
        asked = {'history': history.numpy(), 'k': np.array([LENGTH])}
        start = time.perf_counter()
        items, values = session.run(None, asked)
        ms.append(1000 * (time.perf_counter() - start))
        lists.append(items)
        off.append(np.abs(values - expected).max() / expected[0])
    cells['float'] = {
        'file': size,
        'kept': share_kept(lists, exact),
        'off': float(max(off)),
        'ms': median(ms),
        **stamp(),
    }
    yield


def onnx_rows(result: Any) -> tuple[str, list[list[str]]]:
    """A line for each form."""
    rows = [
        [
            name,
            f'{x["file"]:,}',
            f'{x["kept"]:.2%}',
            f'{x["off"]:.5%}',
            f'{x["ms"]:.1f}',
        ]
        for name, x in result['cells'].items()
    ]
    names = 'form|file, bytes|items of lists kept|scores off by at most|a list, ms'
    return names, rows


def fuzz(data: HeteroData, base: FastRecipe, result: Any, args: Any) -> Iterator[None]:
    """Damaged copies of a real bundle, in both readers."""
    path, rng = args.files / 'fuzz.c2f', np.random.default_rng(0)
    export(build(data, base), path)
    good, many = path.read_bytes(), args.files / 'fuzz-many'
    cells = {'refused by both': 0, 'the same list from both': 0}
    slowest = {'NumPy': 0.0, 'JavaScript': 0.0}
    for _ in tqdm(range(0, NUM_DAMAGED, FUZZ_BLOCK), 'fuzz'):
        files = [damaged(rng, good) for _ in range(FUZZ_BLOCK)]
        many.write_bytes(b''.join(files))
        out = subprocess.run(
            ['node', ROOT / 'benchmarks/js/fuzz.mjs'],
            input=json.dumps({
                'path': str(many.resolve()), 'lengths': [len(x) for x in files]
            }),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for file, theirs in zip(files, json.loads(out.stdout)['results'], strict=True):
            start = time.perf_counter()
            try:
                items, scores = Bundle(file).recommend([0])
            except BundleError:
                kind = 'refused by both' if 'error' in theirs else 'refused by one'
            else:
                # JSON of a large number from JavaScript looks like that of an integer.
                same = theirs.get('items') == items.tolist() and scores.tolist() == [
                    float(x) for x in theirs['scores']
                ]
                kind = 'the same list from both' if same else 'different'
            if 'crash' in theirs:
                kind = 'another error'
            ms = 1000 * (time.perf_counter() - start)
            cells[kind] = cells.get(kind, 0) + 1
            slowest['NumPy'] = max(slowest['NumPy'], ms)
            slowest['JavaScript'] = max(slowest['JavaScript'], theirs['ms'])
    many.unlink()
    result |= {'counts': cells, 'slowest_ms': slowest, 'file': len(good)}
    result['cells'] = {'all': stamp()}
    yield


def fuzz_rows(result: Any) -> tuple[str, list[list[str]]]:
    """The outcomes and how often they occurred."""
    rows = [[name, f'{count:,}'] for name, count in result['counts'].items()]
    rows += [
        [f'slowest in {name}, ms', f'{x:.0f}']
        for name, x in result['slowest_ms'].items()
    ]
    return 'what|number', rows


def cost_rows(result: Any) -> tuple[str, list[list[str]]]:
    """A line for each file."""
    rows = []
    for x in result['cells'].values():
        js = [x[name]['list_ms'] if x[name] else None for name in ('node', 'browser')]
        first = x['browser']['first_list_ms'] if x['browser'] else None
        rows.append([
            f'{x["file"]:,}', f'{x["links"]:,}', f'{x["load_ms"]:.0f}',
            f'{x["list_ms"]:.1f}', f'{x["slowest_list_ms"]:.1f}',
            f'{x["ns_per_link"]:.1f}', f'{x["peak_mb"]:.1f}',
            *('' if ms is None else f'{ms:.1f}' for ms in (*js, first)),
        ])  # fmt: skip
    names = 'file, bytes|links|NumPy: load, ms|a list, ms|the slowest, ms|ns a link|'
    names += 'peak beside the file, MB|node: a list, ms|Chromium: a list, ms|'
    return names + 'its first, ms', rows


PARTS: dict[str, tuple[Any, Any, str]] = {
    'curve': (
        curve,
        curve_rows,
        'Test items, all users, through the NumPy reader, and of the model that the '
        'file was made of. Settings chosen by NDCG@20 on the validation items of '
        f'{NUM_CHOOSERS:,} users at seed 0; mean ± standard deviation over seeds.',
    ),
    'bits': (
        bits,
        bits_rows,
        f'The default recipe at seed 0: of the lists of {NUM_LISTS} users, how many of '
        f'the items of the model are in those of the bundle; validation items of '
        f'{NUM_CHOOSERS:,} users. Weights of dtype packed have 64 values.',
    ),
    'newcomers': (
        newcomers,
        newcomers_rows,
        f'{NUM_NEWCOMERS:,} users drawn at random, 80 % of all their items as their '
        'history, the rest to be found. Never in training: without any of their '
        'items. In training: with their histories. All others have their train items. '
        'The bundle is that of the default recipe, 0.74 MB. Mean ± standard deviation '
        'over draws.',
    ),
    'index': (
        index,
        index_rows,
        f'The default recipe at seed 0, `model.recommend(history=...)` for {NUM_LISTS} '
        'users, one at a time for the milliseconds (medians). The index is the one of '
        '`pyg_c2f.index.ItemIndex`, whose default is 1 of 8 cells.',
    ),
    'onnx': (
        onnx,
        onnx_rows,
        f'The default recipe at seed 0, {NUM_LISTS} users and their train items; one '
        'thread of onnxruntime, medians. Scores are off in proportion to the best of '
        'the list.',
    ),
    'fuzz': (
        fuzz,
        fuzz_rows,
        f'{NUM_DAMAGED:,} damaged copies of a real bundle: bits, bytes and fields of '
        'the header changed, parts cut out or doubled, nine of ten under a right '
        'length and checksum. Both readers load each and make the list of item 0 '
        '(JavaScript also looks for similar items).',
    ),
    'cost': (
        cost,
        cost_rows,
        f'Medians: loads of 5, lists of {NUM_LISTS} users and their train items, in '
        'Chromium of 31 histories of 3 picks. NumPy has one thread; the peak is what '
        'it and Python allocate for loading and 50 lists, beside the file.',
    ),
}


def text(part: str, result: Any) -> str:
    """The part as Markdown."""
    _, rows, says = PARTS[part]
    names, lines = rows(result)
    figures = [*result.get('runs', {}).values(), *result.get('cells', {}).values()]
    head = header_text(result, [x for x in figures if 'date' in x])
    table = markdown_table(names.split('|'), lines)
    return f'# Bundles: {part}\n\n{head}\n{says}\n\n{table}'


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the unfinished steps of a part."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['--measure-numpy']:
        print(json.dumps(measure_numpy(Path(argv[1]), json.load(sys.stdin))))
        return
    parser = data_arguments(__doc__)
    parser.set_defaults(protocol='c2f')
    parser.add_argument('part', choices=PARTS)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument(
        '--files', type=Path, default=Path('runs/bundles'), help='takes the bundles'
    )
    args = parser.parse_args(argv)
    args.files.mkdir(parents=True, exist_ok=True)
    data, base = load_data(args), base_recipe(args)
    path = result_path(args, f'bundle-{args.part}-{args.dataset}')
    known = json.loads(path.read_text()) if path.exists() else {}
    result = known | header('bundle', args, argv)
    for _ in PARTS[args.part][0](data, base, result, args):
        write_json(path, result)
    if args.part == 'curve':
        draw(result, path.with_suffix('.png'))
    write_result(path, result, text(args.part, result))


if __name__ == '__main__':
    main()
