r"""Kills and resumes runs: do they end with the same bits?

    python benchmarks/kill.py --points 50

Each run is a process of its own that gets SIGKILL, at a random time (a while after a
random evaluation) or at a random write of a file (half written, before it takes its
name, just after), and is then continued with ``--resume``; half of the continued runs
are killed once more. In the end all files are compared with those of a run that was
never killed: models byte for byte, figures and history but for their seconds. Of every
other run the newer of the two states on disk is also cut short, so that it continues
from the older one.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import (
    ROOT,
    header,
    header_text,
    make_parser,
    markdown_table,
    result_path,
    stamp,
    write_result,
)
from tqdm import tqdm

from pyg_c2f import files
from pyg_c2f.recipes.resume import resume_files

# Eight epochs of each stage; phase 2 begins after four or so.
SETTINGS = {
    'max_epochs': 8,
    'eval_every': 1,
    'patience': 2,
    'lr_coarse': 0.1,
    'lr_fine': 0.1,
}
# Such a run has at least so many evaluations, and writes of tensors or of any file.
EVALUATIONS = 16
WRITES = {'half written': 24, 'before the rename': 44, 'after the rename': 44}
Kill = tuple[str, float]
"""Where a run is killed: after so many evaluations and a part, or at the n-th write."""


def die() -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_write(kind: str, number: int) -> None:
    """Has this process die at its n-th write of a whole file."""
    left = [number]
    write, sync = Path.write_bytes, files._sync

    def half(path: Path, content: bytes) -> int:
        if path.suffix == '.part':
            left[0] -= 1
            if not left[0]:
                write(path, content[: len(content) // 2])
                die()
        return write(path, content)

    def at_sync(path: Path, flags: int) -> None:
        is_part = path.suffix == '.part'
        if is_part == (kind == 'before the rename'):
            left[0] -= 1
            if not left[0]:
                die()
        sync(path, flags)

    if kind == 'half written':
        Path.write_bytes = half  # type: ignore[method-assign, assignment]
    else:
        files._sync = at_sync


def work(call: list[str], kill: Kill | None, log: Path) -> None:
    """The process of a run."""
    sys.path.append(str(ROOT))  # run.py is not installed.
    import run

    with log.open('a') as file, contextlib.redirect_stdout(file):
        sys.stderr = file
        if kill is not None and kill[0] in WRITES:
            kill_at_write(kill[0], int(kill[1]))
        status = run.main(call)
        file.flush()
        os._exit(status)


def start(
    call: list[str], kill: Kill | None, log: Path, out: Path, pause: float = 0.0
) -> int:
    """Runs a call in a fork of this process; negative where it was killed.

    ``out`` is where it writes, ``pause`` the seconds between two evaluations.
    """
    process = multiprocessing.get_context('fork').Process(
        target=work, args=(call, kill, log)
    )
    process.start()
    if kill is not None and kill[0] == 'time':
        evaluations = int(kill[1])
        while process.is_alive() and num_evaluations(out) < evaluations:
            time.sleep(0.01)
        process.join((kill[1] - evaluations) * pause)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def num_evaluations(out: Path) -> int:
    """The lines of the history of a run."""
    path = out / 'history.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


def content(out: Path) -> dict[str, Any]:
    """What a run has left, but for what clocks say."""

    def timeless(value: Any) -> Any:
        return {k: v for k, v in value.items() if k != 'seconds'}

    lines = (out / 'history.jsonl').read_text().splitlines()
    left: dict[str, Any] = {
        path.name: path.read_bytes() for path in out.glob('*.safetensors*')
    }
    return left | {
        'files': sorted(x.name for x in out.iterdir() if x.name != 'tensorboard'),
        'metrics.json': timeless(json.loads((out / 'metrics.json').read_text())),
        'history.jsonl': [timeless(json.loads(line)) for line in lines],
    }


def where(out: Path) -> str:
    """Where a killed run stood: the stage and phase of its last evaluation."""
    if (out / 'metrics.json').exists():
        return 'after the end'
    path = out / 'history.jsonl'
    if not path.exists():
        return 'before the first evaluation'
    last = json.loads(path.read_text().splitlines()[-1])
    return f'{last["stage"]}, phase {last["phase"]}'


def draw(rng: random.Random, number: int) -> Kill:
    """A point to kill at: three of five a time, the others a write."""
    if number % 5 in (0, 2, 4):
        return 'time', rng.uniform(0, EVALUATIONS)
    kind = rng.choice(list(WRITES))
    return kind, rng.randint(1, WRITES[kind])


def cut_newer(out: Path) -> bool:
    """Cuts the newer state of an interrupted run short, where there are two."""
    files = sorted(resume_files(out), key=lambda path: path.stat().st_mtime_ns)
    if len(files) < 2:
        return False
    data = files[-1].read_bytes()
    files[-1].write_bytes(data[: len(data) // 2])
    return True


def trial(
    out: Path,
    call: list[str],
    kills: list[Kill],
    log: Path,
    pause: float,
    damage: bool,
) -> dict[str, Any]:
    """Kills a run at each point in turn, and has it go on to its end.

    Returns:
        Dict: ``points``, each with where the run stood; ``damaged``, whether it went on
        from the state before the last.
    """
    shutil.rmtree(out, ignore_errors=True)
    points, damaged = [], False
    again = ['train', '--resume', '--quiet', '--out', str(out)]
    for number, kill in enumerate([*kills, None]):
        begun = number > 0 and (out / 'config.json').exists()
        if number > 0 and (out / 'metrics.json').exists() and not resume_files(out):
            break
        options = again if begun else [*call, '--out', str(out)]
        status = start(options, kill, log, out, pause)
        if kill is not None and status == -signal.SIGKILL:
            points.append([*kill, where(out)])
        elif status:
            raise SystemExit(f'{out}: exit status {status}, see {log}')
        else:
            break
        if damage and not damaged:
            damaged = cut_newer(out)
    return {'points': points, 'damaged': damaged}


def settings() -> list[str]:
    """The options of :data:`SETTINGS`."""
    return ['--set', *(f'{key}={value}' for key, value in SETTINGS.items())]


def compare(
    folder: Path, call: list[str], num_points: int, seed: int, progress: bool = True
) -> dict[str, Any]:
    """Kills at so many points; what was found.

    Returns:
        Dict: ``seconds`` of the run that was not killed, ``trials``, and ``different``,
        the trials that did not end as it did and in which files.
    """
    rng, log = random.Random(seed), folder / 'log.txt'
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / 'whole'
    shutil.rmtree(whole, ignore_errors=True)
    begin = time.perf_counter()
    if start([*call, '--out', str(whole)], None, log, whole):
        raise SystemExit(f'the run does not work, see {log}')
    seconds = time.perf_counter() - begin
    expected, pause = content(whole), seconds / (EVALUATIONS + 2)
    trials: list[dict[str, Any]] = []
    different = []
    bar = tqdm(total=num_points, desc='points', disable=not progress)
    while sum(len(x['points']) for x in trials) < num_points:
        number = len(trials)
        kills = [draw(rng, number)]
        if number % 2:  # A while after it has gone on.
            kills.append(('time', rng.uniform(0, EVALUATIONS)))
        out = folder / 'killed'
        trials.append(trial(out, call, kills, log, pause, damage=number % 2 == 0))
        bar.update(len(trials[-1]['points']))
        found = content(out)
        wrong = sorted(x for x in expected | found if expected.get(x) != found.get(x))
        if wrong:
            different.append([number, wrong])
            shutil.copytree(out, folder / f'different-{number}', dirs_exist_ok=True)
    return {'seconds': seconds, 'trials': trials, 'different': different}


def main(argv: list[str]) -> None:
    """Kills, compares, writes the table."""
    parser = make_parser(__doc__)
    parser.add_argument('--points', type=int, default=50, metavar='N')
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--work', type=Path, default=Path('runs/kill'), metavar='DIR')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # A fork cannot take over a pool of threads.
    call = ['train', '--recipe', 'paper', '--protocol', 'c2f', '--quiet', *settings()]
    found = compare(args.work, call, args.points, args.seed)
    result = header('kill', args, argv) | stamp() | found
    result['dataset'] = 'synthetic'
    points = [point for x in found['trials'] for point in x['points']]
    kinds, stages = Counter(x[0] for x in points), Counter(x[2] for x in points)
    rows = [
        (f'killed {"at a random time" if kind == "time" else kind}', times)
        for kind, times in kinds.items()
    ]
    rows += [(f'killed in: {stage}', times) for stage, times in sorted(stages.items())]
    rows += [
        (
            'continued from the state before the last, which was cut short',
            sum(x['damaged'] for x in found['trials']),
        ),
        ('points, all together', len(points)),
        ('runs', len(found['trials'])),
        ('runs that ended otherwise', len(found['different'])),
    ]
    table = markdown_table(['what', 'times'], [(what, str(n)) for what, n in rows])
    text = f'# Killed and continued\n\n{header_text(result, [result])}\n{table}'
    write_result(result_path(args, 'kill'), result, text)


if __name__ == '__main__':
    main(sys.argv[1:])
