r"""Recipe ``fast``: anchors in closed form, and no training.

Coarse stage: the singular vectors of the degree-normalised train interactions, rotated
(:func:`~pyg_c2f.anchors.spectral.varimax`) until each item lies near few axes. These
axes are the coarse anchors, and an item is assigned to those on which it has large
coordinates. Fine stage: what that leaves over is coded by residual k-means; the
centroids are the fine anchors, sparse through the soft threshold.
"""

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.anchors.codes import kmeans, residual_codes, threshold_assignment
from pyg_c2f.anchors.spectral import (
    Spectrum,
    chance_level,
    right_vectors,
    shared_interactions,
    varimax,
)
from pyg_c2f.finite import NotFiniteError, check_finite
from pyg_c2f.graph import power
from pyg_c2f.nn import LinearC2F
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.nn.recommender import Recommender
from pyg_c2f.packing import WEIGHT_BITS, round_weights, weights_of
from pyg_c2f.recipes.base import Recipe, TrainingOptions
from pyg_c2f.shards import Group, Rows
from pyg_c2f.sparse import are_rising, degree, pair_keys, pairs_of, unique_pairs
from pyg_c2f.typing import ITEM, RATES, USER, Assignment, InputError, Stage, Stored

logger = logging.getLogger(__name__)

# Of a recipe that leaves the width to the data.
MOST_COLUMNS = 512
# The share of the fine codebook that the soft threshold lets through.
DENSITY = 0.125


@dataclass(frozen=True)
class FastRecipe(Recipe):
    """Anchors in closed form from the spectrum of the interactions.

    It shares only the graph with the published schedule: spectral anchors
    instead of METIS, users represented by the items they interacted with, no sampled
    training. That takes seconds instead of hours, and gives better lists (README). The
    width comes from the data. The other values are within a few per cent of the best on
    validation items of shops of 20 items to Gowalla (docs/experiments.md);
    :func:`~pyg_c2f.recipes.search.search` finds better ones for the data at hand.
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        'num_fine': (2, 2**31 - 1),
        'coarse_per_item': (1, 512),
        'fine_per_item': (0, 64),
        'importance_power': (0, 4),
        'user_norm': (0, 2),
        'item_norm': (0, 2),
        'spectral_power': (0, 4),
        'score_power': (0, 4),
    }

    embedding_dim: int | None = None
    """width: the number of singular vectors; None: those that stand out of chance"""
    num_fine: int = 512
    """fine anchors, of all levels together"""
    coarse_per_item: float = 8.0
    """coarse anchors of an item, on average"""
    fine_per_item: int = 2
    """fine anchors of an item, one a level of residual codes; 0: no fine stage"""
    user_norm: float = 0.4
    """exponent of a user's degree in the normalisation of the interactions"""
    item_norm: float = 0.325
    """exponent of an item's degree in it, and in the vector of a history"""
    spectral_power: float = 0.25
    """exponent of the singular values in the items' features"""
    importance_power: float = 0.75
    """exponent of an item's degree in its importance to the anchors"""
    score_power: float = 0.2
    """exponent of an item's degree in its scores"""
    diffusion: float = 0.0
    """weight of the diffusion channel, which needs the train graph"""
    dtype: Stored = 'packed'
    """stored form: packed bits with 6-bit weights, or plain numbers"""
    num_shards: int = 4
    """blocks of rows that sums are formed over: the most processes of a run"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fine_per_item and self.num_fine % self.fine_per_item:
            raise InputError(
                f'num_fine={self.num_fine} cannot be divided into fine_per_item='
                f'{self.fine_per_item} levels: set a multiple'
            )

    def make_group(self, is_distributed: bool = False) -> Group:
        return Group(self.num_shards, is_distributed)

    def stages(self, options: TrainingOptions) -> tuple[Stage, ...]:
        if self.fine_per_item:
            return options.stages
        return tuple(stage for stage in options.stages if stage == 'coarse')

    def check(self, data: HeteroData, options: TrainingOptions) -> None:
        num_items, group = data[ITEM].num_nodes, options.group
        if group is not None and group.size > 1:
            cuts = group.rows(num_items).cuts
            if min(end - start for start, end in pairwise(cuts)) == 0:
                raise InputError(
                    f'{group.size} processes, but only {num_items} items: start fewer'
                )
            if self.diffusion:
                raise InputError(
                    f'diffusion={self.diffusion}: {group.size} processes can share '
                    'diffusion=0 only; set that, or run in one process'
                )
        if not data[RATES].edge_index.numel():
            raise InputError('there are no train pairs')
        if not self.stages(options):
            raise InputError(
                f'fine_per_item={self.fine_per_item}: there is no fine stage; raise it'
            )

    def start(
        self,
        data: HeteroData,
        stage: Stage,
        before: Recommender | None,
        options: TrainingOptions,
    ) -> LinearC2F:
        """The model, whole: its fine anchors are made with the coarse ones."""
        if before is not None and before is not options.init:
            before.set_stage(stage)
            return cast(LinearC2F, before)
        group = options.group or self.make_group()
        model = build_fast(data, self, options.generator('coarse'), group)
        if before is not None and not _same_anchors(model, before):
            raise InputError(
                'the coarse model has other anchors than these settings and this seed '
                'give: repeat its seed and settings, or train both stages'
            )
        try:
            check_finite(model.named_parameters())
        except NotFiniteError as error:
            raise InputError(
                f'{error}, too large for dtype={self.dtype}: lower spectral_power='
                f'{self.spectral_power}, or set dtype=float32'
            ) from None
        model.set_stage(stage)
        return model


def build_fast(
    data: HeteroData,
    recipe: FastRecipe,
    generator: torch.Generator,
    group: Group | None = None,
    spectrum: Spectrum | None = None,
) -> LinearC2F:
    """The model of a recipe on the train edges of a data set.

    Args:
        data (HeteroData): The data set.
        recipe (FastRecipe): The settings.
        generator (torch.Generator): Draws the starts of SVD, rotation and k-means, the
            same in all processes.
        group (Group, optional): The processes that share the work, with one block for
            each of ``recipe.num_shards``. The first one's model is whole; the others'
            lack the train pairs. (default: this process alone)
        spectrum (Spectrum, optional): The singular vectors, at least as many as the
            recipe needs. (default: computed)

    Raises:
        InputError: If there are no train pairs, or several processes cannot share them.
    """
    group = group or recipe.make_group()
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    recipe.check(data, TrainingOptions(group=group))
    edge_index, users, own = share_pairs(data, group)
    items = group.rows(num_items)
    deg = group.all_reduce(degree(own[1], num_items))
    rows = own, users, items, deg
    x, basis = spectral_features(*rows, recipe, generator, spectrum)
    importance = power(items.local(deg), recipe.importance_power)
    codebook = torch.eye(x.size(1), dtype=x.dtype, device=x.device)
    coarse = threshold_assignment(x, recipe.coarse_per_item, importance, rows=items)
    coarse = _gather(coarse, items)
    if recipe.dtype == 'packed':
        # What the model computes is what is stored: the fine part sees the rounding.
        codes, grid = round_weights(coarse.weight, WEIGHT_BITS)
        is_link = coarse.weight != 0
        coarse.weight[is_link] = weights_of(codes, WEIGHT_BITS, grid)
    rest = x - weighted_sum(Assignment(*map(items.local, coarse)), codebook)
    threshold, fine, fine_codebook = 0.0, None, None
    if recipe.fine_per_item:
        threshold, fine, fine_codebook = _fine_anchors(
            rest, items, importance, recipe, generator
        )
        fine = _gather(fine, items)

    model = LinearC2F.blank(
        edge_index if group.rank == 0 else edge_index[:, :0],
        num_users,
        num_items,
        num_coarse=len(codebook),
        num_fine=recipe.num_fine if fine_codebook is None else len(fine_codebook),
        embedding_dim=x.size(1),
        max_coarse_per_item=coarse.index.size(1),
        fine_per_item=max(recipe.fine_per_item, 1),
        threshold=threshold,
        score_power=recipe.score_power,
        diffusion=recipe.diffusion,
        user_norm=recipe.user_norm,
        item_norm=recipe.item_norm,
        dtype=recipe.dtype,
        item_degree=None if group.rank == 0 else deg,
    )
    model.set_assignment(coarse, fine)
    with torch.no_grad():
        model.coarse.codebook.copy_(codebook)
        if fine_codebook is not None:
            model.fine.codebook.copy_(fine_codebook)
    model.round_()
    model.diagnostics['basis'] = basis
    return model


def share_pairs(data: HeteroData, group: Group) -> tuple[Tensor, Rows, Tensor]:
    """Shares out the train pairs of a data set by users.

    Returns:
        Tuple: All pairs, sorted by user, then item; the users, in blocks of about
        equally many pairs; and the pairs of the own ones.

    Raises:
        InputError: If several processes are to share pairs that are not sorted, or one
            has more of them than an int32 counts.
    """
    edge_index, num_items = data[RATES].edge_index, data[ITEM].num_nodes
    if group.size == 1:
        edge_index = unique_pairs(edge_index, num_items)
    # Where pairs are not in memory, a process reads only its own.
    targets = range(1, group.num_blocks)
    first = [edge_index.size(1) * part // group.num_blocks for part in targets]
    bounds = sorted(edge_index[0, first].tolist())
    users = Rows(group, [0, *bounds, data[USER].num_nodes])
    own = pairs_of(edge_index, users.start, users.stop)
    if own.size(1) >= 2**31:
        raise InputError(
            f'{own.size(1):,} train pairs for one process: start more processes, so '
            f'that each has fewer than {2**31:,}'
        )
    is_wrong = not are_rising(pair_keys(own, num_items))
    if group.max(is_wrong):
        raise InputError(
            f'data[{RATES}].edge_index is not sorted by user, then item, or holds a '
            'pair twice: several processes share sorted pairs, as the loaders give them'
        )
    return edge_index, users, own


def _gather(own: Assignment, rows: Rows) -> Assignment:
    """The assignment of all rows, sent with the least integers that do."""
    index = rows.gather(own.index.int() if rows.group.size > 1 else own.index)
    return Assignment(index.long(), rows.gather(own.weight))


def decompose(
    own: Tensor,
    users: Rows,
    items: Rows,
    item_degree: Tensor,
    recipe: FastRecipe,
    generator: torch.Generator,
    tolerance: float = 1e-3,
) -> Spectrum:
    """The singular vectors of a recipe, of the pairs of :func:`share_pairs`."""
    norms = recipe.user_norm, recipe.item_norm
    interactions = shared_interactions(own, users, items, *norms, item_degree)
    most = min(users.num_rows, items.num_rows)
    if recipe.embedding_dim is not None:
        rank = min(recipe.embedding_dim, most)
        found = right_vectors(interactions, rank, generator, tolerance)
    else:
        floor = chance_level(own, interactions, norms, item_degree, generator)
        rank = min(MOST_COLUMNS, most)
        found = right_vectors(interactions, rank, generator, tolerance, floor=floor)
    logger.info(
        '%d singular vectors: residual %.1e after %d rounds',
        len(found.value),
        found.residual,
        found.num_rounds,
    )
    return found


def spectral_features(
    own: Tensor,
    users: Rows,
    items: Rows,
    item_degree: Tensor,
    recipe: FastRecipe,
    generator: torch.Generator,
    spectrum: Spectrum | None = None,
) -> tuple[Tensor, dict[str, float]]:
    r"""The dense features that anchors stand in for, of the own items.

    .. math::
        \mathbf{x}_i = (\mathbf{V} \mathbf{\Sigma}^{p} \mathbf{Q})_i

    with the singular values and right vectors of :math:`\tilde{\mathbf{R}}` and the
    varimax rotation :math:`\mathbf{Q}`.

    Returns:
        Tuple: The features, and how exact the singular vectors are: ``residual`` and
        ``rounds`` (:class:`~pyg_c2f.anchors.spectral.Spectrum`).
    """
    if spectrum is None:
        spectrum = decompose(own, users, items, item_degree, recipe, generator)
    value, right, residual, rounds = spectrum
    width = recipe.embedding_dim or len(value)
    x = right[:, :width] * value[:width] ** recipe.spectral_power
    weight = power(items.local(item_degree), recipe.importance_power).sqrt()
    x = items.matmul(x, varimax(x, weight, generator, items=items))
    return x, {'residual': residual, 'rounds': rounds}


def _fine_anchors(
    rest: Tensor,
    rows: Rows,
    importance: Tensor,
    recipe: FastRecipe,
    generator: torch.Generator,
) -> tuple[float, Assignment, Tensor]:
    """Threshold, links and codebook of the levels behind the coarse anchors."""
    per_level = min(recipe.num_fine // recipe.fine_per_item, rows.num_rows)
    # One threshold for all levels, from a short run of k-means.
    centroids, _ = kmeans(
        rest, per_level, importance, generator, num_iterations=4, rows=rows
    )
    size = centroids.abs().flatten().sort(descending=True).values
    threshold = float(size[min(int(DENSITY * size.numel()), len(size) - 1)])
    return threshold, *residual_codes(
        rest,
        recipe.fine_per_item,
        per_level,
        importance,
        generator,
        shrink=torch.nn.Softshrink(threshold),
        rows=rows,
    )


def _same_anchors(model: LinearC2F, init: Any) -> bool:
    ours, theirs = model.coarse.assignment, init.coarse.assignment
    return all(
        a.shape == b.shape and torch.allclose(a.to(b), b, rtol=1e-3)
        for a, b in (
            (ours.index * (ours.weight != 0), theirs.index * (theirs.weight != 0)),
            (ours.weight, theirs.weight),
            (model.coarse.codebook, init.coarse.codebook),
            (model.bias, init.bias),
        )
    )
