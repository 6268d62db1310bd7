"""The command line: parses a call before torch is imported, and answers errors."""

import argparse
import logging
import logging.handlers
import os
import sys
import warnings
from importlib import import_module

from pyg_c2f.cli.common import fail
from pyg_c2f.cli.options import make_parser
from pyg_c2f.typing import InputError

# The loggers of this program; the others are the library's.
PROGRAM_LOGS = ('pyg_c2f.cli.', 'pyg_c2f.experiment')


class HeldLog(logging.handlers.MemoryHandler):
    """Holds the package's lines back until this program has one of its own.

    By then a call is known to be right: one that is not prints its error alone.
    """

    def __init__(self) -> None:
        super().__init__(10_000, target=logging.StreamHandler())

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802
        return record.name.startswith(PROGRAM_LOGS)


def main(argv: list[str] | None = None, program: tuple[str, ...] = ('pyg-c2f',)) -> int:
    """Runs one call and returns its exit status; without a command it trains.

    Args:
        argv (List, optional): The words of the call. (default: none)
        program (Tuple, optional): The words that come before them, for help and for
            calls that messages name. (default: ``('pyg-c2f',)``)
    """
    argv = argv or []
    if not argv or (argv[0].startswith('-') and argv[0] not in ('-h', '--help')):
        argv = ['train', *argv]
    # Tables of gigabytes in pages of two megabytes: rows are gathered in no order, and
    # with small pages each one waits for its address too. torch reads it at its import.
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    # What torch says of a kind of tensor that whoever trains has not chosen.
    warnings.filterwarnings('ignore', 'Sparse CSR tensor support')
    log, package = HeldLog(), logging.getLogger('pyg_c2f')
    level = package.level
    package.addHandler(log)
    package.setLevel(logging.INFO)
    try:
        args = make_parser(program).parse_args(argv)
        args.argv = argv
        if not is_shared(args) and os.environ.get('RANK', '0') != '0':
            return 0  # One process of torchrun's is enough.
        command = import_module(f'pyg_c2f.cli.{args.command}')
        status = int(command.run(args))
        import_module('pyg_c2f.cli.torchrun').leave()
        return status
    except (InputError, ImportError, OSError) as error:
        log.buffer.clear()
        return fail(str(error))
    except (MemoryError, RuntimeError) as error:
        why = why_it_ended(error, args)
        if why is None:
            raise
        return fail(why)
    except KeyboardInterrupt:
        return 130
    finally:
        package.removeHandler(log)
        package.setLevel(level)
        log.close()


def console() -> int:
    """The program ``pyg-c2f``."""
    return main(sys.argv[1:])


def is_shared(args: argparse.Namespace) -> bool:
    """Whether several processes share the work of a call."""
    return args.command in ('train', 'evaluate') or vars(args).get('all', False)


def why_it_ended(
    error: MemoryError | RuntimeError, args: argparse.Namespace
) -> str | None:
    """What to say of an error in a call; none where it is a mistake in the program."""
    from pyg_c2f.cli.torchrun import is_lost, starts_anew

    if isinstance(error, RuntimeError) and is_lost(error):
        again = ''
        if starts_anew():
            again = '; torchrun starts them anew, unless it was stopped itself'
        elif args.command == 'train':
            from pyg_c2f.cli.train import call_again, is_begun, out_of

            if is_begun(out_of(args), args):
                again = f'; continue with: {call_again(out_of(args), args.program)}'
        return (
            'a process of this run has gone (stopped, killed, out of memory, or '
            f'with its machine), and the others stop{again}'
        )
    if isinstance(error, RuntimeError) and 'memory' not in str(error):
        return None
    return 'out of memory; lower --set embedding_dim, num_coarse or the batch sizes'
