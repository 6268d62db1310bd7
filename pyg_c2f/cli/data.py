"""``pyg-c2f data``: describes a data set."""

import argparse
import sys

from pyg_c2f.datasets import build_dataset, describe
from pyg_c2f.experiment import data_spec


def run(args: argparse.Namespace) -> int:
    """Prints the facts of a data set, once it is built if that is asked for."""
    spec = data_spec(vars(args))
    if args.build:
        folder = build_dataset(spec, progress=sys.stderr.isatty())
        print(f'built             {folder}')
    facts = describe(spec)
    files = facts.pop('files')
    for key, value in facts.items():
        print(f'{key:17} {value if value is not None else "-"}')
    for file in files:
        size = '-' if file['bytes'] is None else f'{file["bytes"]:,} bytes'
        print(f'{file["file"]:17} {size}, checksum {file["state"]}')
    return 0
