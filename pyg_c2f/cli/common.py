"""Errors of the command line."""

import os
import sys


def fail(message: str) -> int:
    """Prints an error in one line and returns its exit status.

    Of several processes, the first one that fails prints it.
    """
    is_first = True
    if 'TORCHELASTIC_RUN_ID' in os.environ:  # Otherwise torch need not be imported.
        from pyg_c2f.cli.torchrun import is_first_to_end

        is_first = is_first_to_end()
    if is_first:
        print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2
