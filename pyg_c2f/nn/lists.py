r"""Lists of the best items a person has not seen, for every model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyg_c2f.graph import ranges

BLOCK = 1024


def check_edges(
    name: str, edge_index: Tensor, num_users: int, num_items: int, num_layers: int
) -> None:
    """Checks a model's graph.

    Raises:
        ValueError: If a size is not positive, or an edge does not fit.
    """
    if num_users < 1 or num_items < 1 or num_layers < 0:
        raise ValueError(
            f"'{name}' expected users, items and layers (got num_users={num_users}, "
            f'num_items={num_items}, num_layers={num_layers})'
        )
    high = torch.tensor([[num_users], [num_items]], device=edge_index.device)
    if bool(((edge_index < 0) | (edge_index >= high)).any()):
        raise ValueError(
            f"'{name}' expected users below {num_users} and items below {num_items} "
            f'in edge_index (got up to {edge_index.max(dim=1).values.tolist()})'
        )


def best_unseen(
    users: int | Sequence[int] | Tensor | None,
    history: Sequence[int] | Tensor | None,
    k: int,
    rowptr: Tensor,
    col: Tensor,
    num_items: int,
    scorer: Callable[[], Callable[[Tensor], Tensor]],
    score_history: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """What ``recommend`` of the models does, given their scores.

    Args:
        users (int or Sequence or Tensor, optional): User ids.
        history (Sequence or Tensor, optional): Item ids of one unknown person.
        k (int): The number of items.
        rowptr (Tensor): The starts of each user's train items, ``[num_users + 1]``.
        col (Tensor): The train items.
        num_items (int): The number of items.
        scorer (Callable): Makes the function from user ids to scores.
        score_history (Callable): Gives the scores ``[1, num_items]`` of a history.

    Raises:
        ValueError: If not exactly one of users and history is given, an id is out of
            range, the history is empty, or ``k`` is not positive.
    """
    if (users is None) == (history is None):
        raise ValueError("'recommend' takes either users or a history")
    if k < 1:
        raise ValueError(f"'recommend' expected k >= 1 (got {k})")
    k = min(k, num_items)
    if history is not None:
        items = torch.as_tensor(history, device=rowptr.device).flatten().unique()
        _check_ids(items, num_items, 'item')
        scores = score_history(items)
        return _top_unseen(scores, torch.zeros_like(items), items, k, single=True)

    ids = torch.as_tensor(users, device=rowptr.device)
    _check_ids(ids, rowptr.numel() - 1, 'user')
    score = scorer()
    out = []
    for block in ids.flatten().split(BLOCK):
        row, at = ranges(rowptr[block], rowptr[block + 1] - rowptr[block])
        out.append(_top_unseen(score(block), row, col[at], k, single=ids.dim() == 0))
    return torch.cat([ids for ids, _ in out]), torch.cat([s for _, s in out])


def _check_ids(ids: Tensor, num: int, what: str) -> None:
    if ids.numel() == 0:
        raise ValueError(f"'recommend' expected at least one {what} id (got none)")
    if ids.is_floating_point() or int(ids.min()) < 0 or int(ids.max()) >= num:
        raise ValueError(
            f"'recommend' expected {what} ids in [0, {num}) (got {ids.tolist()})"
        )


def _top_unseen(
    scores: Tensor, row: Tensor, seen: Tensor, k: int, single: bool
) -> tuple[Tensor, Tensor]:
    scores[row, seen.long()] = -torch.inf
    top, ids = scores.topk(k)
    ids = ids.masked_fill(top == -torch.inf, -1)
    return (ids[0], top[0]) if single else (ids, top)
