r"""Recipe ``fast``: anchors in closed form, and no training.

Coarse stage: the singular vectors of the degree-normalised train interactions, rotated
(:func:`~pyg_c2f.spectral.varimax`) until each item lies near few axes. These axes are
the coarse anchors, and an item is tied to those on which it has large coordinates.
Fine stage: what the links leave over is coded by residual k-means; the centroids are
the fine anchors, sparse through the soft threshold.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.codes import kmeans, residual_codes, threshold_assignment
from pyg_c2f.config import FastRecipe
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.finite import NotFiniteError, check_finite
from pyg_c2f.graph import power
from pyg_c2f.nn import LinearC2F
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.packing import WEIGHT_BITS, round_weights, weights_of
from pyg_c2f.shards import Group, Rows
from pyg_c2f.sparse import are_rising, degree, pair_keys, rowptr_of, unique_pairs
from pyg_c2f.spectral import (
    SharedInteractions,
    pairs_of,
    right_vectors,
    shared_interactions,
    varimax,
)
from pyg_c2f.typing import (
    ITEM,
    RATES,
    USER,
    Assignment,
    InputError,
    Score,
    Stage,
)

# The share of the fine codebook that the soft threshold lets through.
DENSITY = 0.125


def build_fast(
    data: HeteroData,
    recipe: FastRecipe,
    generator: torch.Generator,
    group: Group | None = None,
) -> LinearC2F:
    """The model of a recipe on the train edges of a data set.

    Args:
        data (HeteroData): The data set.
        recipe (FastRecipe): The settings.
        generator (torch.Generator): Draws the starts of SVD, rotation and k-means, the
            same in all processes.
        group (Group, optional): The processes that share the work, with one block for
            each of ``recipe.partitions``. The first one's model is whole; the others'
            lack the train pairs. (default: this process alone)

    Raises:
        InputError: If there are no train pairs, or several processes cannot share them.
    """
    group = group or Group(recipe.partitions)
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    check_fast(data, recipe, group)
    edge_index, users, own = share_pairs(data, group)
    items = group.rows(num_items)
    deg = group.all_reduce(degree(own[1], num_items))
    norms = recipe.user_norm, recipe.item_norm
    interactions = shared_interactions(own, users, items, *norms, deg)
    x, basis = spectral_features(interactions, deg, recipe, generator)
    importance = power(items.local(deg), recipe.popularity)
    codebook = torch.eye(x.size(1), dtype=x.dtype, device=x.device)
    coarse = threshold_assignment(x, recipe.coarse_links, importance, rows=items)
    coarse = _gather(coarse, items)
    if recipe.dtype == 'packed':
        # What the model computes is what is stored: the fine part sees the rounding.
        coarse = _rounded(coarse)
    rest = x - weighted_sum(Assignment(*map(items.local, coarse)), codebook)
    threshold, fine, fine_codebook = 0.0, None, None
    if recipe.fine_links:
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
        coarse_links=coarse.index.size(1),
        fine_links=max(recipe.fine_links, 1),
        threshold=threshold,
        item_power=recipe.item_power,
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
    model.basis = basis
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
    # Where pairs are not in memory, a process looks at its own ones only.
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


def check_data(data: HeteroData) -> None:
    """Checks what every recipe needs of a data set.

    Raises:
        InputError: If the data have no numbers of users and items, or no int64 pairs.
    """
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    if num_users is None or num_items is None:
        raise InputError(
            'the data do not say how many users and items there are: set '
            "data['user'].num_nodes and data['item'].num_nodes"
        )
    if data[RATES].edge_index.dtype != torch.long:
        raise InputError(
            f'data[{RATES}].edge_index is {data[RATES].edge_index.dtype}: convert the '
            'pairs to int64 with .long()'
        )


def check_fast(
    data: HeteroData, recipe: FastRecipe, group: Group | None = None
) -> None:
    """Checks a recipe against a data set, and the processes that are to share it.

    Raises:
        InputError: If there are no train pairs, fewer items than processes, or settings
            that need the pairs of all users in each of several processes.
    """
    num_items = data[ITEM].num_nodes
    if group is not None and group.size > 1:
        cuts = group.rows(num_items).cuts
        if min(end - start for start, end in pairwise(cuts)) == 0:
            raise InputError(
                f'{group.size} processes have no part each in {num_items} items: start '
                'fewer of them'
            )
        if recipe.diffusion:
            raise InputError(
                f'--set diffusion={recipe.diffusion}: {group.size} processes can share '
                'diffusion=0 only; set that, or run without torchrun'
            )
    if not data[RATES].edge_index.numel():
        raise InputError('there are no train pairs')


def spectral_features(
    interactions: SharedInteractions,
    item_degree: Tensor,
    recipe: FastRecipe,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    r"""The dense features that anchors stand in for, of the own items.

    .. math::
        \mathbf{x}_i = (\mathbf{V} \mathbf{\Sigma}^{p} \mathbf{Q})_i

    with the singular values and right vectors of :math:`\tilde{\mathbf{R}}` and the
    varimax rotation :math:`\mathbf{Q}`.

    Returns:
        Tuple: The features, and how exact the singular vectors are: ``residual`` and
        ``rounds`` (:class:`~pyg_c2f.spectral.Spectrum`).
    """
    users, items = interactions.users, interactions.items
    rank = min(recipe.embedding_dim, users.num_rows, items.num_rows)
    value, right, residual, rounds = right_vectors(interactions, rank, generator)
    x = right * value**recipe.power
    weight = power(items.local(item_degree), recipe.popularity).sqrt()
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
    per_level = min(recipe.num_fine // recipe.fine_links, rows.num_rows)
    # One threshold for all levels, from a first look at the centroids.
    look, _ = kmeans(
        rest, per_level, importance, generator, num_iterations=4, rows=rows
    )
    size = look.abs().flatten().sort(descending=True).values
    threshold = float(size[min(int(DENSITY * size.numel()), len(size) - 1)])
    return threshold, *residual_codes(
        rest,
        recipe.fine_links,
        per_level,
        importance,
        generator,
        shrink=torch.nn.Softshrink(threshold),
        rows=rows,
    )


def _rounded(links: Assignment) -> Assignment:
    codes, grid = round_weights(links.weight, WEIGHT_BITS)
    weight = torch.zeros_like(links.weight)
    weight[links.weight != 0] = weights_of(codes, WEIGHT_BITS, grid)
    return Assignment(links.index, weight)


def train_fast(
    data: HeteroData,
    recipe: FastRecipe,
    seed: int,
    stages: tuple[Stage, ...],
    init: torch.nn.Module | None = None,
    on_evaluation: Callable[[dict[str, Any]], None] | None = None,
    keep: Callable[[LinearC2F, Stage], None] | None = None,
    is_refit: bool = False,
    group: Group | None = None,
) -> tuple[LinearC2F, dict[Stage, dict[int, dict[str, Any]]], dict[str, float]]:
    """Builds the anchors and evaluates each stage on the validation items.

    Args:
        data (HeteroData): The data set, on the device to work on.
        recipe (FastRecipe): The settings.
        seed (int): The seed.
        stages (Tuple): The stages; the last one is the result.
        init (LinearC2F, optional): The coarse model whose fine stage this is. Its
            anchors are made again, and must be the same.
        on_evaluation (Callable, optional): Called with each line of the history, in the
            first process.
        keep (Callable, optional): Called with the model of each stage, in the first
            process.
        is_refit (bool, optional): Whether the data hold the validation items, so that
            there is nothing to evaluate. (default: ``False``)
        group (Group, optional): The processes that share the work, as for
            :func:`build_fast`.

    Returns:
        Tuple: The model, for each stage its phase with ``best_epoch``, ``last_epoch``
        and ``val``, and the seconds spent.
    """
    clock = {'anchors': 0.0, 'train': 0.0, 'evaluate': 0.0}
    start = time.perf_counter()
    group = group or Group(recipe.partitions)
    generator = torch.Generator().manual_seed(2 * seed)
    model = build_fast(data, recipe, generator, group)
    clock['anchors'] = time.perf_counter() - start
    if init is not None and not _same_anchors(model, init):
        raise InputError(
            'the coarse model has other anchors than these settings and this seed '
            'give: repeat its --seed and --set, or use --stage both'
        )
    try:
        check_finite(model.named_parameters())
    except NotFiniteError as error:
        raise InputError(
            f'{error}, too large for dtype={recipe.dtype}: lower --set '
            f'power={recipe.power}, or set dtype=float32'
        ) from None
    results: dict[Stage, dict[int, dict[str, Any]]] = {}

    def evaluate(stage: Stage) -> None:
        start = time.perf_counter()
        users = group.rows(model.num_users)
        score = model.scorer() if group.size == 1 else own_scorer(model, data, users)
        val = evaluate_split(score, data, 'val', users=users)
        clock['evaluate'] += time.perf_counter() - start
        if on_evaluation is not None and group.rank == 0:
            on_evaluation(
                {
                    'stage': stage,
                    'phase': 1,
                    'epoch': 0,
                    'loss': None,
                    'val': val,
                    'seconds': round(clock['anchors'], 3),
                    'anchors_in_use': model.anchors_in_use(),
                }
            )
        result = {'best_epoch': 0, 'last_epoch': 0, 'val': val, 'basis': model.basis}
        results[stage] = {1: result}

    if not recipe.fine_links:
        stages = tuple(stage for stage in stages if stage == 'coarse')
    for stage in stages:
        model.set_stage(stage)
        if not is_refit:
            evaluate(stage)
        if keep is not None and group.rank == 0:
            keep(model, stage)
        group.wait()
    return model, results, clock


def own_scorer(model: LinearC2F, data: HeteroData, users: Rows) -> Score:
    """The scores of users of this process, by their histories in the data set.

    A model of several processes knows the train pairs in the first of them only, and
    users who live from their items need nothing else of the graph.
    """
    user, item = pairs_of(data[RATES].edge_index, users.start, users.stop)
    rowptr = rowptr_of(user - users.start, users.stop - users.start)
    score = model.history_scorer(rowptr, item)
    return lambda users_: score(users_ - users.start)


def _same_anchors(model: LinearC2F, init: torch.nn.Module) -> bool:
    if not isinstance(init, LinearC2F):
        return False
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
