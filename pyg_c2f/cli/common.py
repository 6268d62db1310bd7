"""What the calls share."""

import os
import sys


def fail(message: str) -> int:
    """Prints an error in one line and returns its exit status."""
    if is_ours_to_say():
        print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2


def is_ours_to_say() -> bool:
    """Whether this process says why a run ends, and no other one has done so."""
    # A wrong option is told before torch is there; without torchrun it need not come.
    if 'TORCHELASTIC_RUN_ID' not in os.environ:
        return True
    from pyg_c2f.cli.torchrun import is_first_to_end

    return is_first_to_end()
