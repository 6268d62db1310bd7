r"""The base of the models: lists of items for people, and of similar items."""

from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_type_hints

import torch
from torch import Tensor

from pyg_c2f.nn.embedding import MetaEmbedding
from pyg_c2f.sparse import degree, rowptr_of, take_rows, top_items, unique_pairs
from pyg_c2f.typing import ITEM, USER, Assignment, Score, Stage, Stored

# Scores in memory at once, 64 MB: people are served in blocks of rows.
BLOCK_SCORES = 1 << 24
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Numbers = Sequence[int] | Tensor


class InnerProducts(NamedTuple):
    r"""Scores as inner products, :math:`\mathbf{q}^{\top} \mathbf{v}_i + b_u`.

    With :math:`\mathbf{q} = [\mathbf{h}_u ; 1]`, and all that depends on the item in
    :math:`\mathbf{v}_i`. The functions hold what they need of the model.
    """

    items: Tensor  # v, [num_items, channels + 1]
    user_bias: Tensor  # b of known users, [num_users]
    users: Callable[[Tensor], Tensor]  # ids [B] to h, [B, channels]
    histories: Callable[[Tensor, Tensor], Tensor]  # rowptr and col to h, [B, channels]


class Requests(NamedTuple):
    """The people of a call: known users, or histories; with their items as CSR."""

    rowptr: Tensor  # [num_people + 1]
    col: Tensor
    users: Tensor | None  # [num_people]
    is_single: bool


class Recommender(torch.nn.Module):
    r"""A model that scores all items for a person, and gives lists of the best.

    A subclass says how it scores: :meth:`scorer` for known users and
    :meth:`history_scorer` for others, :meth:`train_items` for what users have seen,
    :meth:`item_features` for what items are compared by, and :meth:`inner_products`,
    where scores are inner products, for an index. To be stored, it gives and takes its
    tensors (:meth:`to_tensors`, :meth:`from_tensors`, :meth:`settings`).

    Users and items are numbers from 0 on; :class:`~pyg_c2f.vocabulary.NamedModel`
    lets a model answer in original ids.

    A model is in one of two stages (:meth:`set_stage`); fine anchors take part in the
    second one only. The stage is part of the state, as it decides what the tables mean.
    What a subclass keeps of what it has computed is forgotten (``_forget``) when its
    state changes.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
        >>> model = C2F(edge_index, 3, 4, num_coarse=2, num_fine=2, embedding_dim=8,
        ...             fine_per_coarse=2)
        >>> items, scores = model.recommend(0, candidates=[0, 3])
        >>> items.tolist()  # item 0 is in the user's train items
        [3, -1]
        >>> items, scores = model.recommend(history=[[0], [1, 3]], k=2)
        >>> items.shape
        torch.Size([2, 2])
        >>> items, cosines = model.similar_items(3, k=2)
        >>> items.shape
        torch.Size([2])

    Attributes:
        diagnostics (Dict): How the model was made, such as the accuracy of its singular
            vectors; part of the metrics of a run.
    """

    # The classes that a file can hold, by name.
    kinds: ClassVar[dict[str, type['Recommender']]] = {}
    kind: ClassVar[str]

    coarse: MetaEmbedding
    fine: MetaEmbedding
    edge_index: Tensor
    bias: Tensor
    is_fine: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind = cls.__name__
        Recommender.kinds[cls.kind] = cls

    def __init__(
        self,
        edge_index: Tensor,
        num_users: int,
        num_items: int,
        num_coarse: int,
        num_fine: int,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        # Plain numbers, whatever kind was given: a checkpoint writes them down.
        self.num_users, self.num_items = int(num_users), int(num_items)
        self.num_coarse, self.num_fine = int(num_coarse), int(num_fine)
        self.embedding_dim = int(embedding_dim)
        self._check_edges(edge_index)
        self.diagnostics: dict[str, Any] = {}
        self.register_buffer('is_fine', torch.tensor(False))
        # A copy: loading a state writes into it.
        self.register_buffer('edge_index', edge_index.clone())
        self.register_load_state_dict_post_hook(Recommender._after_load)

    def _check_edges(self, edge_index: Tensor) -> None:
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(
                f"'{self.kind}' expected an edge_index of shape [2, num_edges] (got "
                f'{list(edge_index.shape)})'
            )
        sizes = self.num_users, self.num_items
        if min(sizes) < 1:
            raise ValueError(
                f"'{self.kind}' expected users and items (got num_users={sizes[0]}, "
                f'num_items={sizes[1]})'
            )
        high = torch.tensor(sizes, device=edge_index.device).unsqueeze(1)
        if bool(((edge_index < 0) | (edge_index >= high)).any()):
            raise ValueError(
                f"'{self.kind}' expected users below {sizes[0]} and items below "
                f'{sizes[1]} in edge_index (got up to '
                f'{edge_index.max(dim=1).values.tolist()})'
            )

    # Stages ---------------------------------------------------------------------------

    def set_stage(self, stage: Stage) -> None:
        """Lets the fine anchors take part, or not.

        Raises:
            ValueError: If the stage is unknown.
        """
        if stage not in get_args(Stage):
            raise ValueError(
                f"'{self.__class__.__name__}' expected a stage of {get_args(Stage)} "
                f'(got {stage})'
            )
        # Beside the buffer, which a branch would have to wait for on a GPU.
        self.stage: Stage = stage
        self.is_fine.fill_(stage == 'fine')

    def _forget(self) -> None:
        """Drops what was computed from an older state; nothing by default."""

    def _after_load(self, _: Any) -> None:
        self._forget()
        self.set_stage('fine' if self.is_fine else 'coarse')

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    @property
    def stage_table(self) -> MetaEmbedding:
        """The table of the stage's anchors."""
        return self.coarse if self.stage == 'coarse' else self.fine

    # What a subclass supplies ---------------------------------------------------------

    def scorer(self) -> Score:
        """The function from user ids ``[B]`` to the scores of all items."""
        raise NotImplementedError

    def history_scorer(self, rowptr: Tensor, col: Tensor) -> Score:
        """The function from row numbers of histories to the scores of all items.

        Args:
            rowptr (Tensor): The starts of the histories, ``[num_histories + 1]``.
            col (Tensor): Their items, each once in a history; no history is empty.
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
            ValueError: If they are not.
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

    def needs_graph(self) -> bool:
        """Whether recommending needs more of the train graph than a user's history."""
        return True

    def anchors_in_use(self) -> int:
        """The number of the stage's anchors that any node is assigned to."""
        raise NotImplementedError

    @classmethod
    def setting_kinds(cls) -> dict[str, Any]:
        """The names and types of the constructor's arguments that are not tensors."""
        kinds = get_type_hints(cls.__init__)
        kept = (int, float, Stored)
        return {name: kind for name, kind in kinds.items() if kind in kept}

    def settings(self) -> dict[str, Any]:
        """What a file has to know beside the tensors and the stage, for JSON."""
        return {name: getattr(self, name) for name in self.setting_kinds()}

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors that stand for the model in a file; its bytes are theirs."""
        raise NotImplementedError

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], stage: Stage
    ) -> Self:
        """The model of :meth:`to_tensors` and :meth:`settings`.

        Raises:
            KeyError or TypeError or ValueError or RuntimeError or IndexError or
                RecursionError: If they do not fit together.
        """
        raise NotImplementedError

    # Anchors --------------------------------------------------------------------------

    def set_assignment(
        self, coarse: Assignment | None = None, fine: Assignment | None = None
    ) -> None:
        """Puts other assignments in place, those that are given.

        Args:
            coarse (Assignment, optional): Entities to coarse anchors.
            fine (Assignment, optional): Entities or coarse anchors to fine ones.
        """
        if coarse is not None:
            self.coarse.set_assignment(coarse)
        if fine is not None:
            self.fine.set_assignment(fine)

    # Lists ----------------------------------------------------------------------------

    def check_ids(self, ids: int | Numbers, kind: str) -> Tensor:
        """The numbers of users or items as a tensor, checked.

        Args:
            ids (int or Sequence or Tensor): One number, or a list.
            kind (str): ``'user'`` or ``'item'``.

        Returns:
            Tensor: The numbers, ``[num_ids]``, or ``[]`` for one id.

        Raises:
            ValueError: If there are no ids, or they are not whole numbers in range.
        """
        name = f"'{type(self).__name__}'"
        try:
            number = torch.as_tensor(ids, device=self.edge_index.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f'{name} expected {kind} ids, whole numbers: one, a list or a tensor '
                f'(got {str(ids)[:60]}: {error})'
            ) from None
        if number.dim() > 1:
            raise ValueError(
                f'{name} expected a flat list of {kind} ids (got shape '
                f'{list(number.shape)})'
            )
        if number.numel() == 0:
            raise ValueError(f'{name} expected at least one {kind} id (got none)')
        if number.dtype not in WHOLE:
            raise ValueError(
                f'{name} expected whole numbers as {kind} ids (got {number.dtype})'
            )
        number = number.long()
        num = self.num_users if kind == USER else self.num_items
        wrong = number[(number < 0) | (number >= num)]
        if wrong.numel():
            got = wrong[:3].tolist() if number.dim() else number.item()
            raise ValueError(f'{name} expected {kind} ids in [0, {num}) (got {got})')
        return number

    @torch.no_grad()
    def recommend(
        self,
        users: int | Numbers | None = None,
        k: int = 20,
        *,
        history: Numbers | Sequence[Numbers] | None = None,
        exclude_seen: bool = True,
        candidates: Numbers | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""The best items that are not in a user's train items or history.

        A person unknown to the model is represented by a history of items; see
        :meth:`history_scorer` for the features. With its own train items for a
        history, a known user gets its own lists from a :class:`LinearC2F`. From a
        :class:`C2F` it does not, since that has given it anchors of its own: of its
        best 20 after ten coarse epochs on the synthetic data set 83 % are the same,
        later on fewer.

        Args:
            users (int or Sequence or Tensor, optional): User ids.
            k (int, optional): The number of items. (default: ``20``)
            history (Sequence or Tensor, optional): Item ids of one unknown person, or
                a list of such lists. Repeated items count once.
            exclude_seen (bool, optional): Whether to leave out train items and
                histories. (default: :obj:`True`)
            candidates (Sequence or Tensor, optional): The item ids to choose from,
                for all people of the call. (default: all items)

        Returns:
            Tuple: Item ids and scores, best first, equal scores by number, as tensors
            ``[num_people, k]``, or ``[k]`` for a single user id or one history, with
            ``k`` at most the number of items to choose from. Where fewer than ``k``
            items are left, the ids at the end are -1 and their scores minus infinity.

        Raises:
            ValueError: If not exactly one of users and history is given, a number is
                out of range, a history or the candidates are empty, ``k`` is not
                positive, or scores are NaN.
        """
        people = self.requests(users, history)
        check_length('recommend', k)
        choice = None if candidates is None else self._candidates(candidates)
        return self._rank(people, k, exclude_seen, choice)

    def requests(self, users: Any = None, history: Any = None) -> Requests:
        """The people of a call of :meth:`recommend`, checked.

        Raises:
            ValueError: If not exactly one of users and history is given, or one of
                them is wrong.
        """
        if (users is None) == (history is None):
            raise ValueError("'recommend' takes either users or a history")
        if history is not None:
            return self._unknown_people(history)
        ids = self.check_ids(users, USER)
        rowptr, col = self.train_items()
        rowptr, at = take_rows(rowptr, ids.view(-1))
        return Requests(rowptr, col[at], ids.view(-1), ids.dim() == 0)

    def _unknown_people(self, history: Any) -> Requests:
        flat, sizes = flatten(history)
        count = torch.tensor([len(flat)] if sizes is None else sizes)
        if sizes is not None and bool((count == 0).any()):
            raise ValueError(
                "'recommend' expected at least one item id in each history (history "
                f'{int((count == 0).nonzero()[0])} is empty)'
            )
        items = self.check_ids(flat, ITEM)
        row = torch.repeat_interleave(count.to(items.device))
        row, col = unique_pairs(torch.stack([row, items]), self.num_items)
        return Requests(rowptr_of(row, len(count)), col, None, sizes is None)

    def _candidates(self, candidates: Any) -> Tensor:
        if isinstance(candidates, int):
            raise ValueError(f"'candidates' is a list of item ids (got {candidates})")
        if is_list(candidates) and not len(candidates):
            raise ValueError("'recommend' expected at least one candidate (got none)")
        return self.check_ids(candidates, ITEM).unique()

    def _rank(
        self, people: Requests, k: int, exclude_seen: bool, choice: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rowptr, col, users, is_single = people
        if users is None:
            score = self.history_scorer(rowptr, col)
        else:
            score = self.user_scorer(users, rowptr, col)
        k = min(k, self.num_items if choice is None else len(choice))
        out = []
        for rows in blocks_of(len(rowptr) - 1, self.num_items, rowptr.device):
            scores = score(rows).contiguous()
            if exclude_seen:
                taken, at = take_rows(rowptr, rows)
                row = torch.repeat_interleave(taken.diff())
                scores[row, col[at].long()] = -torch.inf
            ids, top = top_items(scores if choice is None else scores[:, choice], k)
            if top.isnan().any():  # They come first.
                raise ValueError(
                    "'recommend' found NaN among the scores; train the model again"
                )
            ids = ids if choice is None else choice[ids]
            out.append((ids.masked_fill(top == -torch.inf, -1), top))
        return stacked(out, is_single)

    @torch.no_grad()
    def similar_items(self, items: int | Numbers, k: int = 20) -> tuple[Tensor, Tensor]:
        r"""The items most alike, by the cosine of :meth:`item_features`.

        .. math::
            \cos(i, j) = \frac{\mathbf{h}_i^{\top} \mathbf{h}_j}{\| \mathbf{h}_i \|
            \| \mathbf{h}_j \|}

        An item whose features are all zero has a cosine of 0 with every other, and
        comes last whatever the others have.

        Args:
            items (int or Sequence or Tensor): Item ids.
            k (int, optional): The number of items. (default: ``20``)

        Returns:
            Tuple: Item ids and cosines in the form of :meth:`recommend`, ``k`` at most
            the number of other items.

        Raises:
            ValueError: If there are no items, one is out of range, or ``k`` is not
                positive.
        """
        asked = self.check_ids(items, ITEM)
        check_length('similar_items', k)
        k = min(k, self.num_items - 1)
        x = torch.nn.functional.normalize(self.item_features(), dim=1)
        is_zero = ~x.any(dim=1)
        out = []
        for rows in blocks_of(asked.numel(), self.num_items, x.device):
            block = asked.view(-1)[rows]
            # Below any cosine: behind all others.
            cosine = (x[block] @ x.T).masked_fill_(is_zero, -2)
            cosine[torch.arange(len(block)), block] = -torch.inf
            ids, top = top_items(cosine, k)
            out.append((ids, top.masked_fill(top == -2, 0)))
        return stacked(out, asked.dim() == 0)


def check_length(name: str, k: Any) -> None:
    """Refuses a length of lists that is not a whole number from 1 on."""
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"'{name}' expected a whole number k >= 1 (got {k!r})")


def blocks_of(num_rows: int, width: int, device: torch.device) -> Sequence[Tensor]:
    """Row numbers, in blocks whose scores fit in memory."""
    rows = torch.arange(num_rows, device=device)
    return rows.split(max(BLOCK_SCORES // width, 1))


def stacked(
    blocks: list[tuple[Tensor, Tensor]], is_single: bool
) -> tuple[Tensor, Tensor]:
    """The lists of all blocks, one below the other, or the only one."""
    ids, scores = (torch.cat(part) for part in zip(*blocks, strict=True))
    return (ids[0], scores[0]) if is_single else (ids, scores)


def is_list(x: Any) -> bool:
    """Whether an argument holds several ids."""
    if isinstance(x, Tensor):
        return x.dim() > 0
    # An array of no dimension has a length that fails.
    is_one = isinstance(x, str) or getattr(x, 'ndim', 1) == 0
    return hasattr(x, '__len__') and not is_one


def flatten(history: Any) -> tuple[Any, list[int] | None]:
    """The items of all histories, and the length of each; one flat history has none."""
    if isinstance(history, Tensor) and history.dim() in (1, 2):
        sizes = [history.size(1)] * history.size(0) if history.dim() == 2 else None
        return history.flatten(), sizes
    if not is_list(history):
        raise ValueError(
            f"'history' is a list of item ids, or a list of such lists: give a list "
            f'(got {history!r})'
        )
    nested = [is_list(x) for x in history]
    if not any(nested):
        return history, None
    if not all(nested):
        raise ValueError(
            "'history' is either one list of item ids or a list of such lists (got "
            'both ids and lists)'
        )
    parts = [x.tolist() if isinstance(x, Tensor) else x for x in history]
    return list(chain.from_iterable(parts)), [len(x) for x in parts]
