"""``pyg-c2f export``: one small file that recommends."""

import argparse
from pathlib import Path

from pyg_c2f.checkpoint import load, model_file
from pyg_c2f.cli.options import EXPORTS
from pyg_c2f.export import write_bundle, write_onnx
from pyg_c2f.typing import InputError

# What a bundle takes besides a path, and the option that gives it.
BUNDLE_OPTIONS = {'weight_bits': '--weight-bits', 'names': '--no-names'}


def run(args: argparse.Namespace) -> int:
    """Writes a file that recommends without this package."""
    by_name = 'onnx' if Path(args.out or '').suffix == '.onnx' else 'bundle'
    form = args.format or by_name
    given = {x: vars(args)[x] for x in BUNDLE_OPTIONS if vars(args)[x] is not None}
    if given and form != 'bundle':
        raise InputError(f'{BUNDLE_OPTIONS[min(given)]} goes with --format bundle only')
    model = load(args.checkpoint)
    path = Path(args.out or model_file(args.checkpoint).with_name(EXPORTS[form]))
    if path.resolve() == model_file(args.checkpoint).resolve():
        raise InputError(f'--out {path}: is the checkpoint itself; name another file')
    if form == 'onnx':
        size = write_onnx(model, path)
    else:
        parts = write_bundle(model, path, **given)
        size = parts.pop('all')
        for name, part in parts.items():
            print(f'{name:8} {part:12,} bytes')
    print(f'{path}: {size:,} bytes')
    return 0
