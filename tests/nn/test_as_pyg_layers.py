"""Layers, losses and models where those of PyG and torch are used."""

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch_geometric import EdgeIndex
from torch_geometric.nn import summary
from torch_geometric.testing import assert_module
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
    sampled_dot,
)
from pyg_c2f.nn.fused import fused_ego, fused_propagation
from pyg_c2f.nn.linear import _Histories

U, V, D = 5, 7, 4
EDGES = torch.tensor([[0, 3, 0, 1, 2, 4, 3, 1], [0, 1, 2, 4, 5, 6, 0, 2]])  # U to V
SQUARE = torch.tensor([[0, 3, 1, 2, 4, 3, 1], [1, 0, 4, 0, 3, 4, 2]])
PAIRS = build_pairs(EDGES, U, V)
IDS, ITEMS = torch.tensor([3, 0, 4]), torch.tensor([6, 0, 5])


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


def make_c2f(stage):
    model = C2F(EDGES, U, V, 4, 3, D, num_layers=2, fine_per_coarse=2, threshold=0.3)
    model.set_stage(stage)
    return model


def make_linear(**kwargs):
    model = LinearC2F(EDGES, U, V, 4, 3, D, 2, 1, threshold=0.3, **kwargs)
    model.set_stage('fine')
    return model


def hetero(stage):
    """Features, edges and weights of every relation."""
    data = make_c2f(stage).to_hetero_data()
    x_dict = {key: torch.randn(num, D) for key, num in data.num_nodes_dict.items()}
    return x_dict, data.edge_index_dict, data.edge_weight_dict


def pair_features():
    return torch.randn(U, D), torch.randn(V, D)


# Functions that make a module and its input. The output is a tensor or a dict of them.
CASES = {
    'AnchorConv': lambda: (
        AnchorConv(),
        ((torch.randn(U, D), None), EDGES, torch.rand(8), (U, V)),
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
    'WholeDataLoss': lambda: (
        WholeDataLoss(0.3, 0.2, 0.7),
        (*pair_features(), PAIRS, torch.randn(V)),
    ),
    'C2F-coarse': lambda: (make_c2f('coarse'), (IDS, ITEMS)),
    'C2F-fine': lambda: (make_c2f('fine'), (IDS, ITEMS)),
    'LinearC2F': lambda: (make_linear(), (IDS, ITEMS)),
}
every_case = pytest.mark.parametrize('case', CASES)
with_tables = pytest.mark.parametrize(
    'case', [name for name in CASES if name.startswith(('Meta', 'C2F-', 'Linear'))]
)


def parts(out):
    return list(out.values()) if isinstance(out, dict) else [out]


def cast(args, dtype):
    """The arguments with all floating-point tensors in another precision."""
    if isinstance(args, torch.Tensor):
        return args.to(dtype) if args.is_floating_point() else args
    if isinstance(args, dict):
        return {key: cast(value, dtype) for key, value in args.items()}
    if isinstance(args, tuple) and not hasattr(args, '_fields'):
        return tuple(cast(value, dtype) for value in args)
    return args


# Message passing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ('given', 'weighted', 'aggr'),
    [
        ('square', False, 'mean'),
        ('square', True, 'add'),
        ('both', False, 'add'),
        ('both', True, 'max'),
        ('none', False, 'max'),
        ('none_and_size', False, 'add'),
        ('none_and_size', True, 'mean'),
    ],
)
def test_assert_module(given, weighted, aggr):
    x, edge_index, kwargs = torch.randn(U, D), SQUARE, {}
    if given != 'square':
        x, edge_index = (x, torch.randn(V, D) if given == 'both' else None), EDGES
    if weighted:
        kwargs['edge_weight'] = torch.rand(edge_index.size(1))
    if given == 'none_and_size':
        kwargs['size'] = (U, V)
    if given == 'none':
        # As everywhere in PyG, without a size there are as many targets as sources.
        edge_index = EDGES.clamp(max=U - 1)
    assert_module(
        AnchorConv(aggr=aggr),
        x,
        edge_index,
        expected_size=(U if given in ('square', 'none') else V, D),
        test_sparse_layouts=[] if weighted or given == 'none' else None,
        **kwargs,
    )


def test_flow_of_a_bipartite_graph():
    conv = AnchorConv(flow='target_to_source')
    with pytest.raises(ValueError, match="'AnchorConv' sends from source to target"):
        conv(pair_features(), EDGES)
    with pytest.raises(ValueError, match="'C2FConv' sends from source to target"):
        C2FConv(flow='target_to_source')(*hetero('fine'))
    # PyG itself refuses a sparse matrix here; the caller transposes it instead.
    with pytest.raises(ValueError, match='invalid for message propagation'):
        conv(torch.randn(U, D), to_torch_csr_tensor(SQUARE, size=(U, U)))


# State, copies, precision -----------------------------------------------------------


@with_tables
def test_state_loads_into_a_fresh_module(case):
    module, args = CASES[case]()
    expected = module(*args)
    for assign in (False, True):
        fresh, _ = CASES[case]()
        if hasattr(fresh, 'set_stage'):
            fresh.set_stage('coarse')
        assert not fresh(*args).equal(expected)
        fresh.load_state_dict(module.state_dict(), strict=True, assign=assign)
        assert fresh(*args).equal(expected)
        for ours, theirs in zip(fresh.parameters(), module.parameters(), strict=True):
            assert ours.requires_grad == theirs.requires_grad


@with_tables
def test_modules_can_be_made_on_the_meta_device(case):
    module, args = CASES[case]()
    with torch.device('meta'):
        empty, _ = CASES[case]()
    assert all(p.is_meta for p in empty.parameters())
    empty = empty.to_empty(device='cpu')
    empty.load_state_dict(module.state_dict())
    assert empty(*args).equal(module(*args))
    assert all(p.is_meta for p in module.to('meta').parameters())


@every_case
def test_copies(case):
    module, args = CASES[case]()
    expected = parts(module(*args))  # A model has built its graph now.

    def assert_as_before(other):
        for ours, theirs in zip(parts(other(*args)), expected, strict=True):
            assert ours.equal(theirs)

    for make in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        twin = make(module)
        assert str(twin) == str(module)
        assert_as_before(twin)
        with torch.no_grad():
            for table in (*twin.parameters(), *twin.buffers()):
                table.zero_()
        assert_as_before(module)
        twin.load_state_dict(module.state_dict())
        assert_as_before(twin)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.double, 1e-5), (torch.half, 5e-3), (torch.bfloat16, 5e-2)],
)
@every_case
def test_precisions(case, dtype, tolerance):
    module, args = CASES[case]()
    expected = parts(module(*args))
    out = parts(module.to(dtype)(*cast(args, dtype)))
    # The whole-data loss is computed in single precision at least.
    wide = case == 'WholeDataLoss' and dtype != torch.double
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.dtype == (torch.float if wide else dtype)
        torch.testing.assert_close(ours.float(), theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_large_degrees_in_low_precision(dtype):
    # Neither bfloat16 nor float16 can count this far in steps of one.
    edge_index = torch.stack([torch.arange(3000), torch.zeros(3000).long()])
    model = LinearC2F(edge_index, 3000, 2, 2, 2, D, 1, 1)
    deg = model.to(dtype).item_degree().float()
    torch.testing.assert_close(deg, torch.tensor([3e3, 1]), rtol=0.01, atol=0)


@with_tables
def test_reset_parameters(case):
    module, _ = CASES[case]()
    before = copy.deepcopy(module.state_dict())
    if case == 'LinearC2F':
        torch.nn.init.ones_(module.bias)
    module.reset_parameters()
    for key, table in module.state_dict().items():
        if key.endswith(('codebook', 'index')) and key != 'edge_index':
            assert not table.equal(before[key])
    assert getattr(module, 'stage', 'coarse') == 'coarse'
    assert case != 'LinearC2F' or not module.bias.any()


@pytest.mark.parametrize('case', ['C2FConv-fine', 'WholeDataLoss', 'LinearC2F'])
def test_summary(case):
    pytest.importorskip('tabulate')
    module, args = CASES[case]()
    text = summary(module, *args)
    assert type(module).__name__ in text
    count = sum(p.numel() for p in module.parameters())
    assert f'{count:,}' in text or not count


@pytest.mark.parametrize('low', [False, True], ids=['single', 'bfloat16'])
@every_case
def test_autocast(case, low):
    module, args = CASES[case]()
    expected = parts(module(*args))
    args = cast(args, torch.bfloat16) if low else args
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = parts(module(*args))
    for ours, theirs in zip(out, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.05, rtol=0.05)
    # The backward pass runs outside of autocast.
    if any(x.requires_grad for x in out):
        sum(x.float().cos().sum() for x in out).backward()
        found = [p.grad for p in module.parameters() if p.grad is not None]
        assert found and all(grad.isfinite().all() for grad in found)


# Gradients --------------------------------------------------------------------------


def draw(*size):
    return torch.randn(*size, dtype=torch.double)


def positive(*size):
    return torch.rand(*size, dtype=torch.double) + 0.1


def of_parameters(module, args):
    """A function of the trained parameters, and their values."""
    module = module.double()
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    values = [module.get_parameter(name).detach().clone() for name in names]

    def run(*tables):
        return functional_call(module, dict(zip(names, tables, strict=True)), args)

    return run, values


def conv_gradients(form):
    x, weight = draw(U, D), positive(8)
    if form == 'edge_index':
        index = EDGES[:, EDGES[1].argsort(stable=True)]
        adj = EdgeIndex(index, sort_order='col', sparse_size=(U, V))
        return lambda x, w: AnchorConv()((x, None), adj, w), [x, weight]
    if form == 'csr':
        adj = to_torch_csr_tensor(EDGES.flip(0), weight, size=(V, U))
        return lambda x: AnchorConv()((x, None), adj), [x]
    return lambda x, w: AnchorConv()((x, None), EDGES, w, (U, V)), [x, weight]


def c2f_conv_gradients():
    """With respect to all features and weights, also through the degrees."""
    x_dict, edges, weights = hetero('fine')

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
    model = make_linear().double()
    both = model.by_user(), model.by_item()
    return lambda item: _Histories.apply(item, *both), [draw(V, 3)]


def whole_gradients():
    loss = WholeDataLoss(0.3, 0.2, 0.7)
    tables = [draw(U, 3), draw(V, 3), draw(V), draw(8), positive(U), positive(V)]
    return lambda user, item, *rest: loss(user, item, PAIRS, *rest), tables


# Functions to differentiate twice, and their arguments.
TWICE = {
    'AnchorConv': lambda: conv_gradients('tensor'),
    'AnchorConv-edge_index': lambda: conv_gradients('edge_index'),
    'AnchorConv-csr': lambda: conv_gradients('csr'),
    'C2FConv': c2f_conv_gradients,
    'WholeDataLoss': whole_gradients,
    'sampled_dot': lambda: (
        lambda a, b: sampled_dot(PAIRS, a, b),
        [draw(U, 3), draw(V, 3)],
    ),
    'fused_ego': ego_gradients,
    'fused_propagation-coarse': lambda: propagation_gradients('coarse'),
    'fused_propagation-fine': lambda: propagation_gradients('fine'),
    'histories': history_gradients,
}
# torch.nn.EmbeddingBag, which mixes the anchors, has no second derivative.
ONCE = {
    'MetaEmbedding': lambda: of_parameters(*CASES['MetaEmbedding']()),
    'LinearC2F': lambda: of_parameters(make_linear(diffusion=0.4), (IDS, ITEMS)),
}


@pytest.mark.parametrize('name', [*TWICE, *ONCE])
def test_derivatives(name):
    run, tables = (TWICE | ONCE)[name]()
    tables = [x.requires_grad_() for x in tables]
    assert gradcheck(run, tables)
    if name in TWICE:
        assert gradgradcheck(run, tables, fast_mode=True)
    else:
        with pytest.raises(NotImplementedError, match='_embedding_bag_backward'):
            gradgradcheck(run, tables)


def test_gradient_of_the_weights_inside_a_sparse_matrix():
    x_dict, edges, weights = hetero('fine')
    leaves = {rel: weight.clone().requires_grad_() for rel, weight in weights.items()}
    csr = {}
    for rel, weight in leaves.items():
        size = (len(x_dict[rel[2]]), len(x_dict[rel[0]]))
        csr[rel] = to_torch_csr_tensor(edges[rel].flip(0), weight, size=size)
    coo = {rel: adj_t.to_sparse_coo() for rel, adj_t in csr.items()}
    found = []
    for graph in ((edges, leaves), (csr,), (coo,)):
        out = C2FConv()(x_dict, *graph).values()
        loss = sum(x.square().sum() for x in out)
        found.append(
            torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        )
    for ours in found[1:]:
        torch.testing.assert_close(ours, found[0], atol=1e-5, rtol=1e-4)


def test_gradient_through_the_degrees():
    # As in PyG's gcn_norm. The gradient of a row without edges is zero, not NaN.
    edges = {('a', 'to', 'b'): EDGES, ('b', 'to', 'a'): EDGES.flip(0)}

    def run(*weights):
        given = dict(zip(edges, weights, strict=True))
        return tuple(joint_norm(edges, given, {'a': U + 1, 'b': V + 1}).values())

    assert gradcheck(run, [positive(8).requires_grad_() for _ in edges])
