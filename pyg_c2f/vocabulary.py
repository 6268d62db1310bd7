r"""Original ids and the numbers of a model."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.index import ItemIndex
from pyg_c2f.nn.recommender import Recommender, flatten, is_list
from pyg_c2f.typing import ITEM, USER, InputError


class Vocabulary:
    """What users and items are called: original ids, and the titles of items.

    Without ids (:obj:`None`) the files that a model was trained on had the numbers
    themselves for ids, so that ``'17'`` is item 17.

    Args:
        num_users (int): The number of users.
        num_items (int): The number of items.
        user_ids (Iterable, optional): The id of each user; numbers become text.
        item_ids (Iterable, optional): The id of each item.
        item_titles (Iterable, optional): The title of each item.

    Raises:
        InputError: If they are not as many as the users or items, an id is there
            twice, or one holds a NUL character or a lone surrogate.

    Example:
        >>> names = Vocabulary(2, 3, ['ann', 'bob'], ['a', 'b', 'c'])
        >>> names.encode(['c', 'a'], 'item')
        [2, 0]
        >>> names.item_ids[1]
        'b'
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        user_ids: Iterable[Any] | None = None,
        item_ids: Iterable[Any] | None = None,
        item_titles: Iterable[Any] | None = None,
    ) -> None:
        self.num_users, self.num_items = num_users, num_items
        self.user_ids = _as_texts(user_ids, num_users, 'user ids')
        self.item_ids = _as_texts(item_ids, num_items, 'item ids')
        self.item_titles = _as_texts(item_titles, num_items, 'item titles')
        self._numbers = {
            USER: _number_of_each(self.user_ids, USER),
            ITEM: _number_of_each(self.item_ids, ITEM),
        }

    @classmethod
    def from_data(cls, data: HeteroData) -> Self:
        """What a data set calls its users and items: ``raw_id``, and ``title``."""
        users, items = data[USER], data[ITEM]
        return cls(
            users.num_nodes,
            items.num_nodes,
            users.get('raw_id'),
            items.get('raw_id'),
            items.get('title'),
        )

    def encode(self, names: Sequence[str], kind: str) -> list[int]:
        """The numbers of users or items (``kind``) by their original ids.

        Raises:
            InputError: If an id is unknown.
        """
        known = self._numbers[kind]
        num = self.num_users if kind == USER else self.num_items
        if known is not None:
            numbers = [known.get(name, -1) for name in names]
        else:
            numbers = [_as_number(name, num) for name in names]
        if -1 in numbers:
            wrong = names[numbers.index(-1)]
            some = range(num)[:3] if known is None else list(known)[:3]
            raise InputError(
                f'unknown {kind} {str(wrong)!r}: the model knows {num} {kind}s, such '
                f'as {", ".join(map(str, some))}'
            )
        return numbers

    def name(self, number: int, kind: str) -> str:
        """The original id of a user or item."""
        ids = self.user_ids if kind == USER else self.item_ids
        return str(number) if ids is None else ids[number]

    def title(self, item: int) -> str:
        """The title of an item, empty if there are no titles."""
        return '' if self.item_titles is None else self.item_titles[item]

    def decode(self, items: Tensor) -> Any:
        """The original ids of lists of items, without the places that are left."""
        if items.dim() > 1:
            return [self.decode(row) for row in items]
        return [self.name(item, ITEM) for item in items.tolist() if item >= 0]


class NamedModel(torch.nn.Module):
    """A model that answers in the ids it is asked in.

    An id given as text is an original id, any other a number, and the items of the
    answer are given in the same way. All other attributes and methods are those of the
    model.

    Args:
        model (Recommender): The model.
        vocabulary (Vocabulary, optional): The names of its users and items. (default:
            their numbers)

    Raises:
        InputError: If the vocabulary has other numbers of users and items.

    Example:
        >>> from pyg_c2f.nn import C2F
        >>> edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = NamedModel(
        ...     C2F(edge_index, 3, 4, num_coarse=2, num_fine=2, embedding_dim=8,
        ...         fine_per_coarse=2),
        ...     Vocabulary(3, 4, ['ann', 'bob', 'cem'], ['a', 'b', 'c', 'd']),
        ... )
        >>> items, scores = model.recommend('ann', candidates=['a', 'd'])
        >>> items  # 'a' is in her train items
        ['d']
        >>> items, scores = model.recommend(history=[['a'], ['b', 'd']], k=2)
        >>> [len(row) for row in items]
        [2, 2]
    """

    def __init__(
        self, model: Recommender, vocabulary: Vocabulary | None = None
    ) -> None:
        super().__init__()
        sizes = model.num_users, model.num_items
        self.model = model
        self.vocabulary = vocabulary or Vocabulary(*sizes)
        if (self.vocabulary.num_users, self.vocabulary.num_items) != sizes:
            raise InputError(
                f'the vocabulary names {self.vocabulary.num_users} users and '
                f'{self.vocabulary.num_items} items, the model has {sizes[0]} and '
                f'{sizes[1]}'
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'model':  # Not there yet: while the object is made.
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def numbers(self, ids: Any, kind: str) -> Tensor:
        """The numbers of users or items.

        Args:
            ids (int or str or Sequence or Tensor): Numbers, which are checked, or
                original ids: one, or a list.
            kind (str): ``'user'`` or ``'item'``.

        Returns:
            Tensor: The numbers, ``[num_ids]``, or ``[]`` for one id.

        Raises:
            InputError: If an original id is unknown.
            ValueError: If there are no ids, numbers are out of range, or text and
                numbers are mixed.
        """
        if isinstance(ids, str):
            return self.model.check_ids(self.vocabulary.encode([ids], kind)[0], kind)
        if _are_names(ids):
            ids = self.vocabulary.encode(ids, kind)
        return self.model.check_ids(ids, kind)

    def recommend(
        self,
        users: Any = None,
        k: int = 20,
        *,
        history: Any = None,
        exclude_seen: bool = True,
        candidates: Any = None,
        index: ItemIndex | None = None,
    ) -> tuple[Any, Tensor]:
        """The best items: :meth:`Recommender.recommend`, in original ids or numbers.

        Args:
            users (int or str or Sequence or Tensor, optional): User ids.
            k (int, optional): The number of items. (default: ``20``)
            history (Sequence or Tensor, optional): Item ids of one unknown person, or
                a list of such lists.
            exclude_seen (bool, optional): Whether to leave out train items and
                histories. (default: :obj:`True`)
            candidates (Sequence or Tensor, optional): The item ids to choose from.
                (default: all items)
            index (ItemIndex, optional): An index of this model: a search in it instead
                of scoring all items.

        Returns:
            Tuple: Item ids and scores. For numbers both are tensors, as of the model;
            for original ids the items are a list of lists, or one list, without the
            places that are left.

        Raises:
            InputError: If an original id is unknown.
            ValueError: As of the model, or if text and numbers are mixed, there are
                both candidates and an index, or the index is of a model of other sizes.
        """
        in_text = isinstance(users, str) or _are_names(users)
        if in_text:
            users = self.numbers(users, USER)
        if history is not None:
            flat, sizes = flatten(history)
            in_text = _are_names(flat)
            if in_text:
                history = torch.tensor(self.vocabulary.encode(flat, ITEM))
                history = history if sizes is None else history.split(sizes)
        options = {'history': history, 'exclude_seen': exclude_seen}
        if index is None:
            options['candidates'] = self._candidates(candidates, in_text)
            items, scores = self.model.recommend(users, k, **options)
        elif candidates is None:
            self._check_index(index)
            items, scores = index.recommend(users, k, **options)
        else:
            raise ValueError("'recommend' takes either candidates or an index")
        return (self.vocabulary.decode(items) if in_text else items), scores

    def _check_index(self, index: Any) -> None:
        if not isinstance(index, ItemIndex):
            raise ValueError(
                f"'recommend' expected an ItemIndex (got {type(index).__name__})"
            )
        ours = (self.model.num_users, self.model.num_items)
        theirs = (index.model.num_users, index.model.num_items)
        if theirs != ours:
            raise ValueError(
                f"'recommend' expected an index of {ours[0]} users and {ours[1]} items "
                f'(got {theirs[0]} and {theirs[1]})'
            )

    def _candidates(self, candidates: Any, in_text: bool) -> Any:
        if isinstance(candidates, str):
            raise ValueError(f"'candidates' is a list of item ids (got {candidates})")
        if not is_list(candidates) or not len(candidates):
            return candidates
        if _are_names(candidates) != in_text:
            raise ValueError(
                "'recommend' takes either original ids, which are text, or numbers: "
                'candidates are of the other kind'
            )
        return self.numbers(candidates, ITEM)

    def similar_items(self, items: Any, k: int = 20) -> tuple[Any, Tensor]:
        """The items most alike: :meth:`Recommender.similar_items`, in either ids.

        Raises:
            InputError: If an original id is unknown.
            ValueError: As of the model, or if text and numbers are mixed.
        """
        in_text = isinstance(items, str) or _are_names(items)
        ids, cosines = self.model.similar_items(self.numbers(items, ITEM), k)
        return (self.vocabulary.decode(ids) if in_text else ids), cosines


def _as_texts(values: Iterable[Any] | None, num: int, what: str) -> list[str] | None:
    if values is None:
        return None
    out = [str(x) for x in (values.tolist() if isinstance(values, Tensor) else values)]
    if len(out) != num:
        raise InputError(f'expected {num} {what} (got {len(out)})')
    for text in out:
        # NUL stands between two of them in a file; half of a pair has no UTF-8.
        if '\0' in text or any('\ud800' <= x <= '\udfff' for x in text):
            raise InputError(
                f'{what} hold no NUL character and no lone surrogate (got {text!r})'
            )
    return out


def _number_of_each(ids: list[str] | None, kind: str) -> dict[str, int] | None:
    if ids is None:
        return None
    known = {text: number for number, text in enumerate(ids)}
    for number, text in enumerate(ids):
        if known[text] != number:
            raise InputError(
                f'{kind}s {number} and {known[text]} have the same id {text!r}'
            )
    return known


def _are_names(ids: Any) -> bool:
    """Whether a list holds original ids; a ValueError if it holds numbers too."""
    if isinstance(ids, str | Tensor) or not is_list(ids):
        return False
    names = [isinstance(x, str) for x in ids]
    if any(names) and not all(names):
        raise ValueError(
            'ids are either original ids, which are text, or numbers (got both: '
            f'{ids[names.index(True)]!r} and {ids[names.index(False)]!r})'
        )
    return any(names)


def _as_number(name: str, num: int) -> int:
    """The number that a text is, written as Python does, or -1."""
    if not name.isdecimal() or len(name) > len(str(num)):
        return -1
    number = int(name)
    return number if number < num and str(number) == name else -1
