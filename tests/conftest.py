"""Small random graphs, and SPEC sections 1 to 3 on them with dense matrices; data."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import run
from pyg_c2f.datasets import SyntheticHierarchy
from pyg_c2f.nn import C2F
from pyg_c2f.recipes import FastRecipe
from pyg_c2f.recipes.registry import fit
from pyg_c2f.typing import Assignment
from tests.tiny import FAST, data_options, settings, write_table_data, write_text_data

# The tensors are tiny: on a busy machine a second thread waits more than it works.
torch.set_num_threads(1)


@dataclass
class Toy:
    """A random graph with isolated nodes of every type and zero-weight links.

    User 1 has no train items and no anchors, item 2 no users but anchors, item 3
    neither; no link with weight leads to coarse anchor 4 or to fine anchor 3.
    """

    edge_index: torch.Tensor
    coarse: Assignment
    fine: Assignment
    num_users: int = 6
    num_items: int = 8
    num_coarse: int = 5
    num_fine: int = 4
    num_layers: int = 3

    @property
    def num_entities(self):
        return self.num_users + self.num_items

    @property
    def num_nodes(self):
        return self.num_entities + self.num_coarse + self.num_fine

    @property
    def rated(self):
        """The interactions R."""
        out = np.zeros((self.num_users, self.num_items))
        out[tuple(self.edge_index.numpy())] = 1
        return out

    @property
    def s1(self):
        return matrix(self.coarse, self.num_coarse)

    @property
    def s2(self):
        return matrix(self.fine, self.num_fine)

    def sums(self, stage):
        """The propagation matrix X before its normalisation."""
        c = self.num_entities
        f = c + self.num_coarse
        out = np.zeros((self.num_nodes, self.num_nodes))
        out[: self.num_users, self.num_users : c] = self.rated
        out[self.num_users : c, : self.num_users] = self.rated.T
        out[:c, :c] = normalised(out[:c, :c])
        out[:c, c:f], out[c:f, :c] = self.s1, self.s1.T
        if stage == 'fine':
            out[c:f, f:], out[f:, c:f] = self.s2, self.s2.T
        return out

    def x_hat(self, stage):
        return normalised(self.sums(stage))

    def correct(self, z, gate):
        """What follows the product in a layer of the fine stage, step by step."""
        z_n, z_c, z_f = np.split(
            z, [self.num_entities, self.num_entities + self.num_coarse]
        )
        z_n = z_n - self.s1 @ z_c
        z_c = z_c - self.s2 @ z_f
        z_c = gate * self.s2 @ z_f + (1 - gate) * z_c
        z_n = z_n + self.s1 @ z_c
        return np.concatenate([z_n, z_c, z_f])

    def layer(self, h, stage, gate):
        z = self.x_hat(stage) @ h
        return self.correct(z, gate) if stage == 'fine' else z

    def model(self, stage, **kwargs):
        """A model on this graph with random tables; its fine codebook is sparse."""
        sizes = {'embedding_dim': 6, 'num_layers': self.num_layers} | kwargs
        model = C2F(
            self.edge_index,
            self.num_users,
            self.num_items,
            num_coarse=self.num_coarse,
            num_fine=self.num_fine,
            fine_per_coarse=self.fine.index.size(1),
            **sizes,
        )
        with torch.no_grad():
            model.fine.codebook.mul_(2)
            model.global_bias.fill_(0.5)
        model.set_assignment(self.coarse, self.fine)
        model.set_stage(stage)
        return model


def matrix(assignment, num_anchors):
    """The dense form of an assignment."""
    out = np.zeros((len(assignment.index), num_anchors))
    for node, (anchors, weights) in enumerate(zip(*assignment, strict=True)):
        for anchor, weight in zip(anchors.tolist(), weights.tolist(), strict=True):
            out[node, anchor] += weight
    return out


def normalised(sums):
    """Both sides divided by the root of the row sums; zero rows stay zero."""
    deg = sums.sum(axis=1)
    scale = np.array([1 / np.sqrt(d) if d > 0 else 0 for d in deg])
    return scale[:, None] * sums * scale[None, :]


def make_toy(seed):
    torch.manual_seed(seed)
    rated = torch.rand(Toy.num_users, Toy.num_items) < 0.4
    rated[1] = False
    rated[:, 2:4] = False
    rated[0, 0] = rated[5, 7] = True

    def draw(num_nodes, num_anchors, num_links):
        index = torch.rand(num_nodes, num_anchors).argsort(dim=1)[:, :num_links]
        weight = torch.rand(num_nodes, num_links) + 0.1
        return Assignment(index, weight * (index < num_anchors - 1))

    coarse = draw(Toy.num_users + Toy.num_items, Toy.num_coarse, 2)
    coarse.weight[[1, Toy.num_users + 3]] = 0
    fine = draw(Toy.num_coarse, Toy.num_fine, 3)
    fine.weight[4] = 0
    return Toy(rated.nonzero().T.contiguous(), coarse, fine)


@pytest.fixture
def toy():
    return make_toy(0)


@pytest.fixture
def data_root(tmp_path_factory):
    """The folder with real data sets, for one test at a time, as some write there."""
    default = Path(__file__).parents[1] / '../shared/data'
    root = Path(os.environ.get('C2F_DATA', default)).resolve()
    if not root.is_dir():
        pytest.skip(f'no data at {root}; set C2F_DATA')
    with FileLock(tmp_path_factory.getbasetemp().parent / 'data_root.lock'):
        yield root


@pytest.fixture(scope='session')
def root(tmp_path_factory):
    """A data root with one data set as text and the same one as a table with names."""
    root = tmp_path_factory.mktemp('data')
    write_table_data(root, write_text_data(root))
    return root


@pytest.fixture(scope='session')
def make_run(root, tmp_path_factory):
    """Makes a complete run from a name of data and options."""

    def call(name, options):
        out = tmp_path_factory.mktemp('runs') / name
        words = ['train', *data_options(root, name), *options, '--out', str(out)]
        assert run.main(words) == 0
        return out

    return call


@pytest.fixture(scope='session')
def text_run(make_run):
    """A run of recipe paper on numbered users and items."""
    return make_run('text', settings())


@pytest.fixture(scope='session')
def table_run(make_run):
    """A run of recipe paper on users and items with names and titles."""
    return make_run('table', settings())


@pytest.fixture(scope='session')
def fast_run(make_run):
    """A run of the default recipe on users and items with names and titles."""
    return make_run('table', FAST)


@pytest.fixture
def dense():
    """The function from an assignment and a number of anchors to a dense matrix."""
    return matrix


class SmallDisk:
    """A file system of 256 kB of its own."""

    def __init__(self, folder):
        self.folder = folder

    def remount(self, options):
        call = ['mount', '-o', f'remount,{options}', str(self.folder)]
        subprocess.run(call, check=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / 'disk'
    folder.mkdir()
    call = ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(folder)]
    try:
        subprocess.run(call, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'no small disk can be mounted here: {error}')
    yield SmallDisk(folder)
    subprocess.run(['umount', str(folder)], check=True)


@pytest.fixture(scope='session')
def synthetic():
    """The embedded data set."""
    return SyntheticHierarchy(protocol='c2f')[0]


@pytest.fixture(scope='session')
def fast_model(synthetic):
    """A model of recipe fast on it."""
    return fit(synthetic, FastRecipe(embedding_dim=32))
