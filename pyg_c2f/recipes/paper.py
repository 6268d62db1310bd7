r"""The two-stage, two-phase schedule of SPEC sections 2 and 3."""

import ctypes
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.anchors import (
    import_pymetis,
    metis_partition,
    partition_assignment,
    partition_scores,
    random_assignment,
    softmax_assignment,
    sparse_pca_codebook,
)
from pyg_c2f.checkpoint import UNFIT, Model, phase_file, save
from pyg_c2f.config import FastRecipe, Recipe, get_recipe
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.fast import check_data, check_fast, train_fast
from pyg_c2f.finite import NotFiniteError, check_finite, check_step
from pyg_c2f.nn import C2F, BPRLoss
from pyg_c2f.resume import (
    Progress,
    State,
    delete_resume,
    read_resume,
    write_resume,
)
from pyg_c2f.sampler import TripletSampler
from pyg_c2f.shards import Group, Rows
from pyg_c2f.sparse import degree, unique_pairs
from pyg_c2f.typing import ITEM, RATES, SELECTION, USER, InputError, Stage

logger = logging.getLogger(__name__)

Triples = tuple[Tensor, Tensor, Tensor]


def reuse_freed_memory() -> None:
    """Lets this process keep freed memory for its next tensors (glibc only).

    Each step frees and takes tables of tens of megabytes. By default the C library
    hands such blocks back to the system, and every step pays for their pages anew: on
    Gowalla a third of its time. It changes the whole process, so programs call it
    (``run.py`` does), never the library.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        logger.debug('no glibc: freed memory goes back to the system')


def check_run(
    data: HeteroData,
    recipe: Recipe | FastRecipe,
    init: Model | None = None,
    group: Group | None = None,
) -> None:
    """Checks a recipe against the data, the coarse model to start from, and processes.

    Raises:
        ImportError: If the METIS start is wanted and pymetis is not installed.
        InputError: If the data have no numbers of users and items or no int64 pairs,
            there are more anchors than users and items, fewer unrated items than
            negatives, the coarse model has other sizes, or several processes cannot
            share such a run.
    """
    check_data(data)
    if isinstance(recipe, FastRecipe):
        check_fast(data, recipe, group)
        return
    if group is not None:
        share_columns(recipe.embedding_dim, group)
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    if recipe.anchors == 'metis':
        import_pymetis()
    make_sampler(data, recipe)
    for name in ('num_coarse', 'num_fine'):
        if getattr(recipe, name) > num_users + num_items:
            raise InputError(
                f'--set {name}={getattr(recipe, name)}: more anchors than the '
                f'{num_users} users and {num_items} items; lower it'
            )
    if init is None:
        return
    sizes = {'num_users': num_users, 'num_items': num_items}
    for name in ('num_coarse', 'embedding_dim', 'anchors_per_entity'):
        sizes[name] = getattr(recipe, name)
    for name, ours in sizes.items():
        if getattr(init, name) != ours:
            raise InputError(
                f'the coarse model has {name}={getattr(init, name)}, this run {ours}: '
                'set them alike'
            )


def make_sampler(
    data: HeteroData, recipe: Recipe, generator: torch.Generator | None = None
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


def build_model(data: HeteroData, recipe: Recipe) -> C2F:
    """A model of a recipe's sizes on the train edges of a data set."""
    num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
    return C2F(
        unique_pairs(data[RATES].edge_index, num_items),
        num_users,
        num_items,
        num_coarse=recipe.num_coarse,
        num_fine=recipe.num_fine,
        embedding_dim=recipe.embedding_dim,
        num_layers=recipe.num_layers,
        anchors_per_entity=recipe.anchors_per_entity,
        fine_per_coarse=recipe.fine_per_coarse,
        gate=recipe.gate,
        threshold=recipe.threshold,
    )


def original_ids(data: HeteroData) -> dict[str, Iterable[Any]]:
    """What a data set calls its users and items, for ``set_ids`` of a model."""
    ids: dict[str, Iterable[Any]] = {}
    for name, store, key in (
        ('users', data[USER], 'raw_id'),
        ('items', data[ITEM], 'raw_id'),
        ('titles', data[ITEM], 'title'),
    ):
        if key in store:
            ids[name] = store[key]
    return ids


def start_coarse(model: C2F, recipe: Recipe, generator: torch.Generator) -> None:
    """Starts the coarse stage: codebook, scalars, first anchors (SPEC section 2)."""
    for table in (model.coarse.codebook, model.fine.codebook, model.bias):
        draw = torch.randn(table.shape, generator=generator)
        table.data.copy_(draw)
    model.global_bias.data.zero_()
    labels = _partition(model, model.num_coarse, recipe, generator)
    model.set_assignment(
        coarse=partition_assignment(
            labels,
            model.num_coarse,
            model.anchors_per_entity,
            recipe.own_weight,
            generator,
        )
    )
    model.set_stage('coarse')


def start_fine(model: C2F, recipe: Recipe, generator: torch.Generator) -> None:
    """Starts the fine stage from a trained coarse one (SPEC section 3)."""
    codebook = sparse_pca_codebook(
        model.coarse.codebook.detach(),
        model.num_fine,
        recipe.pca_components,
        generator=generator,
    )
    model.fine.codebook.data.copy_(codebook)
    labels = _partition(model, model.num_fine, recipe, generator)
    scores = partition_scores(
        model.coarse.assignment, model.num_coarse, labels, model.num_fine
    )
    model.set_assignment(fine=softmax_assignment(scores, model.fine_per_coarse))
    model.set_stage('fine')


def _partition(
    model: C2F, num_parts: int, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    if recipe.anchors == 'metis':
        return metis_partition(
            model.edge_index, model.num_users, model.num_items, num_parts
        )
    num_entities = model.num_users + model.num_items
    start = random_assignment(num_entities, num_parts, 1, generator=generator)
    return start.index[:, 0].to(model.edge_index.device)


def make_same(model: C2F, group: Group | None) -> None:
    """Gives all processes what the first one has of a model's tables.

    They have computed the same from the same, but machines of two kinds round in two
    ways, and may choose other signs and other anchors of equal weight.
    """
    if group is None or group.size == 1:
        return
    tables = [*model.parameters(), *model.buffers()]
    group.broadcast(*(x.detach() for x in tables if x is not model.edge_index))


def share_columns(width: int, group: Group) -> Rows:
    """Shares out the columns of tables, as rows of the transposed ones.

    Raises:
        InputError: If there are more processes than columns.
    """
    if group.size > width:
        raise InputError(
            f'{group.size} processes, but --set embedding_dim={width}: a process '
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

    Args:
        model (C2F): The model.
        criterion (BPRLoss): The loss of some triples.
        triples (Tuple): Users, positive and negative items.
        columns (Rows, optional): The columns that this process computes; the other
            processes' parts of the scores and of the penalty are added to its own. The
            scalars are the first one's.
    """
    users, positives, negatives = triples
    if columns is None:
        x = model.layer0()
    else:
        x = model.layer0(slice(columns.start, columns.stop))
    h = model.propagate(x)
    items = torch.stack([positives, negatives])
    ids = torch.cat([users, items.flatten() + model.num_users])
    penalty = criterion.penalty(x[0], degree(ids, len(x[0])))
    if columns is None:
        scores = model(users, items, h)
    else:
        part = model(users, items, h, with_bias=leads(columns.group))
        parts = torch.cat([part.flatten(), penalty[None]])
        total = _SumOfParts.apply(parts, columns.group)
        scores, penalty = total[:-1].view_as(part), total[-1]
    positive, negative = scores
    return criterion(positive, negative) + penalty / len(users), h


class SharedLoss:
    r"""The loss of a batch that several processes share.

    Each of the :math:`W` processes has :math:`d / W` columns of the
    codebooks and of all features, and all triples: up to the scores of pairs, no column
    depends on another. Of a batch of :math:`B` triples,

    .. math::
        4 \, (2 B + 1)

    bytes are summed up, the parts of :math:`2 B` scores and of the penalty. All compute
    the same loss from the sums, and each learns its columns alone; the first one learns
    the scalars. The others' columns are out of date until :meth:`gather`, once an
    epoch: a codebook and its two moments, :math:`4 \cdot 3 c d` bytes. Re-assigning
    takes the features of all :math:`N` nodes, :math:`4 N d` bytes. These have the bits
    that one process gives them, but for the last few rows of a table: where its numbers
    no longer fill a vector register, they are rounded in another way before they are
    propagated.

    A sum of :math:`n` bytes costs each process :math:`2 n (W - 1) / W` bytes from and
    to it, a gathered table :math:`n (W - 1) / W`.

    Args:
        model (C2F): The model, in the stage to train: with another stage other tables
            get gradients, which takes another loss.
        criterion (BPRLoss): The loss of some triples.
        group (Group): The processes.

    Raises:
        InputError: If there are more processes than columns to share out.
    """

    def __init__(self, model: C2F, criterion: BPRLoss, group: Group) -> None:
        self.model, self.criterion, self.group = model, criterion, group
        self.columns = share_columns(model.embedding_dim, group)

    def backward(self, triples: Triples) -> tuple[Tensor, Tensor]:
        """Leaves the gradients of the own columns, and returns the batch's loss.

        The features beside it are those of the own columns too.
        """
        loss, h = batch_loss(self.model, self.criterion, triples, self.columns)
        loss.backward()
        return loss.detach(), h.detach()

    def update_assignment(self, h: Tensor) -> None:
        """Re-assigns from what :meth:`backward` returns, in all processes alike."""
        self.model.update_assignment(self.whole(h))
        self.group.broadcast(*getattr(self.model, self.model.stage).assignment)

    def whole(self, own: Tensor) -> Tensor:
        """All columns of a table, from everybody's own."""
        return self.columns.gather(own.T).T.contiguous()

    def gather(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives all processes what each has learned, and the moments of Adam.

        Raises:
            NotFiniteError: If what was learned is no number, in all of them.
        """
        own = slice(self.columns.start, self.columns.stop)
        codebook = getattr(self.model, self.model.stage).codebook
        moments = optimizer.state[codebook]
        tables = [codebook.detach(), moments['exp_avg'], moments['exp_avg_sq']]
        whole = self.whole(torch.cat([table[:, own] for table in tables]))
        for table, new in zip(tables, whole.split(len(codebook)), strict=True):
            table.copy_(new)
        make_same(self.model, self.group)
        check_finite(self.model.named_parameters())


def train_step(
    model: C2F,
    optimizer: torch.optim.Optimizer,
    criterion: BPRLoss | SharedLoss,
    triples: Triples,
    clip: float,
) -> tuple[Tensor, Tensor]:
    """One batch: forward, backward, element-wise clipping, optimiser step.

    Several processes refuse together what is no number: what one of them finds is NaN
    in the next exchange.

    Returns:
        Tuple: The loss, and the propagated features that it was computed from, of
        several processes the own columns.

    Raises:
        NotFiniteError: If the loss, a gradient or what was learned is no number.
    """
    optimizer.zero_grad()
    is_shared = isinstance(criterion, SharedLoss)
    if isinstance(criterion, SharedLoss):
        loss, h = criterion.backward(triples)
        check_finite([('the loss', loss)])
        for parameter in learned_parameters(model):
            if parameter.grad is not None:  # Clipping would hide infinity, not NaN.
                parameter.grad += 0 * parameter.grad
    else:
        loss, h = batch_loss(model, criterion, triples)
        loss.backward()
        check_step(loss, model)
    torch.nn.utils.clip_grad_value_(model.parameters(), clip)
    optimizer.step()
    if not is_shared:
        check_finite(model.named_parameters())
    return loss.detach(), h.detach()


def train_epoch(
    model: C2F,
    optimizer: torch.optim.Optimizer,
    criterion: BPRLoss | SharedLoss,
    batches: Iterable[Triples],
    clip: float,
    update_assignment: bool,
) -> float:
    """One pass over the batches of an epoch.

    With ``update_assignment`` the anchors are re-assigned from the features of the
    first batch, after its step: that batch still used the old ones.

    Returns:
        float: The mean loss of the batches.

    Raises:
        NotFiniteError: If a loss, a gradient, what was learned or a new assignment is
            no number, with the step.
    """
    losses, number = [], 0
    shared = criterion if isinstance(criterion, SharedLoss) else None
    try:
        for number, triples in enumerate(batches):
            loss, h = train_step(model, optimizer, criterion, triples, clip)
            losses.append(loss)
            if number == 0 and update_assignment:
                (shared or model).update_assignment(h)
        if shared is not None:
            shared.gather(optimizer)
    except NotFiniteError as error:
        raise NotFiniteError(f'{error} in step {number + 1}') from None
    return float(torch.stack(losses).mean())


def learned_parameters(model: C2F) -> list[torch.nn.Parameter]:
    """What the model's stage trains."""
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(model: C2F, recipe: Recipe) -> torch.optim.Adam:
    """Adam over what the model's stage trains."""
    lr = recipe.lr_coarse if model.stage == 'coarse' else recipe.lr_fine
    return torch.optim.Adam(learned_parameters(model), lr=lr)


class Trainer:
    """Trains one stage through its two phases, each until it stops improving.

    Evaluations come before the training of every ``eval_every``-th epoch, so that epoch
    0 is the untrained model. ``patience`` evaluations in a row without a better
    validation NDCG@5 end a phase: phase 1 keeps the assignment fixed, phase 2 starts in
    that same epoch and re-assigns at the first batch of every epoch. The weights are
    not rewound in between; the best model of each phase is kept.

    Args:
        model (C2F): The model, in the stage to train and with its start in place.
        data (HeteroData): The data set, on the model's device.
        recipe (Recipe): The settings.
        generator (torch.Generator): Draws the triples.
        out (Path, optional): The directory for the phases' best models and for what a
            resumed run needs. (default: nothing is written)
        on_evaluation (Callable, optional): Called with each line of the history.
        progress (bool, optional): Whether to show progress bars. (default: ``False``)
        fixed_epochs (Tuple, optional): Trains without evaluation, with re-assignment
            from the first of these epochs on, up to the second one (refit).
        context (Dict, optional): Kept beside the state for whoever resumes the run.
        group (Group, optional): The processes that train together: all of them make a
            trainer of the same arguments. The first one writes the files, shows the
            progress and calls ``on_evaluation``. (default: this one alone)

    Raises:
        InputError: If a loss, a gradient or a pseudo-inverse is no longer a number,
            with the step, the tensor's name, and the last good checkpoint.
        OSError: If ``out`` cannot be written any more.
    """

    def __init__(
        self,
        model: C2F,
        data: HeteroData,
        recipe: Recipe,
        generator: torch.Generator,
        out: Path | None = None,
        on_evaluation: Callable[[dict[str, Any]], None] | None = None,
        progress: bool = False,
        fixed_epochs: tuple[int, int] | None = None,
        context: dict[str, Any] | None = None,
        group: Group | None = None,
    ) -> None:
        self.context = context or {}
        self.group, self.leads = group, leads(group)
        self.model, self.data, self.recipe = model, data, recipe
        self.generator, self.out = generator, out
        self.on_evaluation, self.show_progress = on_evaluation, progress
        self.fixed_epochs = fixed_epochs
        self.optimizer = make_optimizer(model, recipe)
        self.criterion: BPRLoss | SharedLoss = BPRLoss(recipe.lambda_reg)
        if group is not None and group.size > 1:
            self.criterion = SharedLoss(model, self.criterion, group)
        coarse = model.stage == 'coarse'
        self.batch_size = recipe.batch_size_coarse if coarse else recipe.batch_size_fine
        self.sampler = make_sampler(data, recipe, generator)
        self.state = Progress(model.stage)
        self.results: dict[int, dict[str, Any]] = {}
        self.best_models: dict[int, dict[str, Tensor]] = {}
        self.loss: float | None = None

    def run(self) -> dict[int, dict[str, Any]]:
        """Trains to the end, and leaves the model at the best of the last phase.

        Returns:
            Dict: For each phase ``best_epoch``, ``last_epoch``, ``val`` of the best.
        """
        state, recipe = self.state, self.recipe
        last = recipe.max_epochs if self.fixed_epochs is None else self.fixed_epochs[1]
        while True:
            if self.fixed_epochs is None:
                due = state.epoch % recipe.eval_every == 0 or state.epoch == last
                if due and self._evaluate_and_decide():
                    break
            elif state.epoch == self.fixed_epochs[0]:
                state.phase = 2
            if state.epoch >= last:
                break
            start = time.perf_counter()
            try:
                self.loss = train_epoch(
                    self.model,
                    self.optimizer,
                    self.criterion,
                    self._batches(),
                    recipe.clip,
                    update_assignment=state.phase == 2,
                )
            except NotFiniteError as error:
                name = f'lr_{state.stage}'
                raise InputError(
                    f'{error} of epoch {state.epoch} of the {state.stage} stage: lower '
                    f'--set {name}={getattr(recipe, name)} and start anew in another '
                    f'directory; the last good checkpoint is {self._last_good()}'
                ) from None
            state.seconds += time.perf_counter() - start
            state.epoch += 1
            self._save_state()
        if self.best_models:
            self.model.load_state_dict(
                self.best_models[max(self.best_models)], strict=False
            )
        return self.results

    def _evaluate_and_decide(self) -> bool:
        """Evaluates, keeps the best, switches the phase; true at the stage's end."""
        state = self.state
        start = time.perf_counter()
        shared: dict[str, Any] = {}
        if self.group is not None and self.group.size > 1:
            shared['users'] = self.group.rows(self.data[USER].num_nodes)
        val = evaluate_split(self.model.scorer(), self.data, 'val', **shared)
        state.evaluate_seconds += time.perf_counter() - start
        line = {
            'stage': state.stage,
            'phase': state.phase,
            'epoch': state.epoch,
            'loss': self.loss,
            'val': val,
            'seconds': round(state.seconds, 3),
            'anchors_in_use': self.model.anchors_in_use(),
        }
        if val[SELECTION] > state.best:
            state.best, state.bad_evaluations = val[SELECTION], 0
            self._keep_best()
            self.results[state.phase] = {'best_epoch': state.epoch, 'val': val}
        else:
            state.bad_evaluations += 1
        self.results[state.phase]['last_epoch'] = state.epoch
        if self.on_evaluation is not None and self.leads:
            self.on_evaluation(line)
        if state.bad_evaluations < self.recipe.patience:
            return False
        if state.phase == 2:
            return True
        state.phase, state.best, state.bad_evaluations = 2, -1.0, 0
        return False

    def _keep_best(self) -> None:
        self.best_models[self.state.phase] = {
            key: value.clone()
            for key, value in self.model.state_dict().items()
            if key != 'edge_index'
        }
        if self.out is not None and self.leads:
            save(self.model, phase_file(self.out, self.state.stage, self.state.phase))

    def _batches(self) -> Iterator[Triples]:
        device, state = self.model.bias.device, self.state
        columns = [x.to(device) for x in self.sampler.sample_epoch()]
        parts = zip(*(x.split(self.batch_size) for x in columns), strict=True)
        yield from tqdm(
            list(parts),
            desc=f'{state.stage} {state.phase} epoch {state.epoch}',
            postfix={SELECTION: f'{max(state.best, 0):.4f}'},
            unit='batch',
            leave=False,
            disable=not (self.show_progress and self.leads),
        )

    def _save_state(self) -> None:
        if self.out is None or self.fixed_epochs is not None or not self.leads:
            return
        tensors = {
            f'model.{key}': value
            for key, value in self.model.state_dict().items()
            if key != 'edge_index'
        }
        for number, moments in self.optimizer.state_dict()['state'].items():
            for key, value in moments.items():
                tensors[f'optimizer.{number}.{key}'] = value
        for phase, best in self.best_models.items():
            for key, value in best.items():
                tensors[f'best.{phase}.{key}'] = value
        tensors['generator'] = self.generator.get_state()
        content = {
            'progress': asdict(self.state),
            'results': self.results,
            'loss': self.loss,
            'context': self.context,
        }
        write_resume(self.out, tensors, content)

    def _last_good(self) -> str:
        """The best model so far, for a message."""
        if self.out is None or not self.best_models:
            return 'none'
        return str(phase_file(self.out, self.state.stage, max(self.best_models)))

    def load_state(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Goes back to where an interrupted run of this stage stood."""
        self.state = Progress(**content['progress'])
        self.loss = content['loss']
        self.results = {int(key): value for key, value in content['results'].items()}
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            group, _, rest = key.partition('.')
            groups.setdefault(group, {})[rest] = value
        self.model.load_state_dict(groups['model'], strict=False)
        for key, value in groups.get('best', {}).items():
            phase, _, name = key.partition('.')
            self.best_models.setdefault(int(phase), {})[name] = value
        optimizer = self.optimizer.state_dict()
        for key, value in groups.get('optimizer', {}).items():
            number, _, name = key.partition('.')
            optimizer['state'].setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(tensors['generator'])


@dataclass
class Run:
    """What training gave: the model, and each stage's phases and seconds."""

    model: Model
    phases: dict[Stage, dict[int, dict[str, Any]]]
    seconds: dict[str, float]


def train(
    data: HeteroData,
    recipe: Recipe | FastRecipe,
    seed: int = 2024,
    stages: tuple[Stage, ...] = ('coarse', 'fine'),
    init: Model | None = None,
    out: Path | None = None,
    resume: bool = False,
    on_evaluation: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = False,
    fixed_epochs: dict[Stage, tuple[int, int]] | None = None,
    group: Group | None = None,
) -> Run:
    """Trains the stages one after the other; see :class:`Trainer` for a stage.

    Each stage draws from a generator of its own, so that both stages in one run give
    what two runs give, the second started from the first one's model.

    Several processes call it alike, and each returns the model; their ``out`` is one
    directory that all of them see. An interrupted run may go on with another number of
    processes.

    Args:
        data (HeteroData): The data set, on the device to train on.
        recipe (Recipe or FastRecipe): The settings.
        seed (int, optional): The seed. (default: ``2024``)
        stages (Tuple, optional): The stages to train. (default: both)
        init (C2F, optional): The trained coarse model to start the fine stage from.
        out (Path, optional): The directory for checkpoints.
        resume (bool, optional): Whether to continue the interrupted run in ``out``.
        on_evaluation (Callable, optional): Called with each line of the history.
        progress (bool, optional): Whether to show progress bars. (default: ``False``)
        fixed_epochs (Dict, optional): For each stage, the epochs of a refit.
        group (Group, optional): The processes that train together. (default: this one
            alone)

    Raises:
        InputError: If the fine stage has no coarse model to start from, sizes do not
            fit, the checkpoint to resume from is damaged, or the processes see
            different ones.
    """
    check_run(data, recipe, init, group)
    if out is not None:
        if leads(group):
            out.mkdir(parents=True, exist_ok=True)
            if not resume:  # A state of an earlier run could pass for one of this.
                delete_resume(out)
        if group is not None:
            group.wait()
    if stages[0] == 'fine' and init is None:
        raise InputError(
            'the fine stage starts from a coarse model: name it with --init'
        )
    if isinstance(recipe, FastRecipe):
        return _run_fast(
            data,
            recipe,
            seed,
            stages,
            init,
            out,
            on_evaluation,
            fixed_epochs is not None,
            group,
        )
    interrupted = read_resume(out) if resume and out is not None else None
    check_same_state(interrupted, group, out)
    if interrupted is not None and interrupted[1]['progress']['stage'] not in stages:
        raise InputError(
            f'{out}: interrupted in a stage that is not to be trained; train both'
        )
    phases: dict[Stage, dict[int, dict[str, Any]]] = {}
    seconds = {'anchors': 0.0, 'train': 0.0, 'evaluate': 0.0}
    device = data[RATES].edge_index.device
    model = build_model(data, recipe).to(device)
    model.set_ids(**original_ids(data))
    if isinstance(init, C2F):
        take_coarse(model, init)
    for stage in stages:
        state = None
        if interrupted is not None:
            if interrupted[1]['progress']['stage'] != stage:
                continue
            state, interrupted = interrupted, None
            phases |= {
                name: {int(k): v for k, v in done.items()}
                for name, done in state[1]['context']['phases'].items()
            }
            seconds = state[1]['context']['seconds']
            epoch = state[1]['progress']['epoch']
            logger.info('going on from epoch %d of stage %s', epoch, stage)
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(2 * seed + (stage == 'fine'))
        if state is not None:
            model.set_stage(stage)
        elif stage == 'coarse':
            start_coarse(model, recipe, generator)
        else:
            start_fine(model, recipe, generator)
        make_same(model, group)
        seconds['anchors'] += time.perf_counter() - start
        trainer = Trainer(
            model,
            data,
            recipe,
            generator.manual_seed(2 * seed + (stage == 'fine')),
            out,
            on_evaluation,
            progress,
            None if fixed_epochs is None else fixed_epochs[stage],
            context={'phases': dict(phases), 'seconds': dict(seconds)},
            group=group,
        )
        if state is not None:
            try:
                trainer.load_state(*state)
            except UNFIT as error:
                raise InputError(
                    f'{out}: the interrupted run does not fit the configuration '
                    f'({error}); start anew without --resume'
                ) from None
        phases[stage] = trainer.run()
        seconds['train'] += trainer.state.seconds
        seconds['evaluate'] += trainer.state.evaluate_seconds
    if group is not None:
        group.wait()  # Whoever goes on finds the files whole.
    return Run(model, phases, seconds)


def _run_fast(
    data: HeteroData,
    recipe: FastRecipe,
    seed: int,
    stages: tuple[Stage, ...],
    init: Model | None,
    out: Path | None,
    on_evaluation: Callable[[dict[str, Any]], None] | None,
    is_refit: bool,
    group: Group | None,
) -> Run:
    def keep(model: Model, stage: Stage) -> None:
        model.set_ids(**original_ids(data))
        if out is not None:
            save(model, phase_file(out, stage, 1))

    model, phases, seconds = train_fast(
        data, recipe, seed, stages, init, on_evaluation, keep, is_refit, group
    )
    return Run(model, phases, seconds)


def leads(group: Group | None) -> bool:
    """Whether this process writes and shows what several have computed."""
    return group is None or group.rank == 0


def check_same_state(
    interrupted: State | None, group: Group | None, out: Path | None
) -> None:
    """Checks that all processes found the same epoch to go on from.

    Raises:
        InputError: If they did not, in all of them.
    """
    if group is None or group.size == 1:
        return
    place = -1
    if interrupted is not None:
        progress = interrupted[1]['progress']
        place = 2 * progress['epoch'] + (progress['stage'] == 'fine')
    if group.max(place) != -group.max(-place):
        raise InputError(
            f'{out}: the processes see different interrupted runs; name a directory '
            'that all of them see'
        )


def take_coarse(model: C2F, init: C2F) -> None:
    """Takes codebook, scalars and assignment of a trained coarse model."""
    with torch.no_grad():
        model.coarse.codebook.copy_(init.coarse.codebook)
        model.bias.copy_(init.bias)
        model.global_bias.copy_(init.global_bias)
    model.set_assignment(coarse=init.coarse.assignment)


def fit(
    data: HeteroData,
    recipe: str | Recipe | FastRecipe = 'fast',
    seed: int = 2024,
    out: str | Path | None = None,
    progress: bool = False,
) -> Model:
    """Trains both stages on a data set and returns the model.

    Args:
        data (HeteroData): A data set of :mod:`pyg_c2f.datasets`, or any graph with
            train pairs in ``('user', 'rates', 'item').edge_index``, validation pairs in
            ``val_edge_label_index`` of that relation, and ``data.protocol``. The model
            takes over the original ids in ``raw_id`` of users and items, and the
            ``title`` of items, where they are there.
        recipe (str or Recipe or FastRecipe, optional): The settings, or the name of a
            recipe, which then has the settings of ``data.dataset`` too. (default:
            ``'fast'``)
        seed (int, optional): The seed. (default: ``2024``)
        out (str or Path, optional): The directory for checkpoints.
        progress (bool, optional): Whether to show progress bars. (default: ``False``)

    Raises:
        InputError: If a setting does not fit the data.
    """
    if isinstance(recipe, str):
        recipe = get_recipe(recipe, data.dataset if 'dataset' in data else '')
    target = None if out is None else Path(out)
    run = train(data, recipe, seed, out=target, progress=progress)
    if target is not None:
        save(run.model, target)
        delete_resume(target)
    return run.model
