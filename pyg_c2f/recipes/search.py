r"""Settings of recipe ``fast`` chosen on validation items, for the data at hand."""

import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_c2f.anchors.spectral import Spectrum, right_vectors, shared_interactions
from pyg_c2f.checkpoint import model_bytes
from pyg_c2f.evaluate import exclude_edges
from pyg_c2f.graph import power
from pyg_c2f.nn import LinearC2F
from pyg_c2f.packing import WEIGHT_BITS, num_bits
from pyg_c2f.recipes.base import Recipe
from pyg_c2f.recipes.fast import FastRecipe, build_fast, share_pairs
from pyg_c2f.sparse import degree, rowptr_of, take_rows, top_items, unique_pairs
from pyg_c2f.typing import ITEM, RATES, USER, InputError

logger = logging.getLogger(__name__)

K = 20  # settings are chosen by NDCG@20
WIDTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SPECTRAL_POWERS = (0.0, 0.15, 0.3, 0.45, 0.6)
SCORE_POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
IMPORTANCE_POWERS = (0.5, 1.0, 0.25)
# The scores of the sample are in memory: some 64 MB, and a copy.
SAMPLE_SCORES, MOST_USERS, LEAST_USERS = 16_000_000, 3000, 1000
# Fewer validation users than these say nothing about settings.
FEW_USERS = 30
EXPONENTS = (
    'user_norm',
    'item_norm',
    'spectral_power',
    'importance_power',
    'score_power',
)
# The singular vectors of a trial; those of the model are exact to a thousandth.
TOLERANCE = 1e-2


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
        label = unique_pairs(data[RATES].val_edge_label_index, num_items)
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
        items, _ = top_items(scores, min(K, scores.size(1)))
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
    as many links as fill the size.

    It stops when the seconds are over, or after a number of trials, which makes it
    repeatable; the result is the best so far.

    Args:
        data (HeteroData): The data set; its test items are not looked at.
        recipe (FastRecipe): The settings to start from.
        fixed (Collection, optional): The names of settings to leave as they are.
        size (int or str, optional): The most bytes of codebooks, assignments and
            scalars, also as text: ``'250kB'``, ``'0.5MB'``.
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
    size = parse_size(size)
    state = _Search(data, recipe, frozenset(fixed), size, seed)
    if len(state.sample.users) < FEW_USERS:
        return state.defaults(
            f'{len(state.sample.users)} users with validation items are too few to '
            'choose settings by'
        )
    started, share = time.perf_counter(), 1.0 if size is None else 0.5
    for steps, part in ((state.norms(), share), (state.models(), 1.0)):
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
        self.data, self.start, self.fixed = data, recipe, fixed
        self.size, self.seed = size, seed
        self.sample = Sample(data, torch.Generator().manual_seed(seed))
        group = recipe.make_group()
        _, self.users, self.own = share_pairs(data, group)
        self.items = group.rows(data[ITEM].num_nodes)
        self.degree = degree(self.own[1], self.items.num_rows)
        most = min(self.users.num_rows, self.items.num_rows)
        self.widths = [x for x in WIDTHS if x < most] + [most]
        self.spectra: dict[tuple[float, float], Spectrum] = {}
        self.found = Found(recipe)

    def choices(self, name: str, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values to try of a setting: the given one only, where it is fixed."""
        return (getattr(self.start, name),) if name in self.fixed else values

    # Without sparsity -----------------------------------------------------------------

    def norms(self) -> Iterator[None]:
        """A pattern search over both norms; each trial is the best of one pair."""
        at = self.start.user_norm, self.start.item_norm
        spectrum, start = self.spectrum(*at), self.start
        width = min(start.embedding_dim, len(spectrum.value))
        _, table = next(self.tables(spectrum, at[1], start.spectral_power, [width]))
        self.found.default = self.ndcg(table, start.score_power)
        tried = {at: self.look(*at)}
        yield
        step = 0.2
        while step > 0.04:
            moved = False
            for which, sign in product((1, 0), (1, -1)):
                if ('user_norm', 'item_norm')[which] in self.fixed:
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

    def spectrum(self, user_norm: float, item_norm: float) -> Spectrum:
        """The singular vectors of a pair of norms, some more than the best width."""
        norms, wanted = (user_norm, item_norm), self.found.recipe.embedding_dim
        width = next((x for x in self.widths if x > wanted), self.widths[-1])
        if 'embedding_dim' in self.fixed:
            width = min(self.start.embedding_dim, self.widths[-1])
        known = self.spectra.get(norms)
        if known is None or len(known.value) < width:
            interactions = shared_interactions(
                self.own, self.users, self.items, *norms, self.degree
            )
            generator = torch.Generator().manual_seed(self.seed)
            self.spectra.clear()  # They are large, and few are asked for again.
            known = right_vectors(interactions, width, generator, TOLERANCE)
            self.spectra[norms] = known
        return known

    def look(self, user_norm: float, item_norm: float) -> float:
        """The best of all widths and powers with a pair of norms, as one trial."""
        spectrum = self.spectrum(user_norm, item_norm)
        widths = [x for x in self.widths if x <= len(spectrum.value)]
        if 'embedding_dim' in self.fixed:
            widths = [min(self.start.embedding_dim, len(spectrum.value))]
        best = replace(self.found.recipe, user_norm=user_norm, item_norm=item_norm)
        # One after the other: they hardly depend on each other.
        for _ in range(1 if self.found.trials else 2):
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
        self.add(best, top)
        return top

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

    def ndcg(self, table: Tensor, score_power: float) -> float:
        scale = power(self.degree.clamp(min=1), score_power).to(table)
        return float(self.sample.ndcg(table * scale).mean())

    def add(self, recipe: FastRecipe, ndcg: float) -> None:
        """Writes a trial down, and keeps it where it is the best."""
        names = ('embedding_dim', 'coarse_per_item', 'fine_per_item', *EXPONENTS)
        settings = {name: getattr(recipe, name) for name in names}
        self.found.trials.append({'settings': settings, 'ndcg': ndcg})
        if ndcg > self.found.ndcg:
            self.found.recipe, self.found.ndcg = recipe, ndcg

    # Models under a size --------------------------------------------------------------

    def models(self) -> Iterator[None]:
        """Models of the best norms: widths, then the powers, under the size."""
        base = self.found.recipe
        if self.size is None:
            return
        self.found.ndcg = 0.0  # What was reached without sparsity is not a model's.
        widths = [base.embedding_dim]
        if 'embedding_dim' not in self.fixed:
            widths = [x for x in self.widths if x <= 2 * base.embedding_dim][::-1]
            at = self.widths.index
            widths.sort(key=lambda x: abs(at(x) - at(base.embedding_dim)))
        worse = {-1: 0, 1: 0}
        for width in widths:
            side = 1 if width > base.embedding_dim else -1
            if worse[side] > 1:
                continue
            before = self.found.ndcg
            if self.try_model(replace(base, embedding_dim=width)):
                yield
            worse[side] += self.found.ndcg <= before
        for value in self.choices('importance_power', IMPORTANCE_POWERS):
            if self.try_model(replace(self.found.recipe, importance_power=value)):
                yield

    def try_model(self, recipe: FastRecipe) -> bool:
        """Makes a model that fills the size; false, where none fits."""
        filled = self.filled(recipe)
        if filled is None:
            return False
        model = self.make(filled)
        scores = model.scorer()(self.sample.users)
        scores = scores / model.item_scale()
        powers = self.choices('score_power', SCORE_POWERS)
        q, top = _argmax((q, self.ndcg(scores, q)) for q in powers)
        self.add(replace(filled, score_power=q), top)
        return True

    def make(self, recipe: FastRecipe) -> LinearC2F:
        """The model of a recipe, with singular vectors that are at hand."""
        generator = torch.Generator().manual_seed(2 * self.seed)
        spectrum = self.spectrum(recipe.user_norm, recipe.item_norm)
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
        num_items = self.items.num_rows
        most = min(float(recipe.embedding_dim), 255.0)
        empty = stored_bytes(self.make(replace(recipe, coarse_per_item=1.0)))
        bits = num_bits(recipe.embedding_dim) + WEIGHT_BITS
        # Two tensors are packed, each to a whole number of bytes.
        links = 1 + 8 * (self.size - 2 - empty) / (bits * num_items)
        links = floor(100 * min(links, most)) / 100
        if links < 1:
            return None
        return replace(recipe, coarse_per_item=links)

    def defaults(self, why: str) -> Found:
        """The settings to start from, where there is nothing to choose by."""
        self.found.why = f'{why}: the defaults stay'
        if self.size is not None:
            filled = self.filled(self.start)
            if filled is None:
                raise self.too_small()
            self.found.recipe = filled
        return self.found

    def too_small(self) -> InputError:
        least = stored_bytes(self.make(replace(self.start, coarse_per_item=1.0)))
        return InputError(
            f'size={self.size} bytes: a model of {self.items.num_rows} items takes at '
            f'least about {least}; give more'
        )

    def result(self) -> Found:
        """What was found, with the gain over the settings it started from."""
        found = self.found
        start: FastRecipe | None = self.start
        if self.size is not None:
            if found.ndcg == 0:
                return self.defaults('no time was left to make a model')
            start, found.default = self.filled(self.start), 0.0
            if start is not None:
                scores = self.make(start).scorer()(self.sample.users)
                found.default = float(self.sample.ndcg(scores).mean())
        if start is not None and found.default >= found.ndcg:
            found.recipe, found.ndcg = start, found.default
        found.why = (
            f'{len(found.trials)} trials: NDCG@20 {found.ndcg:.4f} on '
            f'{len(self.sample.users)} validation users, {found.default:.4f} with the '
            'defaults'
        )
        return found


def _argmax(values: Iterable[tuple[Any, float]]) -> tuple[Any, float]:
    """The first pair with the largest value."""
    return max(values, key=lambda pair: pair[1])


def stored_bytes(model: LinearC2F) -> int:
    """The bytes of a model, without the train graph unless scores need it."""
    sizes = model_bytes(model)
    parts = ('codebooks', 'assignments', 'scalars', 'inference_extra')
    return sum(sizes[part] for part in parts)
