"""Processes that wait for work."""

import os
import uuid
from multiprocessing import get_context

import torch
import torch.distributed as dist

from pyg_c2f.shards import Group
from pyg_c2f.typing import InputError


def work(pipe, rank, size, store):
    """Calls functions that come through a pipe, as one of several processes.

    After an error that all processes raise they stay together; after another one the
    process leaves, as a program would.
    """
    torch.set_num_threads(1)
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    dist.init_process_group('gloo', f'file://{store}', rank=rank, world_size=size)
    group = Group(size, is_distributed=True)
    try:
        while (job := pipe.recv()) is not None:
            function, args = job
            try:
                pipe.send(function(group, *args))
            except (InputError, KeyboardInterrupt) as error:
                pipe.send(error)
            except Exception as error:
                pipe.send(RuntimeError(repr(error)))
                return
    finally:
        dist.destroy_process_group()


class Processes:
    def __init__(self, size, folder):
        # One process imports torch, the others are copies of it. Those of a process
        # that has trained before could not train.
        context = get_context('forkserver')
        context.set_forkserver_preload(['tests.slow.test_distributed'])
        store = folder / uuid.uuid4().hex
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            args = (theirs, rank, size, store)
            self.processes.append(context.Process(target=work, args=args, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(ours)

    def __call__(self, function, *args):
        """What each process returns, or the error that it raises."""
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(60), f'{function.__name__} hangs'
            answers.append(pipe.recv())
        return answers

    def end(self):
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self.processes:
            process.join(20)
            assert process.exitcode is not None, 'a process does not end'
