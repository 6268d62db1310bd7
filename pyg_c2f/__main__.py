"""``python -m pyg_c2f``: the command line."""

import sys

from pyg_c2f.cli.main import main

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:], ('python', '-m', 'pyg_c2f')))
