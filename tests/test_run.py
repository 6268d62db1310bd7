"""The command line: what it writes, prints and refuses."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pyg_c2f
import run
from pyg_c2f import experiment
from pyg_c2f.checkpoint import model_bytes, write_tensors
from pyg_c2f.cli import recommend
from pyg_c2f.cli.options import make_parser
from pyg_c2f.cli.train import call_of, is_begun
from pyg_c2f.datasets import get_dataset
from pyg_c2f.finite import NotFiniteError
from pyg_c2f.recipes import PaperRecipe
from pyg_c2f.recipes.paper import C2FTrainer
from pyg_c2f.recipes.resume import RESUME_FILES, delete_resume, resume_files
from pyg_c2f.typing import KS, RATES, USER
from tests.tiny import FAST, SETTINGS, data_options, settings

PROGRAM = [sys.executable, str(Path(run.__file__).resolve())]
MEASURES = {f'{name}@{k}' for name in ('recall', 'ndcg') for k in KS}


@pytest.fixture
def train(root):
    """Trains a tiny model, and returns the exit status."""

    def call(*args, dataset='text', **changes):
        data = data_options(root, dataset)
        return run.main(['train', *data, *settings(**changes), *map(str, args)])

    return call


@pytest.fixture
def copied(text_run, tmp_path):
    """A copy of the complete run, to be damaged."""
    out = tmp_path / 'copied'
    out.mkdir()
    for path in text_run.iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    return out


@pytest.fixture
def refused(capsys):
    """Makes a call that must fail, and returns its one line."""

    def call(*args):
        capsys.readouterr()
        assert run.main([*map(str, args)]) == 2
        out, err = capsys.readouterr()
        assert out == ''
        assert err.startswith('error: ') and err.count('\n') == 1 and err[-1] == '\n'
        assert 'Traceback' not in err
        return err

    return call


def metrics_of(out):
    return json.loads((out / 'metrics.json').read_text())


def comparable(out):
    metrics = metrics_of(out)
    del metrics['seconds']
    return metrics


def history_of(out):
    return [json.loads(x) for x in (out / 'history.jsonl').read_text().splitlines()]


def figures(text):
    return {k: float(v) for k, v in re.findall(r'^(\w+@\d+) +(\S+)$', text, re.M)}


def assert_nothing_new(out):
    assert not list(out.glob('*.part'))
    assert not (out / 'metrics.json').exists()
    assert not (out / 'model.safetensors').exists()


# What a run leaves -------------------------------------------------------------------


def test_files_of_a_run(text_run):
    names = {path.name for path in text_run.iterdir()} - {'tensorboard'}
    metrics = metrics_of(text_run)
    phases = {
        f'{x}-{key[-1]}.safetensors'
        for x in experiment.STAGES['both']
        for key in metrics[x]
    }
    others = 'config.json history.jsonl metrics.json model.safetensors report.html'
    assert names == phases | {*others.split()}


def test_metrics_of_a_run(text_run, root):
    metrics = metrics_of(text_run)
    data = get_dataset('text', root, 'c2f')
    expected = {'dataset': 'text', 'protocol': 'c2f', 'recipe': 'paper', 'seed': 2024}
    expected |= {'split_seed': 2024, 'num_users': 40, 'num_items': 50}
    expected |= {'num_train': data[RATES].edge_index.size(1), 'eval_users': None}
    assert metrics == metrics | expected
    for stage in ('coarse', 'fine'):
        assert set(metrics[stage]) <= {'phase1', 'phase2'}
        for result in metrics[stage].values():
            assert set(result) == {'best_epoch', 'last_epoch', 'val', 'test'}
            assert set(result['val']) == set(result['test']) == MEASURES
    last = metrics['fine'][max(metrics['fine'])]
    assert metrics['val'] == last['val'] and metrics['test'] == last['test']
    assert set(metrics['popularity']) == {'val', 'test'}
    assert metrics['bytes'] == model_bytes(pyg_c2f.load(text_run))
    seconds = metrics['seconds']
    assert set(seconds) == {'load', 'anchors', 'train', 'evaluate', 'total'}
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) <= 2 * seconds['total'] + 0.01
    assert metrics['versions']['pyg_c2f'] == pyg_c2f.__version__


def test_config_of_a_run(text_run, root):
    config = json.loads((text_run / 'config.json').read_text())
    for name, value in SETTINGS.items():
        assert config['settings'][name] == value
    assert config['settings']['gate'] == 0.2  # also what was not given
    words = shlex.split(config['call'])
    assert words[:3] == ['python', 'run.py', 'train'] and str(text_run) in words
    assert config['call'] in (text_run / 'report.html').read_text().replace(
        '&#x27;', "'"
    )


def test_seeds_count(text_run, train, tmp_path):
    assert train('--out', tmp_path / 'a', '--seed', 1, '--stage', 'coarse') == 0
    assert train('--out', tmp_path / 'b', '--split-seed', 1, '--stage', 'coarse') == 0
    ours, theirs = comparable(text_run), comparable(tmp_path / 'a')
    assert ours['popularity'] == theirs['popularity']  # the same split
    assert ours['coarse'] != theirs['coarse']
    assert ours['popularity'] != comparable(tmp_path / 'b')['popularity']


def test_without_a_command_it_trains(monkeypatch):
    calls = []
    monkeypatch.setattr('pyg_c2f.cli.train.run', lambda args: calls.append(args) or 0)
    for argv in ([], None, ['--seed', '3'], ['train', '--seed', '3']):
        assert run.main(argv) == 0
    assert [args.seed for args in calls] == [2024, 2024, 3, 3]
    assert {args.dataset for args in calls} == {'synthetic'}


def test_settings_may_be_repeated_and_the_folder_omitted(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ['--set', 'gate=0.3', 'threshold=0.5', '--set', 'clip=1']
    assert train(*more, '--stage', 'coarse', max_epochs=1) == 0
    config = json.loads((tmp_path / 'runs/text-paper/config.json').read_text())
    given = {'gate': 0.3, 'threshold': 0.5, 'clip': 1}
    assert config['settings'] == config['settings'] | given


def test_embedded_data_set(tmp_path):
    """The bare call, as a user types it."""
    done = subprocess.run(
        PROGRAM,
        cwd=tmp_path,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'runs/synthetic-fast'
    metrics = metrics_of(out)
    assert (metrics['num_users'], metrics['num_items']) == (2000, 3000)
    for shown in (
        f'{metrics["test"]["ndcg@5"]:.4f}',
        f'{metrics["bytes"]["scalars"]:,}',
    ):
        assert shown in done.stdout
    assert done.stdout.endswith(f'report: {out.relative_to(tmp_path)}/report.html\n')
    # Standard error holds a line for the basis and one for each evaluation: no bars, no
    # warnings.
    assert len(done.stderr.splitlines()) == 1 + len(history_of(out)) == 3
    assert [x.name for x in tmp_path.iterdir()] == ['runs']


# Protocols and stages ----------------------------------------------------------------


BOTH = pytest.mark.parametrize('options', [settings(), FAST], ids=['paper', 'fast'])


@BOTH
def test_two_commands_are_one(options, root, tmp_path):
    call = ['train', *data_options(root, 'text'), *options, '--out']
    whole, a, b = (str(tmp_path / x) for x in ('whole', 'a', 'b'))
    assert run.main([*call, whole]) == 0
    assert run.main([*call, a, '--stage', 'coarse']) == 0
    fine = ['--stage', 'fine', '--init']
    assert run.main([*call, b, *fine, a]) == 0
    both, coarse, fine_only = (comparable(Path(x)) for x in (whole, a, b))
    assert 'fine' not in coarse and 'coarse' not in fine_only
    assert coarse['coarse'] == both['coarse'] and fine_only['fine'] == both['fine']
    assert fine_only['test'] == both['test'] and fine_only['bytes'] == both['bytes']
    # A complete run of both stages is a start as well.
    assert run.main([*call, str(tmp_path / 'c'), *fine, whole]) == 0
    assert comparable(tmp_path / 'c') == fine_only


@BOTH
def test_protocol_standard_and_refit(options, root, tmp_path, capsys, monkeypatch):
    call = ['train', *data_options(root, 'text'), *options, '--protocol', 'standard']
    plain, out, stopped = (tmp_path / x for x in ('plain', 'refit', 'stopped'))
    assert run.main([*call, '--out', str(plain)]) == 0
    assert run.main([*call, '--refit', '--out', str(out)]) == 0
    ours, theirs = metrics_of(out), metrics_of(plain)
    assert ours['fine'] == theirs['fine'] and ours['val'] == theirs['val']
    assert ours['test'] != theirs['test'] and ours['protocol'] == 'standard'
    data = get_dataset('text', root, 'standard')[RATES]
    num_train = data.edge_index.size(1)
    assert ours['num_train'] == num_train
    num_refit = num_train + data.val_edge_label_index.size(1)
    assert pyg_c2f.load(out).edge_index.size(1) == num_refit
    capsys.readouterr()
    assert run.main(['evaluate', '--checkpoint', str(out)]) == 0
    assert figures(capsys.readouterr().out) == pytest.approx(ours['test'], abs=5e-5)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Experiment, 'refit', stop)
        assert run.main([*call, '--refit', '--out', str(stopped)]) == 130
    assert resume(stopped) == 0
    assert comparable(stopped) == comparable(out)


# Using what was trained --------------------------------------------------------------


@pytest.mark.parametrize('split', ['val', 'test'])
def test_evaluate(split, text_run, capsys):
    call = ['evaluate', '--checkpoint', str(text_run), '--split', split]
    assert run.main(call) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f'text, protocol c2f, {split} items\n') and err == ''
    assert figures(out) == {
        name: float(f'{value:.4f}')
        for name, value in metrics_of(text_run)[split].items()
    }


def rows_of(text):
    """User -> rows of rank, item, score and title."""
    lists = {}
    for line in text.splitlines():
        if line.startswith('for '):
            rows = lists.setdefault(line[4:-1], [])
        else:
            rows.append(line.split(maxsplit=3))
    return lists


@pytest.mark.parametrize('name', ['text', 'table'])
def test_recommend(name, text_run, table_run, capsys):
    out, users = {'text': (text_run, ['7', '0']), 'table': (table_run, ['u07'])}[name]
    lists = recommended(capsys, '--checkpoint', out, '--user', *users, '-k', 50)
    model = pyg_c2f.load(out)
    items, scores = model.recommend(model.numbers(users, USER), 50)
    ids = model.vocabulary.item_ids or [str(item) for item in range(50)]
    assert list(lists) == users
    for rows, row, values in zip(lists.values(), items, scores, strict=True):
        size = len([item for item in row.tolist() if item >= 0])
        assert 0 < size < 50
        assert [int(x[0]) for x in rows] == [*range(1, size + 1)]
        assert [x[1] for x in rows] == [ids[item] for item in row[:size].tolist()]
        shown = [float(x[2]) for x in rows]
        assert shown == pytest.approx(values[:size].tolist(), abs=1e-4)
        if name == 'table':
            titles = [f'The item {int(x[1][1:])}' for x in rows]
            assert [x[3] for x in rows] == titles


def test_recommend_for_a_history(text_run, capsys):
    call = '--checkpoint', text_run, '--history', '3, 17,5', '-k', 4
    (rows,) = recommended(capsys, *call).values()
    items, _ = pyg_c2f.load(text_run).recommend(k=4, history=[3, 17, 5])
    assert [int(row[1]) for row in rows] == items.tolist()


def recommended(capsys, *options):
    """The lists that a call prints."""
    capsys.readouterr()
    assert run.main(['recommend', *map(str, options)]) == 0
    return rows_of(capsys.readouterr().out)


def test_seen_items_and_candidates(table_run, capsys):
    call = ('--checkpoint', table_run, '-k', 50)
    history = ('--history', 'i03,i17')
    (rows,) = recommended(capsys, *call, *history).values()
    (whole,) = recommended(capsys, *call, *history, '--include-seen').values()
    assert len(rows) == 48 and len(whole) == 50
    assert [x[1:] for x in rows] == [x[1:] for x in whole if x[1] not in ('i03', 'i17')]
    few = ('--candidates', 'i17, i04,i40,i04')
    (rows,) = recommended(capsys, *call, *history, *few).values()
    assert [x[1:] for x in rows] == [x[1:] for x in whole if x[1] in ('i04', 'i40')]
    lists = recommended(capsys, *call, '--user', 'u01', 'u02', *few, '--include-seen')
    assert [len(rows) for rows in lists.values()] == [3, 3]


def test_similar(table_run, capsys):
    lists = recommended(
        capsys, '--checkpoint', table_run, '--similar', 'i03', 'i17', '-k', 50
    )
    items, scores = pyg_c2f.load(table_run).similar_items(['i03', 'i17'], 50)
    assert list(lists) == ['i03', 'i17']
    for rows, ids, values in zip(lists.values(), items, scores, strict=True):
        assert [row[1] for row in rows] == ids and len(ids) == 49
        shown = [float(row[2]) for row in rows]
        assert shown == pytest.approx(values.tolist(), abs=1e-4)
        assert rows[0][3] == f'The item {int(rows[0][1][1:])}'


def test_every_model_of_a_run_knows_the_ids(table_run, fast_run, root):
    data = get_dataset('table', root, 'c2f')
    for path in (*table_run.glob('*.safetensors'), *fast_run.glob('*.safetensors')):
        model = pyg_c2f.load(path)
        assert model.vocabulary.user_ids == list(data['user'].raw_id)
        assert model.vocabulary.item_ids == list(data['item'].raw_id)
        assert model.vocabulary.item_titles == list(data['item'].title)


# Line by line ------------------------------------------------------------------------


@pytest.fixture
def answered(monkeypatch, capsys):
    """Answers lines of JSON: the status, the answers, and standard error."""

    def call(out, lines, *options):
        content = b''.join(
            (x if isinstance(x, bytes) else json.dumps(x).encode()) + b'\n'
            for x in lines
        )
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr('sys.stdin', stdin)
        capsys.readouterr()
        argv = ['recommend', '--checkpoint', str(out), '--jsonl', *map(str, options)]
        status = run.main(argv)
        text, err = capsys.readouterr()
        return status, [json.loads(x) for x in text.splitlines()], err

    return call


def answer(model, who, k=20, **options):
    """The answer to a line, by a call of its own."""
    name = 'user' if isinstance(who, str) else 'history'
    kwargs = {'users': who} if name == 'user' else {'history': who}
    items, scores = model.recommend(k=k, **kwargs, **options)
    out = {'items': items, 'scores': pytest.approx(scores[: len(items)].tolist())}
    if model.vocabulary.item_titles is not None:
        out['titles'] = [f'The item {int(item[1:])}' for item in items]
    return out


@pytest.mark.parametrize('num_lines', [1, 2, 256])
def test_lines(table_run, answered, num_lines, monkeypatch):
    monkeypatch.setattr(recommend, 'BLOCK_LINES', num_lines)
    model = pyg_c2f.load(table_run)
    seen = {'exclude_seen': False}
    few = {'candidates': ['i40', 'i04', 'i17']}
    status, answers, err = answered(
        table_run,
        [
            {'user': 'u07'},
            {'history': ['i03', 'i17', 'i03']},
            {'user': 'u01', 'k': 3},
            {'history': ['i05'], 'k': 50},
            {'user': 'u07'} | seen,
            {'user': 'u02'} | few,
            {'history': ['i04']} | few | seen,
            {'history': ['i17']} | few,
        ],
    )
    assert status == 0 and err == ''
    assert answers == [
        answer(model, 'u07'),
        answer(model, ['i03', 'i17']),
        answer(model, 'u01', 3),
        answer(model, ['i05'], 50),
        answer(model, 'u07', **seen),
        answer(model, 'u02', **few),
        answer(model, ['i04'], **few, **seen),
        answer(model, ['i17'], **few),
    ]
    assert len(answers[3]['items']) == 49 and len(answers[7]['items']) == 2


def test_options_are_for_lines_that_do_not_say(table_run, answered):
    model = pyg_c2f.load(table_run)
    few = ['i40', 'i04', 'i17']
    lines = [
        {'history': ['i17']},
        {
            'history': ['i17'],
            'k': 3,
            'exclude_seen': True,
            'candidates': ['i01', 'i17'],
        },
    ]
    options = ['-k', 2, '--include-seen', '--candidates', ','.join(few)]
    status, answers, _ = answered(table_run, lines, *options)
    assert status == 0
    assert answers == [
        answer(model, ['i17'], 2, exclude_seen=False, candidates=few),
        answer(model, ['i17'], 3, candidates=['i01', 'i17']),
    ]


def test_lines_with_numbers_for_ids(text_run, answered):
    model = pyg_c2f.load(text_run)
    lines = [
        {'user': 7, 'k': 4},
        {'user': '7', 'k': 4},
        {'history': [3, '17'], 'candidates': [1, '2', 3]},
    ]
    status, answers, _ = answered(text_run, lines)
    assert status == 0
    assert answers == [
        *[answer(model, '7', 4)] * 2,
        answer(model, ['3', '17'], candidates=['1', '2', '3']),
    ]
    # Other ends of lines, and none at the end.
    status, others, _ = answered(
        text_run, [b'\xef\xbb\xbf{"user": 7, "k": 4}\r\n{"user": "7", "k": 4}\r']
    )
    assert status == 0 and others == answers[:2]
    assert answered(text_run, []) == (0, [], '')


WRONG_LINES = [
    (b'', 'not JSON'),
    (b'{"user": ', 'not JSON'),
    (b'\xff', 'not JSON'),
    (b'[' * 100_000, 'not JSON'),
    (b'{"user": ' + b'9' * 5000 + b'}', 'not JSON'),
    ([1], 'expected an object'),
    ({}, 'either a "user" or a "history"'),
    ({'user': 'u01', 'history': ['i01']}, 'either a "user" or a "history"'),
    ({'user': 'u01', 'K': 3}, "unknown key 'K'"),
    ({'user': 'u99'}, "unknown user 'u99': the model knows 40 users, such as u00"),
    ({'user': 1}, "unknown user '1'"),
    ({'user': 1.5}, "unknown user '1.5'"),
    ({'user': None}, 'an id is a text or a number, not None'),
    ({'user': True}, 'not True'),
    ({'user': ['u01']}, 'an id is a text'),
    ({'history': 'i01'}, '"history" is a list of item ids'),
    ({'history': []}, '"history" is a list of item ids'),
    ({'history': ['i01', ['i02']]}, 'an id is a text'),
    ({'history': ['i01', 'i99']}, "unknown item 'i99'"),
    ({'user': 'u01', 'candidates': []}, '"candidates" is a list'),
    ({'user': 'u01', 'candidates': ['x']}, "unknown item 'x'"),
    ({'user': 'u01', 'candidates': None}, '"candidates" is a list'),
    ({'user': 'u01', 'k': 0}, '"k" 0: choose a length from 1 to 50'),
    ({'user': 'u01', 'k': 51}, '"k" 51'),
    ({'user': 'u01', 'k': 2.0}, '"k" is a whole number, not 2.0'),
    ({'user': 'u01', 'k': True}, '"k" is a whole number'),
    ({'user': 'u01', 'exclude_seen': 1}, '"exclude_seen" is true or false'),
]


@pytest.mark.parametrize('block', [3, 256])
def test_wrong_lines(table_run, answered, block, monkeypatch):
    monkeypatch.setattr(recommend, 'BLOCK_LINES', block)
    right = {'user': 'u01', 'k': 2}
    lines = [x for line, _ in WRONG_LINES for x in (right, line)]
    status, answers, err = answered(table_run, [*lines, right])
    num = len(WRONG_LINES)
    assert status == 2
    assert err == f'error: {num} of {2 * num + 1} lines were answered by an error\n'
    expected = answer(pyg_c2f.load(table_run), 'u01', 2)
    assert answers[::2] == [expected] * (num + 1)
    for place, (ours, (_, says)) in enumerate(
        zip(answers[1::2], WRONG_LINES, strict=True)
    ):
        assert list(ours) == ['error'] and '\n' not in ours['error']
        assert (
            ours['error'].startswith(f'line {2 * place + 2}: ')
            and says in ours['error']
        )


def start_lines(out):
    return subprocess.Popen(
        [*PROGRAM, 'recommend', '--checkpoint', str(out), '--jsonl', '-k', '3'],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ask(process, user):
    process.stdin.write(json.dumps({'user': user}).encode() + b'\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize('options', [[], ['--include-seen', '-k', '7']])
def test_lists_of_all_users(
    options, text_run, table_run, answered, tmp_path, monkeypatch
):
    monkeypatch.setattr(recommend, 'LIST_USERS', 7)
    for folder in (text_run, table_run):
        out = tmp_path / 'lists.jsonl'
        call = ['recommend', '--checkpoint', str(folder), '--all', '--out', str(out)]
        assert run.main([*call, *options]) == 0
        assert [x.name for x in tmp_path.iterdir()] == ['lists.jsonl']
        lists = [json.loads(line) for line in out.read_text().splitlines()]
        model = pyg_c2f.load(folder)
        names = model.vocabulary.user_ids or [
            str(user) for user in range(model.num_users)
        ]
        assert [x['user'] for x in lists] == names
        asked = [{'user': name} for name in names]
        _, answers, _ = answered(folder, asked, *options)
        for line, answer in zip(lists, answers, strict=True):
            assert line['items'] == answer['items']
            assert line['scores'] == pytest.approx(answer['scores'], rel=1e-5)


def test_lists_of_all_users_go_to_a_file(text_run, tmp_path, refused):
    call = 'recommend', '--checkpoint', text_run
    for options in (['--all'], ['--user', '1', '--out', 'x']):
        assert '--all and --out FILE go together' in refused(*call, *options)
    for path in (tmp_path, tmp_path / 'no' / 'x'):
        assert 'name a file in a folder' in refused(*call, '--all', '--out', path)


def test_some_users_are_ranked_for(train, tmp_path, capsys):
    for number, name in ((3, 'some'), (10**6, 'all'), (None, 'whole')):
        option = [] if number is None else ['--eval-users', number]
        assert train('--out', tmp_path / name, *option) == 0
    every = comparable(tmp_path / 'all') | {'eval_users': None}
    assert every == comparable(tmp_path / 'whole')
    some, whole = (metrics_of(tmp_path / name) for name in ('some', 'whole'))
    assert some['test'] != whole['test']
    assert some['num_train'] == whole['num_train']
    capsys.readouterr()
    call = ['evaluate', '--checkpoint', str(tmp_path / 'some')]
    assert run.main(call) == 0
    drawn = capsys.readouterr().out
    assert 'of users drawn at random' in drawn
    assert figures(drawn) == pytest.approx(some['test'], abs=1e-4)
    assert run.main([*call, '--eval-users', '0']) == 0
    every = capsys.readouterr().out
    assert 'drawn' not in every and figures(every) != figures(drawn)


def test_lines_are_answered_until_the_reader_leaves(text_run):
    """Each as soon as it comes; and without an error once nobody reads the answers."""
    model = pyg_c2f.load(text_run)
    with start_lines(text_run) as process:
        for user in ('7', '0'):
            assert ask(process, user) == answer(model, user, 3)
        process.stdout.close()
        process.stdin.write(b'{"user": 7}\n' * 20)
        process.stdin.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, err) == (0, b'')


def test_data(root, capsys):
    assert run.main(['data', *data_options(root, 'text')]) == 0
    out, err = capsys.readouterr()
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert err == '' and facts['num_users'] == '40' and facts['num_items'] == '50'
    assert facts['train.txt'].endswith('checksum no reference')
    assert run.main(['data']) == 0
    assert 'generated' in capsys.readouterr().out


def test_columns(root, tmp_path, capsys):
    (tmp_path / 'shop').mkdir()
    text = (root / 'table/table.inter').read_text().replace('\t', ',')
    text = text.replace('user_id:token,item_id:token', 'who,what')
    (tmp_path / 'shop/shop.csv').write_text(text)
    call = ['data', '--dataset', 'shop', '--data-root', str(tmp_path)]
    assert run.main([*call, '--columns', 'who,what']) == 0
    assert re.search(r'^num_users +40$', capsys.readouterr().out, re.M)


# Tolerated ---------------------------------------------------------------------------


def test_tolerant_readings_are_counted(root, tmp_path, capsys):
    folder = tmp_path / 'shop'
    folder.mkdir()
    text = (root / 'text/train.txt').read_text()
    (folder / 'train.txt').write_text(text + f'3\n0 {text.split()[1]}\n')
    shutil.copy(root / 'text/test.txt', folder)
    call = ['train', *data_options(tmp_path), '--stage', 'coarse', *settings()]
    assert run.main([*call, '--out', str(tmp_path / 'a')]) == 0
    err = capsys.readouterr().err
    assert err.count('1 duplicate interactions merged') == 1
    # Where the call fails, its error stands alone.
    assert run.main([*call, '--set', 'num_coarse=91', '--out', 'x']) == 2
    assert capsys.readouterr().err.count('\n') == 1


# Interrupted runs --------------------------------------------------------------------


@pytest.fixture
def interrupted(train, tmp_path, monkeypatch, capsys):
    """A run that was stopped in its third evaluation."""
    out = tmp_path / 'stopped'
    add = experiment.TrainingLog.add

    def stop(history, line):
        add(history, line)
        if len(history.lines) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment.TrainingLog, 'add', stop)
        assert train('--out', out) == 130
    assert capsys.readouterr().err.endswith(
        f'interrupted; continue with: python run.py train --resume --out {out}\n'
    )
    return out


def resume(out, *args):
    return run.main(['train', '--resume', '--out', str(out), *map(str, args)])


def test_resume(interrupted, text_run, capsys):
    assert not (interrupted / 'metrics.json').exists()
    assert not list(interrupted.glob('*.part'))
    assert run.main(['evaluate', '--checkpoint', str(interrupted)]) == 0
    assert run.main(['recommend', '--checkpoint', str(interrupted), '--user', '1']) == 0
    assert resume(interrupted) == 0
    assert comparable(interrupted) == comparable(text_run)
    ours, theirs = (
        [{k: v for k, v in line.items() if k != 'seconds'} for line in history_of(out)]
        for out in (interrupted, text_run)
    )
    assert ours == theirs
    assert resume(interrupted) == 2
    assert 'complete' in capsys.readouterr().err


def test_resume_keeps_its_options(interrupted, refused):
    call = ['train', '--resume', '--out', interrupted]
    assert '--seed 2024, not 3' in refused(*call, '--seed', 3)
    assert '--dataset text' in refused(*call, '--dataset', 'other')
    assert '--set max_epochs 3, not 9' in refused(*call, '--set', 'max_epochs=9')
    assert 'unknown setting' in refused(*call, '--set', 'epochs=9')
    # An option that has its default counts too.
    assert '--protocol c2f' in refused(*call, '--protocol=standard')
    path = interrupted / 'config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {'seed': 3}))
    assert '--seed 3, not 2024' in refused(*call, '--seed', 2024)
    path.write_text(json.dumps(config))
    same = ['--dataset', 'text', '--seed', 2024, '--set', 'max_epochs=3']
    assert resume(interrupted, *same, '--device', 'cpu') == 0


def test_an_interrupted_run_is_not_overwritten(interrupted, train, refused):
    before = {path: path.read_bytes() for path in interrupted.glob('*.*')}
    line = refused('train', '--out', interrupted)
    assert '--resume' in line and all(name in line for name in RESUME_FILES)
    assert before == {path: path.read_bytes() for path in interrupted.glob('*.*')}
    delete_resume(interrupted)
    assert train('--out', interrupted) == 0


def test_damaged_interrupted_run(interrupted, refused):
    path = interrupted / 'history.jsonl'
    path.write_text(path.read_text()[:-20])
    call = ['train', '--resume', '--out', interrupted]
    assert 'history.jsonl: damaged' in refused(*call)
    path.write_text('{"epoch": 3}\n')
    assert 'history.jsonl: damaged' in refused(*call)
    path.unlink()
    for path in resume_files(interrupted):
        path.write_bytes(path.read_bytes()[:100])
    line = refused('train', '--resume', '--out', interrupted)
    assert re.search(
        r'resume-\d.safetensors: damaged .*; delete .* to start again', line
    )
    delete_resume(interrupted)
    assert resume(interrupted) == 0


def test_the_best_model_is_left(copied):
    def line(stage, phase, score):
        return {'stage': stage, 'phase': phase, 'val': {'ndcg@5': score}}

    lines = [line('coarse', 1, 0.1), line('coarse', 2, 0.3), line('fine', 1, 0.2)]
    experiment.leave_best(copied, lines)
    best = (copied / 'coarse-2.safetensors').read_bytes()
    assert (copied / 'model.safetensors').read_bytes() == best
    experiment.leave_best(copied, [])
    assert (copied / 'model.safetensors').read_bytes() == best


def test_evaluate_from_elsewhere(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    data = ['--data-root', '.', '--dataset', 'text']
    assert run.main(['train', *data, *settings(), '--out', str(tmp_path / 'a')]) == 0
    config = json.loads((tmp_path / 'a/config.json').read_text())
    assert config['data_root'] == str(root) and config['device'] in ('cpu', 'cuda')
    monkeypatch.chdir(tmp_path)
    assert run.main(['evaluate', '--checkpoint', 'a']) == 0


def test_nothing_to_resume(refused, tmp_path, text_run):
    line = refused('train', '--resume', '--out', tmp_path / 'no')
    assert 'no run to resume; omit --resume to begin one' in line
    assert 'complete' in refused('train', '--resume', '--out', text_run)
    assert not (tmp_path / 'no').exists()


@pytest.mark.parametrize(
    ('options', 'error'),
    [
        (FAST, KeyboardInterrupt),
        (settings(), KeyboardInterrupt),
        ([*settings(), '--protocol=standard', '--refit'], OSError(28, 'No space left')),
    ],
)
def test_interrupted_in_the_report(options, error, root, tmp_path, monkeypatch):
    """The result of the training is left, and the run can be continued."""
    call = ['train', *data_options(root, 'text'), *options]
    out, whole = tmp_path / 'out', tmp_path / 'whole'

    def stop(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(experiment, 'write_report', stop)
        status = run.main([*call, '--out', str(out)])
        assert status == (130 if error is KeyboardInterrupt else 2)
    assert run.main([*call, '--out', str(whole)]) == 0
    left = (out / 'model.safetensors').read_bytes()
    assert left == (whole / 'model.safetensors').read_bytes()
    assert resume(out) == 0
    assert (out / 'model.safetensors').read_bytes() == left
    assert comparable(out) == comparable(whole)


def test_what_stops_a_run_is_said(train, tmp_path, monkeypatch, capsys):
    """Also where the best model so far cannot be left."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(C2FTrainer, 'train_epoch', stop)
    monkeypatch.setattr(experiment.shutil, 'copyfile', full)
    assert train('--out', tmp_path / 'out') == 130
    assert 'continue with' in capsys.readouterr().err


def test_changed_data(root, tmp_path, refused):
    """As many users, items and pairs, but others: test items would leak."""
    shutil.copytree(root / 'text', tmp_path / 'text')
    train = ['train', *data_options(tmp_path, 'text'), *settings()]
    coarse, stopped = tmp_path / 'coarse', tmp_path / 'stopped'
    assert run.main([*train, '--stage', 'coarse', '--out', str(coarse)]) == 0

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(C2FTrainer, 'train_epoch', stop)
        assert run.main([*train, '--out', str(stopped)]) == 130
    test, train_file = (tmp_path / f'text/{x}.txt' for x in ('test', 'train'))
    lines = [path.read_text().splitlines() for path in (train_file, test)]
    # An item of the first user changes sides.
    swapped = [(x[0].split(), x[1:]) for x in lines]
    swapped[0][0][-1], swapped[1][0][-1] = swapped[1][0][-1], swapped[0][0][-1]
    for path, (first, rest) in zip((train_file, test), swapped, strict=True):
        path.write_text('\n'.join([' '.join(first), *rest]) + '\n')
    says = 'the data set text has changed since then; bring its files back'
    assert says in refused('evaluate', '--checkpoint', coarse)
    assert says in refused('train', '--resume', '--out', stopped)
    fine = ['--stage', 'fine', '--init', coarse]
    assert says in refused(*train, *fine, '--out', tmp_path / 'fine')
    assert not (tmp_path / 'fine').exists()


def test_control_c(root, train, tmp_path):
    """The real signal, in the middle of a real run."""
    out = tmp_path / 'a'
    options = [*data_options(root, 'text'), *settings(max_epochs=6, patience=6)]
    process = subprocess.Popen(
        [*PROGRAM, 'train', *options, '--out', str(out)],
        cwd=tmp_path,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, shells have their children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        while process.poll() is None and not (out / 'history.jsonl').exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert 'Traceback' not in err and err.count('interrupted; continue with: ') == 1
    assert not (out / 'metrics.json').exists() and not list(out.glob('*.part'))
    assert run.main(['evaluate', '--checkpoint', str(out)]) == 0
    assert resume(out) == 0
    assert train('--out', tmp_path / 'b', max_epochs=6, patience=6) == 0
    assert comparable(out) == comparable(tmp_path / 'b')


def test_a_new_run_leaves_nothing_of_the_old_one(table_run, train, tmp_path):
    out = tmp_path / 'a'
    assert train('--out', out, dataset='table') == 0
    (out / 'notes.txt').write_text('mine')
    assert pyg_c2f.load(out).vocabulary.user_ids is not None
    assert train('--out', out, '--stage', 'coarse') == 0
    names = {path.name for path in out.iterdir()}
    assert pyg_c2f.load(out).vocabulary.user_ids is None and 'notes.txt' in names
    assert not any(name.startswith('fine-') for name in names)
    assert all(line['stage'] == 'coarse' for line in history_of(out))


def test_a_wrong_call_leaves_the_old_run_alone(copied, refused, root, monkeypatch):
    before = {path: path.read_bytes() for path in copied.iterdir()}
    data = data_options(root, 'text')
    for wrong in (
        ['--set', 'num_coarse=91'],
        ['--set', 'num_neg_samples=43'],
        ['--seed', -1],
        ['--columns', 'a'],
    ):
        refused('train', *data, *settings(), *wrong, '--out', copied)
    refused('train', *data_options(root, 'nowhere'), '--out', copied)
    monkeypatch.setitem(sys.modules, 'pymetis', None)
    line = refused('train', *data, *settings(), '--out', copied)
    assert 'pyg-c2f[metis]' in line and '--set anchors=random' in line
    assert before == {path: path.read_bytes() for path in copied.iterdir()}


# Refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['--set', 'num_cores=3'], "unknown setting 'num_cores'"),
        (['--set', 'num_coarse=few'], '--set num_coarse=few: expected a whole number'),
        (['--set', 'num_coarse'], 'expected NAME=VALUE'),
        (['--set', '=3'], 'unknown setting'),
        (['--set'], 'at least one argument'),
        (['--set', 'lr_coarse=nan'], '--set lr_coarse=nan'),
        (['--set', 'batch_size_coarse=0'], '--set batch_size_coarse=0'),
        (['--set', 'anchors_per_entity=7'], '--set num_coarse=6'),
        (['--recipe', 'slow'], "invalid choice: 'slow' (choose from 'fast', 'paper')"),
        (['--stage', 'both', '--init', 'x'], '--stage fine'),
        (['--stage', 'fine'], '--init'),
        (['--stage', 'fine', '--init', 'nowhere'], 'no run there'),
        (['--refit'], '--protocol standard'),
        (['--refit', '--protocol=standard', '--stage=fine'], '--stage both'),
        (['--seed', '-1'], '--seed: expected a whole number from 0 to 42949672'),
        (['--seed', str(2**32)], '--seed: expected a whole number from 0 to 42949672'),
        (['--split-seed', '1.5'], '--split-seed: expected a whole number from 0'),
        (['--eval-users', '0'], 'expected a whole number of at least 1'),
        (['--columns', 'user_id'], '--columns user_id'),
        (['--dataset', 'nowhere'], "unknown data set 'nowhere'"),
        (['--dataset', 'a/text'], 'its parent as --data-root'),
        (['--fast'], 'unknown argument --fast; see python run.py train --help'),
        (['--quite'], 'unknown argument --quite: did you mean --quiet?'),
        (['--num-coarse', '6'], 'given as --set num_coarse=VALUE'),
        (['more'], 'unknown argument more'),
    ],
)
def test_wrong_options(options, says, root, refused, tmp_path):
    out = tmp_path / 'out'
    data = data_options(root, 'text')
    assert says in refused('train', *data, *settings(), '--out', out, *options)
    assert not out.exists()


@pytest.mark.parametrize(
    ('files', 'says'),
    [
        ({'readme.md': 'x'}, 'found: readme.md'),
        ({'train.txt': '0 1\n'}, 'test.txt is missing'),
        ({'train.txt': '0 1\n1 x\n', 'test.txt': '0 2\n'}, "line 2: the id 'x'"),
        ({'train.txt.gz': 'no gzip', 'test.txt': '0 2\n'}, 'gzip'),
        ({'shop.csv': 'user,item_id\n1,2\n'}, 'the columns with --columns USER,ITEM$'),
    ],
)
def test_wrong_data(files, says, refused, tmp_path):
    (tmp_path / 'shop').mkdir()
    for name, text in files.items():
        (tmp_path / 'shop' / name).write_text(text)
    for command in (['train', '--out', tmp_path / 'out', *settings()], ['data']):
        line = refused(*command, *data_options(tmp_path))
        assert re.search(says, line), line
    assert not (tmp_path / 'out').exists()


def test_no_validation(refused, tmp_path):
    (tmp_path / 'shop').mkdir()
    (tmp_path / 'shop/train.txt').write_text('0 1 2\n1 2 3\n')
    (tmp_path / 'shop/test.txt').write_text('0 3\n1 1\n')
    call = ['train', *data_options(tmp_path), *settings(num_coarse=2, num_fine=2)]
    call += ['--set', 'num_neg_samples=1', '--out', tmp_path / 'out']
    assert 'no validation' in refused(*call, '--protocol', 'standard')
    assert 'no test' in refused(*call)  # c2f makes the only test item validation
    assert not (tmp_path / 'out').exists()


def test_training_that_diverges(train, tmp_path, monkeypatch, capsys):
    out, step = tmp_path / 'out', C2FTrainer.step

    def diverge(*args):
        loss, h = step(*args)
        if resume_files(out):
            raise NotFiniteError('the loss holds nan')
        return loss, h

    monkeypatch.setattr(C2FTrainer, 'step', diverge)
    assert train('--out', out) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        'error: the loss holds nan in step 1 of epoch 1 of the coarse stage: lower '
        '--set lr_coarse=0.1 and start again in another directory; the last good '
        f'checkpoint is {out / "coarse-1.safetensors"}'
    )
    assert not (out / 'metrics.json').exists()
    # The best model so far is left, and the advice can be followed.
    assert run.main(['evaluate', '--checkpoint', str(out)]) == 0
    monkeypatch.undo()
    assert train('--out', tmp_path / 'other', lr_coarse=0.05) == 0


def test_full_disk_and_vanished_folder(root, train, disk, capsys):
    """In the middle of a run that then goes on to what it would have been."""
    out = disk.folder / 'out'
    rest, add = disk.folder / 'rest', experiment.TrainingLog.add

    def fill(history, line):
        add(history, line)
        if line['stage'] == 'fine' and line['epoch'] == 1:
            free = shutil.disk_usage(disk.folder).free
            rest.write_bytes(bytes(free))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.TrainingLog, 'add', fill)
        assert train('--out', out) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        f'error: {out}/.*: cannot be written .No space left on device.; what was there '
        'before is untouched: make room, or name another place; then continue with: '
        f'python run.py train --resume --out {out}',
        line,
    )
    rest.unlink()
    assert resume(out) == 0
    assert train('--out', disk.folder.parent / 'whole') == 0
    assert comparable(out) == comparable(disk.folder.parent / 'whole')

    def vanish(history, line):
        add(history, line)
        if line['epoch'] == 1:
            shutil.rmtree(disk.folder / 'gone')

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.TrainingLog, 'add', vanish)
        assert train('--out', disk.folder / 'gone') == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search('there is no folder .*gone; make it; then repeat', line)
    assert not (disk.folder / 'gone').exists()


def test_errors_that_are_no_input(train, tmp_path, monkeypatch, capsys):
    """Lack of memory is told in one line; a bug stays one."""
    message = "DefaultCPUAllocator: can't allocate memory"

    def build(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(PaperRecipe, 'blank', build)
    assert train('--out', tmp_path / 'out') == 2
    assert re.fullmatch('error: out of memory.*\n', capsys.readouterr().err)
    message = 'something else'
    with pytest.raises(RuntimeError, match='something else'):
        train('--out', tmp_path / 'out')


def test_out_that_cannot_be(refused, root, text_run, tmp_path):
    file = tmp_path / 'file'
    file.write_text('mine')
    call = ['train', *data_options(root, 'text'), *settings()]
    assert 'is not a directory' in refused(*call, '--out', file)
    assert 'is not a directory' in refused(*call, '--out', file / 'a/b')
    assert file.read_text() == 'mine'
    fine = ['--stage', 'fine', '--init', text_run]
    assert '--init is read from there' in refused(*call, *fine, '--out', text_run)
    refused(*call, '--out', tmp_path / ('x' * 300))
    if Path('/proc').is_dir():  # where even root cannot make a directory
        assert 'cannot be made' in refused(*call, '--out', '/proc/none/out')


def test_no_cuda(refused, root, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    call = ['train', *data_options(root, 'text'), '--device', 'cuda']
    assert '--device cpu' in refused(*call, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['--protocol', 'standard'], '--protocol c2f'),
        (['--split-seed', 7], '--split-seed 2024'),
        (['--dataset', 'table'], '--dataset text'),
        (['--set', 'num_coarse=7'], 'num_coarse=6, this run 7'),
        (['--recipe', 'fast'], 'give --recipe paper'),
    ],
)
def test_init_that_does_not_fit(options, says, refused, root, text_run, tmp_path):
    call = ['train', *data_options(root, 'text'), '--stage', 'fine']
    call += [] if 'fast' in options else settings()
    call += ['--init', text_run, '--out', tmp_path / 'out']
    assert says in refused(*call, *options)
    assert not (tmp_path / 'out').exists()


USES = (['evaluate'], ['recommend', '--user', '1'])


@pytest.mark.parametrize('use', USES, ids=['evaluate', 'recommend'])
def test_wrong_checkpoints(use, refused, copied, tmp_path):
    call = [*use, '--checkpoint']
    refused(*call, tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    refused(*call, tmp_path / 'empty')

    model = copied / 'model.safetensors'
    whole = model.read_bytes()
    for content in (b'', whole[:40], whole[:-9], b'PK' + whole[2:]):
        model.write_bytes(content)
        assert 'damaged' in refused(*call, copied)
    save_file({'weight': torch.ones(3)}, model)
    assert 'not a checkpoint of this version' in refused(*call, copied)
    write_tensors(model, {'weight': torch.ones(3)}, {})
    assert 'does not fit together' in refused(*call, copied)
    model.unlink()
    assert 'no such checkpoint' in refused(*call, copied)


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'', 'damaged'),
        (b'[]', 'damaged in an entry'),
        (b'{"settings": 3}', 'damaged in an entry'),
        (b'\xff\xfe', 'damaged'),
        ({'seed': None}, 'damaged in seed'),
    ],
)
def test_damaged_config(content, says, refused, copied, root, tmp_path):
    path = copied / 'config.json'
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)
    call = ['train', *data_options(root, 'text'), '--out', tmp_path / 'out']
    for line in (
        refused('evaluate', '--checkpoint', copied),
        refused(*call, '--stage', 'fine', '--init', copied),
        refused('train', '--resume', '--out', copied),
    ):
        assert f'config.json: {says}' in line


@pytest.mark.parametrize('name', ['text', 'table'])
def test_evaluate_on_other_data(name, refused, text_run, table_run, root, tmp_path):
    """With a user and items more, or another id."""
    (tmp_path / name).mkdir()
    for path in (root / name).iterdir():
        text = path.read_text().replace('i07', 'new')
        text += '40 1 2 3 50\n' if name == 'text' else ''
        (tmp_path / name / path.name).write_text(text)
    out, trained = tmp_path / 'out', {'text': text_run, 'table': table_run}[name]
    out.mkdir()
    model = (trained / 'model.safetensors').read_bytes()
    (out / 'model.safetensors').write_bytes(model)
    config = json.loads((trained / 'config.json').read_text())
    (out / 'config.json').write_text(json.dumps(config | {'data_root': str(tmp_path)}))
    assert 'knows other users or items' in refused('evaluate', '--checkpoint', out)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['--user', '40'], "unknown user '40'.*40 users"),
        (['--user', '1', '-1'], 'unknown'),
        (['--user', 'u01'], "unknown user 'u01'"),
        (['--history', '3,50'], "unknown item '50'"),
        (['--history', ' , '], '--history is empty'),
        (['--user', '1', '--candidates', ','], '--candidates is empty'),
        (['--user', '1', '--candidates', '3,x'], "unknown item 'x'"),
        (['--similar', '50'], "unknown item '50'"),
        (['--similar', '5', '--include-seen'], '--similar takes no'),
        (['--similar', '5', '--candidates', '3'], '--similar takes no'),
        (['--similar', '5', '--user', '3'], 'not allowed with'),
        (['--jsonl', '--user', '3'], 'not allowed with'),
        (['--jsonl', '-k', '0'], '-k: expected a whole number of at least 1'),
        (['--jsonl', '--candidates', '50'], "unknown item '50'"),
        (['--user', '1', '-k', '51'], '-k 51: choose a length from 1 to 50'),
        (['--user', '1', '--history', '2'], 'not allowed with'),
        ([], 'required'),
    ],
)
def test_wrong_people(options, says, refused, text_run):
    line = refused('recommend', '--checkpoint', text_run, *options)
    assert re.search(says, line), line


def test_fast_is_the_default(fast_run):
    metrics = metrics_of(fast_run)
    assert metrics['recipe'] == 'fast' and set(metrics['test']) == MEASURES
    assert metrics['fine']['phase1']['best_epoch'] == 0
    assert metrics['fine']['phase1']['basis']['residual'] <= 1e-3
    assert metrics['bytes']['inference_extra'] == 0 < metrics['bytes']['histories']


def test_a_restart_goes_on_with_its_own_run_only(train, root, tmp_path):
    """What an earlier call has left is not taken for the begun run of this one."""
    out = tmp_path / 'out'

    def args(*options):
        argv = ['train', *map(str, options), '--out', str(out)]
        parsed = make_parser().parse_args(argv)
        parsed.argv = argv
        return parsed

    assert not is_begun(out, args())
    assert train('--out', out) == 0
    config = json.loads((out / 'config.json').read_text())
    mine = args()
    config['call'] = call_of(mine)
    (out / 'config.json').write_text(json.dumps(config))
    assert not is_begun(out, mine)  # it is complete
    (out / 'metrics.json').unlink()
    assert is_begun(out, mine)
    assert not is_begun(out, args('--seed', 1))
    assert is_begun(out, args('--resume'))
