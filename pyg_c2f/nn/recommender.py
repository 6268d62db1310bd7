r"""Lists out of a model: the best items for a person, and the items most alike."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch_geometric.nn import KNNIndex

from pyg_c2f.nn.stage import Staged
from pyg_c2f.sparse import (
    degree,
    pair_keys,
    rowptr_of,
    take_rows,
    top_items,
    unique_pairs,
)
from pyg_c2f.typing import ITEM, USER, InputError, Score

# Scores alive at once, 64 MB: people are served in blocks of rows of these.
BLOCK_SCORES = 1 << 24
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Items that an index looks at, as far as it has so many.
LEAST_VISITED = 4096

Numbers = Sequence[int] | Tensor
Names = Sequence[str]


def check_edges(name: str, edge_index: Tensor, num_users: int, num_items: int) -> None:
    """Checks a model's graph.

    Raises:
        ValueError: If a size is not positive, or an edge does not fit.
    """
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'{name}' expected an edge_index of shape [2, num_edges] (got "
            f'{list(edge_index.shape)})'
        )
    if num_users < 1 or num_items < 1:
        raise ValueError(
            f"'{name}' expected users and items (got num_users={num_users}, "
            f'num_items={num_items})'
        )
    high = torch.tensor([[num_users], [num_items]], device=edge_index.device)
    if bool(((edge_index < 0) | (edge_index >= high)).any()):
        raise ValueError(
            f"'{name}' expected users below {num_users} and items below {num_items} "
            f'in edge_index (got up to {edge_index.max(dim=1).values.tolist()})'
        )


class InnerProducts(NamedTuple):
    r"""Scores as inner products, :math:`\mathbf{q}^{\top} \mathbf{v}_i + b_u`.

    With :math:`\mathbf{q} = [\mathbf{h}_u ; 1]`, and all that depends on the item in
    :math:`\mathbf{v}_i`. The functions hold what they need of the model.
    """

    items: Tensor  # v, [num_items, channels + 1]
    user_bias: Tensor  # b of known users, [num_users]
    users: Callable[[Tensor], Tensor]  # ids [B] to h, [B, channels]
    histories: Callable[[Tensor, Tensor], Tensor]  # rowptr and col to h, [B, channels]


class ItemIndex(KNNIndex):
    """An index of the items by inner product, made by :meth:`Recommender.build_index`.

    It is PyG's :class:`~torch_geometric.nn.ApproxMIPSKNNIndex`, but for whole vectors
    instead of product codes in the cells: what is found has its exact score. It stays
    on the CPU, whose search has no limit on the length of a list.

    Args:
        products (InnerProducts): The items, and who asks for them.
        num_cells (int): The number of cells.
        num_cells_to_visit (int): The number of cells that a search looks into.
    """

    def __init__(
        self, products: InnerProducts, num_cells: int, num_cells_to_visit: int
    ) -> None:
        _, self.user_bias, self.users, self.histories = products
        self.num_cells, self.num_cells_to_visit = num_cells, num_cells_to_visit
        super().__init__(emb=products.items.detach().float().cpu().contiguous())

    def _create_index(self, channels: int) -> Any:
        import faiss

        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(channels),
            channels,
            self.num_cells,
            faiss.METRIC_INNER_PRODUCT,
        )
        index.cp.min_points_per_centroid = 1  # Small catalogues are no reason to warn.
        index.nprobe = self.num_cells_to_visit
        return index

    def best(self, h: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best items found for each row of features, -1 where there is none.

        Not through ``search``, which warns of a limit of the GPU, and whose
        ``exclude_links`` obeys it.
        """
        assert self.index is not None
        query = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
        scores, ids = self.index.search(query.float().cpu().contiguous(), k)
        return ids.to(h.device), scores.to(h)


class _People(NamedTuple):
    """Who asks: known users, or histories; with their items as CSR."""

    rowptr: Tensor  # [num_people + 1]
    col: Tensor
    users: Tensor | None  # [num_people]
    single: bool
    named: bool


class Recommender(Staged):
    r"""A model that scores all items for a person, and gives lists of the best.

    A subclass says how it scores: :meth:`scorer` for known users and
    :meth:`history_scorer` for others, :meth:`train_items` for what users have seen,
    :meth:`item_features` for what items are compared by, and :meth:`inner_products`,
    where scores are such, for an index.

    Users and items have numbers from 0 on. A model may know their *original ids* too
    (:meth:`set_ids`; :func:`pyg_c2f.fit` takes them from the data set). An id given as
    text is an original id, any other a number, and the items of the answer are given
    in the same way. A model without original ids was trained on files whose ids are
    the numbers, so that ``'17'`` is item 17.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = C2F(edge_index, 3, 4, num_coarse=2, num_fine=2, embedding_dim=8,
        ...             fine_per_coarse=2)
        >>> model.set_ids(users=['ann', 'bob', 'cem'], items=['a', 'b', 'c', 'd'])
        >>> items, scores = model.recommend('ann', candidates=['a', 'd'])
        >>> items  # 'a' is in her train items
        ['d']
        >>> items, scores = model.recommend(history=[['a'], ['b', 'd']], k=2)
        >>> [len(row) for row in items]
        [2, 2]
        >>> items, cosines = model.similar_items(3, k=2)
        >>> items.shape
        torch.Size([2])

    Attributes:
        user_ids (List): The original ids of the users, or :obj:`None`.
        item_ids (List): The original ids of the items, or :obj:`None`.
        item_titles (List): The titles of the items, or :obj:`None`.
    """

    num_users: int
    num_items: int
    edge_index: Tensor
    bias: Tensor
    user_ids: list[str] | None
    item_ids: list[str] | None
    item_titles: list[str] | None

    def __init__(self) -> None:
        super().__init__()
        self.set_ids()

    # What a subclass supplies ---------------------------------------------------------

    def scorer(self) -> Score:
        """The function from user ids ``[B]`` to the scores of all items."""
        raise NotImplementedError

    def history_scorer(self, rowptr: Tensor, col: Tensor) -> Score:
        """The function from row numbers of histories to the scores of all items.

        Args:
            rowptr (Tensor): The starts of the histories, ``[num_histories + 1]``.
            col (Tensor): Their items, each once in a history; none is empty.
        """
        raise NotImplementedError

    def train_items(self) -> tuple[Tensor, Tensor]:
        """The users' train items: ``rowptr`` and ``col`` of a CSR matrix."""
        raise NotImplementedError

    def item_features(self) -> Tensor:
        """The items' propagated features, ``[num_items, channels]``."""
        raise NotImplementedError

    def inner_products(self) -> InnerProducts:
        """The scores as inner products.

        Raises:
            ValueError: If they are none.
        """
        raise NotImplementedError

    def user_scorer(self, users: Tensor, rowptr: Tensor, col: Tensor) -> Score:
        """The function from row numbers of ``users`` to the scores of all items.

        Args:
            users (Tensor): User ids, ``[num_rows]``.
            rowptr (Tensor): The starts of their train items, ``[num_rows + 1]``.
            col (Tensor): Their train items.
        """
        score = self.scorer()
        return lambda rows: score(users[rows])

    def item_degree(self) -> Tensor:
        """The items' numbers of train users, at least one, ``[num_items]``."""
        deg = degree(self.edge_index[1], self.num_items)
        return deg.clamp(min=1).to(self.bias.dtype)

    # Ids ------------------------------------------------------------------------------

    def set_ids(
        self,
        users: Iterable[Any] | None = None,
        items: Iterable[Any] | None = None,
        titles: Iterable[Any] | None = None,
    ) -> None:
        """Sets original ids and titles; those that are not given are none.

        Args:
            users (Iterable, optional): The id of each user; numbers become text.
            items (Iterable, optional): The id of each item.
            titles (Iterable, optional): The title of each item.

        Raises:
            InputError: If they are not as many as the users or items, an id is there
                twice, or one holds a NUL character or a lone surrogate.
        """
        user_ids = self._texts(users, USER, 'ids')
        item_ids = self._texts(items, ITEM, 'ids')
        item_titles = self._texts(titles, ITEM, 'titles')
        self._known = {
            USER: self._index(user_ids, USER),
            ITEM: self._index(item_ids, ITEM),
        }
        # All of them or, where one is wrong, none.
        self.user_ids, self.item_ids = user_ids, item_ids
        self.item_titles = item_titles

    def _texts(
        self, texts: Iterable[Any] | None, kind: str, what: str
    ) -> list[str] | None:
        if texts is None:
            return None
        values = texts.tolist() if isinstance(texts, Tensor) else texts
        out = [str(value) for value in values]
        if len(out) != self._num(kind):
            raise InputError(
                f"'{type(self).__name__}' expected {self._num(kind)} {kind} {what} "
                f'(got {len(out)})'
            )
        for text in out:
            # NUL stands between two of them in a file; half of a pair has no UTF-8.
            if '\0' in text or any('\ud800' <= x <= '\udfff' for x in text):
                raise InputError(
                    f'{kind} {what} hold no NUL character and no lone surrogate (got '
                    f'{text!r})'
                )
        return out

    def _index(self, ids: list[str] | None, kind: str) -> dict[str, int] | None:
        if ids is None:
            return None
        known = {text: number for number, text in enumerate(ids)}
        for number, text in enumerate(ids):
            if known[text] != number:
                raise InputError(
                    f'{kind}s {number} and {known[text]} have the same id {text!r}'
                )
        return known

    def _num(self, kind: str) -> int:
        return self.num_users if kind == USER else self.num_items

    def numbers(self, ids: int | str | Numbers | Names, kind: str) -> Tensor:
        """The numbers of users or items.

        Args:
            ids (int or str or Sequence or Tensor): Numbers, which are checked, or
                original ids: one, or a list.
            kind (str): ``'user'`` or ``'item'``.

        Returns:
            Tensor: The numbers, ``[num_ids]``, or ``[]`` for one id.

        Raises:
            InputError: If an original id is unknown.
            ValueError: If there is none, numbers are out of range, or ids of both
                kinds are mixed.
        """
        if isinstance(ids, str):
            found: Any = self._look_up([ids], kind)[0]
        else:
            found = self._look_up(ids, kind) if _are_names(ids) else ids
        try:
            number = torch.as_tensor(found, device=self.edge_index.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"'{type(self).__name__}' expected {kind} ids, whole numbers or text: "
                f'one, a list or a tensor (got {str(ids)[:60]}: {error})'
            ) from None
        if number.dim() > 1:
            raise ValueError(
                f"'{type(self).__name__}' expected a flat list of {kind} ids (got "
                f'shape {list(number.shape)})'
            )
        if number.numel() == 0:
            raise ValueError(
                f"'{type(self).__name__}' expected at least one {kind} id (got none)"
            )
        num = self._num(kind)
        if number.dtype not in WHOLE:
            raise ValueError(
                f"'{type(self).__name__}' expected whole numbers as {kind} ids (got "
                f'{number.dtype})'
            )
        number = number.long()
        wrong = number[(number < 0) | (number >= num)]
        if wrong.numel():
            got = wrong[:3].tolist() if number.dim() else number.item()
            raise ValueError(
                f"'{type(self).__name__}' expected {kind} ids in [0, {num}) (got {got})"
            )
        return number

    def _look_up(self, names: Any, kind: str) -> list[int]:
        known, num = self._known[kind], self._num(kind)
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

    def _answer(self, ids: Tensor, single: bool, named: bool) -> Any:
        if not named:
            return ids[0] if single else ids
        names = range(self.num_items) if self.item_ids is None else self.item_ids
        lists = [[str(names[i]) for i in row if i >= 0] for row in ids.tolist()]
        return lists[0] if single else lists

    # Lists ----------------------------------------------------------------------------

    @overload
    def recommend(
        self,
        users: int | Numbers | None = None,
        k: int = 20,
        *,
        history: Numbers | Sequence[Numbers] | None = None,
        exclude_seen: bool = True,
        candidates: Numbers | None = None,
        index: ItemIndex | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def recommend(
        self,
        users: str | Names | None = None,
        k: int = 20,
        *,
        history: Names | Sequence[Names] | None = None,
        exclude_seen: bool = True,
        candidates: Names | None = None,
        index: ItemIndex | None = None,
    ) -> tuple[list[Any], Tensor]: ...

    @torch.no_grad()
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
        r"""The best items that are not in a user's train items or history.

        A person whom the model has never seen enters by a history of items; which
        features that gives says :meth:`history_scorer`. With his own train items for a
        history, a known user gets his own lists from a :class:`LinearC2F`. From a
        :class:`C2F` he does not, since it has given him anchors of his own: of its best
        20 after ten coarse epochs on the synthetic data set 83 % are the same (a test
        has this), later on fewer.

        Args:
            users (int or str or Sequence or Tensor, optional): User ids.
            k (int, optional): The number of items. (default: ``20``)
            history (Sequence or Tensor, optional): Item ids of one unknown person, or
                a list of such lists. Repeated items count once.
            exclude_seen (bool, optional): Whether to leave out train items and
                histories. (default: :obj:`True`)
            candidates (Sequence or Tensor, optional): The item ids to choose from,
                for all people of the call. (default: all items)
            index (ItemIndex, optional): What :meth:`build_index` gave: a search in it
                instead of scoring all items.

        Returns:
            Tuple: Item ids and scores, best first, equal scores by number. For numbers
            both are tensors ``[num_people, k]``, or ``[k]`` for a single user id or
            one history, with ``k`` at most the number of items to choose from. Where
            fewer than ``k`` items are left, the ids at the end are -1 and their scores
            minus infinity. For original ids the items are a list of such lists, or one
            list, without the places that are left.

        Raises:
            InputError: If an original id is unknown.
            ValueError: If not exactly one of users and history is given, a number is
                out of range, text and numbers are mixed, a history or the candidates
                are empty, ``k`` is not positive, an index does not fit, or scores are
                no numbers.
        """
        people = self._people(users, history)
        _check_length('recommend', k)
        choice = None
        if candidates is not None:
            choice = self._candidates(candidates, people.named)
        if index is None:
            ids, scores = self._rank(people, k, exclude_seen, choice)
        elif choice is None:
            ids, scores = self._search(people, k, exclude_seen, index)
        else:
            raise ValueError("'recommend' takes either candidates or an index")
        scores = scores[0] if people.single else scores
        return self._answer(ids, people.single, people.named), scores

    def _people(self, users: Any, history: Any) -> _People:
        if (users is None) == (history is None):
            raise ValueError("'recommend' takes either users or a history")
        if history is not None:
            return self._strangers(history)
        ids = self.numbers(users, USER)
        rowptr, col = self.train_items()
        rowptr, at = take_rows(rowptr, ids.view(-1))
        named = isinstance(users, str) or _are_names(users)
        return _People(rowptr, col[at], ids.view(-1), ids.dim() == 0, named)

    def _strangers(self, history: Any) -> _People:
        flat, sizes = _flatten(history)
        single = sizes is None
        count = torch.tensor([len(flat)] if sizes is None else sizes)
        if not single and bool((count == 0).any()):
            raise ValueError(
                "'recommend' expected at least one item id in each history (history "
                f'{int((count == 0).nonzero()[0])} is empty)'
            )
        items = self.numbers(flat, ITEM)
        row = torch.repeat_interleave(count.to(items.device))
        row, col = unique_pairs(torch.stack([row, items]), self.num_items)
        rowptr = rowptr_of(row, len(count))
        return _People(rowptr, col, None, single, _are_names(flat))

    def _candidates(self, candidates: Any, named: bool) -> Tensor:
        if isinstance(candidates, str | int):
            raise ValueError(f"'candidates' are a list of item ids (got {candidates})")
        if _are_names(candidates) != named:
            raise ValueError(
                "'recommend' takes either original ids, which are text, or numbers: "
                'candidates are of the other kind'
            )
        if _is_list(candidates) and not len(candidates):
            raise ValueError("'recommend' expected at least one candidate (got none)")
        return self.numbers(candidates, ITEM).unique()

    def _rank(
        self, people: _People, k: int, exclude_seen: bool, choice: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rowptr, col, users, *_ = people
        if users is None:
            score = self.history_scorer(rowptr, col)
        else:
            score = self.user_scorer(users, rowptr, col)
        k = min(k, self.num_items if choice is None else len(choice))
        out = []
        for rows in _blocks(len(rowptr) - 1, self.num_items, rowptr.device):
            scores = score(rows).contiguous()
            if exclude_seen:
                taken, at = take_rows(rowptr, rows)
                row = torch.repeat_interleave(taken.diff())
                scores[row, col[at].long()] = -torch.inf
            ids, top = top_items(scores if choice is None else scores[:, choice], k)
            if top.isnan().any():  # They come first.
                raise ValueError(
                    "'recommend' found scores that are no numbers; train the model anew"
                )
            ids = ids if choice is None else choice[ids]
            out.append((ids.masked_fill(top == -torch.inf, -1), top))
        return _stacked(out)

    def _search(
        self, people: _People, k: int, exclude_seen: bool, index: ItemIndex
    ) -> tuple[Tensor, Tensor]:
        rowptr, col, users, *_ = people
        if not isinstance(index, ItemIndex):
            raise ValueError(
                "'recommend' expected an index that 'build_index' made (got "
                f'{type(index).__name__})'
            )
        theirs = (len(index.user_bias), index.numel)
        if theirs != (self.num_users, self.num_items):
            raise ValueError(
                f"'{type(self).__name__}' expected an index of {self.num_users} users "
                f'and {self.num_items} items (got {theirs[0]} and {theirs[1]})'
            )
        k = min(k, self.num_items)
        most = int(rowptr.diff().max()) if exclude_seen else 0
        width = min(k + most, self.num_items)
        out = []
        for rows in _blocks(len(rowptr) - 1, width, rowptr.device):
            start, at = take_rows(rowptr, rows)
            if users is None:
                ids, scores = index.best(index.histories(start, col[at]), width)
            else:
                ids, scores = index.best(index.users(users[rows]), width)
                scores = scores + index.user_bias[users[rows]].unsqueeze(1)
            lost = ids < 0
            if exclude_seen:
                row = torch.arange(len(rows), device=rows.device)
                seen = torch.repeat_interleave(row, start.diff())
                key = pair_keys((row.unsqueeze(1), ids), self.num_items)
                lost |= torch.isin(key, pair_keys((seen, col[at]), self.num_items))
            ids, scores = (
                ids.masked_fill(lost, -1),
                scores.masked_fill(lost, -torch.inf),
            )
            ids, order = ids.sort(dim=1)
            place, top = top_items(scores.gather(1, order), k)
            out.append((ids.gather(1, place), top))
        return _stacked(out)

    @overload
    def similar_items(
        self, items: int | Numbers, k: int = 20
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def similar_items(
        self, items: str | Names, k: int = 20
    ) -> tuple[list[Any], Tensor]: ...

    @torch.no_grad()
    def similar_items(self, items: Any, k: int = 20) -> tuple[Any, Tensor]:
        r"""The items most alike, by the cosine of :meth:`item_features`.

        .. math::
            \cos(i, j) = \frac{\mathbf{h}_i^{\top} \mathbf{h}_j}{\| \mathbf{h}_i \|
            \| \mathbf{h}_j \|}

        An item whose features are all zero has a cosine of 0 with every other, and
        comes last whatever the others have.

        Args:
            items (int or str or Sequence or Tensor): Item ids.
            k (int, optional): The number of items. (default: ``20``)

        Returns:
            Tuple: Item ids and cosines in the form of :meth:`recommend`, ``k`` at most
            the number of other items.

        Raises:
            InputError: If an original id is unknown.
            ValueError: If there is no item, one is out of range, text and numbers are
                mixed, or ``k`` is not positive.
        """
        asked = self.numbers(items, ITEM)
        _check_length('similar_items', k)
        k = min(k, self.num_items - 1)
        x = torch.nn.functional.normalize(self.item_features(), dim=1)
        is_zero = ~x.any(dim=1)
        out = []
        for rows in _blocks(asked.numel(), self.num_items, x.device):
            block = asked.view(-1)[rows]
            # Below any cosine: behind all others.
            cosine = (x[block] @ x.T).masked_fill_(is_zero, -2)
            cosine[torch.arange(len(block)), block] = -torch.inf
            ids, top = top_items(cosine, k)
            out.append((ids, top.masked_fill(top == -2, 0)))
        ids, top = _stacked(out)
        single = asked.dim() == 0
        named = isinstance(items, str) or _are_names(items)
        return self._answer(ids, single, named), top[0] if single else top

    @torch.no_grad()
    def build_index(
        self, num_cells: int | None = None, num_cells_to_visit: int | None = None
    ) -> ItemIndex:
        r"""An approximate index of the items, for catalogues too large to score whole.

        The items' vectors, with scale and bias in them (:meth:`inner_products`), are
        sorted into cells; a search looks into the cells nearest to a person. It finds
        the exact list with all cells, and most of it with an eighth of them: 99 % of
        lists of 20 out of Gowalla's 41,000 items. A small catalogue needs no index, and
        gets as many cells to visit as hold 4,096 items. Where it finds fewer items than
        asked for, the list ends early.

        An index is a picture of the model, propagated features included, so that a
        list costs no propagation either; build another after training on.

        Args:
            num_cells (int, optional): The number of cells. (default: four times the
                root of the number of items, and at least 39 items a cell)
            num_cells_to_visit (int, optional): The number of cells that a search looks
                into. (default: an eighth, and at least those of 4,096 items)

        Raises:
            ImportError: If faiss is not installed.
            ValueError: If scores are no inner products, or there are more cells than
                items or more to visit than there are.
        """
        products = self.inner_products()
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "'build_index' needs faiss: pip install pyg-c2f[faiss]"
            ) from error
        num = self.num_items
        if num_cells is None:
            num_cells = max(min(4 * math.isqrt(num), num // 39), 1)
        if num_cells_to_visit is None:
            least = min(LEAST_VISITED / num, 1)
            num_cells_to_visit = math.ceil(num_cells * max(1 / 8, least))
        if not 1 <= num_cells_to_visit <= num_cells <= num:
            raise ValueError(
                f"'build_index' expected 1 <= num_cells_to_visit <= num_cells <= {num} "
                f'(got {num_cells_to_visit} and {num_cells})'
            )
        return ItemIndex(products, num_cells, num_cells_to_visit)


def _check_length(name: str, k: Any) -> None:
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"'{name}' expected a whole number k >= 1 (got {k!r})")


def _blocks(num_rows: int, width: int, device: torch.device) -> Sequence[Tensor]:
    rows = torch.arange(num_rows, device=device)
    return rows.split(max(BLOCK_SCORES // width, 1))


def _stacked(blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([ids for ids, _ in blocks]), torch.cat([s for _, s in blocks])


def _are_names(ids: Any) -> bool:
    """Whether a list holds original ids.

    Raises:
        ValueError: If it holds numbers too.
    """
    if isinstance(ids, Tensor) or not hasattr(ids, '__iter__'):
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


def _is_list(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.dim() > 0
    # An array of no dimension has a length that fails.
    is_one = isinstance(x, str) or getattr(x, 'ndim', 1) == 0
    return hasattr(x, '__len__') and not is_one


def _flatten(history: Any) -> tuple[Any, list[int] | None]:
    """The items of all histories, and their numbers, or none for one flat history."""
    if isinstance(history, Tensor) and history.dim() in (1, 2):
        sizes = [history.size(1)] * history.size(0) if history.dim() == 2 else None
        return history.flatten(), sizes
    if not _is_list(history):
        raise ValueError(
            f"'history' is a list of item ids, or a list of such lists: give a list "
            f'(got {history!r})'
        )
    nested = [_is_list(x) for x in history]
    if not any(nested):
        return history, None
    if not all(nested):
        raise ValueError(
            "'history' is either one list of item ids or a list of such lists (got "
            'both ids and lists)'
        )
    parts = [x.tolist() if isinstance(x, Tensor) else x for x in history]
    return list(chain.from_iterable(parts)), [len(x) for x in parts]
