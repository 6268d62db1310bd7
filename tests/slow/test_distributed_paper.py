"""Recipe ``paper`` on several processes gives the results of one process."""

from dataclasses import replace
from itertools import count

import pytest
import torch

import pyg_c2f
from pyg_c2f.checkpoint import phase_file
from pyg_c2f.datasets import get_dataset
from pyg_c2f.nn import BPRLoss
from pyg_c2f.recipes import PaperRecipe, TrainingOptions, base, train
from pyg_c2f.recipes.paper import C2FTrainer, batch_loss, share_columns
from pyg_c2f.recipes.resume import read_resume, resume_files
from pyg_c2f.shards import Group
from pyg_c2f.typing import Assignment, InputError
from tests.slow.processes import Processes
from tests.tiny import SETTINGS

EACH_SIZE = pytest.mark.parametrize('size', [2, 3, 4])
# An epoch has 1,600 triples: the last batches hold 1 and 2, fewer than processes.
TINY = PaperRecipe(
    **SETTINGS
    | {'batch_size_coarse': 533, 'batch_size_fine': 799}
    | {'max_epochs': 9, 'patience': 2}
)


def load(root):
    return get_dataset('text', root, 'c2f')


# Whole trainings ----------------------------------------------------------------------


def trained(group, root, stop=None, **kwargs):
    """The history and the learned tables of a training.

    With ``stop`` it is interrupted in that step, in all processes.
    """
    lines, steps, step = [], count(), C2FTrainer.step

    def counted(*args):
        if next(steps) == stop:
            raise KeyboardInterrupt
        return step(*args)

    options = TrainingOptions(on_evaluation=lines.append, group=group, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(C2FTrainer, 'step', counted)
        run = train(load(root), TINY, options)
    tables = {k: v.tolist() for k, v in run.model.model.named_parameters()}
    return lines, run.phases, tables


@pytest.fixture(scope='module')
def alone(shared_root):
    """The training of a single process without a group."""
    found = trained(None, shared_root)
    assert all(len(phases) == 2 for phases in found[1].values())
    return found


def check_same(answer, alone):
    lines, phases, tables = answer
    expected = alone[0][len(alone[0]) - len(lines) :]
    for line, other in zip(lines, expected, strict=True):
        for key in ('stage', 'phase', 'epoch', 'anchors_in_use'):
            assert line[key] == other[key]
        assert (line['loss'] is None) == (line['epoch'] == 0)
        if line['epoch'] > 0:
            assert line['loss'] == pytest.approx(other['loss'], rel=1e-5)
        assert line['val'] == pytest.approx(other['val'], abs=1e-4)
    for stage, of_stage in alone[1].items():
        assert phases[stage].keys() == of_stage.keys()
        for phase, result in of_stage.items():
            for key in ('best_epoch', 'last_epoch'):
                assert phases[stage][phase][key] == result[key]
            assert phases[stage][phase]['val'] == pytest.approx(result['val'], abs=1e-4)
    for name, table in alone[2].items():
        torch.testing.assert_close(
            torch.tensor(tables[name]), torch.tensor(table), rtol=1e-3, atol=1e-3
        )


@EACH_SIZE
def test_same_training(size, start, shared_root, alone):
    first, *others = start(size)(trained, shared_root)
    check_same(first, alone)
    for lines, phases, tables in others:
        assert lines == []  # Of the history, one process writes.
        assert (phases, tables) == first[1:]


def test_a_group_of_one_gives_the_same_bits(shared_root, alone):
    lines, phases, tables = trained(Group(), shared_root)
    assert (phases, tables) == alone[1:]
    assert [x['loss'] for x in lines] == [x['loss'] for x in alone[0]]


def test_resumed_in_other_ways(start, shared_root, alone, tmp_path):
    """Two processes, then three, then four, then one alone."""
    at = {'out': tmp_path}
    num_batches = {'coarse': 4, 'fine': 3}
    coarse = alone[1]['coarse'][2]['last_epoch'] * num_batches['coarse']
    to_fine = coarse - 3 * num_batches['coarse'] + 2 * num_batches['fine']
    for size, stop, place in (
        (2, 3 * num_batches['coarse'] + 1, ('coarse', 3)),
        (3, to_fine, ('fine', 2)),
        (4, num_batches['fine'] + 2, ('fine', 3)),
    ):
        for answer in start(size)(resumed, shared_root, stop, tmp_path):
            assert isinstance(answer, KeyboardInterrupt)
        progress = read_resume(tmp_path)[1]['progress']
        assert (progress['stage'], progress['epoch']) == place
    check_same(trained(None, shared_root, resume=True, **at), alone)
    for stage, phases in alone[1].items():
        for phase in phases:
            assert pyg_c2f.load(phase_file(tmp_path, stage, phase)).stage == stage
    assert not list(tmp_path.glob('*.part'))


def resumed(group, root, stop, out):
    is_first = not resume_files(out)
    group.wait()
    return trained(group, root, stop, out=out, resume=not is_first)


# One step -----------------------------------------------------------------------------


def make_model(root, stage, width, num_layers=2):
    data = load(root)
    recipe = replace(TINY, embedding_dim=width, num_layers=num_layers)
    options = TrainingOptions(seed=0)
    model = recipe.start(data, 'coarse', None, options)
    if stage == 'fine':
        model = recipe.start(data, 'fine', model, options)
    return model, recipe


def draw_triples(model, num_triples):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randint(high, (num_triples,), generator=generator)
        for high in (model.num_users, model.num_items, model.num_items)
    )


def one_step(group, root, stage, width, num_layers, num_triples):
    """The differences between a shared batch and a whole one."""
    model, _ = make_model(root, stage, width, num_layers)
    triples, criterion = draw_triples(model, num_triples), BPRLoss(0.1)
    expected, h = batch_loss(model, criterion, triples)
    expected.backward()
    whole = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    columns = share_columns(width, group)
    loss, features = batch_loss(model, criterion, triples, columns)
    loss.backward()
    found = {
        'loss': abs(float(loss / expected.detach()) - 1),
        'features': float((columns.gather(features.detach().T).T - h).abs().max()),
    }
    for name, parameter in model.named_parameters():
        grad = parameter.grad  # Each process has its part, others zeros or none.
        grad = group.all_reduce(torch.zeros_like(parameter) if grad is None else grad)
        if name in whole:
            error = (grad - whole[name]).abs().max()
            found[name] = float(error / whole[name].abs().max().clamp(min=1e-9))
    return found


@pytest.mark.parametrize('stage', ['coarse', 'fine'])
@EACH_SIZE
def test_one_step(size, stage, start, shared_root):
    """The features and the gradients of the whole batch; also of one triple."""
    for num_layers, num_triples in ((2, 300), (3, 7), (1, 2), (0, 1)):
        args = (shared_root, stage, 8, num_layers, num_triples)
        answers = start(size)(one_step, *args)
        assert all(answer == answers[0] for answer in answers)
        assert max(answers[0].values()) < 2e-6, (num_layers, num_triples)


# What goes wrong ----------------------------------------------------------------------


def infinite(group, root, name, step):
    """An infinite gradient of a tensor that one process updates, in one step."""
    whole, calls = C2FTrainer.step, count()
    owner = 0 if name == 'bias' else group.size - 1

    def spoil(grad):
        grad = grad.clone()
        grad.view(-1)[-1] = float('inf')
        return grad

    def spoiled_step(trainer, triples):
        if next(calls) != step or group.rank != owner:
            return whole(trainer, triples)
        hook = trainer.model.get_parameter(name).register_hook(spoil)
        out = whole(trainer, triples)
        hook.remove()
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(C2FTrainer, 'step', spoiled_step)
        return train(load(root), TINY, TrainingOptions(group=group))


@pytest.mark.parametrize(
    ('name', 'step', 'says'),
    [
        ('bias', 7, 'bias holds nan in step 4 of epoch 1 of the coarse'),
        ('coarse.codebook', 5, 'the loss holds nan in step 3 of epoch 1 of the coarse'),
        ('coarse.codebook', 7, 'coarse.codebook holds nan in step 4 of epoch 1 of the'),
    ],
)
def test_all_refuse_what_one_has_learned(name, step, says, start, shared_root):
    """In the next step, or at the end of the epoch."""
    answers = start(3)(infinite, shared_root, name, step)
    assert len({str(answer) for answer in answers}) == 1
    assert isinstance(answers[0], InputError)
    assert str(answers[0]).startswith(says)


def too_narrow(group, root):
    recipe = replace(TINY, embedding_dim=2)
    return train(load(root), recipe, TrainingOptions(group=group))


def test_more_processes_than_columns(start, shared_root):
    for answer in start(3)(too_narrow, shared_root):
        assert isinstance(answer, InputError)
        assert str(answer).startswith('3 processes, but embedding_dim=2: ')


def elsewhere(group, root, out):
    """Resumes from a directory in which only the first process has a state."""
    return trained(group, root, out=out / str(min(group.rank, 1)), resume=True)


def test_directories_that_not_all_see(start, shared_root, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(None, shared_root, stop=9, out=tmp_path / '0')
    for answer in start(2)(elsewhere, shared_root, tmp_path):
        assert isinstance(answer, InputError)
        assert 'the processes see different interrupted runs' in str(answer)


def full_disk(group, root, out):
    def write(*_):
        raise OSError('no space left on device')

    base.write_resume = write
    return trained(group, root, out=out)


def test_nobody_waits_for_a_process_that_left(shared_root, tmp_path):
    """The first one writes the files; without it, the others end too."""
    processes = Processes(3, tmp_path)
    first, *others = processes(full_disk, shared_root, tmp_path / 'out')
    assert 'no space left' in str(first)
    assert all(isinstance(answer, RuntimeError) for answer in others)
    processes.end()


def drifted(group, root):
    """As if each process were a machine that rounds in its own way."""
    model, recipe = make_model(root, 'coarse', 8)
    update = model.update_assignment

    def other_update(h):
        update(h)
        index, weight = model.coarse.assignment
        other = Assignment((index + group.rank) % model.num_coarse, weight)
        model.set_assignment(coarse=other)

    model.update_assignment = other_update
    batches = [draw_triples(model, 9)] * 3
    trainer = recipe.trainer(model, load(root), TrainingOptions(group=group))
    loss = trainer.train_epoch(2, lambda _: batches)
    tables = [x.tolist() for x in (model.coarse.codebook, *model.coarse.assignment)]
    return loss, tables


def test_assignments_are_those_of_the_first_process(start, shared_root):
    first, *others = start(3)(drifted, shared_root)
    assert all(other == first for other in others)
