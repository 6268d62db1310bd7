"""Layers and models through torch.compile and torch.export."""

import copy
import shutil

import pytest
import torch
from torch_geometric.utils import to_torch_csr_tensor

from pyg_c2f.nn import AnchorConv, MetaEmbedding
from tests.nn.test_as_pyg_layers import (
    CASES,
    IDS,
    ITEMS,
    SQUARE,
    D,
    U,
    make_linear,
    parts,
)

# torch.compile and torch.export do not trace sparse tensors.
traced_case = pytest.mark.parametrize(
    'case', [name for name in CASES if name != 'WholeDataLoss']
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


# The compiler does not trace WholeDataLoss as a whole.
every_case = pytest.mark.parametrize('case', [x for x in CASES if x != 'WholeDataLoss'])
# The tracer of older ones fails on a LinearC2F that has still to build its graph.
BUILDS_FIRST = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 13)


def outcome(module, run, args):
    """What a module gives, and the gradients of its parameters and features."""
    args = tuple(
        arg.clone().requires_grad_()
        if isinstance(arg, torch.Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    )
    out = parts(run(*args))
    leaves = [
        p for p in (*module.parameters(), *args) if getattr(p, 'requires_grad', 0)
    ]
    if not leaves:
        return out, []
    loss = sum((x.cos() * torch.arange(x.numel()).view(x.shape)).sum() for x in out)
    return out, torch.autograd.grad(loss, leaves, allow_unused=True)


@traced_case
def test_compiles_without_graph_breaks(case):
    torch._dynamo.reset()
    module, args = CASES[case]()
    # A twin of its own: a model builds its graph once, and here while being traced.
    twin = copy.deepcopy(module)
    if BUILDS_FIRST:
        twin(*args)
    compiled = torch.compile(twin, backend='aot_eager', fullgraph=True)
    out, grads = outcome(twin, compiled, args)
    torch.testing.assert_close((out, grads), outcome(module, module, args))


@pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler')
def test_compiles_to_machine_code():
    torch._dynamo.reset()
    table, conv = MetaEmbedding(U, 4, D), AnchorConv()

    @torch.no_grad()
    def run(edge_index, weight):
        return conv(table(), edge_index, weight).tanh()

    compiled = torch.compile(run, fullgraph=True)
    for num_edges in (7, 5):  # The second size of edges, and any number of them.
        args = SQUARE[:, :num_edges], torch.rand(num_edges)
        torch.testing.assert_close(compiled(*args), run(*args))


@pytest.mark.parametrize(
    'make',
    [
        CASES['WholeDataLoss'],
        lambda: (make_linear(diffusion=0.4), (IDS, ITEMS)),
        lambda: (
            AnchorConv(),
            (
                torch.randn(U, D),
                to_torch_csr_tensor(SQUARE, torch.rand(7), size=(U, U)),
            ),
        ),
    ],
    ids=['WholeDataLoss', 'LinearC2F-diffusion', 'AnchorConv-csr'],
)
def test_compiles_around_what_cannot_be_traced(make):
    # Sparse tensors, and sizes that depend on numbers.
    torch._dynamo.reset()
    module, args = make()
    if BUILDS_FIRST:
        module(*args)
    compiled = torch.compile(module, backend='aot_eager')
    torch.testing.assert_close(
        outcome(module, compiled, args), outcome(module, module, args)
    )


@traced_case
def test_exports(case):
    module, args = CASES[case]()
    exported = torch.export.export(module, args).module()
    torch.testing.assert_close(exported(*args), module(*args))


def test_exports_any_number_of_ids_and_edges():
    some = torch.export.Dim.DYNAMIC
    table = MetaEmbedding(9, 5, D)
    shapes = ({0: some, 1: some},)
    exported = torch.export.export(
        table, (torch.ones(2, 3).long(),), None, **{'dynamic_shapes': shapes}
    )
    ids = torch.randint(9, (4, 5))
    torch.testing.assert_close(exported.module()(ids), table(ids))

    conv, args = AnchorConv(), (torch.randn(U, D), SQUARE, torch.rand(7))
    shapes = ({0: some}, {1: some}, {0: some})
    exported = torch.export.export(conv, args, dynamic_shapes=shapes).module()
    args = torch.randn(9, D), torch.randint(9, (2, 20)), torch.rand(20)
    torch.testing.assert_close(exported(*args), conv(*args))
