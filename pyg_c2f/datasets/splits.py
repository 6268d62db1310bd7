r"""Who is held out: the two protocols, drawn per user with a generator of their own.

Interactions are sorted arrays of unique keys ``user * num_items + item``, so that a
split depends on which interactions there are and on the seed, not on the order in
the file.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np

from pyg_c2f.typing import InputError, Protocol

logger = logging.getLogger(__name__)


class Splits(NamedTuple):
    r"""Three disjoint sorted arrays of unique keys."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def make_generator(protocol: str, split_seed: int) -> np.random.Generator:
    r"""Returns the generator of a split.

    Raises:
        InputError: If the protocol is unknown or the seed is no natural number.
    """
    protocols = get_args(Protocol)
    if protocol not in protocols:
        raise InputError(
            f'unknown protocol {protocol!r}; choose one of {", ".join(protocols)}'
        )
    if isinstance(split_seed, bool) or not isinstance(split_seed, int | np.integer):
        raise InputError(f'split_seed must be an integer (got {split_seed!r})')
    if split_seed < 0:
        raise InputError(f'split_seed must not be negative (got {split_seed})')
    return np.random.default_rng(split_seed)


def draw_per_user(
    user: np.ndarray,
    quota: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    r"""Draws a number of interactions of each user, uniformly without replacement.

    Args:
        user (np.ndarray): The user of each interaction, sorted, ``[n]``.
        quota (Callable): Maps how many interactions users have to how many are drawn.
        rng (np.random.Generator): The source of randomness.

    Returns:
        np.ndarray: The mask of what is drawn, ``[n]``.
    """
    count = np.bincount(user)
    order = _order_by_user(user, rng.random(user.size))
    rank = np.arange(user.size) - (np.cumsum(count) - count)[user]
    mask = np.empty(user.size, dtype=bool)
    mask[order] = rank < quota(count)[user]
    return mask


def _order_by_user(user: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The order by user, then value; users stay where they are, for they are sorted."""
    if user.size and user[-1] < 2**19:
        # One sort of numbers instead of two. A value is a multiple of 2^-53.
        key = user.astype(np.int64) << 44 | (value * 2**53).astype(np.int64) >> 9
        order = np.argsort(key)
        ordered = key[order]
        if not (ordered[1:] == ordered[:-1]).any():
            return order
    return np.lexsort((value, user))


def fifth(count: np.ndarray) -> np.ndarray:
    """How many of a user's interactions a single file keeps for the test."""
    return (count + 2) // 5


def tenth(count: np.ndarray) -> np.ndarray:
    """How many of a user's train interactions are validation, by ``standard``."""
    return (count + 5) // 10


def third(count: np.ndarray) -> np.ndarray:
    """How many of a user's test interactions are validation, by ``c2f``."""
    return -(-count // 3)


def hold_out(
    keys: np.ndarray, num_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    r"""Divides one set of interactions into a train and a test part.

    Of a user's :math:`n` interactions :math:`\lfloor n / 5 + 1/2 \rfloor`, a fifth
    rounded to the nearest integer, are test.
    """
    mask = draw_per_user(keys // num_items, fifth, rng)
    return keys[~mask], keys[mask]


def split(
    train: np.ndarray,
    valid: np.ndarray | None,
    test: np.ndarray,
    num_items: int,
    protocol: Protocol,
    rng: np.random.Generator,
    name: str,
) -> Splits:
    r"""Applies a protocol to the interactions of train, validation and test file.

    What is also a train interaction is dropped from validation and test, and what is
    also a test interaction from the validation file; both are logged.

    * ``c2f``: validation is :math:`\lceil n / 3 \rceil` of each user's :math:`n` test
      items, the rest remains test. A validation file is not used.
    * ``standard``: test remains as it is. Validation is the validation file, or
      where there is none :math:`\lfloor n / 10 + 1/2 \rfloor` of each user's
      :math:`n` train items, which leave train: a tenth rounded to the nearest
      integer, none of users with fewer than five.

    Args:
        train (np.ndarray): The keys of the train file.
        valid (np.ndarray, optional): The keys of the validation file.
        test (np.ndarray): The keys of the test file.
        num_items (int): The number of items, the base of the keys.
        protocol (str): ``'c2f'`` or ``'standard'``.
        rng (np.random.Generator): The source of randomness.
        name (str): The name of the data set, for messages.

    Raises:
        InputError: If no test interaction remains.
    """
    test = _without(test, train, name, 'test interactions that are also in train')
    if protocol == 'c2f':
        if valid is not None:
            logger.info('%s: protocol c2f does not use the validation file', name)
        mask = draw_per_user(test // num_items, third, rng)
        val, test = test[mask], test[~mask]
    elif valid is not None:
        what = 'validation interactions that are also in'
        val = _without(valid, train, name, f'{what} train')
        val = _without(val, test, name, f'{what} test')
    else:
        mask = draw_per_user(train // num_items, tenth, rng)
        train, val = train[~mask], train[mask]
    if not test.size:
        raise InputError(
            f'{name}: protocol {protocol} leaves no test interaction; give users more '
            'held-out items that are not among their train items'
        )
    if not val.size:
        logger.warning('%s: protocol %s leaves no validation', name, protocol)
    return Splits(train, val, test)


def _without(keys: np.ndarray, others: np.ndarray, name: str, what: str) -> np.ndarray:
    repeated = np.isin(keys, others, assume_unique=True)
    if repeated.any():
        logger.warning('%s: %d %s dropped', name, repeated.sum(), what)
    return keys[~repeated]
