"""``pyg-c2f demo``: a page that recommends in the visitor's browser."""

import argparse
import logging
import shutil
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyg_c2f.checkpoint import load
from pyg_c2f.cli import train
from pyg_c2f.cli.options import make_parser
from pyg_c2f.datasets import DEFAULT_ROOT
from pyg_c2f.export import write_bundle
from pyg_c2f.recipes.resume import resume_files
from pyg_c2f.typing import InputError
from pyg_c2f.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# The files of the page, and where they are.
PAGE = ('index.html', 'style.css', 'app.js', 'bundle.js')
PAGE_FOLDER = Path(__file__).parent / 'page'
# Titles of invented films, for a data set without titles.
FIRST_WORDS = (
    'Amber Borrowed Broken Crimson Distant Electric Final Forgotten Frozen Gentle '
    'Golden Hidden Hollow Iron Last Little Lonely Midnight Paper Quiet Restless Second '
    'Silver Sleepless Stolen Summer Velvet Wandering Winter'
).split()
SECOND_WORDS = (
    'Archive Bridge Carousel Cartographer Comet Confession Daughter Echo Empire Fever '
    'Frontier Garden Harbour Horizon Island Lantern Letters Masquerade Mirror Orchard '
    'Passenger Promise River Shadow Signal Stranger Symphony Tide Train Violin Voyage'
).split()


def run(args: argparse.Namespace) -> int:
    """Trains if there is no model yet, writes the page and serves it."""
    out = Path(args.out)
    if args.checkpoint and args.data_root:
        raise InputError('--checkpoint takes no --data-root: give one of the two')
    model = load(args.checkpoint or demo_run(args, out))
    if args.checkpoint is None and model.vocabulary.item_titles is None:
        titles = map(made_up, range(model.num_items))
        names = model.vocabulary
        sizes = names.num_users, names.num_items
        model.vocabulary = Vocabulary(*sizes, names.user_ids, names.item_ids, titles)
    site = out / 'site'
    site.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copyfile(PAGE_FOLDER / name, site / name)
    size = write_bundle(model, site / 'model.c2f')['all']
    serve(site, args.port, f'{model.num_items:,} items in {size:,} bytes')
    return 0


def demo_run(args: argparse.Namespace, out: Path) -> Path:
    """The directory of the demo's run, trained if it is not complete."""
    root = Path(args.data_root or DEFAULT_ROOT)
    is_there = (root / 'ml-100k/ml-100k.inter').exists()
    dataset = 'ml-100k' if is_there else 'synthetic'
    if dataset == 'synthetic':
        logger.info(
            'no ml-100k/ml-100k.inter in %s: the films are invented; --data-root names '
            'another folder',
            root,
        )
    folder = out / dataset
    if resume_files(folder):
        options = ['--resume']
    elif (folder / 'model.safetensors').exists():
        logger.info('%s: already trained; delete it to train again', folder)
        return folder
    else:
        options = ['--dataset', dataset]
        options += [] if args.data_root is None else ['--data-root', args.data_root]
    call = ['train', *options, '--out', str(folder)]
    training = make_parser(args.program).parse_args(call)
    training.argv = call
    if train.run(training):
        raise KeyboardInterrupt
    return folder


def made_up(item: int) -> str:
    """The title of a film that does not exist; each has its own."""
    rest, first = divmod(item, len(FIRST_WORDS))
    part, second = divmod(rest, len(SECOND_WORDS))
    title = f'{FIRST_WORDS[first]} {SECOND_WORDS[(first + second) % len(SECOND_WORDS)]}'
    return title if not part else f'{title}, part {part + 1}'


def serve(site: Path, port: int, what: str) -> None:
    """Serves a folder on this machine alone, until it is interrupted."""
    handler = partial(QuietHandler, directory=site)
    try:
        server = ThreadingHTTPServer(('127.0.0.1', port), handler)
    except OSError as error:
        raise InputError(
            f'--port {port}: not available ({error}); give another, or 0 for any'
        ) from None
    with server:
        print(
            f'{what}, in {site}\nopen http://127.0.0.1:{server.server_port}/ in a '
            'browser; Ctrl-C stops it',
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            server.serve_forever()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without caching or logging."""

    # On Windows the types would come from the registry.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        '.js': 'text/javascript',
        '.c2f': 'application/octet-stream',
    }

    def end_headers(self) -> None:
        self.send_header('Cache-Control', 'no-cache')
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass
