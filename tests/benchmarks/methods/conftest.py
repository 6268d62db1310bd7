"""A small random matrix of interactions for all methods, and how they are asked."""

import pytest
import torch
from methods import Histories, histories_of
from methods.base import unpack_matrix

NUM_USERS, NUM_ITEMS = 30, 20
# Weights on a grid of 24 bits are as good as float32.
EXACT = 24


def draw_histories(seed: int, num_users: int = NUM_USERS) -> Histories:
    """Random histories in which every user has an item and every item a user."""
    generator = torch.Generator().manual_seed(seed)
    rated = torch.rand(num_users, NUM_ITEMS, generator=generator) < 0.25
    user, item = torch.arange(num_users), torch.arange(NUM_ITEMS)
    rated[user, user % NUM_ITEMS] = True
    rated[item % num_users, item] = True
    return histories_of(rated.nonzero().T, num_users, NUM_ITEMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(histories):
    """All rows, float64."""
    return histories.rows(torch.arange(histories.num_users)).double()


def scores_of(method, stored, histories):
    return method.scorer(stored, histories)(torch.arange(histories.num_users))


def kept_of(stored, num_items):
    """The matrix between items that is stored, float64, and which entries it has."""
    matrix = unpack_matrix(stored, num_items, num_items)
    size = (num_items, num_items)
    return torch.sparse_csr_tensor(*matrix, size).to_dense().double(), matrix.col


@pytest.fixture(scope='session')
def small() -> Histories:
    """The train interactions of 30 users and 20 items."""
    return draw_histories(0)


@pytest.fixture(scope='session')
def others() -> Histories:
    """The histories of 7 other users."""
    return draw_histories(1, num_users=7)
