"""A small random matrix of interactions for all methods."""

import pytest
import torch
from methods import Baseline, Histories, file_bytes, histories_of
from methods.base import Tensors
from safetensors.torch import load

NUM_USERS, NUM_ITEMS = 30, 20


def draw_histories(seed: int, num_users: int = NUM_USERS) -> Histories:
    """Random histories in which every user has an item and every item a user."""
    generator = torch.Generator().manual_seed(seed)
    rated = torch.rand(num_users, NUM_ITEMS, generator=generator) < 0.25
    user, item = torch.arange(num_users), torch.arange(NUM_ITEMS)
    rated[user, user % NUM_ITEMS] = True
    rated[item % num_users, item] = True
    return histories_of(rated.nonzero().T, num_users, NUM_ITEMS)


@pytest.fixture
def small() -> Histories:
    """The train interactions of 30 users and 20 items."""
    return draw_histories(0)


@pytest.fixture
def others() -> Histories:
    """The histories of 7 other users."""
    return draw_histories(1, num_users=7)


@pytest.fixture
def check_served():
    """Checks what holds for every method that serves anyone.

    Scores follow the histories, whoever has them and however they are stored, and one
    who has none gets a list, too.
    """

    def check(method: Baseline, stored: Tensors, train: Histories) -> None:
        assert method.serves_anyone
        users = torch.arange(train.num_users)
        score = method.scorer(stored, train)
        want = score(users).clone()
        assert want.shape == (train.num_users, train.num_items)
        assert want.dtype == torch.float
        assert torch.allclose(score(users[[5, 2]]), want[[5, 2]], atol=1e-6)

        loaded = load(file_bytes(stored))
        assert torch.equal(method.scorer(loaded, train)(users), want)

        order = users.flip(0)
        item = train.edge_index[1]
        turned = histories_of(
            torch.stack([order[train.edge_index[0]], item]),
            train.num_users,
            train.num_items,
        )
        got = method.scorer(stored, turned)(users)
        assert torch.allclose(got, want[order], atol=1e-6)

        nobody = Histories(torch.zeros(3, dtype=torch.long), item[:0], train.num_items)
        empty = method.scorer(stored, nobody)(torch.arange(2))
        assert empty.shape == (2, train.num_items)
        assert empty.isfinite().all()
        # All items alike, or the same list for all who have none.
        assert torch.equal(empty[0], empty[1])

    return check
