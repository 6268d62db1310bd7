"""``pyg-c2f export``: one small file that recommends."""

import argparse
from pathlib import Path

from pyg_c2f.checkpoint import load, model_file
from pyg_c2f.cli.options import EXPORTS
from pyg_c2f.export import write_bundle, write_onnx
from pyg_c2f.typing import InputError

# What a bundle takes beside a path, and the option that gives it.
BUNDLE_OPTIONS = {'weight_bits': '--weight-bits', 'names': '--no-names'}


def run(args: argparse.Namespace) -> int:
    """Writes a file that recommends without this package."""
    if args.format is None:
        args.format = 'onnx' if Path(args.out or '').suffix == '.onnx' else 'bundle'
    options = {}
    for name, option in BUNDLE_OPTIONS.items():
        if vars(args)[name] is None:
            continue
        if args.format != 'bundle':
            raise InputError(f'{option} is no option of --format {args.format}')
        options[name] = vars(args)[name]
    model = load(args.checkpoint)
    path = Path(args.out or Path(args.checkpoint) / EXPORTS[args.format])
    if path.resolve() == model_file(args.checkpoint).resolve():
        raise InputError(f'--out {path}: is the checkpoint itself; name another file')
    if args.format == 'onnx':
        size = write_onnx(model, path)
    else:
        parts = write_bundle(model, path, **options)
        size = parts.pop('all')
        for name, part in parts.items():
            print(f'{name:8} {part:12,} bytes')
    print(f'{path}: {size:,} bytes')
    return 0
