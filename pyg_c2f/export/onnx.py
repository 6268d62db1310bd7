r"""Writes ONNX models; ``docs/onnx.md`` describes their inputs and outputs."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_c2f.export.bundle import check_needs_no_graph, fit_table, item_links
from pyg_c2f.files import whole_file
from pyg_c2f.nn import LinearC2F
from pyg_c2f.typing import InputError
from pyg_c2f.vocabulary import NamedModel

# The oldest versions with reductions in ScatterElements; onnxruntime 1.16 has both.
OPSET, IR_VERSION = 18, 8
FORMAT, VERSION = 'pyg_c2f history to list', '1'


def write_onnx(model: LinearC2F | NamedModel, path: str | Path) -> int:
    r"""Writes an ONNX model that turns a history of items into a list of items.

    It holds the items, but no users and no train graph, and gives the lists of
    :meth:`~pyg_c2f.nn.Recommender.recommend` for a ``history``. The file is small
    because the runtime unpacks it when it loads it (by folding constants): a link is
    the distance to the one before it instead of a row and a column, and numbers with
    few distinct values are codes of a table.

    Args:
        model (LinearC2F): The model, without a diffusion channel.
        path (str or Path): The file; it appears when it is complete.

    Returns:
        int: The bytes of the file.

    Raises:
        ImportError: If onnx is not installed.
        InputError: If the model needs its graph, has numbers that are not finite, or
            an item does not have one fine anchor of each level.
    """
    model = check_needs_no_graph(model, 'an ONNX model')
    numbers = (model.codebook(), model.coarse.assignment.weight, model.bias)
    if not all(x.isfinite().all() for x in numbers):
        raise InputError(
            'this model has numbers that are not finite; train it with other settings'
        )
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "'write_onnx' needs onnx: pip install pyg-c2f[onnx]"
        ) from error
    builder = _Builder(onnx)
    with torch.no_grad():
        _add_nodes(builder, model)
    whole = _whole(builder, model.num_items)
    onnx.checker.check_model(whole, full_check=True)
    data = whole.SerializeToString()
    with whole_file(Path(path)) as part:
        part.write_bytes(data)
    return len(data)


class _Builder:
    """Collects the nodes and constants of an ONNX graph; values go by their names."""

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The result of an operator."""
        name = f'{kind}_{len(self.nodes)}'
        make_node = self.onnx.helper.make_node
        self.nodes.append(make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def const(self, x: Any, dtype: Any = None) -> str:
        """A constant array."""
        array = np.asarray(x, dtype)
        name = f'constant_{len(self.constants)}'
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def integers(self, x: Tensor) -> str:
        """Whole numbers from 0 up as int64, stored in the smallest type."""
        array = x.numpy()
        small = array.astype(np.min_scalar_type(int(array.max(initial=0))))
        return self.op('Cast', self.const(small), to=self.onnx.TensorProto.INT64)

    def zeros(self, size: int) -> str:
        return self.op('ConstantOfShape', self.const([size]))

    def add_at(self, size: int, index: str, values: str) -> str:
        """Sums of values by index, ``[size]``."""
        zeros = self.zeros(size)
        return self.op('ScatterElements', zeros, index, values, reduction='add')

    def numbers(self, values: Tensor) -> str:
        """Numbers, float32; codes of a table if that is smaller."""
        values = values.float()
        # With this many bits the table holds every number exactly.
        code, table = fit_table(values, 62)
        code_bytes = np.min_scalar_type(len(table) - 1).itemsize
        if 4 * len(table) + code_bytes * len(values) >= 4 * len(values):
            return self.const(values.numpy())
        return self.op('Gather', self.const(table.numpy()), self.integers(code))

    def places(self, place: Tensor, value: Tensor) -> tuple[str, Tensor]:
        """Ascending numbers as the distances between them, and their values.

        A distance over 255 is split by places in between, whose values are zero.
        """
        gap = place.diff(prepend=place.new_zeros(1))
        num_zeros = ((gap - 1) // 255).clamp(min=0)
        at = torch.arange(len(gap)) + num_zeros.cumsum(0)
        gaps = gap.new_full((len(gap) + int(num_zeros.sum()),), 255)
        gaps[at] = gap - 255 * num_zeros
        values = value.new_zeros(len(gaps))
        values[at] = value
        return self.op('CumSum', self.integers(gaps), self.const(0)), values

    def codebook(self, codebook: Tensor) -> str:
        """The features of anchors, without their zeros if most are zero."""
        x = codebook.float()
        flat = x.flatten()
        place = flat.nonzero().flatten()
        if 2 * len(place) > len(flat):
            return self.const(x.numpy())
        index, values = self.places(place, flat[place])
        out = self.add_at(len(flat), index, self.numbers(values))
        return self.op('Reshape', out, self.const(list(x.shape)))


def _add_nodes(b: _Builder, model: LinearC2F) -> None:
    """The formula of ``docs/bundle.md``, in float32."""
    num_items, num_anchors = model.num_items, len(model.codebook())
    row, col, weight = _links(b, model)
    deg_name = b.numbers(model.item_degree().cpu())
    item_weight = b.op('Pow', deg_name, b.const(-model.item_norm, np.float32))
    item_scale = b.op('Pow', deg_name, b.const(model.score_power, np.float32))
    codebook = b.codebook(model.coarse.codebook.detach().cpu())
    if model.stage == 'fine':  # behind the coarse anchors
        fine = model.soft_threshold(model.fine.codebook.detach().cpu())
        codebook = b.op('Concat', codebook, b.codebook(fine), axis=0)

    is_seen, num_seen = _seen(b, num_items)
    norm = b.op('Pow', num_seen, b.const(-model.user_norm, np.float32))
    # Features of users and of items are means of two layers.
    norm = b.op('Mul', norm, b.const(0.25, np.float32))
    x = b.op('Mul', b.op('Mul', is_seen, item_weight), norm)
    sent = b.op('Mul', weight, b.op('Gather', x, row))
    user = b.op('MatMul', b.add_at(num_anchors, col, sent), codebook)
    anchors = b.op('MatMul', user, b.op('Transpose', codebook, perm=[1, 0]))
    received = b.op('Mul', weight, b.op('Gather', anchors, col))
    score = b.op('Mul', b.add_at(num_items, row, received), item_scale)
    if model.bias.any():
        score = b.op('Add', score, b.numbers(model.bias.detach().cpu()))

    is_seen = b.op('Cast', is_seen, to=b.onnx.TensorProto.BOOL)
    score = b.op('Where', is_seen, b.const(-np.inf, np.float32), score)
    num_seen = b.op('Cast', num_seen, to=b.onnx.TensorProto.INT64)
    num_left = b.op('Sub', b.const([num_items]), num_seen)
    k = b.op('Min', 'k', num_left)
    top = b.onnx.helper.make_node('TopK', [score, k], ['scores', 'items'], name='top')
    b.nodes.append(top)


def _links(b: _Builder, model: LinearC2F) -> tuple[str, str, str]:
    """The links of all items to anchors: items, anchors and weights."""
    num_coarse, num_items = model.num_coarse, model.num_items
    pairs, weight = item_links(model)
    place, weight = b.places(pairs[0] * num_coarse + pairs[1], weight)
    divisor = b.const(num_coarse)
    row, col = b.op('Div', place, divisor), b.op('Mod', place, divisor)
    name = b.numbers(weight)
    if model.stage == 'coarse':
        return row, col, name
    levels, size = model.fine_per_item, model.num_fine // model.fine_per_item
    # Level by level, so that constants of a level are small.
    code = b.integers(model.fine.index.cpu().T % size)
    first = b.const(num_coarse + size * np.arange(levels)[:, None])
    items = b.op('Range', b.const(0), b.const(num_items), b.const(1))
    shape = b.const([levels * num_items])
    code = b.op('Reshape', b.op('Add', code, first), shape)
    items = b.op('Tile', items, b.const([levels]))
    one = b.op('Expand', b.const([1], np.float32), shape)
    parts = ((row, items), (col, code), (name, one))
    row, col, name = (b.op('Concat', *part, axis=0) for part in parts)
    return row, col, name


def _seen(b: _Builder, num_items: int) -> tuple[str, str]:
    """Ones at the items of the history, ``[num_items]``, and their number, ``[1]``."""
    # An empty history has no first item, which is an error instead of NaN scores.
    first = b.op('Gather', 'history', b.const([0]))
    items = b.op('Concat', first, 'history', axis=0)
    # A negative index would count from the end; out of range, it is an error.
    is_negative = b.op('Less', items, b.const(0))
    below = b.op('Sub', items, b.const(num_items))
    items = b.op('Where', is_negative, below, items)
    ones = b.op('Expand', b.const([1], np.float32), b.op('Shape', items))
    is_seen = b.op('ScatterElements', b.zeros(num_items), items, ones)
    return is_seen, b.op('ReduceSum', is_seen, keepdims=1)


def _whole(b: _Builder, num_items: int) -> Any:
    """The ONNX model of the collected nodes."""
    helper, types = b.onnx.helper, b.onnx.TensorProto

    def value(name: str, dtype: int, size: str | int, text: str) -> Any:
        return helper.make_tensor_value_info(name, dtype, [size], text)

    text = f'items of one person, from 0 below {num_items}, in any order'
    graph = helper.make_graph(
        b.nodes,
        'history_to_list',
        [
            value('history', types.INT64, 'num_history', text),
            value('k', types.INT64, 1, 'the most items of the list'),
        ],
        [
            value('items', types.INT64, 'num_listed', 'items, the best first'),
            value('scores', types.FLOAT, 'num_listed', 'their scores'),
        ],
        b.constants,
        'The best items that are not in a history.',
    )
    whole = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=IR_VERSION,
        producer_name='pyg_c2f',
        doc_string='A recommender, coarse to fine: from a history of items to a list.',
    )
    props = {'format': FORMAT, 'version': VERSION, 'num_items': str(num_items)}
    helper.set_model_props(whole, props)
    return whole
