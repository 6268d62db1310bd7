"""``pyg-c2f data``: what is there of a data set."""

import argparse
import sys
from functools import partial

from pyg_c2f.datasets import describe
from pyg_c2f.datasets.registry import build
from pyg_c2f.experiment import data_arguments


def run(args: argparse.Namespace) -> int:
    """Prints what there is of a data set, once it is built if that is asked for."""
    if args.build:
        build_it = partial(build, progress=sys.stderr.isatty())
        print(f'built             {build_it(*data_arguments(vars(args)))}')
    facts = describe(*data_arguments(vars(args)))
    files = facts.pop('files')
    for key, value in facts.items():
        print(f'{key:17} {value if value is not None else "-"}')
    for file in files:
        size = '-' if file['bytes'] is None else f'{file["bytes"]:,} bytes'
        print(f'{file["file"]:17} {size}, checksum {file["state"]}')
    return 0
