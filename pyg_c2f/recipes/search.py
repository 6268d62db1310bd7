r"""Settings of recipe ``fast`` chosen on validation items, for the data at hand."""

import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.anchors.spectral import Spectrum
from pyg_c2f.checkpoint import file_content, model_meta
from pyg_c2f.evaluate import exclude_edges
from pyg_c2f.graph import normalized_interactions, power
from pyg_c2f.nn import LinearC2F
from pyg_c2f.packing import WEIGHT_BITS, num_bits, small_int_below
from pyg_c2f.recipes.base import Recipe
from pyg_c2f.recipes.fast import (
    MOST_COLUMNS,
    FastRecipe,
    build_fast,
    decompose,
    share_pairs,
)
from pyg_c2f.sparse import (
    csr_matmul,
    degree,
    rowptr_of,
    take_rows,
    unique_pairs,
)
from pyg_c2f.typing import ITEM, RATES, USER, InputError

logger = logging.getLogger(__name__)

K = 20  # settings are chosen by NDCG@20
WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SPECTRAL_POWERS = (0.0, 0.15, 0.3, 0.45, 0.6)
SCORE_POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
IMPORTANCE_POWERS = (0.5, 1.0, 0.25)
# The spread of the diffusion channel's scores, relative to that of the anchors'.
GRAPH_SHARES = (0.1, 0.3, 1.0, 3.0, 10.0)
# What it is tried with alone.
GRAPH_NORMS, GRAPH_POWERS = (0.2, 0.35, 0.5), (0.0, 0.2, 0.4)
# The scores of the sample are in memory: some 160 MB, and two copies.
SAMPLE_SCORES, MOST_USERS, LEAST_USERS = 40_000_000, 2000, 200
# Fewer validation users than these say nothing about settings.
FEW_USERS = 30
# The best of many settings has to beat the defaults by this many standard errors of the
# users' mean difference; else it is likely to be the luckiest. With many users an error
# is below a per cent, and a wrong choice costs next to nothing.
ERRORS, MANY_USERS = 2.0, 900
NORMS = ('user_norm', 'item_norm')
SETTINGS = (
    'embedding_dim',
    'coarse_per_item',
    'fine_per_item',
    *NORMS,
    'spectral_power',
    'importance_power',
    'score_power',
    'diffusion',
)
# The singular vectors of a trial; those of the model are exact to a thousandth.
TOLERANCE = 2e-2
# Of a file, for numbers in its header that are not known beforehand.
SLACK = 100


@dataclass
class Found:
    """What a search has found.

    Args:
        recipe (FastRecipe): The settings to use.
        ndcg (float): Validation NDCG@20 of the sample with them.
        default (float): The same with the settings that the search started from.
        trials (List): What was tried, in order: ``settings``, ``ndcg`` and ``seconds``
            since the start.
        why (str): In words, what was chosen, or why nothing was.
    """

    recipe: FastRecipe
    ndcg: float = 0.0
    default: float = 0.0
    trials: list[dict[str, Any]] = field(default_factory=list)
    why: str = ''


class Sample:
    """Validation users whose rankings judge settings.

    Args:
        data (HeteroData): The data set.
        generator (torch.Generator): Draws the users.
    """

    def __init__(self, data: HeteroData, generator: torch.Generator) -> None:
        num_users, num_items = data[USER].num_nodes, data[ITEM].num_nodes
        seen = unique_pairs(exclude_edges(data, 'val'), num_items)
        label = unique_pairs(held_out(data), num_items)
        users = label[0].unique()
        most = min(max(SAMPLE_SCORES // num_items, LEAST_USERS), MOST_USERS)
        pick = torch.randperm(len(users), generator=generator)[:most]
        self.users = users[pick.to(users.device)].sort().values
        taken, at = take_rows(rowptr_of(seen[0], num_users), self.users)
        self.col = seen[1][at]
        self.row = torch.repeat_interleave(taken.diff())
        taken, at = take_rows(rowptr_of(label[0], num_users), self.users)
        self.is_held_out = torch.zeros(
            len(self.users), num_items, dtype=torch.bool, device=users.device
        )
        row = torch.repeat_interleave(taken.diff())
        self.is_held_out[row, label[1][at]] = True
        self.discount = (
            torch.arange(2.0, K + 2, device=users.device).log2().reciprocal()
        )
        length = taken.diff().clamp(max=K)
        self.ideal = self.discount.cumsum(0)[length - 1]

    def ndcg(self, scores: Tensor) -> Tensor:
        """NDCG@20 of each user, from scores ``[num_users, num_items]``, overwritten."""
        scores[self.row, self.col] = -torch.inf
        # Faster than 'top_items'; that ties may fall either way matters to nobody here.
        items = scores.topk(min(K, scores.size(1))).indices
        hits = self.is_held_out.gather(1, items)
        return (hits * self.discount[: hits.size(1)]).sum(dim=1) / self.ideal


def search(
    data: HeteroData,
    recipe: Recipe,
    fixed: Collection[str] = (),
    size: int | str | None = None,
    seconds: float | None = None,
    num_trials: int | None = None,
    seed: int = 2024,
) -> Found:
    r"""Chooses settings of recipe ``fast`` by NDCG@20 on validation items.

    First without sparsity: with the singular vectors :math:`\mathbf{V}` of one pair of
    norms, the scores

    .. math::
        s_{ui} = d_i^q \sum_{j \in \mathcal{N}(u)} d_j^{-b} \,
        \mathbf{v}_j^{\top} \mathbf{\Sigma}^{2 p} \mathbf{v}_i

    of a sample of users judge widths, spectral powers :math:`p` and score powers
    :math:`q`: one decomposition, and the rest is arithmetic on it. A pattern search
    moves the norms. Then, with a size, models are made: of several widths, each with
    as many links as fill the size, and of the best one with the packed train graph in
    place of links (the diffusion channel), where both fit.

    It stops when the seconds are over, or after a number of trials, which makes it
    repeatable. The result is the best so far. With fewer than 900 users in the sample
    it has to beat the settings that it started from by two standard errors of the
    users' mean difference, or these stay.

    Args:
        data (HeteroData): The data set; its test items are not looked at.
        recipe (FastRecipe): The settings to start from.
        fixed (Collection, optional): The names of settings to leave as they are.
        size (int or str, optional): The most bytes of the model file, also as text:
            ``'250kB'``, ``'0.5MB'``. Names do not count, and the train graph does only
            if scores need it.
        seconds (float, optional): The seconds to search. (default: until no neighbour
            is better)
        num_trials (int, optional): The number of trials, each a pair of norms or a
            model. (default: as ``seconds``)
        seed (int, optional): Draws the sample of users. (default: ``2024``)

    Raises:
        InputError: If no model fits the size, or the recipe is another one.
    """
    if not isinstance(recipe, FastRecipe):
        raise InputError('size and seconds choose settings of recipe=fast only')
    started = time.perf_counter()
    size = parse_size(size)
    state = _Search(data, recipe, frozenset(fixed), size, seed)
    if len(state.sample.users) < FEW_USERS:
        return state.stay(
            f'{len(state.sample.users)} users with validation items are too few to '
            'choose settings by'
        )
    # With a size the second half of the time is for models.
    parts = [(state.defaults(), 0.0), (state.norms(), 1.0)]
    if size is not None:
        parts = [(state.defaults(), 0.5), (state.norms(), 0.5), (state.models(), 1.0)]
    for steps, part in parts:
        for _ in steps:
            spent = time.perf_counter() - started
            state.found.trials[-1]['seconds'] = round(spent, 2)
            if seconds is not None and spent > part * seconds:
                break
            if num_trials is not None and len(state.found.trials) >= part * num_trials:
                break
    found = state.result()
    logger.info('%s', found.why)
    return found


def parse_size(size: int | str | None) -> int | None:
    """The bytes of a size such as ``'0.5MB'`` (a million bytes) or ``'25kB'``.

    Raises:
        InputError: If it is not a size.
    """
    if size is None or isinstance(size, int):
        return size
    match = re.fullmatch(r'\s*(\d+\.?\d*|\.\d+)\s*([kKmMgG]?)[bB]?\s*', size)
    if match is None or float(match[1]) == 0:
        raise InputError(f'size={size}: expected bytes, as 500000, 250kB or 0.5MB')
    return round(float(match[1]) * 1000 ** ' kmg'.index(match[2].lower() or ' '))


class _Search:
    """The state of a search; its steps are generators, so that it can stop anywhere."""

    def __init__(
        self,
        data: HeteroData,
        recipe: FastRecipe,
        fixed: frozenset[str],
        size: int | None,
        seed: int,
    ) -> None:
        self.data, self.fixed = data, fixed
        self.size, self.seed = size, seed
        self.sample = Sample(data, torch.Generator().manual_seed(seed))
        group = recipe.make_group()
        _, self.users, self.own = share_pairs(data, group)
        self.items = group.rows(data[ITEM].num_nodes)
        self.degree = degree(self.own[1], self.items.num_rows)
        spectrum = self.decompose(recipe)
        self.spectra = {_norms(recipe): spectrum}
        self.hops: dict[tuple[float, float], Tensor] = {}
        self.empty: dict[tuple[int, bool], int] = {}
        most = min(self.users.num_rows, self.items.num_rows)
        self.widths = [x for x in WIDTHS if x < most]
        if most <= MOST_COLUMNS:
            self.widths.append(most)
        self.is_free = recipe.embedding_dim is None
        self.start = replace(recipe, embedding_dim=len(spectrum.value))
        # The best without sparsity, to make models of.
        self.base, self.reached = self.start, 0.0
        self.found = Found(self.start)
        # Of each user of the sample, with what was found and with the defaults.
        self.best = self.default = torch.zeros(len(self.sample.users))

    def decompose(self, recipe: FastRecipe) -> Spectrum:
        generator = torch.Generator().manual_seed(self.seed)
        rows = self.own, self.users, self.items, self.degree
        return decompose(*rows, recipe, generator, TOLERANCE)

    def choices(self, name: str, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values to try of a setting: the given one only, where it is fixed."""
        return (getattr(self.start, name),) if name in self.fixed else values

    def spectrum(self, recipe: FastRecipe, spare: float = 1.25) -> Spectrum:
        """The singular vectors of a recipe's norms, some more than its width."""
        norms, width = _norms(recipe), width_of(recipe)
        if 'embedding_dim' not in self.fixed:
            width = next((x for x in self.widths if x >= spare * width), width)
        known = self.spectra.get(norms)
        if known is None or len(known.value) < width:
            self.spectra.clear()  # They are large, and few are asked for again.
            known = self.decompose(replace(recipe, embedding_dim=width))
            self.spectra[norms] = known
        return known

    # Without sparsity -----------------------------------------------------------------

    def norms(self) -> Iterator[None]:
        """A pattern search over both norms; each trial is the best of one pair."""
        at = _norms(self.start)
        tried = {at: self.look(*at)}
        yield
        step = 0.1
        while step > 0.04:
            moved = False
            for which, sign in product((1, 0), (-1, 1)):
                if NORMS[which] in self.fixed:
                    continue
                norms = list(at)
                norms[which] = round(norms[which] + sign * step, 3)
                to = norms[0], norms[1]
                if to in tried or not 0 <= norms[which] <= 1:
                    continue
                tried[to] = self.look(*to)
                yield
                if tried[to] > tried[at]:
                    at, moved = to, True
            if not moved:
                step /= 2

    def look(self, user_norm: float, item_norm: float) -> float:
        """The best of all widths and powers with a pair of norms, as one trial."""
        best = replace(self.base, user_norm=user_norm, item_norm=item_norm)
        spectrum = self.spectrum(best)
        # A width that the data gave is right to a factor of six.
        least = width_of(best) / 6 if self.is_free else 0
        widths = [x for x in self.widths if least <= x <= len(spectrum.value)]
        if 'embedding_dim' in self.fixed or not widths:
            widths = [len(spectrum.value)]
        # One after the other: they hardly depend on each other.
        for _ in range(1 if self.reached else 2):
            p, q = best.spectral_power, best.score_power
            tables = self.tables(spectrum, item_norm, p, widths)
            width, _ = _argmax((k, self.ndcg(table, q)) for k, table in tables)
            powers = self.choices('spectral_power', SPECTRAL_POWERS)
            tables = (
                next(self.tables(spectrum, item_norm, p, [width])) for p in powers
            )
            p, _ = _argmax(
                (p, self.ndcg(x, q)) for p, (_, x) in zip(powers, tables, strict=True)
            )
            _, table = next(self.tables(spectrum, item_norm, p, [width]))
            powers = self.choices('score_power', SCORE_POWERS)
            q, top = _argmax((q, self.ndcg(table, q)) for q in powers)
            best = replace(best, embedding_dim=width, spectral_power=p, score_power=q)
        mean = float(top.mean())
        if mean > self.reached:
            self.base, self.reached = best, mean
        self.add(best, top, is_model=False)
        return mean

    def tables(
        self, spectrum: Spectrum, item_norm: float, p: float, widths: list[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """The scores of the sample before the score power, of each width."""
        sample, most = self.sample, widths[-1]
        x = (spectrum.right * spectrum.value**p)[:, :most]
        weight = power(self.degree.clamp(min=1), -item_norm).to(x)
        sent = x[sample.col] * weight[sample.col].unsqueeze(1)
        h = x.new_zeros(len(sample.users), most).index_add_(0, sample.row, sent)
        table, last = x.new_zeros(len(h), len(x)), 0
        for width in widths:
            table.addmm_(h[:, last:width], x[:, last:width].T)
            last = width
            yield width, table

    def ndcg(self, table: Tensor, score_power: float) -> Tensor:
        """NDCG@20 of the sample's users, from scores before the score power."""
        scale = power(self.degree.clamp(min=1), score_power).to(table)
        return self.sample.ndcg(table * scale)

    def add(self, recipe: FastRecipe, ndcg: Tensor, is_model: bool) -> None:
        """Writes a trial down, and keeps it where it is the best of its kind.

        With a size only models count.
        """
        settings = {name: getattr(recipe, name) for name in SETTINGS}
        mean = float(ndcg.mean())
        self.found.trials.append(
            {'settings': settings, 'ndcg': mean, 'is_model': is_model}
        )
        if mean > self.found.ndcg and is_model == (self.size is not None):
            self.found.recipe, self.found.ndcg, self.best = recipe, mean, ndcg

    # The defaults ---------------------------------------------------------------------

    def defaults(self) -> Iterator[None]:
        """What the search is compared with: a model, with a size, else a look."""
        start = self.start
        if self.size is None:
            spectrum, width = self.spectrum(start, spare=1.0), width_of(start)
            scores = self.tables(
                spectrum, start.item_norm, start.spectral_power, [width]
            )
            self.default = self.ndcg(next(scores)[1], start.score_power)
            self.found.default = float(self.default.mean())
        elif self.try_model(start, tune=False):
            self.start, self.default = self.found.recipe, self.best
            self.found.default = self.found.ndcg
            yield

    # Models under a size --------------------------------------------------------------

    def models(self) -> Iterator[None]:
        """Models of the best norms: one, the graph, other widths, other powers."""
        base, width = self.base, width_of(self.base)
        if self.try_model(base):
            yield
        graph = replace(base, diffusion=1.0)
        if 'diffusion' not in self.fixed and self.filled(graph) is not None:
            for a, b in dict.fromkeys((_norms(base), self.graph_norms())):
                if self.try_model(replace(graph, user_norm=a, item_norm=b)):
                    yield
        if 'embedding_dim' not in self.fixed:
            others = [x for x in self.widths if x <= 2 * width and x != width]
            others.sort(key=lambda x: max(x / width, width / x))
            worse = {-1: 0, 1: 0}
            for other in others:
                side = 1 if other > width else -1
                if worse[side] > 1:
                    continue
                before = self.found.ndcg
                if self.try_model(replace(self.found.recipe, embedding_dim=other)):
                    yield
                    worse[side] += self.found.ndcg <= before
        for value in self.choices('importance_power', IMPORTANCE_POWERS):
            if self.try_model(replace(self.found.recipe, importance_power=value)):
                yield

    def try_model(self, recipe: FastRecipe, tune: bool = True) -> bool:
        """Makes a model that fills the size; false, where none fits."""
        filled = self.filled(recipe)
        if filled is None:
            return False
        model = self.make(filled)
        model.diffusion = 0.0
        scores = model.scorer()(self.sample.users) / model.item_scale()
        powers = self.choices('score_power', SCORE_POWERS)
        if not tune:
            powers = (filled.score_power,)
        if filled.diffusion:
            hop = self.hop(_norms(filled))
            shares: tuple[float, ...] = (filled.diffusion,)
            if tune and 'diffusion' not in self.fixed:
                unit = float(scores.std() / hop.std())
                shares = tuple(float(f'{unit * x:.3g}') for x in GRAPH_SHARES)
            q = filled.score_power
            beta, _ = _argmax((x, self.ndcg(scores + x * hop, q)) for x in shares)
            filled = replace(filled, diffusion=beta)
            scores += beta * hop
        q, top = _argmax((q, self.ndcg(scores, q)) for q in powers)
        self.add(replace(filled, score_power=q), top, is_model=True)
        return True

    def hop(self, norms: tuple[float, float]) -> Tensor:
        """The diffusion channel's scores of the sample, before the score power."""
        if norms not in self.hops:
            self.hops.clear()
            sizes = self.users.num_rows, self.items.num_rows
            rows = normalized_interactions(self.own, *sizes, *norms)
            asked = rows.select(self.sample.users)
            dense = rows.weight.new_zeros(sizes[1], asked.num_rows)
            dense[asked.col.long(), asked.row] = asked.weight
            back = rows.transpose(sizes[1])
            self.hops[norms] = csr_matmul(back, csr_matmul(rows, dense)).T
        return self.hops[norms]

    def graph_norms(self) -> tuple[float, float]:
        """The norms of the diffusion channel that do best without any anchors."""
        user_norms, item_norms = (self.choices(name, GRAPH_NORMS) for name in NORMS)
        norms, _ = _argmax(
            ((a, b), self.ndcg(self.hop((a, b)), q))
            for a, b, q in product(user_norms, item_norms, GRAPH_POWERS)
        )
        return norms[0], norms[1]

    def make(self, recipe: FastRecipe) -> LinearC2F:
        """The model of a recipe, with singular vectors that are at hand."""
        generator = torch.Generator().manual_seed(2 * self.seed)
        spectrum = self.spectrum(recipe, spare=1.0)
        model = build_fast(self.data, recipe, generator, spectrum=spectrum)
        if recipe.fine_per_item:
            model.set_stage('fine')
        return model

    def filled(self, recipe: FastRecipe) -> FastRecipe | None:
        """The recipe with as many coarse anchors an item as the size has room for."""
        assert self.size is not None
        if 'fine_per_item' not in self.fixed:
            recipe = replace(recipe, fine_per_item=0)
        if 'coarse_per_item' in self.fixed:
            return recipe if stored_bytes(self.make(recipe)) <= self.size else None
        width, num_items = width_of(recipe), self.items.num_rows
        bits = num_bits(width) + WEIGHT_BITS
        if recipe.dtype == 'float32':
            bits = 8 * (4 + small_int_below(torch.zeros(0), width).element_size())
        room = self.size - SLACK - self.bytes_without_links(recipe)
        links = floor(100 * min(8 * room / (bits * num_items), width, 255)) / 100
        return None if links < 1 else replace(recipe, coarse_per_item=links)

    def bytes_without_links(self, recipe: FastRecipe) -> int:
        """The size of a model's file but for its links to coarse anchors.

        Validation pairs count as part of the graph: a refit trains on them.
        """
        kind = recipe.fine_per_item, bool(recipe.diffusion)
        if kind not in self.empty:
            if recipe.fine_per_item:
                model = self.make(replace(recipe, coarse_per_item=1.0))
                model.coarse.assignment_weight.zero_()
            else:
                width = width_of(recipe)
                pairs = [self.own, held_out(self.data)]
                model = LinearC2F.blank(
                    unique_pairs(torch.cat(pairs, dim=1), self.items.num_rows),
                    self.users.num_rows,
                    self.items.num_rows,
                    num_coarse=width,
                    num_fine=recipe.num_fine,
                    embedding_dim=width,
                    max_coarse_per_item=1,
                    diffusion=recipe.diffusion,
                    dtype=recipe.dtype,
                )
                torch.nn.init.eye_(model.coarse.codebook)
            self.empty[kind] = stored_bytes(model)
        return self.empty[kind]

    # The result -----------------------------------------------------------------------

    def stay(self, why: str) -> Found:
        """The settings to start from, where there is nothing to choose by."""
        self.found.why = f'{why}: the defaults stay'
        if self.size is not None:
            filled = self.filled(self.start)
            if filled is None:
                raise self.too_small()
            self.found.recipe = filled
        return self.found

    def too_small(self) -> InputError:
        bits = (num_bits(2) + WEIGHT_BITS) * self.items.num_rows
        least = self.bytes_without_links(replace(self.start, fine_per_item=0))
        return InputError(
            f'size={self.size} bytes: a model of {self.items.num_rows} items takes at '
            f'least about {least + SLACK + ceil(bits / 8)}; give more'
        )

    def result(self) -> Found:
        """What was found, with the gain over the settings it started from."""
        found = self.found
        if self.size is not None and not found.ndcg:
            raise self.too_small()
        gain, num_users = self.best - self.default, len(self.best)
        figures = (
            f'NDCG@20 {found.ndcg:.4f} on {num_users} validation users, '
            f'{found.default:.4f} with the defaults'
        )
        found.why = f'{len(found.trials)} trials: {figures}'
        error = float(gain.std()) / num_users**0.5
        least = ERRORS * error if num_users < MANY_USERS else 0.0
        if found.default and float(gain.mean()) < least:
            found.recipe, found.ndcg = self.start, found.default
            found.why += ', no more than chance gives: the defaults stay'
        chosen = (f'{name}={getattr(found.recipe, name)}' for name in SETTINGS)
        found.why += f' ({" ".join(chosen)})'
        return found


def held_out(data: HeteroData) -> Tensor:
    """The validation pairs, or none."""
    edge_index = data[RATES].edge_index
    return data[RATES].get('val_edge_label_index', edge_index[:, :0])


def width_of(recipe: FastRecipe) -> int:
    """The width of a recipe that has one."""
    assert recipe.embedding_dim is not None
    return recipe.embedding_dim


def _norms(recipe: FastRecipe) -> tuple[float, float]:
    return recipe.user_norm, recipe.item_norm


def _argmax(values: Iterable[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """The first pair with the largest mean."""
    return max(values, key=lambda pair: float(pair[1].mean()))


def stored_bytes(model: LinearC2F) -> int:
    """The bytes of a model's file, without the train graph unless scores need it."""
    tensors = model.to_tensors()
    if not model.needs_graph():
        tensors = {k: x for k, x in tensors.items() if not k.startswith('graph.')}
    return len(file_content(tensors, model_meta(model)))
