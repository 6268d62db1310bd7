r"""Training: what a run is given, what a recipe supplies, and the driver of all."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from pyg_c2f.checkpoint import UNFIT, phase_file, save
from pyg_c2f.evaluate import evaluate_split
from pyg_c2f.finite import NotFiniteError
from pyg_c2f.nn.recommender import Recommender
from pyg_c2f.recipes.resume import (
    Progress,
    State,
    delete_resume,
    read_resume,
    write_resume,
)
from pyg_c2f.shards import Group, Rows, one_block_each
from pyg_c2f.sparse import pairs_of, rowptr_of
from pyg_c2f.typing import ITEM, RATES, SELECTION, USER, InputError, Score, Stage
from pyg_c2f.vocabulary import NamedModel, Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOptions:
    """What a run gets besides data and settings.

    Args:
        seed (int, optional): The seed. (default: ``2024``)
        stages (Tuple, optional): The stages to train. (default: both)
        init (Recommender, optional): The trained coarse model to start the fine stage
            from.
        out (Path, optional): The directory for the best models of the phases, and for
            what a resumed run needs. (default: nothing is written)
        resume (bool, optional): Whether to continue the interrupted run in ``out``.
            (default: ``False``)
        fixed_epochs (Dict, optional): For each stage, the epoch that phase 2 begins at
            and the last one: trains so far without evaluation, on data that hold the
            validation items (a refit).
        on_evaluation (Callable, optional): Called with each line of the training log,
            in the main process.
        progress (bool, optional): Whether to show progress bars. (default: ``False``)
        group (Group, optional): The processes that train together. (default: this one
            alone)
    """

    seed: int = 2024
    stages: tuple[Stage, ...] = ('coarse', 'fine')
    init: Recommender | None = None
    out: Path | None = None
    resume: bool = False
    fixed_epochs: dict[Stage, tuple[int, int]] | None = None
    on_evaluation: Callable[[dict[str, Any]], None] | None = None
    progress: bool = False
    group: Group | None = None

    def generator(self, stage: Stage) -> torch.Generator:
        """A new generator of a stage.

        Each stage has its own, so that both stages in one run give what two runs give,
        the second started from the first one's model.
        """
        return torch.Generator().manual_seed(2 * self.seed + (stage == 'fine'))


@dataclass(frozen=True)
class Schedule:
    """When a stage is evaluated, and when it ends.

    Evaluations come before the training of every ``eval_every``-th epoch, so that epoch
    0 is the untrained model. ``patience`` evaluations in a row without a better
    validation NDCG@5 end a phase; the next one starts in that same epoch. The weights
    are not rewound in between; the best model of each phase is kept.
    """

    max_epochs: int = 0
    eval_every: int = 1
    patience: int = 1
    num_phases: int = 1


class Trainer(ABC):
    """Trains the tables of a model for one stage, epoch by epoch.

    Attributes:
        optimizer (Optimizer): What learns; its moments are part of the state.
        schedule (Schedule): When to evaluate and to end.
        remedy (str): What helps where numbers become NaN, for a message.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    remedy: str = 'lower the learning rate'

    @abstractmethod
    def train_epoch(self, phase: int, bar: Callable[..., Any]) -> float:
        """One pass over the data; returns the mean loss.

        Args:
            phase (int): The phase, from 1 on.
            bar (Callable): Shows the progress through a list of batches.

        Raises:
            NotFiniteError: If a number becomes NaN or infinite.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the model: the moments of the optimizer.

        A trainer with more, such as generators, adds it here.
        """
        moments = self.optimizer.state_dict()['state']
        return {
            f'{number}.{key}': value
            for number, values in moments.items()
            for key, value in values.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes back to a state of :meth:`state_dict`."""
        optimizer = self.optimizer.state_dict()
        for name, value in state.items():
            number, _, key = name.partition('.')
            optimizer['state'].setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(optimizer)


@dataclass(frozen=True)
class Recipe(ABC):
    """The settings of a way to a model, and that way.

    A subclass is a frozen dataclass whose fields are the settings: whole numbers, real
    numbers, or a :obj:`Literal` of texts; a whole number that may be :obj:`None` is
    left to the data. ``ranges`` has the least and largest value
    where they are not one and :math:`2^{31} - 1` (whole) or zero and that (real). A
    recipe of your own is one file: see ``examples/custom_recipe.py``.

    Raises:
        InputError: If a setting is out of range or of another type.
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), field.type, self.ranges)

    def make_group(self, is_distributed: bool = False) -> Group:
        """The processes of a run, and the blocks that they share."""
        return one_block_each(is_distributed)

    def stages(self, options: TrainingOptions) -> tuple[Stage, ...]:
        """Those of the wanted stages that this recipe has; all of them by default."""
        return options.stages

    @abstractmethod
    def check(self, data: HeteroData, options: TrainingOptions) -> None:
        """Checks the settings against data and options, before anything is computed.

        Raises:
            ImportError: If a library that they need is not installed.
            InputError: If they do not fit.
        """

    @abstractmethod
    def start(
        self,
        data: HeteroData,
        stage: Stage,
        before: Recommender | None,
        options: TrainingOptions,
    ) -> Recommender:
        """The model that a stage starts with; of a closed form, the one it ends with.

        Args:
            data (HeteroData): The data set, on the device to train on.
            stage (str): The stage.
            before (Recommender, optional): The model of the stage before, or
                ``options.init``.
            options (TrainingOptions): The seed and the processes.
        """

    def blank(self, data: HeteroData) -> Recommender:
        """A model to load an interrupted run into, for recipes that train."""
        raise NotImplementedError

    def trainer(
        self, model: Recommender, data: HeteroData, options: TrainingOptions
    ) -> Trainer | None:
        """What trains a stage, or :obj:`None` where there is nothing to train."""
        return None


_MOST = 2**31 - 1
_KINDS: dict[Any, tuple[str, float]] = {
    int: ('a whole number', 1),
    float: ('a number', 0),
}


def _check(name: str, value: Any, kind: Any, ranges: dict[str, Any]) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(
                f'{name}={value}: expected one of {", ".join(get_args(kind))}'
            )
        return
    if kind == int | None:
        if value is None:
            return
        kind = int
    what, least = _KINDS[kind]
    least, most = ranges.get(name, (least, _MOST))
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    fits = fits and not isinstance(value, bool)
    # Written so that NaN is refused too.
    if not fits or not least <= value <= most:
        raise InputError(f'{name}={value}: expected {what} from {least} to {most}')


def parse_setting(name: str, text: str, kind: Any) -> Any:
    """The value of a setting that is given as text."""
    if get_origin(kind) is Literal:
        return text
    kind = int if kind == int | None else kind
    try:
        return kind(text)
    except ValueError:
        raise InputError(f'{name}={text}: expected {_KINDS[kind][0]}') from None


@dataclass
class Run:
    """What training gave: the model, and each stage's phases and seconds.

    ``phases`` has ``best_epoch``, ``last_epoch`` and ``val`` of the best by stage and
    phase, and the model's ``diagnostics``.
    """

    model: NamedModel
    phases: dict[Stage, dict[int, dict[str, Any]]]
    seconds: dict[str, float]


def check_data(data: HeteroData) -> None:
    """Refuses data without numbers of users and items, or without int64 pairs."""
    if data[USER].num_nodes is None or data[ITEM].num_nodes is None:
        raise InputError(
            'the data do not say how many users and items there are: set '
            "data['user'].num_nodes and data['item'].num_nodes"
        )
    if data[RATES].edge_index.dtype != torch.long:
        raise InputError(
            f'data[{RATES}].edge_index is {data[RATES].edge_index.dtype}: convert the '
            'pairs to int64 with .long()'
        )


def check_run(data: HeteroData, recipe: Recipe, options: TrainingOptions) -> None:
    """Checks all that can be checked before a run begins.

    Raises:
        ImportError: If a library that the recipe needs is not installed.
        InputError: If data, settings and options do not fit each other.
    """
    check_data(data)
    recipe.check(data, options)
    if options.stages[0] == 'fine' and options.init is None:
        raise InputError('the fine stage starts from a coarse model: give init')


class StageRun:
    """One stage of a run: trains it through its phases, and keeps the best.

    Args:
        model (Recommender): The model, in the stage to train and with its start in
            place.
        data (HeteroData): The data set, on the model's device.
        trainer (Trainer, optional): What trains it, where there is something to train.
        options (TrainingOptions): The options of the run.
        context (Dict, optional): Stored with the state for a resumed run:
            the ``phases`` and ``seconds`` of earlier stages.
        vocabulary (Vocabulary, optional): The names that models are saved with.

    Raises:
        InputError: If a loss, a gradient or a pseudo-inverse becomes NaN or infinite,
            with the step, the tensor's name, and the last good checkpoint.
        OSError: If ``out`` cannot be written any more.
    """

    def __init__(
        self,
        model: Recommender,
        data: HeteroData,
        trainer: Trainer | None,
        options: TrainingOptions,
        context: dict[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.model, self.data, self.trainer = model, data, trainer
        self.options, self.vocabulary = options, vocabulary
        self.group = options.group or Group()
        self.context = context or {'phases': {}, 'seconds': {}}
        self.schedule = Schedule() if trainer is None else trainer.schedule
        self.state = Progress(model.stage)
        self.results: dict[int, dict[str, Any]] = {}
        self.best_models: dict[int, dict[str, Tensor]] = {}
        self.loss: float | None = None

    def run(self) -> dict[int, dict[str, Any]]:
        """Trains to the end, and leaves the model at the best of the last phase.

        Returns:
            Dict: For each phase ``best_epoch``, ``last_epoch``, ``val`` of the best.
        """
        state, schedule = self.state, self.schedule
        fixed, second, last = self.options.fixed_epochs, None, schedule.max_epochs
        if fixed is not None:
            second, last = fixed[state.stage]
        while True:
            if fixed is None:
                due = state.epoch % schedule.eval_every == 0 or state.epoch == last
                if due and self._evaluate_and_decide():
                    break
            elif state.epoch == second:
                state.phase = 2
            if self.trainer is None or state.epoch >= last:
                break
            start = time.perf_counter()
            try:
                self.loss = self.trainer.train_epoch(state.phase, self._bar())
            except NotFiniteError as error:
                last_good, out = 'none', self.options.out
                if out is not None and self.best_models:
                    last_good = str(phase_file(out, state.stage, max(self.best_models)))
                raise InputError(
                    f'{error} of epoch {state.epoch} of the {state.stage} stage: '
                    f'{self.trainer.remedy} and start again in another directory; the '
                    f'last good checkpoint is {last_good}'
                ) from None
            state.seconds += time.perf_counter() - start
            state.epoch += 1
            self._save_state(self.trainer)
        if self.trainer is not None and self.best_models:
            best = self.best_models[max(self.best_models)]
            self.model.load_state_dict(best, strict=False)
        return self.results

    def _evaluate_and_decide(self) -> bool:
        """Evaluates, keeps the best, switches the phase; true at the stage's end."""
        state, options = self.state, self.options
        start = time.perf_counter()
        users = self.group.rows(self.data[USER].num_nodes)
        score = own_scorer(self.model, self.data, users)
        val = evaluate_split(score, self.data, 'val', users=users)
        state.evaluate_seconds += time.perf_counter() - start
        seconds = self.context['seconds'].get('anchors', 0.0) + state.seconds
        line = {
            'stage': state.stage,
            'phase': state.phase,
            'epoch': state.epoch,
            'loss': self.loss,
            'val': val,
            'seconds': round(seconds, 3),
            'anchors_in_use': self.model.anchors_in_use(),
        }
        if val[SELECTION] > state.best:
            state.best, state.bad_evaluations = val[SELECTION], 0
            self._save_best()
            self.results[state.phase] = {'best_epoch': state.epoch, 'val': val}
            self.results[state.phase] |= self.model.diagnostics
        else:
            state.bad_evaluations += 1
        self.results[state.phase]['last_epoch'] = state.epoch
        if options.on_evaluation is not None and self.group.is_main:
            options.on_evaluation(line)
        if state.bad_evaluations < self.schedule.patience:
            return False
        if state.phase == self.schedule.num_phases:
            return True
        state.phase, state.best, state.bad_evaluations = state.phase + 1, -1.0, 0
        return False

    def _state_dict(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {key: x for key, x in state.items() if key != 'edge_index'}

    def _save_best(self) -> None:
        if self.trainer is not None:
            self.best_models[self.state.phase] = {
                key: value.clone() for key, value in self._state_dict().items()
            }
        out = self.options.out
        if out is not None and self.group.is_main:
            path = phase_file(out, self.state.stage, self.state.phase)
            save(NamedModel(self.model, self.vocabulary), path)

    def _bar(self) -> Callable[..., Any]:
        state = self.state
        return partial(
            tqdm,
            desc=f'{state.stage} {state.phase} epoch {state.epoch}',
            postfix={SELECTION: f'{max(state.best, 0):.4f}'},
            unit='batch',
            leave=False,
            disable=not (self.options.progress and self.group.is_main),
        )

    def _save_state(self, trainer: Trainer) -> None:
        options = self.options
        is_refit = options.fixed_epochs is not None
        if options.out is None or is_refit or not self.group.is_main:
            return
        parts = {'model': self._state_dict(), 'trainer': trainer.state_dict()}
        parts |= {f'best.{phase}': best for phase, best in self.best_models.items()}
        tensors = {
            f'{part}.{key}': value
            for part, values in parts.items()
            for key, value in values.items()
        }
        content = {
            'progress': asdict(self.state),
            'results': self.results,
            'loss': self.loss,
            'context': self.context,
        }
        write_resume(options.out, tensors, content)

    def load_state(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Goes back to where an interrupted run of this stage stood."""
        self.state = Progress(**content['progress'])
        self.loss = content['loss']
        self.results = {int(key): value for key, value in content['results'].items()}
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition('.')
            parts.setdefault(part, {})[name] = value
        self.model.load_state_dict(parts['model'], strict=False)
        for key, value in parts.get('best', {}).items():
            phase, _, name = key.partition('.')
            self.best_models.setdefault(int(phase), {})[name] = value
        assert self.trainer is not None
        self.trainer.load_state_dict(parts.get('trainer', {}))


def own_scorer(model: Recommender, data: HeteroData, users: Rows) -> Score:
    """The scores of the users of this process, by their train items in the data set.

    A model of several processes may know the train pairs in the first of them only.
    """
    if users.group.size == 1:
        return model.scorer()
    user, item = pairs_of(data[RATES].edge_index, users.start, users.stop)
    rowptr = rowptr_of(user - users.start, users.stop - users.start)
    own = torch.arange(users.start, users.stop, device=item.device)
    score = model.user_scorer(own, rowptr, item)
    return lambda ids: score(ids - users.start)


def train(
    data: HeteroData, recipe: Recipe, options: TrainingOptions | None = None
) -> Run:
    """Trains the stages one after the other; see :class:`StageRun` for a stage.

    Several processes call it alike, and each returns the model; their ``out`` is one
    directory that all of them see. An interrupted run may go on with another number of
    processes.

    Args:
        data (HeteroData): The data set, on the device to train on.
        recipe (Recipe): The settings.
        options (TrainingOptions, optional): All else.

    Raises:
        InputError: If the fine stage has no coarse model to start from, sizes do not
            fit, the checkpoint to resume from is damaged, or the processes see
            different ones.
    """
    options = options or TrainingOptions()
    group, out = options.group or recipe.make_group(), options.out
    options = replace(options, group=group)
    check_run(data, recipe, options)
    if out is not None:
        if group.is_main:
            out.mkdir(parents=True, exist_ok=True)
            if not options.resume:  # A state of an earlier run could pass for this one.
                delete_resume(out)
        group.wait()
    interrupted = _interrupted(options, group)
    vocabulary = Vocabulary.from_data(data)
    phases: dict[Stage, dict[int, dict[str, Any]]] = {}
    seconds = {'anchors': 0.0, 'train': 0.0, 'evaluate': 0.0}
    model = options.init
    for stage in recipe.stages(options):
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
        if state is not None:
            model = recipe.blank(data)
            model.set_stage(stage)
        else:
            model = recipe.start(data, stage, model, options)
        seconds['anchors'] += time.perf_counter() - start
        trainer = recipe.trainer(model, data, options)
        context = {'phases': dict(phases), 'seconds': dict(seconds)}
        stage_run = StageRun(model, data, trainer, options, context, vocabulary)
        if state is not None:
            try:
                stage_run.load_state(*state)
            except UNFIT as error:
                raise InputError(
                    f'{out}: the interrupted run does not fit the configuration '
                    f'({error}); start again without resume'
                ) from None
        phases[stage] = stage_run.run()
        seconds['train'] += stage_run.state.seconds
        seconds['evaluate'] += stage_run.state.evaluate_seconds
        group.wait()  # The files are complete for all processes.
    assert model is not None
    return Run(NamedModel(model, vocabulary), phases, seconds)


def _interrupted(options: TrainingOptions, group: Group) -> State | None:
    """The state to go on from, the same in all processes."""
    out = options.out
    state = read_resume(out) if options.resume and out is not None else None
    place, stage = -1, options.stages[0]
    if state is not None:
        stage = state[1]['progress']['stage']
        place = 2 * state[1]['progress']['epoch'] + (stage == 'fine')
    if group.max(place) != -group.max(-place):
        raise InputError(
            f'{out}: the processes see different interrupted runs; name a directory '
            'that all of them see'
        )
    if stage not in options.stages:
        raise InputError(
            f'{out}: interrupted in a stage that is not to be trained; train both'
        )
    return state
