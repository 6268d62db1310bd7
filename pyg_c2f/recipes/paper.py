r"""Recipe ``paper``: the published two-stage, two-phase schedule (SPEC 2 and 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.anchors.paper import (
    import_pymetis,
    metis_partition,
    partition_assignment,
    partition_scores,
    random_assignment,
    softmax_assignment,
    sparse_pca_codebook,
)
from pyg_c2f.finite import NotFiniteError, check_finite, check_step
from pyg_c2f.nn import C2F, BPRLoss
from pyg_c2f.nn.recommender import Recommender
from pyg_c2f.recipes.base import Recipe, Schedule, Trainer, TrainingOptions
from pyg_c2f.recipes.sampler import TripletSampler
from pyg_c2f.shards import Group, Rows
from pyg_c2f.sparse import degree, unique_pairs
from pyg_c2f.typing import ITEM, RATES, USER, InputError, Stage

Triples = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class PaperRecipe(Recipe):
    """The published schedule (SPEC to the letter), with Gowalla's settings.

    Phase 1 of a stage keeps the assignment fixed; phase 2 re-assigns at the first batch
    of every epoch.
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        'num_fine': (2, 2**31 - 1),  # a single row has no principal components
        'num_layers': (0, 2**31 - 1),
        'gate': (0, 1),
        'own_weight': (0, 1),
    }

    num_coarse: int = 300
    """coarse anchors"""
    num_fine: int = 100
    """fine anchors"""
    embedding_dim: int = 128
    """width of the codebooks"""
    num_layers: int = 3
    """layers of propagation"""
    anchors_per_entity: int = 2
    """coarse anchors of each user and item"""
    fine_per_coarse: int = 4
    """fine anchors of each coarse anchor"""
    gate: float = 0.2
    """share of the fine part"""
    threshold: float = 1.0
    """soft threshold of the fine codebook"""
    anchors: Literal['metis', 'random'] = 'metis'
    """first anchors: a METIS cut of the graph, or at random"""
    own_weight: float = 0.5
    """weight of an entity's own anchor at the start"""
    pca_components: int = 80
    """sparse principal components that start the fine codebook"""
    lr_coarse: float = 1e-3
    """learning rate of the coarse stage"""
    lr_fine: float = 3e-3
    """learning rate of the fine stage"""
    batch_size_coarse: int = 8192
    """triples in a batch of the coarse stage"""
    batch_size_fine: int = 32768
    """triples in a batch of the fine stage"""
    num_neg_samples: int = 5
    """negative items for each draw"""
    lambda_reg: float = 5e-4
    """strength of the penalty on the ego embeddings"""
    clip: float = 3.0
    """largest absolute value of an entry of a gradient"""
    eval_every: int = 5
    """epochs between two evaluations"""
    patience: int = 5
    """evaluations without a better NDCG@5 before a phase ends"""
    max_epochs: int = 900
    """most epochs of a stage"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for few, many in (
            ('anchors_per_entity', 'num_coarse'),
            ('fine_per_coarse', 'num_fine'),
        ):
            if getattr(self, few) > getattr(self, many):
                raise InputError(
                    f'{few}={getattr(self, few)} needs at least as many anchors: '
                    f'raise {many}={getattr(self, many)}'
                )

    def check(self, data: HeteroData, options: TrainingOptions) -> None:
        if options.group is not None:
            share_columns(self.embedding_dim, options.group)
        if self.anchors == 'metis':
            import_pymetis()
        make_sampler(data, self)
        num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
        for name in ('num_coarse', 'num_fine'):
            if getattr(self, name) > num_users + num_items:
                raise InputError(
                    f'{name}={getattr(self, name)}: more anchors than the {num_users} '
                    f'users and {num_items} items; lower it'
                )
        if options.init is None:
            return
        names = 'num_coarse', 'embedding_dim', 'anchors_per_entity'
        sizes = {'num_users': num_users, 'num_items': num_items}
        for name, ours in (sizes | {x: getattr(self, x) for x in names}).items():
            if getattr(options.init, name) != ours:
                raise InputError(
                    f'the coarse model has {name}={getattr(options.init, name)}, this '
                    f'run {ours}: set them alike'
                )

    def blank(self, data: HeteroData) -> C2F:
        """A model of these sizes on the train edges of a data set."""
        num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
        edge_index = data[RATES].edge_index
        # Recipe and model call a setting by one name.
        settings = {
            name: getattr(self, name)
            for name in C2F.setting_kinds().keys() - {'num_users', 'num_items'}
        }
        pairs = unique_pairs(edge_index, num_items)
        return C2F(pairs, num_users, num_items, **settings).to(edge_index.device)

    def start(
        self,
        data: HeteroData,
        stage: Stage,
        before: Recommender | None,
        options: TrainingOptions,
    ) -> C2F:
        """The model with the start of a stage: METIS, or SparsePCA of the coarse one.

        The fine stage trains on in the model of the coarse stage, where it was trained
        in this run; ``options.init`` is left as it is.
        """
        generator, model = options.generator(stage), cast(C2F, before)
        if before is None or before is options.init:
            model = self.blank(data)
            if before is not None:
                _take_coarse(model, before)
        if stage == 'coarse':
            self._start_coarse(model, generator)
        else:
            self._start_fine(model, generator)
        model.set_stage(stage)
        make_same(model, options.group or Group())
        return model

    def _start_coarse(self, model: C2F, generator: torch.Generator) -> None:
        """Codebook, scalars, first anchors (SPEC section 2)."""
        for table in (model.coarse.codebook, model.fine.codebook, model.bias):
            table.data.copy_(torch.randn(table.shape, generator=generator))
        model.global_bias.data.zero_()
        sizes = self.num_coarse, self.anchors_per_entity, self.own_weight
        labels = self._partition(model, self.num_coarse, generator)
        model.set_assignment(partition_assignment(labels, *sizes, generator))

    def _start_fine(self, model: C2F, generator: torch.Generator) -> None:
        """Fine codebook, first fine anchors (SPEC section 3)."""
        codebook = model.coarse.codebook.detach()
        sizes = self.num_fine, self.pca_components
        codebook = sparse_pca_codebook(codebook, *sizes, generator=generator)
        model.fine.codebook.data.copy_(codebook)
        labels = self._partition(model, self.num_fine, generator)
        coarse = model.coarse.assignment
        scores = partition_scores(coarse, self.num_coarse, labels, self.num_fine)
        model.set_assignment(fine=softmax_assignment(scores, self.fine_per_coarse))

    def _partition(
        self, model: C2F, num_parts: int, generator: torch.Generator
    ) -> Tensor:
        sizes = model.num_users, model.num_items
        if self.anchors == 'metis':
            return metis_partition(model.edge_index, *sizes, num_parts)
        start = random_assignment(sum(sizes), num_parts, 1, generator=generator)
        return start.index[:, 0].to(model.edge_index.device)

    def trainer(
        self, model: Recommender, data: HeteroData, options: TrainingOptions
    ) -> 'C2FTrainer':
        sampler = make_sampler(data, self, options.generator(model.stage))
        return C2FTrainer(cast(C2F, model), sampler, self, options)


def make_sampler(
    data: HeteroData, recipe: PaperRecipe, generator: torch.Generator | None = None
) -> TripletSampler:
    """The source of a recipe's triples, on the CPU whatever the device.

    One seed gives one sequence of triples.
    """
    return TripletSampler(
        data[RATES].edge_index.cpu(),
        data[USER].num_nodes,
        data[ITEM].num_nodes,
        recipe.num_neg_samples,
        generator,
    )


def _take_coarse(model: C2F, init: Any) -> None:
    """Takes codebook, scalars and assignment of a trained coarse model."""
    with torch.no_grad():
        model.coarse.codebook.copy_(init.coarse.codebook)
        model.bias.copy_(init.bias)
        model.global_bias.copy_(init.global_bias)
    model.set_assignment(coarse=init.coarse.assignment)


def make_same(model: C2F, group: Group) -> None:
    """Gives all processes what the first one has of a model's tables.

    They have computed the same from the same, but machines of two kinds round in two
    ways, and may choose other signs and other anchors of equal weight.
    """
    tables = [*model.parameters(), *model.buffers()]
    group.broadcast(*(x.detach() for x in tables if x is not model.edge_index))


def share_columns(width: int, group: Group) -> Rows:
    """Shares out the columns of tables, as rows of the transposed ones."""
    if group.size > width:
        raise InputError(
            f'{group.size} processes, but embedding_dim={width}: a process '
            'without columns has nothing to do; start fewer'
        )
    return Group(group.size, group.is_distributed).rows(width)


class _SumOfParts(torch.autograd.Function):
    """The sum of all processes, which all of them compute the same loss from."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        return group.all_reduce(part.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def batch_loss(
    model: C2F,
    criterion: BPRLoss,
    triples: Triples,
    columns: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the propagated features that it was computed from.

    With ``columns`` this process computes these only, and the other processes' parts of
    the scores and of the penalty are added to its own. The scalars are the first one's.
    """
    users, positives, negatives = triples
    own = None if columns is None else slice(columns.start, columns.stop)
    x = model.layer0(own)
    h = model.propagate(x)
    items = torch.stack([positives, negatives])
    ids = torch.cat([users, items.flatten() + model.num_users])
    penalty = criterion.penalty(x[0], degree(ids, len(x[0])))
    if columns is None:
        scores = model(users, items, h)
    else:
        part = model(users, items, h, with_bias=columns.group.is_main)
        parts = torch.cat([part.flatten(), penalty[None]])
        total = _SumOfParts.apply(parts, columns.group)
        scores, penalty = total[:-1].view_as(part), total[-1]
    positive, negative = scores
    return criterion(positive, negative) + penalty / len(users), h


class C2FTrainer(Trainer):
    r"""Trains the codebook of a model's stage by BPR, alone or in several processes.

    Each of the :math:`W` processes has :math:`d / W` columns of the
    codebooks and of all features, and all triples: up to the scores of pairs, no column
    depends on another. Of a batch of :math:`B` triples,

    .. math::
        4 \, (2 B + 1)

    bytes are summed up, the parts of :math:`2 B` scores and of the penalty. All compute
    the same loss from the sums, and each learns its columns alone; the first one learns
    the scalars. The others' columns are exchanged once an epoch: a codebook and its two
    moments, :math:`4 \cdot 3 c d` bytes. Re-assigning takes the features of all
    :math:`N` nodes, :math:`4 N d` bytes. These have the bits
    that one process gives them, but for the last few rows of a table: where its numbers
    no longer fill a vector register, they are rounded in another way before they are
    propagated.

    A sum of :math:`n` bytes costs each process :math:`2 n (W - 1) / W` bytes from and
    to it, a gathered table :math:`n (W - 1) / W`.
    """

    def __init__(
        self,
        model: C2F,
        sampler: TripletSampler,
        recipe: PaperRecipe,
        options: TrainingOptions,
    ) -> None:
        self.model, self.clip = model, recipe.clip
        self.group = options.group or Group()
        self.columns: Rows | None = None
        if self.group.size > 1:
            self.columns = share_columns(model.embedding_dim, self.group)
        coarse = model.stage == 'coarse'
        self.batch_size = recipe.batch_size_coarse if coarse else recipe.batch_size_fine
        self.sampler = sampler
        self.criterion = BPRLoss(recipe.lambda_reg)
        lr = recipe.lr_coarse if coarse else recipe.lr_fine
        self.remedy = f'lower lr_{model.stage}={lr}'
        learned = [x for x in model.parameters() if x.requires_grad]
        self.optimizer = torch.optim.Adam(learned, lr=lr)
        self.schedule = Schedule(
            recipe.max_epochs, recipe.eval_every, recipe.patience, num_phases=2
        )

    def train_epoch(self, phase: int, bar: Callable[..., Any]) -> float:
        """One pass over the batches of an epoch.

        In phase 2 the anchors are re-assigned from the features of the first batch,
        after its step: that batch still used the old ones.
        """
        device, number = self.model.bias.device, 0
        columns = [x.to(device) for x in self.sampler.sample_epoch()]
        parts = zip(*(x.split(self.batch_size) for x in columns), strict=True)
        losses = []
        try:
            for number, triples in enumerate(bar(list(parts))):
                loss, h = self.step(triples)
                losses.append(loss)
                if number == 0 and phase == 2:
                    self._update_assignment(h)
            self._gather()
        except NotFiniteError as error:
            raise NotFiniteError(f'{error} in step {number + 1}') from None
        return float(torch.stack(losses).mean())

    def step(self, triples: Triples) -> tuple[Tensor, Tensor]:
        """One batch: forward, backward, element-wise clipping, optimiser step.

        Several processes stop together at a NaN: what one of them finds is NaN in the
        next exchange. Returns the loss, and the propagated features that it was
        computed from, of several processes the own columns.
        """
        self.optimizer.zero_grad()
        loss, h = batch_loss(self.model, self.criterion, triples, self.columns)
        loss.backward()
        if self.columns is None:
            check_step(loss, self.model)
        else:
            check_finite([('the loss', loss)])
            for parameter in self.model.parameters():
                if parameter.grad is not None:  # Clipping hides infinity, but not NaN.
                    parameter.grad += 0 * parameter.grad
        torch.nn.utils.clip_grad_value_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if self.columns is None:
            check_finite(self.model.named_parameters())
        return loss.detach(), h.detach()

    def _update_assignment(self, h: Tensor) -> None:
        """Re-assigns from what :meth:`step` returns, in all processes alike."""
        self.model.update_assignment(self._whole(h))
        self.group.broadcast(*self.model.stage_table.assignment)

    def _whole(self, own: Tensor) -> Tensor:
        """All columns of a table, from everybody's own."""
        if self.columns is None:
            return own
        return self.columns.gather(own.T).T.contiguous()

    def _gather(self) -> None:
        """Gives all processes what each has learned, and the moments of Adam."""
        if self.columns is None:
            return
        own = slice(self.columns.start, self.columns.stop)
        codebook = self.model.stage_table.codebook
        moments = self.optimizer.state[codebook]
        tables = [codebook.detach(), moments['exp_avg'], moments['exp_avg_sq']]
        whole = self._whole(torch.cat([table[:, own] for table in tables]))
        for table, new in zip(tables, whole.split(len(codebook)), strict=True):
            table.copy_(new)
        make_same(self.model, self.group)
        check_finite(self.model.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {'generator': self.sampler.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        moments = dict(state)
        self.sampler.generator.set_state(moments.pop('generator'))
        super().load_state_dict(moments)
