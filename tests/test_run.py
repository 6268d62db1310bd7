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
from pyg_c2f.typing import KS, RATES
from tests.tiny import FAST, SETTINGS, data_options, settings

STAGES = ('coarse', 'fine')
ENV = os.environ | {'OMP_NUM_THREADS': '1'}
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
    return shutil.copytree(text_run, tmp_path / 'copied')


@pytest.fixture(scope='module')
def complete(make_run, text_run):
    """A complete run of each recipe on numbered users and items."""
    return {'paper': text_run, 'fast': make_run('text', FAST)}


@pytest.fixture
def refused(capsys):
    """Makes a call that must fail, and returns its one line."""

    def call(*args):
        capsys.readouterr()
        assert run.main([*map(str, args)]) == 2
        out, err = capsys.readouterr()
        assert out == '' and re.fullmatch('error: .+\n', err)
        return err

    return call


def interrupt(*_, **__):
    raise KeyboardInterrupt


def no_space(*_, **__):
    raise OSError(28, 'No space left on device')


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir()}


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


def test_files_of_a_run(text_run):
    names = {path.name for path in text_run.iterdir()}
    metrics = metrics_of(text_run)
    phases = {f'{x}-{key[-1]}.safetensors' for x in STAGES for key in metrics[x]}
    others = 'config.json history.jsonl metrics.json model.safetensors report.html'
    assert names == phases | {*others.split()}


def test_metrics_of_a_run(text_run, root):
    metrics = metrics_of(text_run)
    data = get_dataset('text', root, 'c2f')
    expected = {'dataset': 'text', 'protocol': 'c2f', 'recipe': 'paper', 'seed': 2024}
    expected |= {'split_seed': 2024, 'num_users': 40, 'num_items': 50}
    expected |= {'num_train': data[RATES].edge_index.size(1), 'eval_users': None}
    assert metrics == metrics | expected
    for stage in STAGES:
        assert set(metrics[stage]) <= {'phase1', 'phase2'}
        for result in metrics[stage].values():
            assert set(result) == {'best_epoch', 'last_epoch', 'val', 'test'}
            assert set(result['val']) == set(result['test']) == MEASURES
    last = metrics['fine'][max(metrics['fine'])]
    assert metrics['val'] == last['val'] and metrics['test'] == last['test']
    assert set(metrics['baselines']) == {'popularity', 'item_knn', 'ease'}
    assert metrics['left_out'] == {}
    assert set(metrics['baselines']['popularity']) == {'val', 'test'}
    assert set(metrics['baselines']['ease']) == {'val', 'test', 'settings'}
    assert metrics['bytes'] == model_bytes(pyg_c2f.load(text_run))
    seconds = metrics['seconds']
    assert set(seconds) == {
        'load',
        'anchors',
        'train',
        'evaluate',
        'baselines',
        'total',
    }
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) <= 2 * seconds['total'] + 0.01
    assert metrics['versions']['pyg_c2f'] == pyg_c2f.__version__


def test_recipe_fast_is_the_default(fast_run):
    metrics = metrics_of(fast_run)
    assert metrics['recipe'] == 'fast' and set(metrics['test']) == MEASURES
    assert metrics['fine']['phase1']['best_epoch'] == 0
    assert metrics['fine']['phase1']['basis']['residual'] <= 1e-3
    assert metrics['bytes']['inference_extra'] == 0 < metrics['bytes']['histories']


def test_config_of_a_run(text_run):
    config = json.loads((text_run / 'config.json').read_text())
    # Also a setting that was not given.
    assert config['settings'] == config['settings'] | SETTINGS | {'gate': 0.2}
    words = shlex.split(config['call'])
    assert words[:3] == ['python', 'run.py', 'train'] and str(text_run) in words
    page = (text_run / 'report.html').read_text().replace('&#x27;', "'")
    assert config['call'] in page


def test_both_seeds_change_the_result(text_run, train, tmp_path):
    assert train('--out', tmp_path / 'a', '--seed', 1, '--stage', 'coarse') == 0
    assert train('--out', tmp_path / 'b', '--split-seed', 1, '--stage', 'coarse') == 0
    ours, theirs = comparable(text_run), comparable(tmp_path / 'a')
    assert ours['baselines'] == theirs['baselines']  # the same split
    assert ours['coarse'] != theirs['coarse']
    assert ours['baselines'] != comparable(tmp_path / 'b')['baselines']


def test_without_a_command_it_trains(monkeypatch):
    calls = []
    monkeypatch.setattr('pyg_c2f.cli.train.run', lambda args: calls.append(args) or 0)
    for argv in ([], None, ['--seed', '3'], ['train', '--seed', '3']):
        assert run.main(argv) == 0
    assert [args.seed for args in calls] == [2024, 2024, 3, 3]
    assert {args.dataset for args in calls} == {'synthetic'}


def test_set_may_be_repeated_and_out_omitted(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ['--set', 'gate=0.3', 'threshold=0.5', '--set', 'clip=1']
    assert train(*more, '--stage', 'coarse', max_epochs=1) == 0
    config = json.loads((tmp_path / 'runs/text-paper/config.json').read_text())
    given = {'gate': 0.3, 'threshold': 0.5, 'clip': 1}
    assert config['settings'] == config['settings'] | given


def test_the_bare_call_trains_on_the_embedded_data_set(tmp_path):
    done = subprocess.run(
        PROGRAM, cwd=tmp_path, env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'runs/synthetic-fast'
    metrics = metrics_of(out)
    assert (metrics['num_users'], metrics['num_items']) == (2000, 3000)
    assert f'{metrics["test"]["ndcg@5"]:.4f}' in done.stdout
    assert f'{metrics["bytes"]["scalars"]:,}' in done.stdout
    assert done.stdout.endswith(f'report: {out.relative_to(tmp_path)}/report.html\n')
    # Standard error holds a line for the basis and one for each evaluation: no bars, no
    # warnings.
    assert len(done.stderr.splitlines()) == 1 + len(history_of(out)) == 3
    assert [x.name for x in tmp_path.iterdir()] == ['runs']


OPTIONS = {'paper': settings(), 'fast': FAST}
both_recipes = pytest.mark.parametrize('recipe', OPTIONS)


@both_recipes
def test_two_stages_in_two_calls_give_the_same_run(recipe, complete, root, tmp_path):
    call = ['train', *data_options(root, 'text'), *OPTIONS[recipe], '--stage']
    coarse, fine, again = (tmp_path / x for x in ('coarse', 'fine', 'again'))
    assert run.main([*call, 'coarse', '--out', str(coarse)]) == 0
    # A complete run of both stages is a start as well.
    for init, out in ((coarse, fine), (complete[recipe], again)):
        assert run.main([*call, 'fine', '--init', str(init), '--out', str(out)]) == 0
    whole, coarse, fine = map(comparable, (complete[recipe], coarse, fine))
    assert 'fine' not in coarse and 'coarse' not in fine
    assert coarse['coarse'] == whole['coarse'] and fine['fine'] == whole['fine']
    assert fine['test'] == whole['test'] and fine['bytes'] == whole['bytes']
    assert comparable(again) == fine


@both_recipes
def test_protocol_standard_and_refit(recipe, root, tmp_path, capsys, monkeypatch):
    call = ['train', *data_options(root, 'text'), *OPTIONS[recipe]]
    call += ['--protocol', 'standard', '--out']
    plain, out = tmp_path / 'plain', tmp_path / 'refit'
    assert run.main([*call, str(plain)]) == 0
    assert run.main([*call, str(out), '--refit']) == 0
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
    # Stopped in the refit, or after it.
    for target, name in (
        (experiment.Experiment, 'refit'),
        (experiment, 'write_report'),
    ):
        stopped = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(target, name, interrupt)
            assert run.main([*call, str(stopped), '--refit']) == 130
        assert resume(stopped) == 0
        assert comparable(stopped) == comparable(out)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_evaluate(split, text_run, capsys):
    call = ['evaluate', '--checkpoint', str(text_run), '--split', split]
    assert run.main(call) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f'text, protocol c2f, {split} items\n') and err == ''
    assert figures(out) == pytest.approx(metrics_of(text_run)[split], abs=5e-5)


def test_evaluate_on_sampled_users(train, text_run, tmp_path, capsys):
    for name, number in (('some', 3), ('all', 10**6)):
        assert train('--out', tmp_path / name, '--eval-users', number) == 0
    every = comparable(tmp_path / 'all') | {'eval_users': None}
    assert every == comparable(text_run)
    some, whole = metrics_of(tmp_path / 'some'), metrics_of(text_run)
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


def recommended(capsys, *options):
    """The lists that a call prints: rows of rank, item, score and title by user."""
    capsys.readouterr()
    assert run.main(['recommend', *map(str, options)]) == 0
    lists = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith('for '):
            rows = lists.setdefault(line[4:-1], [])
        else:
            rows.append(line.split(maxsplit=3))
    return lists


def assert_shown(rows, items, scores):
    """The rows of a list, numbered from one, with titles if they have ids."""
    assert [int(row[0]) for row in rows] == [*range(1, len(items) + 1)]
    assert [row[1] for row in rows] == items
    shown = [float(row[2]) for row in rows]
    assert shown == pytest.approx(scores[: len(items)].tolist(), abs=1e-4)
    if items[0].startswith('i'):
        assert [row[3] for row in rows] == [f'The item {int(x[1:])}' for x in items]


@pytest.mark.parametrize(('name', 'users'), [('text', ['7', '0']), ('table', ['u07'])])
def test_recommend(name, users, text_run, table_run, capsys):
    out = {'text': text_run, 'table': table_run}[name]
    lists = recommended(capsys, '--checkpoint', out, '--user', *users, '-k', 50)
    items, scores = pyg_c2f.load(out).recommend(users, 50)
    assert list(lists) == users
    for rows, ids, values in zip(lists.values(), items, scores, strict=True):
        assert 0 < len(ids) < 50
        assert_shown(rows, ids, values)


def test_seen_items_and_candidates(table_run, capsys):
    call = ('--checkpoint', table_run, '-k', 50)
    history = ('--history', 'i03, i17')
    (rows,) = recommended(capsys, *call, *history).values()
    (whole,) = recommended(capsys, *call, *history, '--include-seen').values()
    model = pyg_c2f.load(table_run)
    assert_shown(rows, *model.recommend(k=50, history=['i03', 'i17']))
    assert len(rows) == 48 and len(whole) == 50
    assert [x[1:] for x in rows] == [x[1:] for x in whole if x[1] not in ('i03', 'i17')]
    few = ('--candidates', 'i17, i04,i40,i04')
    (rows,) = recommended(capsys, *call, *history, *few).values()
    assert [x[1:] for x in rows] == [x[1:] for x in whole if x[1] in ('i04', 'i40')]
    lists = recommended(capsys, *call, '--user', 'u01', 'u02', *few, '--include-seen')
    assert [len(rows) for rows in lists.values()] == [3, 3]


def test_recommend_similar_items(table_run, capsys):
    call = '--checkpoint', table_run, '--similar', 'i03', 'i17', '-k', 50
    lists = recommended(capsys, *call)
    items, scores = pyg_c2f.load(table_run).similar_items(['i03', 'i17'], 50)
    assert list(lists) == ['i03', 'i17']
    for rows, ids, values in zip(lists.values(), items, scores, strict=True):
        assert len(ids) == 49
        assert_shown(rows, ids, values)


@pytest.fixture
def answered(monkeypatch, capsys):
    """Answers lines of JSON: the status, the answers, and standard error."""

    def call(out, lines, *options):
        texts = (x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
        content = io.BytesIO(b''.join(text + b'\n' for text in texts))
        monkeypatch.setattr('sys.stdin', io.TextIOWrapper(content))
        capsys.readouterr()
        argv = ['recommend', '--checkpoint', str(out), '--jsonl', *map(str, options)]
        status = run.main(argv)
        text, err = capsys.readouterr()
        return status, [json.loads(x) for x in text.splitlines()], err

    return call


def answer(model, line, **defaults):
    """The answer to a line, by a call of its own."""
    options = defaults | line
    for name in ('history', 'candidates'):
        if name in options:
            options[name] = [*map(str, options[name])]
    if 'user' in options:
        options['users'] = str(options.pop('user'))
    items, scores = model.recommend(**options)
    out = {'items': items, 'scores': pytest.approx(scores[: len(items)].tolist())}
    if model.vocabulary.item_titles is not None:
        out['titles'] = [f'The item {int(item[1:])}' for item in items]
    return out


FEW = ['i40', 'i04', 'i17']
LINES = [
    {'user': 'u07'},
    {'history': ['i03', 'i17', 'i03']},
    {'user': 'u01', 'k': 3},
    {'history': ['i05'], 'k': 50},
    {'user': 'u07', 'exclude_seen': False},
    {'user': 'u02', 'candidates': FEW},
    {'history': ['i04'], 'candidates': FEW, 'exclude_seen': False},
    {'history': ['i17'], 'candidates': FEW},
    {'history': ['i17'], 'k': 3, 'exclude_seen': True, 'candidates': ['i01', 'i17']},
]


@pytest.mark.parametrize('num_lines', [1, 2, 256])
def test_jsonl(table_run, answered, num_lines, monkeypatch):
    monkeypatch.setattr(recommend, 'BLOCK_LINES', num_lines)
    model = pyg_c2f.load(table_run)
    status, answers, err = answered(table_run, LINES)
    assert status == 0 and err == ''
    assert answers == [answer(model, line) for line in LINES]
    assert len(answers[3]['items']) == 49 and len(answers[7]['items']) == 2
    # Options of the call are the defaults of the lines.
    options = ['-k', 2, '--include-seen', '--candidates', ','.join(FEW)]
    _, answers, _ = answered(table_run, LINES, *options)
    defaults = {'k': 2, 'exclude_seen': False, 'candidates': FEW}
    assert answers == [answer(model, line, **defaults) for line in LINES]


def test_jsonl_with_numbers_as_ids(text_run, answered):
    model = pyg_c2f.load(text_run)
    lines = [
        {'user': 7, 'k': 4},
        {'user': '7', 'k': 4},
        {'history': [3, '17'], 'candidates': [1, '2', 3]},
    ]
    status, answers, _ = answered(text_run, lines)
    assert status == 0
    assert answers == [answer(model, line) for line in lines]
    # Other line ends, and none at the end.
    text = b'\xef\xbb\xbf{"user": 7, "k": 4}\r\n{"user": "7", "k": 4}\r'
    status, others, _ = answered(text_run, [text])
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
def test_jsonl_answers_wrong_lines_with_an_error(
    table_run, answered, block, monkeypatch
):
    monkeypatch.setattr(recommend, 'BLOCK_LINES', block)
    right = {'user': 'u01', 'k': 2}
    lines = [x for line, _ in WRONG_LINES for x in (right, line)]
    status, answers, err = answered(table_run, [*lines, right])
    num = len(WRONG_LINES)
    assert status == 2
    assert err == f'error: {num} of {2 * num + 1} lines were answered by an error\n'
    assert answers[::2] == [answer(pyg_c2f.load(table_run), right)] * (num + 1)
    for at, (ours, (_, says)) in enumerate(
        zip(answers[1::2], WRONG_LINES, strict=True)
    ):
        error = ours.pop('error')
        assert not ours and '\n' not in error
        assert error.startswith(f'line {2 * at + 2}: ') and says in error


@pytest.mark.parametrize('options', [[], ['--include-seen', '-k', '7']])
def test_lists_of_all_users(
    options, text_run, table_run, answered, tmp_path, monkeypatch
):
    monkeypatch.setattr(recommend, 'LIST_USERS', 7)
    out = tmp_path / 'lists.jsonl'
    for folder, form in ((text_run, '{}'), (table_run, 'u{:02}')):
        call = ['recommend', '--checkpoint', str(folder), '--all', '--out', str(out)]
        assert run.main([*call, *options]) == 0
        assert [x.name for x in tmp_path.iterdir()] == ['lists.jsonl']
        lists = [json.loads(line) for line in out.read_text().splitlines()]
        names = [form.format(user) for user in range(40)]
        assert [x['user'] for x in lists] == names
        _, answers, _ = answered(folder, [{'user': name} for name in names], *options)
        for ours, theirs in zip(lists, answers, strict=True):
            assert ours['items'] == theirs['items']
            assert ours['scores'] == pytest.approx(theirs['scores'], rel=1e-5)


def test_jsonl_answers_each_line_until_the_reader_leaves(text_run):
    """Each as soon as it comes; and without an error once nobody reads the answers."""
    model = pyg_c2f.load(text_run)
    call = [*PROGRAM, 'recommend', '--checkpoint', str(text_run), '--jsonl', '-k', '3']
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    with subprocess.Popen(call, env=ENV, **pipes) as process:
        for line in ({'user': '7'}, {'user': '0'}):
            process.stdin.write(json.dumps(line).encode() + b'\n')
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == answer(model, line, k=3)
        process.stdout.close()
        process.stdin.write(b'{"user": 7}\n' * 20)
        process.stdin.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, err) == (0, b'')


def test_data(root, tmp_path, capsys):
    assert run.main(['data', *data_options(root, 'text')]) == 0
    out, err = capsys.readouterr()
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert err == '' and facts['num_users'] == '40' and facts['num_items'] == '50'
    assert facts['train.txt'].endswith('checksum no reference')
    assert run.main(['data']) == 0
    assert 'generated' in capsys.readouterr().out
    # Columns of other names.
    (tmp_path / 'shop').mkdir()
    text = (root / 'table/table.inter').read_text().replace('\t', ',')
    text = text.replace('user_id:token,item_id:token', 'who,what')
    (tmp_path / 'shop/shop.csv').write_text(text)
    assert run.main(['data', *data_options(tmp_path), '--columns', 'who,what']) == 0
    assert re.search(r'^num_users +40$', capsys.readouterr().out, re.M)


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
    ours, theirs = history_of(interrupted), history_of(text_run)
    for line in (*ours, *theirs):
        del line['seconds']
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
    before = contents(interrupted)
    line = refused('train', '--out', interrupted)
    assert '--resume' in line and all(name in line for name in RESUME_FILES)
    assert before == contents(interrupted)
    delete_resume(interrupted)
    assert train('--out', interrupted) == 0


def test_damaged_interrupted_run(interrupted, refused):
    path, call = interrupted / 'history.jsonl', ['train', '--resume', '--out']
    for text in (path.read_text()[:-20], '{"epoch": 3}\n'):
        path.write_text(text)
        assert 'history.jsonl: damaged' in refused(*call, interrupted)
    path.unlink()
    for path in resume_files(interrupted):
        path.write_bytes(path.read_bytes()[:100])
    line = refused(*call, interrupted)
    says = r'resume-\d.safetensors: damaged .*; delete .* to start again'
    assert re.search(says, line)
    delete_resume(interrupted)
    assert resume(interrupted) == 0


def test_an_interrupted_run_leaves_its_best_model(copied):
    scores = {('coarse', 1): 0.1, ('coarse', 2): 0.3, ('fine', 1): 0.2}
    lines = [
        {'stage': stage, 'phase': phase, 'val': {'ndcg@5': score}}
        for (stage, phase), score in scores.items()
    ]
    best = (copied / 'coarse-2.safetensors').read_bytes()
    for history in (lines, []):
        experiment.leave_best(copied, history)
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


@both_recipes
@pytest.mark.parametrize(('stop', 'status'), [(interrupt, 130), (no_space, 2)])
def test_interrupted_in_the_report(
    recipe, stop, status, complete, root, tmp_path, monkeypatch
):
    """The result of the training is left, and the run can be continued."""
    call = ['train', *data_options(root, 'text'), *OPTIONS[recipe]]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, 'write_report', stop)
        assert run.main([*call, '--out', str(tmp_path)]) == status
    expected = (complete[recipe] / 'model.safetensors').read_bytes()
    assert (tmp_path / 'model.safetensors').read_bytes() == expected
    assert resume(tmp_path) == 0
    assert (tmp_path / 'model.safetensors').read_bytes() == expected
    assert comparable(tmp_path) == comparable(complete[recipe])


def test_an_interrupt_is_reported_even_if_no_model_can_be_left(
    train, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(C2FTrainer, 'train_epoch', interrupt)
    monkeypatch.setattr(experiment.shutil, 'copyfile', no_space)
    assert train('--out', tmp_path / 'out') == 130
    assert 'continue with' in capsys.readouterr().err


def test_changed_data(root, tmp_path, refused, monkeypatch):
    """As many users, items and pairs, but others: test items would leak."""
    shutil.copytree(root / 'text', tmp_path / 'text')
    train = ['train', *data_options(tmp_path, 'text'), *settings()]
    coarse, stopped = tmp_path / 'coarse', tmp_path / 'stopped'
    assert run.main([*train, '--stage', 'coarse', '--out', str(coarse)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(C2FTrainer, 'train_epoch', interrupt)
        assert run.main([*train, '--out', str(stopped)]) == 130
    paths = [tmp_path / f'text/{name}.txt' for name in ('train', 'test')]
    # The last train item and the last test item of the first user change sides.
    ours, theirs = (path.read_text().splitlines() for path in paths)
    (mine, a), (other, b) = (x[0].rsplit(maxsplit=1) for x in (ours, theirs))
    ours[0], theirs[0] = f'{mine} {b}', f'{other} {a}'
    for path, lines in zip(paths, (ours, theirs), strict=True):
        path.write_text('\n'.join(lines) + '\n')
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
        env=ENV,
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
    out = shutil.copytree(table_run, tmp_path / 'a')
    (out / 'notes.txt').write_text('mine')
    assert train('--out', out, '--stage', 'coarse') == 0
    names = {path.name for path in out.iterdir()}
    assert pyg_c2f.load(out).vocabulary.user_ids is None and 'notes.txt' in names
    assert not any(name.startswith('fine-') for name in names)
    assert all(line['stage'] == 'coarse' for line in history_of(out))


def test_a_wrong_call_leaves_the_old_run_alone(copied, refused, root, monkeypatch):
    before = contents(copied)
    call = ['train', '--out', copied, *data_options(root, 'text'), *settings()]
    for wrong in (
        ['--set', 'num_coarse=91'],
        ['--set', 'num_neg_samples=43'],
        ['--seed', -1],
        ['--columns', 'a'],
        ['--dataset', 'nowhere'],
    ):
        refused(*call, *wrong)
    monkeypatch.setitem(sys.modules, 'pymetis', None)
    line = refused(*call)
    assert 'pyg-c2f[metis]' in line and '--set anchors=random' in line
    assert before == contents(copied)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ('--set num_cores=3', "unknown setting 'num_cores'"),
        ('--set num_coarse=few', '--set num_coarse=few: expected a whole number'),
        ('--set num_coarse', 'expected NAME=VALUE'),
        ('--set =3', 'unknown setting'),
        ('--set', 'at least one argument'),
        ('--set lr_coarse=nan', '--set lr_coarse=nan'),
        ('--set anchors_per_entity=7', '--set num_coarse=6'),
        ('--recipe slow', "invalid choice: 'slow' (choose from 'fast', 'paper')"),
        ('--stage both --init x', '--stage fine'),
        ('--stage fine', '--init'),
        ('--stage fine --init nowhere', 'no run there'),
        ('--refit', '--protocol standard'),
        ('--refit --protocol=standard --stage=fine', '--stage both'),
        ('--seed -1', '--seed: expected a whole number from 0 to 42949672'),
        ('--seed 4294967296', '--seed: expected a whole number from 0 to 42949672'),
        ('--split-seed 1.5', '--split-seed: expected a whole number from 0'),
        ('--eval-users 0', 'expected a whole number of at least 1'),
        ('--columns user_id', '--columns user_id'),
        ('--dataset nowhere', "unknown data set 'nowhere'"),
        ('--dataset a/text', 'its parent as --data-root'),
        ('--fast', 'unknown argument --fast; see python run.py train --help'),
        ('--quite', 'unknown argument --quite: did you mean --quiet?'),
        ('--num-coarse 6', 'given as --set num_coarse=VALUE'),
        ('more', 'unknown argument more'),
    ],
)
def test_train_refuses(options, says, root, refused, tmp_path):
    out = tmp_path / 'out'
    call = ['train', *data_options(root, 'text'), *settings(), '--out', out]
    assert says in refused(*call, *options.split())
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
    call = ['train', *data_options(tmp_path), *settings(), '--out', tmp_path / 'out']
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


def test_full_disk_and_vanished_folder(train, text_run, disk, capsys, monkeypatch):
    """In the middle of a run that then goes on to what it would have been."""
    out, gone, rest = (disk.folder / name for name in ('out', 'gone', 'rest'))
    add = experiment.TrainingLog.add

    def fill(history, line):
        add(history, line)
        if line['stage'] == 'fine' and line['epoch'] == 1:
            rest.write_bytes(bytes(shutil.disk_usage(disk.folder).free))

    def vanish(history, line):
        add(history, line)
        if line['epoch'] == 1:
            shutil.rmtree(gone)

    def last_line(out, change):
        with monkeypatch.context() as patch:
            patch.setattr(experiment.TrainingLog, 'add', change)
            assert train('--out', out) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert re.fullmatch(
        f'error: {out}/.*: cannot be written .No space left on device.; what was there '
        'before is untouched: make room, or name another place; then continue with: '
        f'python run.py train --resume --out {out}',
        last_line(out, fill),
    )
    rest.unlink()
    assert resume(out) == 0
    assert comparable(out) == comparable(text_run)
    says = 'there is no folder .*gone; make it; then repeat'
    assert re.search(says, last_line(gone, vanish))
    assert not gone.exists()


@pytest.mark.parametrize('message', ["can't allocate memory", 'something else'])
def test_lack_of_memory_is_one_line_and_a_bug_a_traceback(
    message, train, tmp_path, monkeypatch, capsys
):
    def build(*_):
        raise RuntimeError(f'DefaultCPUAllocator: {message}')

    monkeypatch.setattr(PaperRecipe, 'blank', build)
    if message == 'something else':
        with pytest.raises(RuntimeError, match=message):
            train('--out', tmp_path)
    else:
        assert train('--out', tmp_path) == 2
        assert re.fullmatch('error: out of memory.*\n', capsys.readouterr().err)


def test_unusable_output_folders(refused, root, text_run, tmp_path):
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
    ],
)
def test_init_that_does_not_fit(options, says, refused, root, text_run, tmp_path):
    call = ['train', '--stage', 'fine', '--init', text_run, '--out', tmp_path / 'out']
    call += data_options(root, 'text')
    assert says in refused(*call, *settings(), *options)
    assert 'give --recipe paper' in refused(*call, *FAST)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('use', [['evaluate'], ['recommend', '--user', '1']])
def test_wrong_checkpoints(use, refused, copied, tmp_path):
    (tmp_path / 'empty').mkdir()
    for out in (tmp_path / 'nowhere', tmp_path / 'empty'):
        refused(*use, '--checkpoint', out)
    model = copied / 'model.safetensors'
    model.write_bytes(model.read_bytes()[:-9])
    assert 'damaged' in refused(*use, '--checkpoint', copied)
    save_file({'weight': torch.ones(3)}, model)
    says = 'not a checkpoint of this version'
    assert says in refused(*use, '--checkpoint', copied)
    write_tensors(model, {'weight': torch.ones(3)}, {})
    assert 'does not fit together' in refused(*use, '--checkpoint', copied)
    model.unlink()
    assert 'no such checkpoint' in refused(*use, '--checkpoint', copied)


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
    trained = {'text': text_run, 'table': table_run}[name]
    out = shutil.copytree(trained, tmp_path / 'out')
    config = json.loads((out / 'config.json').read_text())
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
        (['--all'], '--all and --out FILE go together'),
        (['--user', '1', '--out', 'x'], '--all and --out FILE go together'),
        (['--all', '--out', '.'], 'name a file in a folder'),
        (['--all', '--out', 'no/x'], 'name a file in a folder'),
        ([], 'required'),
    ],
)
def test_recommend_refuses(options, says, refused, text_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused('recommend', '--checkpoint', text_run, *options)
    assert re.search(says, line), line
    assert not list(tmp_path.iterdir())


def test_a_restart_goes_on_with_its_own_run_only(copied, root):
    """What an earlier call has left is not taken for the begun run of this one."""

    def args(*options):
        argv = ['train', *map(str, options), '--out', str(copied)]
        parsed = make_parser().parse_args(argv)
        parsed.argv = argv
        return parsed

    mine = args()
    assert not is_begun(copied / 'nowhere', mine)
    config = json.loads((copied / 'config.json').read_text())
    config['call'] = call_of(mine)
    (copied / 'config.json').write_text(json.dumps(config))
    assert not is_begun(copied, mine)  # it is complete
    (copied / 'metrics.json').unlink()
    assert is_begun(copied, mine)
    assert not is_begun(copied, args('--seed', 1))
    assert is_begun(copied, args('--resume'))
