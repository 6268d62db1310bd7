r"""An approximate index of a model's items, for catalogues too large to score whole."""

import math
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import KNNIndex

from pyg_c2f.nn.recommender import Recommender, blocks_of, check_length, stacked
from pyg_c2f.sparse import pair_keys, take_rows, top_items

# An index visits at least so many items, if there are so many.
LEAST_VISITED = 4096


class ItemIndex(KNNIndex):
    r"""An approximate index of a model's items by inner product.

    The items' vectors, with scale and bias in them
    (:meth:`~pyg_c2f.nn.recommender.Recommender.inner_products`), are sorted into cells;
    a search looks into the cells nearest to a person. It finds the exact list with all
    cells, and most of it with an eighth of them: 99 % of lists of 20 out of Gowalla's
    41,000 items. A small catalogue needs no index, and gets as many cells to visit as
    hold 4,096 items. Where it finds fewer items than asked for, the list ends early.

    An index is a picture of the model, propagated features included, so that a list
    costs no propagation either; build another after training on.

    It is PyG's :class:`~torch_geometric.nn.ApproxMIPSKNNIndex`, but for whole vectors
    instead of product codes in the cells: what is found has its exact score. It stays
    on the CPU, whose search has no limit on the length of a list.

    Args:
        model (Recommender or NamedModel): The model.
        num_cells (int, optional): The number of cells. (default: four times the root
            of the number of items, and at least 39 items a cell)
        num_cells_to_visit (int, optional): The number of cells that a search looks
            into. (default: an eighth, and at least those of 4,096 items)

    Raises:
        ImportError: If faiss is not installed.
        ValueError: If scores are not inner products, or there are more cells than items
            or more to visit than there are.
    """

    def __init__(
        self,
        model: Recommender,
        num_cells: int | None = None,
        num_cells_to_visit: int | None = None,
    ) -> None:
        items, self.user_bias, self.users, self.histories = model.inner_products()
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "'ItemIndex' needs faiss: pip install pyg-c2f[faiss]"
            ) from error
        self.model, num = model, model.num_items
        if num_cells is None:
            num_cells = max(min(4 * math.isqrt(num), num // 39), 1)
        if num_cells_to_visit is None:
            least = min(LEAST_VISITED / num, 1)
            num_cells_to_visit = math.ceil(num_cells * max(1 / 8, least))
        if not 1 <= num_cells_to_visit <= num_cells <= num:
            raise ValueError(
                f"'ItemIndex' expected 1 <= num_cells_to_visit <= num_cells <= {num} "
                f'(got {num_cells_to_visit} and {num_cells})'
            )
        self.num_cells, self.num_cells_to_visit = num_cells, num_cells_to_visit
        super().__init__(emb=items.detach().float().cpu().contiguous())

    def _create_index(self, channels: int) -> Any:
        import faiss

        cells, sizes = faiss.IndexFlatIP(channels), (channels, self.num_cells)
        index = faiss.IndexIVFFlat(cells, *sizes, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # No warning for small catalogues.
        index.nprobe = self.num_cells_to_visit
        return index

    def _best(self, h: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best items found for each row of features, padded with -1.

        Not through ``search``, which warns of a limit of the GPU, and whose
        ``exclude_links`` obeys it.
        """
        assert self.index is not None
        query = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
        scores, ids = self.index.search(query.float().cpu().contiguous(), k)
        return ids.to(h.device), scores.to(h)

    @torch.no_grad()
    def recommend(
        self,
        users: Any = None,
        k: int = 20,
        *,
        history: Any = None,
        exclude_seen: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The best items found, as of :meth:`Recommender.recommend` of the model.

        Raises:
            ValueError: As of the model.
        """
        people = self.model.requests(users, history)
        check_length('recommend', k)
        rowptr, col, known, _ = people
        num_items = self.model.num_items
        k = min(k, num_items)
        most = int(rowptr.diff().max()) if exclude_seen else 0
        width = min(k + most, num_items)
        out = []
        for rows in blocks_of(len(rowptr) - 1, width, rowptr.device):
            start, at = take_rows(rowptr, rows)
            if known is None:
                ids, scores = self._best(self.histories(start, col[at]), width)
            else:
                ids, scores = self._best(self.users(known[rows]), width)
                scores = scores + self.user_bias[known[rows]].unsqueeze(1)
            lost = ids < 0
            if exclude_seen:
                row = torch.arange(len(rows), device=rows.device)
                seen = torch.repeat_interleave(row, start.diff())
                key = pair_keys((row.unsqueeze(1), ids), num_items)
                lost |= torch.isin(key, pair_keys((seen, col[at]), num_items))
            ids, order = ids.masked_fill(lost, -1).sort(dim=1)
            scores = scores.masked_fill(lost, -torch.inf).gather(1, order)
            place, top = top_items(scores, k)
            out.append((ids.gather(1, place), top))
        return stacked(out, people.is_single)
