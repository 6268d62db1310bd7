r"""Holdout splits: two protocols, drawn per user.

Interactions are sorted arrays of unique keys ``user * num_items + item``, so that a
split depends on the set of interactions and on the seed, not on the order in a file.
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from pyg_c2f.datasets.spec import DataSpec
from pyg_c2f.typing import InputError, Protocol

logger = logging.getLogger(__name__)


class Splits(NamedTuple):
    r"""Three disjoint sorted arrays of unique keys."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def draw_per_user(
    user: np.ndarray,
    quota: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    r"""Draws some interactions of each user, uniformly without replacement.

    Users are sorted, ``[n]``; the quota maps their numbers of interactions to how many
    are drawn. Returns the mask of drawn interactions, ``[n]``.
    """
    count = np.bincount(user)
    order = _order_by_user(user, rng.random(user.size))
    rank = np.arange(user.size) - (np.cumsum(count) - count)[user]
    mask = np.empty(user.size, dtype=bool)
    mask[order] = rank < quota(count)[user]
    return mask


def _order_by_user(user: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The order by user, then value; the users are sorted already."""
    if user.size and user[-1] < 2**19:
        # One sort of numbers instead of two. A value is a multiple of 2^-53.
        key = user.astype(np.int64) << 44 | (value * 2**53).astype(np.int64) >> 9
        order = np.argsort(key)
        ordered = key[order]
        if not (ordered[1:] == ordered[:-1]).any():
            return order
    return np.lexsort((value, user))


def fifth(count: np.ndarray) -> np.ndarray:
    """How many of a user's interactions in a single file are test."""
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
    r"""Divides one set of interactions into a train and a test part."""
    mask = draw_per_user(keys // num_items, fifth, rng)
    return keys[~mask], keys[mask]


def draw_validation(
    train: np.ndarray,
    test: np.ndarray,
    num_items: int,
    protocol: Protocol,
    rng: np.random.Generator,
) -> Splits:
    r"""Draws the validation interactions, of test by ``c2f``, else of train."""
    if protocol == 'c2f':
        mask = draw_per_user(test // num_items, third, rng)
        return Splits(train, test[mask], test[~mask])
    mask = draw_per_user(train // num_items, tenth, rng)
    return Splits(train[~mask], train[mask], test)


def count_splits(per_user: np.ndarray, protocol: Protocol) -> tuple[int, int, int]:
    r"""How many interactions of a single file are train, validation and test."""
    held = fifth(per_user)
    val = third(held) if protocol == 'c2f' else tenth(per_user - held)
    total, num_held, num_val = (int(x.sum()) for x in (per_user, held, val))
    if protocol == 'c2f':
        return total - num_held, num_val, num_held - num_val
    return total - num_held - num_val, num_val, num_held


def check_counts(num_val: int, num_test: int, spec: DataSpec) -> None:
    r"""Refuses a split without test, and warns of one without validation items."""
    if not num_test:
        raise InputError(
            f'{spec.name}: protocol {spec.protocol} leaves no test interaction; give '
            'users more held-out items that are not among their train items'
        )
    if not num_val:
        logger.warning('%s: protocol %s leaves no validation', spec.name, spec.protocol)


def split(parts: Mapping[str, np.ndarray], num_items: int, spec: DataSpec) -> Splits:
    r"""Splits interactions by the protocol and the seed of a data set.

    A single set of interactions is divided by :func:`hold_out` first. Otherwise
    interactions that are also in train are dropped from validation and test, and those
    that are also in test from the validation file; both are logged. Validation is the
    validation file, by ``standard`` alone, or what :func:`draw_validation` draws.

    The parts are the keys of ``train.txt``, ``test.txt`` and perhaps ``valid.txt``, or
    of a single file of any other name.
    """
    rng, valid = spec.generator(), parts.get('valid.txt')
    if 'train.txt' in parts:
        train, test = parts['train.txt'], parts['test.txt']
    else:
        (keys,) = parts.values()
        train, test = hold_out(keys, num_items, rng)
    name = spec.name
    test = _without(test, train, name, 'test interactions that are also in train')
    if valid is None or spec.protocol == 'c2f':
        if valid is not None:
            logger.info('%s: protocol c2f does not use the validation file', name)
        out = draw_validation(train, test, num_items, spec.protocol, rng)
    else:
        what = 'validation interactions that are also in'
        valid = _without(valid, train, name, f'{what} train')
        out = Splits(train, _without(valid, test, name, f'{what} test'), test)
    check_counts(out.val.size, out.test.size, spec)
    return out


def _without(keys: np.ndarray, others: np.ndarray, name: str, what: str) -> np.ndarray:
    repeated = np.isin(keys, others, assume_unique=True)
    if repeated.any():
        logger.warning('%s: %d %s dropped', name, repeated.sum(), what)
    return keys[~repeated]
