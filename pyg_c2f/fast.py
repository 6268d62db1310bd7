r"""Recipe ``fast``: anchors in closed form, then training where it is asked for.

Coarse stage: the singular vectors of the degree-normalised train interactions, rotated
(:func:`~pyg_c2f.spectral.varimax`) until each item lies near few axes. These axes are
the coarse anchors, and an item is tied to those on which it has large coordinates.
Fine stage: what the links leave over is coded by residual k-means; the centroids are
the fine anchors, sparse through the soft threshold.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import cumsum, degree
from tqdm import tqdm

from pyg_c2f.anchors import import_pymetis, metis_partition
from pyg_c2f.codes import (
    WEIGHT_BITS,
    kmeans,
    product_codes,
    residual_codes,
    round_weights,
    sparse_coding,
    threshold_assignment,
    weights_of,
)
from pyg_c2f.config import FastRecipe
from pyg_c2f.distributed import Group, Rows, one_thread_each
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.finite import NotFiniteError, check_finite, check_step
from pyg_c2f.graph import are_rising, csr_matmul, power, unique_pairs
from pyg_c2f.nn import (
    BPRLoss,
    LinearC2F,
    SampledSoftmaxLoss,
    WholeDataLoss,
    build_pairs,
)
from pyg_c2f.nn.fused import weighted_sum
from pyg_c2f.sampler import TripletSampler
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
    SELECTION,
    USER,
    Assignment,
    InputError,
    Score,
    Stage,
    Stored,
)
from pyg_c2f.whole import HistoryLoss, Mixtures

CACHE_BYTES = 1 << 30
# Pairs whose mean score a training scales to one.
SAMPLE = 100_000
BPR_NEGATIVES = 5


def build_fast(
    data: HeteroData,
    recipe: FastRecipe,
    generator: torch.Generator,
    group: Group | None = None,
) -> LinearC2F:
    """The model of a recipe on the train edges of a data set, nothing trained yet.

    Args:
        data (HeteroData): The data set.
        recipe (FastRecipe): The settings.
        generator (torch.Generator): Draws the starts of SVD, rotation and k-means, the
            same in all processes.
        group (Group, optional): The processes that share the work, with one block for
            each of ``recipe.partitions``. The first one's model is whole; the others'
            lack the train pairs. (default: this process alone)

    Raises:
        ImportError: If METIS parts are wanted and pymetis is not installed.
        InputError: If the data set is too small for the settings, or several processes
            cannot share them.
    """
    group = group or Group(recipe.partitions)
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    check_fast(data, recipe, group)
    edge_index, users, own = share_pairs(data, group)
    items = group.rows(num_items)
    deg = group.sum_(torch.bincount(own[1], minlength=num_items))
    norms = recipe.user_norm, recipe.item_norm
    interactions = shared_interactions(own, users, items, *norms, deg)
    x, user_x = spectral_features(interactions, deg, recipe, generator)
    importance = power(items.own(deg), recipe.popularity)
    coarse, codebook = _coarse_anchors(
        x, items, edge_index, num_users, importance, recipe, generator
    )
    rows = items
    if user_x is not None:
        ones = torch.ones(num_users, dtype=x.dtype, device=x.device)
        links = threshold_assignment(user_x, recipe.user_links, ones, rows=users)
        coarse = _stack(links, coarse)
        x, importance = torch.cat([user_x, x]), torch.cat([ones, importance])
        rows = group.rows(len(x))
    for _ in range(recipe.refine):
        codebook = _least_squares(x, coarse, importance, len(codebook), rows)
        coarse = sparse_coding(
            x, codebook, coarse, recipe.coarse_links, importance, rows=rows
        )
    coarse = _gather(coarse, rows)
    if recipe.dtype != 'float32':
        # What the model computes is what is stored: the fine part sees the rounding.
        coarse = _rounded(coarse, recipe.dtype)
    rest = x - weighted_sum(Assignment(*map(rows.own, coarse)), codebook)
    threshold, fine, fine_codebook = 0.0, None, None
    if recipe.fine_links:
        threshold, fine, fine_codebook = _fine_anchors(
            rest, rows, importance, recipe, generator
        )
        fine = _gather(fine, rows)

    model = LinearC2F.blank(
        edge_index if group.rank == 0 else edge_index[:, :0],
        num_users,
        num_items,
        num_coarse=len(codebook),
        num_fine=recipe.num_fine if fine_codebook is None else len(fine_codebook),
        embedding_dim=x.size(1),
        coarse_links=coarse.index.size(1),
        fine_links=max(recipe.fine_links, 1),
        num_layers=recipe.num_layers,
        threshold=threshold,
        item_power=recipe.item_power,
        diffusion=recipe.diffusion,
        user_norm=recipe.user_norm,
        item_norm=recipe.item_norm,
        users=recipe.users,
        dtype=recipe.dtype,
        item_degree=None if group.rank == 0 else deg,
    )
    model.set_assignment(coarse, fine)
    with torch.no_grad():
        model.coarse.codebook.copy_(codebook)
        if fine_codebook is not None:
            model.fine.codebook.copy_(fine_codebook)
    model.round_()
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
    is_wrong = not are_rising(own[0] * num_items + own[1])
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
        ImportError: If METIS parts are wanted and pymetis is not installed.
        InputError: If there are no train pairs, more anchors than items, fewer
            columns than blocks share out, or settings that need the pairs of all users
            in each of several processes.
    """
    num_items = data[ITEM].num_nodes
    if group is not None and group.size > 1:
        cuts = group.rows(num_items).cuts
        if min(end - start for start, end in pairwise(cuts)) == 0:
            raise InputError(
                f'{group.size} processes have no part each in {num_items} items: start '
                'fewer of them'
            )
        for name, value, shared in (
            ('users', recipe.users, ('inductive',)),
            ('num_layers', recipe.num_layers, (1,)),
            ('diffusion', recipe.diffusion, (0,)),
            ('loss', recipe.loss, ('none', 'whole')),
        ):
            if value not in shared:
                raise InputError(
                    f'--set {name}={value}: {group.size} processes can share '
                    f'{" or ".join(f"{name}={x}" for x in shared)} only; set that, or '
                    'run without torchrun'
                )
    if not data[RATES].edge_index.numel():
        raise InputError('there are no train pairs')
    if recipe.anchors == 'metis':
        import_pymetis()
    if recipe.num_coarse > num_items:
        raise InputError(
            f'--set num_coarse={recipe.num_coarse}: more anchors than the {num_items} '
            'items; lower it'
        )
    rank = min(recipe.embedding_dim, data[USER].num_nodes, num_items)
    blocks = int(recipe.coarse_links)
    if recipe.anchors in ('product', 'opq') and rank % blocks:
        raise InputError(
            f'the data hold {rank} columns only, which do not share out over '
            f'coarse_links={blocks} blocks: set embedding_dim to a lower multiple'
        )
    if recipe.loss == 'bpr':
        _bpr_sampler(data[RATES].edge_index, data[USER].num_nodes, num_items)


def _bpr_sampler(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    generator: torch.Generator | None = None,
) -> TripletSampler:
    try:
        return TripletSampler(
            edge_index.cpu(), num_users, num_items, BPR_NEGATIVES, generator
        )
    except InputError as error:
        why = str(error).partition(';')[0]
        raise InputError(f'loss=bpr: {why}; set another loss') from None


def spectral_features(
    interactions: SharedInteractions,
    item_degree: Tensor,
    recipe: FastRecipe,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    r"""The dense features that anchors stand in for, of the own items.

    .. math::
        \mathbf{x}_i = (\mathbf{V} \mathbf{\Sigma}^{p} \mathbf{Q})_i, \quad
        \mathbf{x}_u = (\tilde{\mathbf{R}} \mathbf{x})_u

    with the singular values and right vectors of :math:`\tilde{\mathbf{R}}` and, for
    spectral anchors, the varimax rotation :math:`\mathbf{Q}`. Users have theirs only
    where they are assigned, scaled to the mean length of an item's.
    """
    users, items = interactions.users, interactions.items
    rank = min(recipe.embedding_dim, users.num_rows, items.num_rows)
    value, right, *_ = right_vectors(interactions, rank, generator)
    x = right * value**recipe.power
    if recipe.anchors == 'spectral':
        weight = power(items.own(item_degree), recipe.popularity).sqrt()
        x = items.times(x, varimax(x, weight, generator, items=items))
    if recipe.users == 'inductive':
        return x, None
    user_x = csr_matmul(interactions.by_user, x)
    length = torch.linalg.vector_norm(x, dim=1).mean()
    return x, torch.nn.functional.normalize(user_x, dim=1) * length


def _coarse_anchors(
    x: Tensor,
    items: Rows,
    edge_index: Tensor,
    num_users: int,
    importance: Tensor,
    recipe: FastRecipe,
    generator: torch.Generator,
) -> tuple[Assignment, Tensor]:
    if recipe.anchors == 'spectral':
        axes = torch.eye(x.size(1), dtype=x.dtype, device=x.device)
        tied = threshold_assignment(x, recipe.coarse_links, importance, rows=items)
        return tied, axes
    links, restarts = int(recipe.coarse_links), recipe.restarts
    per_level = recipe.num_coarse // links
    if recipe.anchors == 'residual':
        return residual_codes(
            x, links, per_level, importance, generator, restarts, rows=items
        )
    if recipe.anchors in ('product', 'opq'):
        rounds = recipe.rotations if recipe.anchors == 'opq' else 0
        return product_codes(
            x, links, per_level, importance, generator, restarts, rounds, rows=items
        )
    num_items = items.num_rows
    if recipe.anchors == 'metis':
        label = metis_partition(edge_index, num_users, num_items, recipe.num_coarse)
        label = items.group.same(label[num_users:].contiguous())
    else:
        label = torch.randint(recipe.num_coarse, (num_items,), generator=generator)
        label = label.to(x.device)
    one = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    part = Assignment(items.own(label).unsqueeze(1), one)
    return part, _least_squares(x, part, importance, recipe.num_coarse, items)


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
    if recipe.density < 1:
        look, _ = kmeans(
            rest, per_level, importance, generator, num_iterations=4, rows=rows
        )
        size = look.abs().flatten().sort(descending=True).values
        threshold = float(size[min(int(recipe.density * size.numel()), len(size) - 1)])
    else:
        threshold = 0.0
    return threshold, *residual_codes(
        rest,
        recipe.fine_links,
        per_level,
        importance,
        generator,
        recipe.restarts,
        shrink=torch.nn.Softshrink(threshold),
        rows=rows,
    )


def _least_squares(
    x: Tensor, links: Assignment, importance: Tensor, num_anchors: int, rows: Rows
) -> Tensor:
    """The codebook with the least weighted squared error for given links."""
    dense = x.new_zeros(len(x), num_anchors).scatter_add_(1, *links)
    weighted = dense * importance.unsqueeze(1)
    gram = rows.product(weighted, dense)
    ridge = 1e-3 * gram.diagonal().mean().clamp(min=1e-12)
    gram.diagonal().add_(ridge)
    right = rows.product(weighted, x)
    (solved,) = one_thread_each([partial(torch.linalg.solve, gram, right)])
    return rows.group.same(solved.contiguous())


def _stack(first: Assignment, second: Assignment) -> Assignment:
    """Two assignments one above the other, as wide as the wider one."""
    width = max(first.index.size(1), second.index.size(1))
    padded = [
        [torch.nn.functional.pad(x, (0, width - x.size(1))) for x in part]
        for part in (first, second)
    ]
    return Assignment(*(torch.cat(pair) for pair in zip(*padded, strict=True)))


def _rounded(links: Assignment, dtype: Stored) -> Assignment:
    if dtype == 'float16':
        return Assignment(links.index, links.weight.half().float())
    codes, grid = round_weights(links.weight, WEIGHT_BITS)
    weight = torch.zeros_like(links.weight)
    weight[links.weight != 0] = weights_of(codes, WEIGHT_BITS, grid)
    return Assignment(links.index, weight)


class FastTrainer:
    """Trains codebooks and scalars of a model on from its start.

    The best model on validation, the untrained start included, is kept.

    Args:
        model (LinearC2F): The model, its anchors in place.
        recipe (FastRecipe): The settings.
        generator (torch.Generator): Draws batches and negatives.
        users (Rows, optional): The users, whom several processes share. (default: this
            process has all of them)
        edge_index (Tensor, optional): The train pairs of the own users, sorted.
            (default: the model's)
    """

    def __init__(
        self,
        model: LinearC2F,
        recipe: FastRecipe,
        generator: torch.Generator,
        users: Rows | None = None,
        edge_index: Tensor | None = None,
    ) -> None:
        self.model, self.recipe, self.generator = model, recipe, generator
        self.edge_index = model.edge_index if edge_index is None else edge_index
        self.group = Group() if users is None else users.group
        self.scale = model.item_scale()
        self.history_loss = None
        self.sampler = None
        if recipe.loss == 'whole' and model.users_are_histories():
            self.mix = Mixtures(model.assignment(), len(model.codebook()))
            self.history_loss = HistoryLoss(
                self.edge_index,
                users or self.group.rows(model.num_users),
                model.item_degree().long(),
                (model.user_norm, model.item_norm),
                recipe.alpha,
                recipe.lambda_reg,
            )
        else:
            # Linear propagation leaves the loop: Q E instead of A (S E).
            self.mixtures = model.mixtures(CACHE_BYTES)
            self.pairs = build_pairs(self.edge_index, model.num_users, model.num_items)
        self._normalise()
        parameters = [model.coarse.codebook, model.bias]
        if model.stage == 'fine':
            parameters.append(model.fine.codebook)
        self.optimizer = torch.optim.Adam(parameters, lr=recipe.lr)
        if recipe.loss == 'bpr':
            sizes = model.num_users, model.num_items
            self.sampler = _bpr_sampler(self.edge_index, *sizes, generator)

    @torch.no_grad()
    def _normalise(self) -> None:
        # Features of the spectrum have the scale of the interactions' entries; losses
        # want scores near one. Ranking does not mind: the scalars are still zero.
        model, recipe = self.model, self.recipe
        if self.history_loss is not None:
            x = self.mix(model.codebook())
            mean = self.history_loss.mean_score(x, self.scale, SAMPLE)
        else:
            h_user, h_item = self.features()
            user, item = self.edge_index[
                :, :: max(self.edge_index.size(1) // SAMPLE, 1)
            ]
            mean = float((h_user[user] * h_item[item]).sum(dim=1).mean())
        gain = ((0.5 if recipe.loss == 'whole' else 4.0) / max(mean, 1e-12)) ** 0.5
        model.coarse.codebook.mul_(gain)
        model.fine.codebook.mul_(gain)
        model.soft_threshold.threshold *= gain
        model.threshold = model.soft_threshold.threshold
        model.diffusion *= gain**2

    def features(self) -> tuple[Tensor, Tensor]:
        """The propagated features, the items' with their scale."""
        if self.mixtures is None:
            h_user, h_item = self.model.propagate()
        else:
            codebook = self.model.codebook()
            h_user, h_item = (q @ codebook for q in self.mixtures)
        return h_user, h_item * self.scale.unsqueeze(1)

    def epoch(self) -> float:
        """One pass; the mean loss.

        Raises:
            NotFiniteError: If a loss, a gradient or what was learned is no number.
        """
        batches = {
            'whole': self._whole_batch,
            'softmax': self._softmax_batches,
            'bpr': self._bpr_batches,
        }[self.recipe.loss]
        losses = []
        for number, loss in enumerate(batches(), 1):
            try:
                losses.append(self._step(loss))
            except NotFiniteError as error:
                raise NotFiniteError(f'{error} in step {number}') from None
        return sum(losses) / len(losses)

    def _step(self, loss: Tensor) -> float:
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self.group.sum_(parameter.grad)
        check_step(loss, self.model)
        self.optimizer.step()
        check_finite(self.model.named_parameters())
        return float(loss.detach())

    def _whole_batch(self) -> Iterator[Tensor]:
        model, recipe = self.model, self.recipe
        if self.history_loss is not None:
            x = self.mix(model.codebook())
            yield self.history_loss(x, self.scale, model.bias)
            return
        criterion = WholeDataLoss(recipe.alpha, recipe.lambda_reg)
        yield criterion(*self.features(), self.pairs, model.bias)

    def _softmax_batches(self) -> Iterator[Tensor]:
        model, recipe = self.model, self.recipe
        deg = degree(self.edge_index[1], model.num_items).cpu() + 1
        proposal = deg**0.75 / (deg**0.75).sum()
        criterion = SampledSoftmaxLoss()
        num_pairs = self.edge_index.size(1)
        order = torch.randperm(num_pairs, generator=self.generator)
        for batch in order.split(recipe.batch_size):
            user, item = self.edge_index[:, batch.to(self.edge_index.device)]
            negative = torch.multinomial(
                proposal,
                recipe.num_neg_samples,
                replacement=True,
                generator=self.generator,
            ).to(user.device)
            h_user, h_item = self.features()
            rows = h_user[user]
            positive = (rows * h_item[item]).sum(dim=1) + model.bias[item]
            others = rows @ h_item[negative].T + model.bias[negative]
            log_q = proposal.to(user.device)[negative].log()
            yield criterion(positive, others, log_q, negative == item.unsqueeze(1))

    def _bpr_batches(self) -> Iterator[Tensor]:
        assert self.sampler is not None
        device = self.edge_index.device
        triples = [x.to(device) for x in self.sampler.sample_epoch()]
        criterion = BPRLoss(self.recipe.lambda_reg)
        batches = [x.split(8 * self.recipe.batch_size) for x in triples]
        for user, *items in zip(*batches, strict=True):
            h_user, h_item = self.features()
            positive, negative = (
                (h_user[user] * h_item[item]).sum(dim=1) + self.model.bias[item]
                for item in items
            )
            yield criterion(positive, negative)


def train_fast(
    data: HeteroData,
    recipe: FastRecipe,
    seed: int,
    stages: tuple[Stage, ...],
    init: torch.nn.Module | None = None,
    on_evaluation: Callable[[dict[str, Any]], None] | None = None,
    keep: Callable[[LinearC2F, Stage], None] | None = None,
    progress: bool = False,
    fixed_epochs: int | None = None,
    group: Group | None = None,
) -> tuple[LinearC2F, dict[Stage, dict[int, dict[str, Any]]], dict[str, float]]:
    """Builds the anchors, looks at each stage, and trains on where a loss is set.

    Args:
        data (HeteroData): The data set, on the device to train on.
        recipe (FastRecipe): The settings.
        seed (int): The seed.
        stages (Tuple): The stages; the last one is the result.
        init (LinearC2F, optional): The coarse model whose fine stage this is. Its
            anchors are made again, and must be the same.
        on_evaluation (Callable, optional): Called with each line of the history, in the
            first process.
        keep (Callable, optional): Called with the best model of each stage, in the
            first process.
        progress (bool, optional): Whether to show progress bars. (default: ``False``)
        fixed_epochs (int, optional): Trains so long without a look at validation.
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
            'give, or was trained on: repeat its --seed and --set, or use --stage both'
        )
    results: dict[Stage, dict[int, dict[str, Any]]] = {}

    def look(stage: Stage, epoch: int, loss: float | None) -> dict[str, float]:
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
                    'epoch': epoch,
                    'loss': loss,
                    'val': val,
                    'seconds': round(clock['anchors'] + clock['train'], 3),
                    'anchors_in_use': model.anchors_in_use(),
                }
            )
        return val

    if not recipe.fine_links:
        stages = tuple(stage for stage in stages if stage == 'coarse')
    for stage in stages:
        model.set_stage(stage)
        if fixed_epochs is None:
            val = look(stage, 0, None)
            results[stage] = {1: {'best_epoch': 0, 'last_epoch': 0, 'val': val}}
        if recipe.loss != 'none' and stage == stages[-1]:
            result = results[stage][1] if fixed_epochs is None else None
            _train_on(
                model,
                data,
                recipe,
                generator,
                group,
                look,
                clock,
                result,
                progress,
                fixed_epochs,
            )
        model.round_()
        try:
            check_finite(model.named_parameters())
        except NotFiniteError as error:
            raise InputError(
                f'{error}, too large for dtype={recipe.dtype}: lower --set '
                f'lr={recipe.lr}, or set dtype=float32'
            ) from None
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
    count = torch.bincount(user - users.start, minlength=users.stop - users.start)
    score = model.history_scorer(cumsum(count), item)
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


def _train_on(
    model: LinearC2F,
    data: HeteroData,
    recipe: FastRecipe,
    generator: torch.Generator,
    group: Group,
    look: Callable[[Stage, int, float | None], dict[str, float]],
    clock: dict[str, float],
    result: dict[str, Any] | None,
    progress: bool,
    fixed_epochs: int | None,
) -> None:
    if fixed_epochs == 0:
        return
    start = {key: value.clone() for key, value in model.state_dict().items()}
    best, scale = start, (model.threshold, model.diffusion)
    _, users, own = share_pairs(data, group)
    trainer = FastTrainer(model, recipe, generator, users, own)
    bad, stage = 0, model.stage
    last = recipe.epochs if fixed_epochs is None else fixed_epochs
    for epoch in tqdm(range(1, last + 1), 'train', leave=False, disable=not progress):
        begin = time.perf_counter()
        try:
            loss = trainer.epoch()
        except NotFiniteError as error:
            raise InputError(
                f'{error} of epoch {epoch}: lower --set lr={recipe.lr}; nothing of '
                'this stage was saved'
            ) from None
        clock['train'] += time.perf_counter() - begin
        if result is None or (epoch % recipe.eval_every and epoch != last):
            continue
        val = look(stage, epoch, loss)
        result['last_epoch'] = epoch
        if val[SELECTION] > result['val'][SELECTION]:
            result |= {'best_epoch': epoch, 'val': val}
            best = {key: value.clone() for key, value in model.state_dict().items()}
            scale, bad = (model.threshold, model.diffusion), 0
        else:
            bad += 1
        if bad == recipe.patience:
            break
    if result is not None:
        model.load_state_dict(best)
        model.threshold, model.diffusion = scale
        model.soft_threshold.threshold = model.threshold
