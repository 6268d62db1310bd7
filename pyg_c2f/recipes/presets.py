r"""Recipes: every setting of a run in one flat dataclass."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from pyg_c2f.typing import InputError, Stored


@dataclass(frozen=True)
class Recipe:
    """The published schedule (SPEC to the letter), with Gowalla's settings.

    Any field can be set by ``--set name=value``.
    """

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
    """largest absolute value of a gradient's entry"""
    eval_every: int = 5
    """epochs between two evaluations"""
    patience: int = 5
    """evaluations without a better NDCG@5 that end a phase"""
    max_epochs: int = 900
    """epochs of a stage at the most"""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), field.type, _RANGES)
        for few, many in (
            ('anchors_per_entity', 'num_coarse'),
            ('fine_per_coarse', 'num_fine'),
        ):
            if getattr(self, few) > getattr(self, many):
                raise InputError(
                    f'{few}={getattr(self, few)} needs at least as many anchors: '
                    f'raise --set {many}={getattr(self, many)}'
                )


@dataclass(frozen=True)
class FastRecipe:
    """Anchors in closed form from the spectrum of the interactions; see ``fast.py``.

    It differs from the published schedule in everything but the graph: spectral anchors
    instead of METIS, users who live from their items, no sampled training. That bought
    seconds instead of hours, and better lists (README). The values were chosen on
    Gowalla's validation items of protocol c2f; ``benchmarks/tune.py`` finds those of
    other data sets.
    """

    embedding_dim: int = 512
    """width: the number of singular vectors (at most as many as there are)"""
    num_fine: int = 512
    """fine anchors, of all levels together"""
    coarse_links: float = 8.0
    """coarse anchors of an item, on average"""
    fine_links: int = 2
    """fine anchors of an item: levels of codes of what is left over; 0 for none"""
    user_norm: float = 0.4
    """exponent of a user's degree in the normalisation of the interactions"""
    item_norm: float = 0.4
    """exponent of an item's degree in it, and in what a history adds to a user"""
    power: float = 0.25
    """exponent of the singular values in the items' features"""
    popularity: float = 0.75
    """exponent of an item's degree in its importance to the anchors"""
    item_power: float = 0.5
    """exponent of an item's degree in its scores"""
    diffusion: float = 0.0
    """weight of the diffusion channel, which needs the train graph"""
    dtype: Stored = 'packed'
    """stored form: packed bits with 6-bit weights, or plain numbers"""
    partitions: int = 4
    """blocks of rows that sums are formed over: the most processes of a run"""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(
                field.name,
                getattr(self, field.name),
                field.type,
                _RANGES | _FAST_RANGES,
            )
        if self.fine_links and self.num_fine % self.fine_links:
            raise InputError(
                f'num_fine={self.num_fine} does not share out over fine_links='
                f'{self.fine_links} levels: set a multiple'
            )


_MOST = 2**31 - 1
_KINDS: dict[Any, tuple[str, float]] = {
    int: ('a whole number', 1),
    float: ('a number', 0),
}
_RANGES: dict[str, tuple[float, float]] = {
    'num_fine': (2, _MOST),  # a single row has no principal components
    'num_layers': (0, _MOST),
    'gate': (0, 1),
    'own_weight': (0, 1),
}

# Of recipe fast, beside these.
_FAST_RANGES: dict[str, tuple[float, float]] = {
    'coarse_links': (1, 512),
    'fine_links': (0, 64),
    'popularity': (0, 4),
    'user_norm': (0, 2),
    'item_norm': (0, 2),
    'power': (0, 4),
    'item_power': (0, 4),
}


def _check(name: str, value: Any, kind: Any, ranges: dict[str, Any]) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(
                f'--set {name}={value}: expected one of {", ".join(get_args(kind))}'
            )
        return
    what, least = _KINDS[kind]
    least, most = ranges.get(name, (least, _MOST))
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    fits = fits and not isinstance(value, bool)
    # Written so that NaN is refused too.
    if not fits or not least <= value <= most:
        raise InputError(
            f'--set {name}={value}: expected {what} from {least} to {most}'
        )


RECIPES: dict[str, Recipe | FastRecipe] = {'fast': FastRecipe(), 'paper': Recipe()}

DATASET_SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    # Chosen on validation items (standard) by benchmarks/frontier.py, rounded.
    ('fast', 'lastfm'): {
        'embedding_dim': 256,
        'coarse_links': 5.0,
        'fine_links': 1,
        'num_fine': 256,
        'user_norm': 0.5,
        'item_norm': 0.3,
        'power': 0.1,
        'item_power': 0.2,
    },
    ('fast', 'ml-1m'): {
        'embedding_dim': 96,
        'coarse_links': 10.0,
        'item_norm': 0.4,
        'power': 0.15,
        'item_power': 0.2,
    },
    ('fast', 'ml-100k'): {
        'embedding_dim': 48,
        'coarse_links': 8.0,
        'fine_links': 0,
        'user_norm': 0.42,
        'item_norm': 0.37,
        'power': 0.18,
        'item_power': 0.34,
    },
    # What the published run sets apart from Gowalla (SPEC section 5).
    ('paper', 'yelp2020'): {'num_layers': 4, 'own_weight': 0.6},
    ('fast', 'synthetic'): {
        'embedding_dim': 64,
        'coarse_links': 4.0,
        'num_fine': 256,
    },
    # The embedded data set is small: fewer and narrower anchors, and larger steps, for
    # an epoch has 40 batches only. Chosen on its validation items.
    ('paper', 'synthetic'): {
        'num_coarse': 100,
        'num_fine': 40,
        'embedding_dim': 64,
        'pca_components': 64,
        'lr_coarse': 1e-2,
        'lr_fine': 1e-2,
    },
}


def get_recipe(
    name: str = 'fast', dataset: str = '', settings: dict[str, str] | None = None
) -> Recipe | FastRecipe:
    """Looks a recipe up, with a data set's settings and then the given ones.

    Args:
        name (str, optional): The recipe. (default: ``'fast'``)
        dataset (str, optional): The data set, for the settings that belong to it.
        settings (Dict, optional): Values by field name, as text.

    Raises:
        InputError: If the recipe or a setting is unknown, or a value does not fit.
    """
    if name not in RECIPES:
        raise InputError(f'unknown recipe {name!r}: choose one of {", ".join(RECIPES)}')
    changes = dict(DATASET_SETTINGS.get((name, dataset), {}))
    types = {field.name: field.type for field in fields(RECIPES[name])}
    for key, text in (settings or {}).items():
        if key not in types:
            raise InputError(
                f'unknown setting {key!r} in --set {key}={text}: recipe {name} has '
                f'{", ".join(types)}'
            )
        changes[key] = _parse(key, text, types[key])
    return replace(RECIPES[name], **changes)


def _parse(key: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return text
    try:
        return kind(text)
    except ValueError:
        raise InputError(f'--set {key}={text}: expected {_KINDS[kind][0]}') from None
