"""The command line: parses calls before torch is imported, and reports errors."""

import argparse
import logging
import logging.handlers
import os
import sys
import warnings
from importlib import import_module

from pyg_c2f.cli.common import fail
from pyg_c2f.cli.options import make_parser, with_flags
from pyg_c2f.typing import InputError

# The loggers of this program; the others are the library's.
PROGRAM_LOGS = ('pyg_c2f.cli.', 'pyg_c2f.experiment')
# Options that come before a command.
OF_PROGRAM = ('-h', '--help', '--version')


class HeldLog(logging.handlers.MemoryHandler):
    """Holds the package's log back until this program itself logs something.

    By then the call is known to be right: a wrong one prints its error alone.
    """

    def __init__(self) -> None:
        super().__init__(10_000, target=logging.StreamHandler())

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802
        return record.name.startswith(PROGRAM_LOGS)


def main(argv: list[str] | None = None, program: tuple[str, ...] = ('pyg-c2f',)) -> int:
    """Runs one call and returns its exit status; without a command it trains.

    ``program`` is the words before the call, as help and messages show them.
    """
    argv = argv or []
    if not argv or (argv[0].startswith('-') and argv[0] not in OF_PROGRAM):
        argv = ['train', *argv]
    # Puts tables of gigabytes into pages of two megabytes: rows are gathered in random
    # order, and small pages would add an address lookup to each. torch reads the
    # variable when it is imported.
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    # The user has not chosen the tensors that torch warns of.
    warnings.filterwarnings('ignore', 'Sparse CSR tensor support')
    log, package = HeldLog(), logging.getLogger('pyg_c2f')
    level = package.level
    package.addHandler(log)
    package.setLevel(logging.INFO)
    try:
        args = make_parser(program).parse_args(argv)
        args.argv = argv
        if not is_shared(args) and os.environ.get('RANK', '0') != '0':
            return 0  # One of torchrun's processes is enough.
        command = import_module(f'pyg_c2f.cli.{args.command}')
        status = int(command.run(args))
        sys.stdout.flush()
        import_module('pyg_c2f.cli.torchrun').leave()
        return status
    except BrokenPipeError:
        # The reader has gone. The rest goes nowhere, or Python would report the broken
        # pipe once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, ImportError, OSError) as error:
        log.buffer.clear()
        return fail(with_flags(str(error)))
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
    """The message for an error in a call; none if it is a bug in the program."""
    from pyg_c2f.cli.torchrun import is_lost, starts_anew

    if isinstance(error, RuntimeError) and is_lost(error):
        again = ''
        if starts_anew():
            again = '; torchrun restarts them, unless it was stopped itself'
        elif args.command == 'train':
            from pyg_c2f.cli.train import call_again, is_begun, out_of

            if is_begun(out_of(args), args):
                again = f'; continue with: {call_again(out_of(args), args.program)}'
        return (
            'a process of this run is gone (stopped, killed, out of memory, or its '
            f'machine is down), so the others stop{again}'
        )
    if isinstance(error, RuntimeError) and 'memory' not in str(error):
        return None
    return 'out of memory; lower --set embedding_dim, num_coarse or the batch sizes'
