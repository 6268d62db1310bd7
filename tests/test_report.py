"""The tables of a run, and its page against figures computed one by one."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

import pyg_c2f
from pyg_c2f import report
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import with_sampled_users
from pyg_c2f.typing import KS, RATES
from pyg_c2f.vocabulary import Vocabulary


class Run:
    """What a page is made of, and the page."""

    def __init__(self, out, root, name):
        self.out, self.model = out, pyg_c2f.load(out)
        self.data = get_dataset(name, root, 'c2f')
        self.metrics = json.loads((out / 'metrics.json').read_text())
        lines = (out / 'history.jsonl').read_text().splitlines()
        self.history = [json.loads(line) for line in lines]
        self.page = Page((out / 'report.html').read_text(encoding='utf-8'))

    def write(self, folder, **changes):
        """The page of the run with other metrics or data, in a folder of its own."""
        (folder / 'model.safetensors').write_bytes(
            (self.out / 'model.safetensors').read_bytes()
        )
        metrics = self.metrics | {'command': 'train'} | changes
        data = changes.get('data', self.data)
        path = report.write_report(folder, metrics, self.history, self.model, data)
        return Page(path.read_text(encoding='utf-8'))

    def pairs(self, key):
        """The items of each user."""
        rows = {user: set() for user in range(self.model.num_users)}
        for user, item in self.data[RATES][key].T.tolist():
            rows[user].add(item)
        return rows


class Page(HTMLParser):
    """The text and the pictures of a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.html, self.words, self.loads, self.open = text, [], [], []
        self.feed(text)
        self.close()
        self.text = ' '.join(' '.join(self.words).split())
        found = (ElementTree.fromstring(x) for x in re.findall('<svg.*?</svg>', text))
        self.pictures = {x.get('aria-label'): x for x in found}

    def handle_starttag(self, tag, attrs):
        self.open += [tag] if tag != 'meta' else []
        self.loads += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data')]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def bars(self, label):
        """The texts of a picture of bars, and the widths of the bars."""
        picture = self.pictures[label]
        boxes = picture.findall('.//{*}rect')
        texts = [x.text for x in picture.findall('.//{*}text')]
        return texts, [float(x.get('width')) for x in boxes]


@pytest.fixture(scope='module')
def runs(text_run, fast_run, root):
    """A run of each recipe, the second one with names."""
    return {'paper': Run(text_run, root, 'text'), 'fast': Run(fast_run, root, 'table')}


each = pytest.mark.parametrize('recipe', ['paper', 'fast'])


@each
def test_results_table_holds_every_number(recipe, runs):
    metrics = runs[recipe].metrics
    expected = {'popularity': metrics['popularity']} | {
        f'{stage}, phase {key[-1]}': result
        for stage in ('coarse', 'fine')
        for key, result in metrics[stage].items()
    }
    blocks = report.results_table(metrics).split('\n\n')
    for split, block in zip(('test', 'val'), blocks, strict=True):
        header, *lines = block.splitlines()
        assert {len(line) for line in lines} == {len(header)}
        assert header.split()[0] == split
        names = [name.lower() for name in header.split()[2:]]
        assert names == [f'{m}@{k}' for m in ('ndcg', 'recall') for k in KS]
        for line, (label, result) in zip(lines, expected.items(), strict=True):
            assert line.startswith(label)
            cells = line.removeprefix(label).split()
            if 'best_epoch' in result:
                assert int(cells.pop(0)) == result['best_epoch']
            assert cells == [f'{result[split][name]:.4f}' for name in names]


def test_a_result_of_no_phase_has_its_own_row(runs):
    metrics = runs['paper'].metrics
    assert 'final model' not in report.results_table(metrics)
    test = {name: value + 0.01 for name, value in metrics['test'].items()}
    test, val = report.results_table(metrics | {'test': test}).split('\n\n')
    assert test.splitlines()[-1].startswith('final model')
    assert 'final model' not in val


def test_size_table_adds_up(runs):
    sizes = runs['fast'].metrics['bytes']
    header, *lines = report.size_table(runs['fast'].metrics).splitlines()
    assert {len(line) for line in lines} == {len(header)}
    cells = (re.split(r'\s{2,}', line) for line in lines)
    counted = {name: int(size.replace(',', '')) for name, size, *_ in cells}
    stored = ('codebooks', 'assignments', 'scalars', 'inference_extra')
    assert counted.pop('total of the above') == sum(sizes[name] for name in stored)
    assert counted == sizes


@each
def test_the_page_is_one_whole_file(recipe, runs):
    run = runs[recipe]
    page, metrics = run.page, run.metrics
    assert page.open == [] and page.loads == []
    assert not re.search(r'@import|url\(|<script', page.html)
    command = json.loads((run.out / 'config.json').read_text())['call']
    for part in (
        command,
        f'recipe {recipe}',
        'seed 2024',
        metrics['versions']['numpy'],
    ):
        assert part in page.text
    for split in ('val', 'test'):
        assert all(f'{x:.4f}' in page.text for x in metrics[split].values())
    num_pairs = len({*map(tuple, run.data[RATES].test_edge_label_index.T.tolist())})
    assert f'Evaluated on 40 users with {num_pairs} test interactions' in page.text


def test_curves_are_of_what_was_trained(runs):
    """Recipe fast has none; the curves of the other one go through its history."""
    assert not any('stage' in label for label in runs['fast'].page.pictures)
    assert 'Training' not in runs['fast'].page.text
    run = runs['paper']
    for stage in ('coarse', 'fine'):
        lines = [x for x in run.history if x['stage'] == stage]
        for label, key in (('validation NDCG@5', 'ndcg@5'), ('training loss', None)):
            values = [x['val'][key] if key else x['loss'] for x in lines]
            values = [x for x in values if x is not None]
            picture = run.page.pictures[f'{stage} stage: {label}']
            (line,) = picture.findall('.//{*}polyline')
            points = [x.split(',') for x in line.get('points').split()]
            x, y = ([float(z) for z in w] for w in zip(*points, strict=True))
            assert x == sorted(x) and len(x) == len(values)
            # Higher values are further up, which is less in a picture.
            order = sorted(range(len(y)), key=lambda at: -values[at])
            assert [y[at] for at in order] == sorted(y)
            texts = [x.text for x in picture.findall('.//{*}text')]
            assert {f'{max(values):.4f}', f'{min(values):.4f}'} <= {*texts}


def ends(interval):
    low, _, high = interval.partition('–')
    return int(low), int(high or low)


def found(lists, pairs):
    """The share of pairs that the lists hold."""
    return sum(item in lists[user] for user, item in pairs) / len(pairs)


@each
def test_whom_it_serves(recipe, runs):
    """By ranges of activity and popularity, against lists of the model itself."""
    run = runs[recipe]
    train, test = run.pairs('edge_index'), run.pairs('test_edge_label_index')
    pairs = [(user, item) for user in test for item in test[user]]
    lists = run.model.recommend(list(test), 20)[0].tolist()
    by_item = [sum(item in row for row in train.values()) for item in range(50)]
    best = sorted(range(50), key=lambda item: (-by_item[item], item))
    popular = [[x for x in best if x not in train[user]][:20] for user in test]
    by_user, widths = run.page.bars("Recall by users' activity")
    assert len(widths) == len(by_user) / 2
    for at in range(0, len(by_user), 4):
        interval, note, *shown = by_user[at : at + 4]
        low, high = ends(interval)
        inside = [user for user in test if low <= len(train[user]) <= high]
        assert note == f'{len(inside)} users'
        for value, given in zip((lists, popular), shown, strict=True):
            recalls = [found(value, [(u, i) for i in test[u]]) for u in inside]
            assert given == f'{sum(recalls) / len(recalls):.3f}'
    by_popularity, _ = run.page.bars("Interactions found by items' popularity")
    assert len(by_popularity) == 16
    for at in range(0, 16, 4):
        interval, note, *shown = by_popularity[at : at + 4]
        low, high = ends(interval)
        inside = [pair for pair in pairs if low <= by_item[pair[1]] <= high]
        assert note == f'{len({item for _, item in inside})} items'
        assert shown == [f'{found(x, inside):.1%}' for x in (lists, popular)]
    listed, others = (len({*sum(x, [])}) for x in (lists, popular))
    assert (
        f'40 lists of 20 hold {listed} of 50 items ({listed / 50:.0%}); lists by '
        f'popularity hold {others}.'
    ) in run.page.text


@each
def test_three_lists_with_names(recipe, runs):
    run = runs[recipe]
    test, train = run.pairs('test_edge_label_index'), run.pairs('edge_index')
    parts = run.page.html.split('<div><h3>User ')[1:]
    assert len(parts) == 3
    names = run.model.vocabulary.item_titles or [f'item {item}' for item in range(50)]
    users = run.model.vocabulary.user_ids or [str(user) for user in range(40)]
    activity = []
    for part in parts:
        user = users.index(part.partition('<')[0])
        activity.append(len(train[user]))
        items = run.model.recommend([user], 20)[0][0].tolist()
        found = re.findall(r'<li( class=found)?>(.*?)</li>', part)
        assert [name for _, name in found] == [names[item] for item in items[:10]]
        assert [bool(mark) for mark, _ in found] == [
            x in test[user] for x in items[:10]
        ]
        hits = len(test[user] & {*items})
        assert f'{hits} of {len(test[user])} test items' in part
        assert re.search(r'<p>has (.*?)[;<]', part)[1] in {
            names[x] for x in train[user]
        }
    assert activity == sorted(activity)


@each
def test_the_bytes_are_those_of_the_file(recipe, runs):
    run = runs[recipe]
    texts, widths = run.page.bars('Bytes of the file by group of tensors')
    assert widths == sorted(widths, reverse=True)
    names, shares = texts[::3], [float(x.rstrip('%')) for x in texts[1::3]]
    assert 'other tensors' not in names and len(names) == len({*names}) > 4
    assert ('ids and titles' in names) == (recipe == 'fast')
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    size = (run.out / 'model.safetensors').stat().st_size
    assert f'model.safetensors has {size:,} bytes' in run.page.text


def test_a_page_of_some_users(runs, tmp_path, monkeypatch):
    """Those drawn for the figures; and of many users at most so many."""
    run = runs['paper']
    some = with_sampled_users(run.data, 7, 0)
    page = run.write(tmp_path, data=some, eval_users=7)
    assert 'Evaluated on 7 users (drawn at random) with' in page.text
    assert 'Coverage: 7 lists of 20' in page.text
    monkeypatch.setattr(report, 'MOST_USERS', 9)
    page = run.write(tmp_path)
    assert 'Evaluated on 40 users with' in page.text
    assert 'Coverage: 9 lists of 20' in page.text
    assert run.write(tmp_path).html == page.html


def test_names_are_no_html(runs, tmp_path):
    run, titles = runs['fast'], ['<b>&"' for _ in range(50)]
    run.model.vocabulary = Vocabulary(40, 50, item_titles=titles)
    page = run.write(tmp_path, dataset='a<b', command='train --x "<i>"')
    assert page.open == [] and page.words.count('<b>&"') == 30
    assert 'a<b' in page.text and 'train --x "<i>"' in page.text
