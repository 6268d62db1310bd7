"""The processes that torchrun starts: their environment, signals and store."""

import logging
import os
import signal
import time
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist

from pyg_c2f.shards import one_block_each

# For one exchange, including what the slowest process computes before it.
TIMEOUT = timedelta(minutes=30)


def join() -> bool:
    """Joins the processes that ``torchrun`` started; false without ``torchrun``."""
    if not dist.is_torchelastic_launched():
        return False
    backend = 'gloo'
    if torch.cuda.is_available():
        # The device of a tensor decides which of the two moves it.
        backend = 'cpu:gloo,cuda:nccl'
        device = int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous('env://', timeout=TIMEOUT))
    # torchrun keeps its store across restarts, with the addresses of lost processes.
    store = dist.PrefixStore(agree(store, rank, size), store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT
    )
    # torchrun ends the others this way when it loses one. Between two exchanges they
    # would end without a message.
    signal.signal(signal.SIGTERM, _end)
    return True


def join_quietly() -> bool:
    """Joins the processes of torchrun, if any; only the first one logs."""
    is_distributed = join()
    if os.environ.get('RANK', '0') != '0' and is_distributed:
        logging.getLogger('pyg_c2f').setLevel(logging.ERROR)
    return is_distributed


def agree(store: dist.Store, rank: int, size: int) -> str:
    """A name that all processes of this start know, and none of an earlier one.

    The number of starts does not serve: nodes count their own failures only. Each
    process but the first asks under a name that it makes up and gets its answer under
    this name, so requests and answers of earlier starts in the store do no harm.
    """
    mine = uuid4().hex
    if rank > 0:
        store.set(f'pyg_c2f/asks/{rank}', mine)
        name = store.get(f'pyg_c2f/answer/{mine}').decode()
        store.set(f'pyg_c2f/knows/{name}/{rank}', '')
        return name
    end, missing = time.monotonic() + TIMEOUT.total_seconds(), set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f'pyg_c2f/asks/{other}']):
                asks = store.get(f'pyg_c2f/asks/{other}').decode()
                store.set(f'pyg_c2f/answer/{asks}', mine)
        missing = {x for x in missing if not store.check([f'pyg_c2f/knows/{mine}/{x}'])}
        if time.monotonic() > end:
            raise RuntimeError(f'timed out: processes {sorted(missing)} did not arrive')
        time.sleep(0.01)
    return mine


def _end(*_: object) -> None:
    raise RuntimeError('Connection lost: torchrun ends this process')


def restarts() -> int:
    """How often ``torchrun`` has restarted this run after losing a process.

    All processes call it together: a node whose processes did not fail counts none.
    """
    return int(one_block_each(dist.is_initialized()).max(_restarts_here()))


def _restarts_here() -> int:
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))


def is_lost(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process is gone."""
    words = ('Connection', 'gloo', 'NCCL', 'imed out', 'Broken pipe')
    return dist.is_initialized() and any(word in str(error) for word in words)


def is_first_to_end() -> bool:
    """Whether this process is the first of the run to fail, so its error is the cause.

    The others fail because the first one is gone.
    """
    if not dist.is_torchelastic_launched():
        return True
    if dist.is_initialized():
        # It is ending, and must not be stopped from printing why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        # torchrun's own store outlives the processes.
        store = dist.TCPStore(
            os.environ['MASTER_ADDR'],
            int(os.environ['MASTER_PORT']),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        return store.add(f'pyg_c2f/ended/{_restarts_here()}', 1) == 1
    except (KeyError, RuntimeError):
        return True


def starts_anew() -> bool:
    """Whether ``torchrun`` restarts the processes after a failure."""
    most = int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0))
    return dist.is_torchelastic_launched() and _restarts_here() < most


def leave() -> None:
    """Leaves the processes of :func:`join`."""
    if dist.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        dist.destroy_process_group()
