r"""One seed in several environments: how far apart are the answers?

    python benchmarks/same_answer.py

trains both recipes on the embedded data set and adds what this environment gives
(versions, threads, device, torch-sparse) to the results; call it once in each. The
table compares each with the first one: whether the files of the models are the same
byte for byte, and the largest difference of any figure on validation and test items.
"""

import contextlib
import hashlib
import io
import json
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch_geometric
from common import (
    ROOT,
    figures_of,
    header,
    header_text,
    make_parser,
    markdown_table,
    read_result,
    result_path,
    stamp,
    write_result,
)
from torch_geometric.typing import WITH_TORCH_SCATTER, WITH_TORCH_SPARSE

CALLS = {
    'fast': ['--recipe', 'fast'],
    'paper': [
        '--recipe',
        'paper',
        '--set',
        'max_epochs=4',
        'patience=1',
        'eval_every=2',
    ],
}


def environment(device: str) -> str:
    """This environment in a line."""
    extensions = WITH_TORCH_SCATTER and WITH_TORCH_SPARSE
    return (
        f'Python {platform.python_version()}, torch {torch.__version__}, PyG '
        f'{torch_geometric.__version__}{", torch-scatter, torch-sparse" * extensions}, '
        f'{device}, threads {torch.get_num_threads()}'
    )


def answer(call: list[str], device: str) -> dict[str, Any]:
    """The figures of a run, and the checksums of its models."""
    sys.path.append(str(ROOT))  # run.py is not installed.
    import run

    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder)
        options = ['--device', device, '--quiet', '--out', folder]
        if run.main(['train', *call, *options]):
            raise SystemExit('the run failed')
        metrics = json.loads((out / 'metrics.json').read_text())
        models = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.glob('*.safetensors'))
        }
    return {'figures': figures_of(metrics), 'models': models}


def row(name: str, ours: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """A row of the table."""
    apart = max(abs(ours['figures'][x] - y) for x, y in first['figures'].items())
    same = ours['models'] == first['models']
    return [name, 'the same bytes' if same else 'other bytes', f'{apart:.1e}']


def main(argv: list[str]) -> None:
    """Trains, compares, writes the table."""
    parser = make_parser(__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    args = parser.parse_args(argv)
    path = result_path(args, 'same_answer')
    result = read_result(path, ['answers']) | header('same_answer', args, [])
    result['dataset'] = 'synthetic'
    result['answers'][environment(args.device)] = stamp() | {
        name: answer(call, args.device) for name, call in CALLS.items()
    }
    parts = ['# The same answer\n', header_text(result, result['answers'].values())]
    first, *_ = result['answers'].values()
    for name in CALLS:
        rows = (row(x, y[name], first[name]) for x, y in result['answers'].items())
        heads = ['environment', 'models', 'largest difference of a figure']
        parts += [f'\n## Recipe {name}\n', markdown_table(heads, rows)]
    write_result(path, result, '\n'.join(parts))


if __name__ == '__main__':
    main(sys.argv[1:])
