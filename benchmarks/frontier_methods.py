"""The methods that frontier.py compares, and what a trial of each chooses from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from common import (
    estimated_bytes,
    link_bytes,
)
from methods import (
    EASE,
    FSAI,
    GFCF,
    IALS,
    Baseline,
    ChebyCF,
    Codec,
    ColumnWise,
    CompressedLightGCN,
    DHEmbedding,
    Fast,
    Half,
    HashEmbedding,
    Histories,
    ItemKNN,
    LightGCN,
    LightGCNFromItems,
    LinkProp,
    LowPass,
    Paper,
    PEPEmbedding,
    Popularity,
    ProductCodes,
    Pruned,
    QREmbedding,
    RowWise,
    TTEmbedding,
    TurboCF,
)
from torch_geometric.data import HeteroData

from pyg_c2f.recipes import FastRecipe, PaperRecipe

SIZES = (10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 1_500_000)
SIZES += (2_500_000, 5_000_000, 10_000_000, 100_000_000, 1_000_000_000)


class Data(NamedTuple):
    """A data set as the trials and as the last fits see it."""

    name: str
    tune: Histories
    final: Histories
    validation: HeteroData
    standard: HeteroData
    c2f: HeteroData

    @property
    def num_entities(self) -> int:
        return self.final.num_users + self.final.num_items


class Known:
    """Stands for a trial, with the parameters of an earlier one."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.params[name]

    def suggest_float(
        self, name: str, low: float, high: float, log: bool = False
    ) -> float:
        return self.params[name]


class Method(NamedTuple):
    """A way to make a method from a trial, and what to compare it with."""

    suggest: Callable[[Any, Data, list[dict[str, Any]]], Baseline]
    published: str
    base: str = ''  # the method whose tables it compresses
    starts: tuple[dict[str, Any], ...] = ()  # parameters of the first trials


def number(trial: Any, name: str, low: float, high: float, log: bool = True) -> float:
    """A number of three digits, so that what is written down is what ran."""
    return float(f'{trial.suggest_float(name, low, high, log=log):.3g}')


def _popularity(trial: Any, data: Data, bases: Any) -> Baseline:
    return Popularity()


def _item_knn(trial: Any, data: Data, bases: Any) -> Baseline:
    return ItemKNN(
        num_neighbors=round(number(trial, 'num_neighbors', 1, 100)),
        measure=trial.suggest_categorical('measure', ['cosine', 'tfidf']),
        item_power=number(trial, 'item_power', 0, 0.8, log=False),
        weight_bits=trial.suggest_categorical('weight_bits', [4, 6, 8]),
    )


def _ease(trial: Any, data: Data, bases: Any) -> Baseline:
    return EASE(
        l2=trial.suggest_categorical('l2', [100.0, 200.0, 500.0, 1000.0, 2000.0])
    )


def inverted(trial: Any) -> dict[str, float]:
    """The matrix that a linear model inverts: few values, so that inverses are shared.

    The scales of the items, which need no other inverse, are free.
    """
    return {
        'l2': trial.suggest_categorical('l2', [20.0, 50.0, 100.0, 200.0, 300.0, 500.0]),
        'dropout': trial.suggest_categorical('dropout', [0.0, 0.2, 0.33, 0.5, 0.6]),
        'user_norm': trial.suggest_categorical('user_norm', [0.0, 0.3, 0.5]),
        'item_norm': number(trial, 'item_norm', -0.1, 0.6, log=False),
        'item_power': number(trial, 'item_power', -0.4, 0.5, log=False),
    }


def entries(trial: Any) -> dict[str, float]:
    """How many weights between items are stored, in how many bits."""
    return {
        'num_neighbors': number(trial, 'num_neighbors', 0.5, 60),
        'weight_bits': trial.suggest_categorical('weight_bits', [4, 6, 8]),
    }


def _edlae(trial: Any, data: Data, bases: Any) -> Baseline:
    return EASE(**inverted(trial))


def _edlae_pruned(trial: Any, data: Data, bases: list[dict[str, Any]]) -> Baseline:
    sources = [json.dumps(x, sort_keys=True) for x in bases]
    source = json.loads(trial.suggest_categorical('source', sources))
    return EASE(**inverted(Known(source)), **entries(trial))


def _fsai(trial: Any, data: Data, bases: Any) -> Baseline:
    first = trial.suggest_categorical('popular_first', [True, False])
    return FSAI(**inverted(trial), **entries(trial), popular_first=first)


def _two_hop(trial: Any, data: Data, bases: Any) -> Baseline:
    return LinkProp(1.0, 1.0, 0.5)


def _link_prop(trial: Any, data: Data, bases: Any) -> Baseline:
    return LinkProp(
        beta=number(trial, 'beta', 0, 1.2, log=False),
        gamma=number(trial, 'gamma', 0, 1.5, log=False),
        delta=number(trial, 'delta', 0, 1.2, log=False),
    )


def normalisation(trial: Any) -> dict[str, float]:
    """The exponents of degrees and singular values."""
    return {
        'user_norm': number(trial, 'user_norm', 0.3, 0.8, log=False),
        'item_norm': number(trial, 'item_norm', 0.25, 0.55, log=False),
        'item_power': number(trial, 'item_power', 0, 0.5, log=False),
        'power': number(trial, 'power', 0, 0.4, log=False),
    }


def _low_pass(trial: Any, data: Data, bases: Any) -> Baseline:
    return LowPass(
        embedding_dim=trial.suggest_categorical(
            'embedding_dim', [4, 8, 16, 32, 64, 128, 256, 512]
        ),
        **normalisation(trial),
    )


def _gfcf(trial: Any, data: Data, bases: Any) -> Baseline:
    return GFCF(
        rank=trial.suggest_categorical('rank', [16, 32, 64, 128, 256]),
        weight=number(trial, 'weight', 0.1, 1),
        codec=rounding(trial),
    )


def _gfcf_published(trial: Any, data: Data, bases: Any) -> Baseline:
    return GFCF()


def _cheby_cf(trial: Any, data: Data, bases: Any) -> Baseline:
    return ChebyCF(
        rank=trial.suggest_categorical('rank', [0, 16, 32, 64, 128, 256, 512]),
        weight=number(trial, 'weight', 0.05, 1),
        item_norm=number(trial, 'item_norm', 0, 0.6, log=False),
        flatness=number(trial, 'flatness', 1, 20),
        codec=rounding(trial),
    )


def _cheby_cf_published(trial: Any, data: Data, bases: Any) -> Baseline:
    return ChebyCF()


def _turbo_cf(trial: Any, data: Data, bases: Any) -> Baseline:
    # Powers other than 1 need the item graph whole.
    small = data.final.num_items <= 20_000
    return TurboCF(
        alpha=number(trial, 'alpha', 0.3, 0.8, log=False),
        power=number(trial, 'power', 0.6, 1.4, log=False) if small else 1.0,
        filter=trial.suggest_categorical('filter', ['linear', 'second', 'third']),
    )


def _ials(trial: Any, data: Data, bases: Any) -> Baseline:
    return IALS(
        embedding_dim=trial.suggest_categorical('embedding_dim', [4, 8, 16, 32, 64]),
        alpha=number(trial, 'alpha', 1, 60),
        lambda_reg=number(trial, 'lambda_reg', 1, 300),
    )


def training(trial: Any, data: Data) -> dict[str, Any]:
    """Loss and its settings; losses by samples where they end in seconds."""
    losses = {'lastfm': ['whole', 'softmax', 'bpr'], 'ml-1m': ['whole', 'softmax']}
    loss = trial.suggest_categorical('loss', losses.get(data.name, ['whole']))
    settings = {
        'loss': loss,
        'num_layers': trial.suggest_categorical('num_layers', [0, 1, 2, 3]),
        'lr': number(trial, 'lr', 0.01, 0.1),
    }
    if loss == 'softmax':
        settings['temperature'] = number(trial, 'temperature', 0.06, 0.3)
        settings['epochs'] = trial.suggest_categorical('softmax_epochs', [2, 4, 8])
        settings['num_neg_samples'] = 256
    if loss == 'bpr':
        settings['lambda_reg'] = number(trial, 'bpr_lambda', 1e-4, 1e-1)
        settings['epochs'] = trial.suggest_categorical('bpr_epochs', [10, 20])
    if loss == 'whole':
        settings['alpha'] = number(trial, 'alpha', 0.003, 1)
        settings['lambda_reg'] = number(trial, 'lambda_reg', 3e-4, 3e-2)
        settings['epochs'] = trial.suggest_categorical('epochs', [20, 40, 80])
    else:
        settings['batch_size'] = 4096
    return settings


def _lightgcn(trial: Any, data: Data, bases: Any) -> Baseline:
    widths = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    return LightGCN(
        embedding_dim=trial.suggest_categorical('embedding_dim', widths),
        **training(trial, data),
    )


def compressed(make: Callable[[Any, Data], Any]) -> Callable[..., Baseline]:
    """A method that trains a compressed table."""

    def suggest(trial: Any, data: Data, bases: Any) -> Baseline:
        width = trial.suggest_categorical('embedding_dim', [8, 16, 32, 64])
        return CompressedLightGCN(
            embedding_dim=width,
            embedding=make(trial, data),
            start='random',
            **training(trial, data),
        )

    return suggest


def _hashing(trial: Any, data: Data) -> Any:
    share = number(trial, 'share', 0.003, 0.3)
    return partial(HashEmbedding, num_buckets=round(share * data.num_entities))


def _quotients(trial: Any, data: Data) -> Any:
    # From both tables of about the same size on to few rows in one of them.
    least = number(trial, 'share', 0.003, 0.3)
    num = max(round(data.num_entities**0.5), round(least * data.num_entities))
    return partial(QREmbedding, num_remainders=num)


def _tensor_train(trial: Any, data: Data) -> Any:
    return partial(TTEmbedding, rank=trial.suggest_categorical('rank', [4, 8, 16, 32]))


def _deep_hash(trial: Any, data: Data) -> Any:
    hidden = trial.suggest_categorical('hidden', [32, 64, 128])
    hashes = trial.suggest_categorical('hashes', [64, 128, 256])
    return partial(DHEmbedding, num_hashes=hashes, hidden=(hidden,))


def _pep(trial: Any, data: Data) -> Any:
    threshold = number(trial, 'threshold', -4, 0, log=False)
    return partial(PEPEmbedding, init_threshold=threshold)


def rounding(trial: Any, width: int = 0) -> Codec:
    """Fewer bits a number, row by row or column by column."""
    codecs: dict[str, Codec] = {
        'fp16': Half(),
        'int8 rows': RowWise(8),
        'int8 columns': ColumnWise(8),
        'int4 rows': RowWise(4),
        'int4 columns': ColumnWise(4),
        'int2 columns': ColumnWise(2),
    }
    return codecs[trial.suggest_categorical('codec', list(codecs))]


def product_codes(trial: Any, width: int) -> Codec:
    """Codes of blocks of columns, rotated or not."""
    columns = trial.suggest_categorical('columns', [2, 4, 8, 16, 32, 64])
    return ProductCodes(
        num_blocks=min(max(width // columns, 1), 64),
        bits=trial.suggest_categorical('bits', [6, 8]),
        # A rotation is width^2 numbers to keep, and hours to learn for wide tables.
        optimised=trial.suggest_categorical('optimised', [False, True])
        and width <= 128,
    )


def pruning(trial: Any, width: int) -> Codec:
    """The largest entries alone."""
    return Pruned(keep=number(trial, 'keep', 0.02, 0.5))


def _legcf(trial: Any, data: Data, bases: Any) -> Baseline:
    # The coarse stage with the settings of its README; on lastfm's validation items
    # re-assignment brought nothing after epoch 90 of the published recipe.
    return Paper(PaperRecipe(num_coarse=500), coarse_epochs=(90, 91))


def post_training(
    base: str, codec: Callable[[Any, int], Codec], cls: Any = None
) -> Callable[..., Baseline]:
    """A method on the tables that another one chose."""

    def suggest(trial: Any, data: Data, bases: list[dict[str, Any]]) -> Baseline:
        sources = [json.dumps(x, sort_keys=True) for x in bases]
        source = json.loads(trial.suggest_categorical('source', sources))
        method: Any = METHODS[base].suggest(Known(source), data, [])
        if cls is not None:
            method = cls(**{x.name: getattr(method, x.name) for x in fields(method)})
        return replace(method, codec=codec(trial, method.embedding_dim))

    return suggest


def sizes_of_ours(data: Data) -> list[int]:
    """From two links of every item up to thirty."""
    return [x for x in SIZES if 5.5 < x / data.final.num_items < 60]


def ours(graph: bool) -> Callable[..., Baseline]:
    """Recipe fast, as many links as fill a size."""

    def suggest(trial: Any, data: Data, bases: Any) -> Baseline:
        narrow = [] if data.name == 'gowalla' else [48, 64, 96]
        wide = [1024] if data.name == 'gowalla' else []
        num_items = data.final.num_items
        sizes = sizes_of_ours(data)
        size = trial.suggest_categorical('size', sizes)
        levels = trial.suggest_categorical('fine_links', [0, 1, 2])
        norms = normalisation(trial)
        recipe = FastRecipe(
            embedding_dim=trial.suggest_categorical(
                'embedding_dim', [*narrow, 128, 256, 512, *wide]
            ),
            user_norm=norms['user_norm'],
            item_norm=norms['item_norm'],
            spectral_power=norms['power'],
            score_power=norms['item_power'],
            diffusion=number(trial, 'diffusion', 0.1, 2) if graph else 0.0,
            coarse_per_item=1.0,
        )
        # As many levels as leave room for a link and a half of every item. The names
        # of the tensors and the settings take a kilobyte and a half.
        for fine in range(levels, -1, -1):
            filled = replace(recipe, fine_per_item=fine, num_fine=256 * max(fine, 1))
            room = 0.97 * size - 1500 - estimated_bytes(data.standard, filled)
            links = 1 + room / link_bytes(filled, num_items)
            if links >= 1.5:
                break
        most = recipe.embedding_dim / 4
        return Fast(replace(filled, coarse_per_item=round(min(links, most), 2)))

    return suggest


# Good settings come first: these normalisations were found for the low pass on the
# validation items of the three data sets.
NORMS = tuple(
    {'user_norm': a, 'item_norm': b, 'item_power': q, 'power': p}
    for a, b, q, p in (
        (0.4, 0.4, 0.3, 0.1),
        (0.4, 0.4, 0.2, 0.15),
        (0.5, 0.3, 0.2, 0.1),
    )
)
# Roots of degrees, the graph of GF-CF, and what recipe fast's graph makes of the norms.
PATHS = tuple(
    {'beta': b, 'gamma': g, 'delta': d}
    for b, g, d in (
        (0.5, 0.5, 0.5),
        (0.5, 1.0, 0.5),
        *(
            (2 * x['item_norm'], 2 * x['user_norm'], x['item_norm'] - x['item_power'])
            for x in NORMS
        ),
    )
)
# Penalties and dropout of EDLAE's paper; normalisations found for pairs of items on
# Gowalla and on lastfm, and by EDLAE on the validation items of ml-1m.
LINEAR = tuple(
    dict(zip(('l2', 'dropout', 'user_norm', 'item_norm', 'item_power'), x, strict=True))
    for x in (
        (20.0, 0.6, 0.3, 0.25, 0.25),
        (100.0, 0.6, 0.3, 0.3, -0.2),
        (300.0, 0.5, 0.0, 0.0, 0.0),
        (500.0, 0.33, 0.0, 0.0, 0.0),
        (50.0, 0.33, 0.5, 0.0, -0.3),
    )
)
FEW = tuple(
    {'num_neighbors': x, 'weight_bits': bits}
    for x, bits in ((5.0, 6), (2.0, 4), (15.0, 6), (1.0, 4), (40.0, 6))
)
# The published settings for three data sets; the first also without a low pass and
# with a smaller one.
PLATEAUS = tuple(
    dict(
        zip(('rank', 'weight', 'item_norm', 'flatness', 'codec'), x, strict=True),
    )
    for x in (
        (512, 0.2, 0.4, 1.5, 'int8 columns'),
        (0, 0.2, 0.4, 1.5, 'int4 columns'),
        (64, 0.2, 0.4, 1.5, 'int4 columns'),
        (256, 0.1, 0.2, 15.0, 'int8 columns'),
        (512, 0.2, 0.0, 10.0, 'int8 columns'),
    )
)
CODES = tuple({'columns': x, 'bits': 8, 'optimised': False} for x in (16, 8, 64, 32))
START = {'loss': 'whole', 'num_layers': 1, 'lr': 0.01, 'epochs': 80}
LIGHTGCN = tuple(START | {'embedding_dim': x} for x in (64, 16, 32, 4, 256))
COMPRESSED = tuple(START | {'embedding_dim': x, 'lr': 0.03} for x in (64, 16))
METHODS: dict[str, Method] = {
    'ours': Method(ours(graph=False), 'published C2F .1441 R@20 (c2f)', starts=NORMS),
    'ours with graph': Method(ours(graph=True), 'BSPM .1920 R@20', starts=NORMS),
    'popularity': Method(_popularity, 'none'),
    'ItemKNN': Method(
        _item_knn,
        'ItemCF .1570 R@20',
        starts=({'measure': 'tfidf', 'num_neighbors': 20.0},),
    ),
    'EASE': Method(_ease, 'EASE .1765 R@20'),
    'EDLAE': Method(_edlae, 'EASE .1765 R@20', starts=LINEAR[:-1]),
    'EDLAE pruned': Method(_edlae_pruned, 'none', 'EDLAE', FEW),
    'FSAI': Method(
        _fsai,
        'EASE .1765 R@20',
        starts=tuple(
            LINEAR[place] | few | {'popular_first': first}
            for place, first in ((0, False), (-1, False), (1, True))
            for few in FEW
        ),
    ),
    'two-hop': Method(_two_hop, 'none'),
    'LinkProp': Method(_link_prop, 'LinkProp-Multi .1908 R@20', starts=PATHS),
    'Turbo-CF': Method(
        _turbo_cf,
        'Turbo-CF .1835 R@20',
        starts=(
            {'alpha': 0.5, 'power': 1.0, 'filter': 'linear'},
            {'alpha': 0.7, 'power': 1.0, 'filter': 'second'},
        ),
    ),
    'GF-CF': Method(
        _gfcf,
        'GF-CF .1849 R@20',
        starts=({'rank': 256, 'weight': 0.3, 'codec': 'fp16'},),
    ),
    'GF-CF as published': Method(_gfcf_published, 'GF-CF .1849 R@20'),
    'ChebyCF': Method(_cheby_cf, 'ChebyCF .1941 R@20', starts=PLATEAUS),
    'ChebyCF as published': Method(_cheby_cf_published, 'ChebyCF .1941 R@20'),
    'low-pass': Method(
        _low_pass,
        'none (part of GF-CF)',
        starts=tuple(x | {'embedding_dim': d} for d in (64, 256, 16) for x in NORMS),
    ),
    'low-pass rounded': Method(post_training('low-pass', rounding), 'none', 'low-pass'),
    'low-pass PQ': Method(
        post_training('low-pass', product_codes), 'none', 'low-pass', CODES
    ),
    'iALS': Method(
        _ials,
        'none',
        starts=tuple(
            {'embedding_dim': x, 'alpha': 10.0, 'lambda_reg': 10.0} for x in (64, 16)
        ),
    ),
    'iALS rounded': Method(post_training('iALS', rounding), 'none', 'iALS'),
    'iALS PQ': Method(post_training('iALS', product_codes), 'none', 'iALS', CODES),
    'LightGCN': Method(_lightgcn, 'LightGCN .1830 R@20', starts=LIGHTGCN),
    'LightGCN rounded': Method(post_training('LightGCN', rounding), 'none', 'LightGCN'),
    'LightGCN PQ': Method(
        post_training('LightGCN', product_codes), 'none', 'LightGCN', CODES
    ),
    'LightGCN pruned': Method(
        post_training('LightGCN', pruning), 'none (2406.17335 has no table)', 'LightGCN'
    ),
    'LightGCN items rounded': Method(
        post_training('LightGCN', rounding, LightGCNFromItems), 'none', 'LightGCN'
    ),
    'LightGCN items PQ': Method(
        post_training('LightGCN', product_codes, LightGCNFromItems),
        'none',
        'LightGCN',
        CODES,
    ),
    'hashing': Method(compressed(_hashing), 'none', starts=COMPRESSED),
    'QR hashing': Method(
        compressed(_quotients), 'none (2406.17335 has no table)', starts=COMPRESSED
    ),
    'TT-Rec': Method(
        compressed(_tensor_train), 'none (2406.17335 has no table)', starts=COMPRESSED
    ),
    'DHE': Method(
        compressed(_deep_hash), 'none (2406.17335 has no table)', starts=COMPRESSED
    ),
    'PEP': Method(
        compressed(_pep), 'none (2406.17335 has no table)', starts=COMPRESSED
    ),
    'LEGCF': Method(_legcf, 'none (2403.18479: no table)'),
}
SLOW = ('LEGCF',)  # run where they are named
