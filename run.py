"""The command line, from the folder of the repository: see ``pyg_c2f/cli``."""

import sys
from functools import partial

from pyg_c2f.cli.main import main as cli

main = partial(cli, program=('python', 'run.py'))

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
