"""Layers, losses and models in the places where those of PyG and torch are used."""

import copy
import pickle

import pytest
import torch
import torch_geometric.typing
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch_geometric import EdgeIndex
from torch_geometric.nn import GraphConv, HeteroConv, LGConv, summary, to_hetero
from torch_geometric.testing import assert_module
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_csr_tensor

from pyg_c2f.graph import joint_norm
from pyg_c2f.nn import (
    C2F,
    AnchorConv,
    BPRLoss,
    C2FConv,
    LinearC2F,
    MetaEmbedding,
    SampledSoftmaxLoss,
    SoftThreshold,
    WholeDataLoss,
    build_pairs,
    fused,
    sampled_dot,
)
from pyg_c2f.nn.fused import fused_ego, fused_propagation
from pyg_c2f.nn.linear import _Histories

U, V, D = 5, 7, 4
EDGES = torch.tensor([[0, 3, 0, 1, 2, 4, 3, 1], [0, 1, 2, 4, 5, 6, 0, 2]])  # U to V
SQUARE = torch.tensor([[0, 3, 1, 2, 4, 3, 1], [1, 0, 4, 0, 3, 4, 2]])
IDS, ITEMS = torch.tensor([3, 0, 4]), torch.tensor([6, 0, 5])
both_stages = pytest.mark.parametrize('stage', ['coarse', 'fine'])
needs_sparse = pytest.mark.skipif(
    not torch_geometric.typing.WITH_TORCH_SPARSE, reason='needs torch-sparse'
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def make_c2f(stage):
    model = C2F(EDGES, U, V, 4, 3, D, num_layers=2, fine_per_coarse=2, threshold=0.3)
    model.set_stage(stage)
    return model


def make_linear(stage, **kwargs):
    model = LinearC2F(EDGES, U, V, 4, 3, D, 2, 1, threshold=0.3, **kwargs)
    model.set_stage(stage)
    return model


def hetero(stage):
    """Features, edges and weights of every relation."""
    data = make_c2f(stage).to_hetero_data()
    x_dict = {key: torch.randn(num, D) for key, num in data.num_nodes_dict.items()}
    return x_dict, data.edge_index_dict, data.edge_weight_dict


def pair_features():
    return torch.randn(U, D), torch.randn(V, D)


# A module and its input, freshly made. What it gives is a tensor or a dict of them.
CASES = {
    'LGConv': lambda: (
        LGConv(normalize=False),
        (torch.randn(U, D), SQUARE, torch.rand(7)),
    ),
    'AnchorConv': lambda: (AnchorConv(), (torch.randn(U, D), SQUARE, torch.rand(7))),
    'AnchorConv-unweighted': lambda: (AnchorConv(), (torch.randn(U, D), SQUARE)),
    'AnchorConv-bipartite': lambda: (
        AnchorConv(),
        (pair_features(), EDGES, torch.rand(8)),
    ),
    'AnchorConv-none': lambda: (
        AnchorConv(),
        ((torch.randn(U, D), None), EDGES, None, (U, V)),
    ),
    'C2FConv-coarse': lambda: (C2FConv(), hetero('coarse')),
    'C2FConv-fine': lambda: (C2FConv(), hetero('fine')),
    'MetaEmbedding': lambda: (MetaEmbedding(9, 5, D), (torch.tensor([[8, 0, 8]]),)),
    'MetaEmbedding-all': lambda: (MetaEmbedding(9, 5, D), ()),
    'SoftThreshold': lambda: (SoftThreshold(0.4), (torch.randn(3, D),)),
    'BPRLoss': lambda: (
        BPRLoss(0.1),
        (torch.randn(3), torch.randn(3), torch.randn(3, D), torch.tensor([2, 0, 1])),
    ),
    'SampledSoftmaxLoss': lambda: (
        SampledSoftmaxLoss(0.7),
        (torch.randn(3), torch.randn(3, 5), torch.randn(5), torch.rand(3, 5) < 0.3),
    ),
    'C2F-coarse': lambda: (make_c2f('coarse'), (IDS, ITEMS)),
    'C2F-fine': lambda: (make_c2f('fine'), (IDS, ITEMS)),
    'LinearC2F': lambda: (make_linear('fine'), (IDS, ITEMS)),
}
every_case = pytest.mark.parametrize('case', CASES)
# Those with tables, and the loss that the compiler does not trace as a whole.
WITH_STATE = [name for name in CASES if name.startswith(('Meta', 'C2F-', 'Linear'))]
WHOLE = {
    'WholeDataLoss': lambda: (
        WholeDataLoss(0.3, 0.2, 0.7),
        (*pair_features(), build_pairs(EDGES, U, V), torch.randn(V)),
    )
}


def parts(out):
    return list(out.values()) if isinstance(out, dict) else [out]


def cast(args, dtype):
    """The numbers with a fraction among the arguments in another precision."""
    if isinstance(args, torch.Tensor):
        return args.to(dtype) if args.is_floating_point() else args
    if isinstance(args, dict):
        return {key: cast(value, dtype) for key, value in args.items()}
    if isinstance(args, tuple) and not hasattr(args, '_fields'):
        return tuple(cast(value, dtype) for value in args)
    return args


# Message passing --------------------------------------------------------------------


@pytest.mark.parametrize('aggr', ['add', 'mean', 'max'])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('given', ['both', 'none', 'none_and_size'])
def test_bipartite_as_pyg_asserts_it(given, weighted, aggr):
    x = pair_features() if given == 'both' else (torch.randn(U, D), None)
    kwargs = {'edge_weight': torch.rand(8)} if weighted else {}
    if given == 'none_and_size':
        kwargs['size'] = (U, V)
    # Without a size, that of the output is the number of sources, as all over PyG.
    edge_index = EDGES if given != 'none' else EDGES.clamp(max=U - 1)
    assert_module(
        AnchorConv(aggr=aggr),
        x,
        edge_index,
        expected_size=(U if given == 'none' else V, D),
        test_sparse_layouts=[] if weighted or given == 'none' else None,
        **kwargs,
    )


@pytest.mark.parametrize('weighted', [False, True])
def test_flow(weighted):
    x, weight = torch.randn(U, D), torch.rand(7) if weighted else None
    out = AnchorConv()(x, SQUARE, weight)
    back = AnchorConv(flow='target_to_source')
    assert back(x, SQUARE.flip(0), weight).equal(out)
    assert LGConv(normalize=False)(x, SQUARE, weight).equal(out)
    perm = SQUARE[0].argsort(stable=True)
    edge_index = EdgeIndex(SQUARE[:, perm].flip(0), sparse_size=(U, U))
    order = None if weight is None else weight[perm]
    torch.testing.assert_close(back(x, edge_index, order), out)


def test_flow_of_a_bipartite_graph():
    conv = AnchorConv(flow='target_to_source')
    with pytest.raises(ValueError, match="'AnchorConv' sends from source to target"):
        conv(pair_features(), EDGES)
    with pytest.raises(ValueError, match="'C2FConv' sends from source to target"):
        C2FConv(flow='target_to_source')(*hetero('fine'))
    # PyG says it of a sparse matrix, in whose place one gives its transpose.
    with pytest.raises(ValueError, match='invalid for message propagation'):
        conv(torch.randn(U, D), to_torch_csr_tensor(SQUARE, size=(U, U)))


class TwoLayers(torch.nn.Module):
    def __init__(self, make_conv):
        super().__init__()
        self.first, self.second = make_conv(), make_conv()

    def forward(self, x, edge_index, edge_weight):
        x = self.first(x, edge_index, edge_weight).relu()
        return self.second(x, edge_index, edge_weight)


@pytest.mark.parametrize('make_conv', [AnchorConv, lambda: LGConv(normalize=False)])
def test_to_hetero(make_conv):
    x_dict, edges, weights = hetero('fine')
    ours = to_hetero(TwoLayers(make_conv), (list(x_dict), list(edges)))
    out = ours(x_dict, edges, weights)
    for _ in range(2):
        conv = HeteroConv({rel: GraphConv(D, D, bias=False) for rel in edges})
        for layer in conv.convs.values():  # Of GraphConv only the sum is left.
            torch.nn.init.eye_(layer.lin_rel.weight)
            torch.nn.init.zeros_(layer.lin_root.weight)
        x_dict = conv(x_dict, edges, weights)
        x_dict = {key: x.relu() for key, x in x_dict.items()}
    for key, x in out.items():
        torch.testing.assert_close(x.relu(), x_dict[key], atol=1e-5, rtol=1e-5)


# State, copies, precision -----------------------------------------------------------


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('case', WITH_STATE)
def test_state_into_a_fresh_module(case, assign):
    module, args = CASES[case]()
    expected = module(*args)
    fresh, _ = CASES[case]()
    if hasattr(fresh, 'set_stage'):
        fresh.set_stage('coarse')
    assert not fresh(*args).equal(expected)
    fresh.load_state_dict(module.state_dict(), strict=True, assign=assign)
    assert fresh(*args).equal(expected)


@pytest.mark.parametrize('case', WITH_STATE)
def test_made_on_the_meta_device(case):
    module, args = CASES[case]()
    with torch.device('meta'):
        empty, _ = CASES[case]()
    # Of a model the edges are there: they were given.
    assert all(p.is_meta for p in empty.parameters())
    empty = empty.to_empty(device='cpu')
    empty.load_state_dict(module.state_dict())
    assert empty(*args).equal(module(*args))
    assert all(p.is_meta for p in module.to('meta').parameters())


@every_case
def test_copies(case):
    module, args = CASES[case]()
    expected = parts(module(*args))  # A model has built its graph now.
    for make in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        twin = make(module)
        assert str(twin) == str(module)
        for ours, theirs in zip(parts(twin(*args)), expected, strict=True):
            assert ours.equal(theirs)
        with torch.no_grad():
            for table in (*twin.parameters(), *twin.buffers()):
                table.zero_()
        for ours, theirs in zip(parts(module(*args)), expected, strict=True):
            assert ours.equal(theirs)
        # What a copy loads is what the copy computes with.
        twin.load_state_dict(module.state_dict())
        for ours, theirs in zip(parts(twin(*args)), expected, strict=True):
            assert ours.equal(theirs)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.double, 1e-5), (torch.half, 5e-3), (torch.bfloat16, 5e-2)],
)
@pytest.mark.parametrize('case', [*CASES, 'WholeDataLoss'])
def test_precisions(case, dtype, tolerance):
    module, args = (CASES | WHOLE)[case]()
    expected = parts(module(*args))
    for ours, theirs in zip(
        parts(module.to(dtype)(*cast(args, dtype))), expected, strict=True
    ):
        # Scores beside single positives are sums in single precision.
        assert ours.dtype == (torch.float if case == 'WholeDataLoss' else dtype) or (
            dtype == torch.double
        )
        torch.testing.assert_close(ours.float(), theirs, atol=tolerance, rtol=tolerance)


def test_precision_of_large_degrees():
    # Neither bfloat16 nor float16 can count to it by ones.
    edge_index = torch.stack([torch.arange(3000), torch.zeros(3000).long()])
    model = LinearC2F(edge_index, 3000, 2, 2, 2, D, 1, 1)
    for dtype in (torch.half, torch.bfloat16):
        deg = model.to(dtype).item_degree()
        torch.testing.assert_close(
            deg.float(), torch.tensor([3e3, 1]), rtol=0.01, atol=0
        )


def test_reset_parameters():
    for case in WITH_STATE:
        module, _ = CASES[case]()
        before = copy.deepcopy(module.state_dict())
        module.reset_parameters()
        changed = {
            key for key, x in module.state_dict().items() if not x.equal(before[key])
        }
        assert {key for key in before if key.endswith(('codebook', 'index'))} <= (
            changed | {'edge_index'}
        )
        assert getattr(module, 'stage', 'coarse') == 'coarse'
    linear = make_linear('fine')
    torch.nn.init.ones_(linear.bias)
    linear.reset_parameters()
    assert not linear.bias.any()


@pytest.mark.parametrize('case', [*CASES, 'WholeDataLoss'])
def test_summary(case):
    pytest.importorskip('tabulate')
    module, args = (CASES | WHOLE)[case]()
    text = summary(module, *args)
    assert type(module).__name__ in text
    count = sum(p.numel() for p in module.parameters())
    assert f'{count:,}' in text or not count


# Autocast ---------------------------------------------------------------------------


@pytest.mark.parametrize('low', [False, True], ids=['single', 'bfloat16'])
@pytest.mark.parametrize('case', [*CASES, 'WholeDataLoss'])
def test_autocast(case, low):
    module, args = (CASES | WHOLE)[case]()
    expected = parts(module(*args))
    args = cast(args, torch.bfloat16) if low else args
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = parts(module(*args))
    for ours, theirs in zip(out, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.05, rtol=0.05)
    # And backward, which runs outside of it.
    if any(x.requires_grad for x in out):
        sum(x.float().cos().sum() for x in out).backward()
        found = [p.grad for p in module.parameters() if p.grad is not None]
        assert found and all(grad.isfinite().all() for grad in found)


@pytest.mark.parametrize('low', [False, True], ids=['single', 'bfloat16'])
@pytest.mark.parametrize('inside', [False, True], ids=['plain', 'autocast'])
@pytest.mark.parametrize(
    'form',
    ['csr', 'csc', 'coo', 'edge_index', pytest.param('sparse', marks=needs_sparse)],
)
def test_low_precision_over_sparse_forms(form, inside, low):
    x, weight = torch.randn(U, D), torch.rand(8)
    expected = AnchorConv()((x, None), EDGES, weight, (U, V))
    adj_t = to_torch_csr_tensor(EDGES.flip(0), weight, size=(V, U))
    perm = EDGES[1].argsort(stable=True)
    adj, beside = {
        'csr': lambda: (adj_t, None),
        'csc': lambda: (adj_t.to_sparse_csc(), None),
        'coo': lambda: (adj_t.to_sparse_coo(), None),
        'sparse': lambda: (
            SparseTensor.from_edge_index(EDGES, weight, (U, V)).t(),
            None,
        ),
        'edge_index': lambda: (
            EdgeIndex(EDGES[:, perm], sort_order='col', sparse_size=(U, V)),
            weight[perm],
        ),
    }[form]()
    x = (x.bfloat16() if low else x).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=inside):
        out = AnchorConv()((x, None), adj, beside)
    assert out.dtype == x.dtype
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.03)
    out.float().sum().backward()
    send = torch.zeros(U).index_add_(0, EDGES[0], weight)
    torch.testing.assert_close(x.grad[:, 0].float(), send, atol=0.03, rtol=0.03)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_sampled_dot_of_low_precision(dtype):
    pairs, (a, b) = build_pairs(EDGES, U, V), pair_features()
    expected = sampled_dot(pairs, a, b)
    a = a.to(dtype).requires_grad_()
    out = sampled_dot(pairs, a, b)
    assert out.dtype == torch.float
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.05)
    out.sum().backward()
    assert a.grad.dtype == dtype and a.grad.isfinite().all()


# Gradients --------------------------------------------------------------------------


def draw(*size):
    return torch.randn(*size, dtype=torch.double)


def positive(*size):
    return torch.rand(*size, dtype=torch.double) + 0.1


def of_parameters(module, args):
    """A function of the parameters that are trained, and their values."""
    module = module.double()
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    values = [module.get_parameter(name).detach().clone() for name in names]

    def run(*tables):
        return functional_call(module, dict(zip(names, tables, strict=True)), args)

    return run, values


def conv_gradients(form):
    x, weight = draw(U, D), positive(8)
    perm = EDGES[1].argsort(stable=True)
    if form == 'edge_index':
        adj = EdgeIndex(EDGES[:, perm], sort_order='col', sparse_size=(U, V))
        return lambda x, w: AnchorConv()((x, None), adj, w), [x, weight]
    if form == 'csr':
        adj = to_torch_csr_tensor(EDGES.flip(0), weight, size=(V, U))
        return lambda x: AnchorConv()((x, None), adj), [x]
    conv = AnchorConv(aggr=form)
    return lambda x, w: conv((x, None), EDGES, w, (U, V)), [x, weight]


def c2f_conv_gradients(stage):
    """Of all features and all weights, those of the degrees included."""
    x_dict, edges, weights = hetero(stage)

    def run(*tables):
        xs = dict(zip(x_dict, tables[: len(x_dict)], strict=True))
        ws = dict(zip(edges, tables[len(x_dict) :], strict=True))
        return tuple(C2FConv(0.3)(xs, edges, ws).values())

    tables = [draw(len(x), 2) for x in x_dict.values()]
    return run, tables + [positive(len(weights[rel])) for rel in edges]


def propagation_gradients(stage):
    graph = make_c2f(stage).double().block_graph()
    return lambda x: fused_propagation(x, graph, 2, 0.3), [draw(U + V + 4 + 3, 3)]


def ego_gradients():
    graph = make_c2f('coarse').double().block_graph()
    return lambda e: fused_ego(e, graph.coarse, graph.coarse_t), [draw(4, 3)]


def history_gradients():
    model = make_linear('fine').double()
    both = model.by_user(), model.by_item()
    return lambda item: _Histories.apply(item, *both), [draw(V, 3)]


def whole_gradients(weighted):
    pairs, loss = build_pairs(EDGES, U, V), WholeDataLoss(0.3, 0.2, 0.7)
    tables = [draw(U, 3), draw(V, 3), draw(V), draw(8)]
    return lambda user, item, *rest: loss(user, item, pairs, *rest), (
        [*tables, positive(U), positive(V)] if weighted else tables
    )


def softmax_gradients():
    mask = torch.rand(3, 5) < 0.3
    loss = SampledSoftmaxLoss(0.7)
    return lambda pos, neg, log_q, weight: loss(pos, neg, log_q, mask, weight), [
        draw(3),
        draw(3, 5),
        draw(5),
        positive(3),
    ]


count = torch.tensor([2, 0, 1])
pairs = build_pairs(EDGES, U, V)
# Functions and the tables that they are differentiated by, twice too.
TWICE = {
    'AnchorConv-add': lambda: conv_gradients('add'),
    'AnchorConv-mean': lambda: conv_gradients('mean'),
    'AnchorConv-max': lambda: conv_gradients('max'),
    'AnchorConv-edge_index': lambda: conv_gradients('edge_index'),
    'AnchorConv-csr': lambda: conv_gradients('csr'),
    'C2FConv-coarse': lambda: c2f_conv_gradients('coarse'),
    'C2FConv-fine': lambda: c2f_conv_gradients('fine'),
    'SoftThreshold': lambda: (SoftThreshold(0.4), [draw(3, 4)]),
    'BPRLoss': lambda: (
        lambda pos, neg, ego: BPRLoss(0.1)(pos, neg, ego, count),
        [draw(4), draw(4), draw(3, 2)],
    ),
    'SampledSoftmaxLoss': softmax_gradients,
    'WholeDataLoss': lambda: whole_gradients(False),
    'WholeDataLoss-weighted': lambda: whole_gradients(True),
    'sampled_dot': lambda: (
        lambda a, b: sampled_dot(pairs, a, b),
        [draw(U, 3), draw(V, 3)],
    ),
    'fused_ego': ego_gradients,
    'fused_propagation-coarse': lambda: propagation_gradients('coarse'),
    'fused_propagation-fine': lambda: propagation_gradients('fine'),
    'histories': history_gradients,
    'C2F-coarse': lambda: of_parameters(make_c2f('coarse'), (IDS, ITEMS)),
}
# torch.nn.EmbeddingBag, which mixes anchors, has no second derivative.
ONCE = {
    'C2F-fine': lambda: of_parameters(make_c2f('fine'), (IDS, ITEMS)),
    'MetaEmbedding': lambda: of_parameters(*CASES['MetaEmbedding']()),
    'LinearC2F': lambda: of_parameters(
        make_linear('fine', diffusion=0.4), (IDS, ITEMS)
    ),
}


@pytest.mark.parametrize('name', [*TWICE, *ONCE])
def test_gradient(name):
    run, tables = (TWICE | ONCE)[name]()
    assert gradcheck(run, [x.requires_grad_() for x in tables])


@pytest.mark.parametrize('name', TWICE)
def test_second_derivative(name):
    run, tables = TWICE[name]()
    assert gradgradcheck(run, [x.requires_grad_() for x in tables])


@pytest.mark.parametrize('name', ONCE)
def test_no_second_derivative(name):
    run, tables = ONCE[name]()
    with pytest.raises(NotImplementedError, match='_embedding_bag_backward'):
        gradgradcheck(run, [x.requires_grad_() for x in tables])


def test_second_derivative_in_blocks_of_columns(monkeypatch):
    run, _ = propagation_gradients('fine')
    x, pull = draw(U + V + 4 + 3, 128).requires_grad_(), draw(U + V + 4 + 3, 128)
    found = []
    for bytes_ in (fused.CACHE_BYTES, 1):
        monkeypatch.setattr(fused, 'CACHE_BYTES', bytes_)
        (grad,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad((grad * pull).sum(), x)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('layout', [torch.sparse_csr, torch.sparse_coo])
def test_gradient_of_the_weights_inside_a_sparse_matrix(layout):
    x_dict, edges, weights = hetero('fine')

    def inside(rel, weight):
        size = (len(x_dict[rel[2]]), len(x_dict[rel[0]]))
        adj_t = to_torch_csr_tensor(edges[rel].flip(0), weight, size=size)
        return adj_t if layout == torch.sparse_csr else adj_t.to_sparse_coo()

    found = []
    for is_inside in (False, True):
        leaves = {rel: w.clone().requires_grad_() for rel, w in weights.items()}
        if is_inside:
            adjs = {rel: inside(rel, weight) for rel, weight in leaves.items()}
            out = C2FConv()(x_dict, adjs)
        else:
            out = C2FConv()(x_dict, edges, leaves)
        loss = sum(x.square().sum() for x in out.values())
        found.append(torch.autograd.grad(loss, list(leaves.values())))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_degrees_are_part_of_the_gradient():
    # As in gcn_norm of PyG; a row without edges has the gradient zero, not NaN.
    edges = {('a', 'to', 'b'): EDGES, ('b', 'to', 'a'): EDGES.flip(0)}

    def run(*weights):
        norm = joint_norm(
            edges, dict(zip(edges, weights, strict=True)), {'a': U + 1, 'b': V + 1}
        )
        return tuple(norm.values())

    assert gradcheck(run, [positive(8).requires_grad_() for _ in edges])
