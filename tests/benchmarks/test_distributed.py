"""The benchmark of several processes, as far as one process goes."""

import json

import distributed
import torch

SMALL = ['--set', 'embedding_dim=16', 'num_fine=16', 'coarse_per_item=2']


def call(tmp_path, *options):
    folders = ['--out', str(tmp_path), '--work', str(tmp_path / 'work')]
    distributed.main([*options, *folders, '--timeout', '120'])
    return json.loads((tmp_path / 'distributed.json').read_text())


def test_times_of_one_process(tmp_path, monkeypatch):
    """Recipe fast, in this process instead of one of its own."""
    before = torch.get_num_threads()

    def worker(args, part, dataset, size, prefix):
        job = vars(args) | {'part': part, 'dataset': dataset}
        data = distributed.get_dataset(dataset, None, args.protocol)
        return distributed.take_times(job, data)

    monkeypatch.setattr(distributed, 'worker', worker)
    monkeypatch.setattr(distributed, 'reuse_freed_memory', lambda: None)
    monkeypatch.setattr(distributed.os, 'sched_getaffinity', lambda _: {0})
    options = ['--part', 'scaling', '--rounds', '1', *SMALL]
    result = call(tmp_path, *options)
    ((name, entry),) = result['scaling'].items()
    assert name.startswith('synthetic fast')
    (times,) = entry['rounds']['1']
    assert set(times) == {'anchors', 'evaluation', 'all together'}
    assert '| anchors |' in (tmp_path / 'distributed.md').read_text()
    assert torch.get_num_threads() == before
