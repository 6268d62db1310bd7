"""The tables of a run, and its page against figures computed one by one."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch

import pyg_c2f
from pyg_c2f import report
from pyg_c2f.baselines import ease_score, item_knn_score
from pyg_c2f.datasets import get_dataset
from pyg_c2f.evaluate import popularity_score, rank_items, with_sampled_users
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
        pairs, sizes = self.data[RATES].edge_index, (40, 50)
        knn, ease = (self.metrics['baselines'][x] for x in ('item_knn', 'ease'))
        self.baselines = {
            'popularity': popularity_score(pairs, 50),
            'item_knn': item_knn_score(pairs, *sizes, **knn['settings']),
            'ease': ease_score(pairs, *sizes, **ease['settings']),
        }
        self.page = Page((out / 'report.html').read_text(encoding='utf-8'))

    def write(self, folder, data=None, **changes):
        """The page of the run with other metrics or data, in a folder of its own."""
        shutil.copy(self.out / 'model.safetensors', folder)
        metrics = self.metrics | {'command': 'train'} | changes
        content = metrics, self.history, self.model, data or self.data, self.baselines
        return Page(report.write_report(folder, *content).read_text(encoding='utf-8'))

    def items_of_users(self, key):
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


@pytest.fixture(params=['paper', 'fast'])
def each(request, runs):
    return runs[request.param]


def test_results_table_holds_every_number(each):
    metrics = each.metrics
    names = ('popularity', 'ItemKNN', 'EASE')
    expected = dict(zip(names, metrics['baselines'].values(), strict=True)) | {
        f'{stage}, phase {key[-1]}': result
        for stage in ('coarse', 'fine')
        for key, result in metrics[stage].items()
    }
    blocks = report.results_table(metrics).split('\n\n')
    for split, block in zip(('test', 'val'), blocks, strict=True):
        header, *lines = block.splitlines()
        assert {len(line) for line in lines} == {len(header)}
        first, _, *names = header.lower().split()
        assert first == split
        assert names == [f'{m}@{k}' for m in ('ndcg', 'recall') for k in KS]
        for line, (label, result) in zip(lines, expected.items(), strict=True):
            assert line.startswith(label)
            cells = line.removeprefix(label).split()
            if 'best_epoch' in result:
                assert int(cells.pop(0)) == result['best_epoch']
            assert cells == [f'{result[split][name]:.4f}' for name in names]


def test_the_result_of_a_refit_has_its_own_row(runs):
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


def test_the_page_is_one_whole_file(each):
    page, metrics = each.page, each.metrics
    assert page.open == [] and page.loads == []
    assert not re.search(r'@import|url\(|<script', page.html)
    parts = [json.loads((each.out / 'config.json').read_text())['call']]
    parts += [f'recipe {metrics["recipe"]}', 'seed 2024', metrics['versions']['numpy']]
    parts += [f'{x:.4f}' for split in ('val', 'test') for x in metrics[split].values()]
    assert all(part in page.text for part in parts)
    num_pairs = len({*map(tuple, each.data[RATES].test_edge_label_index.T.tolist())})
    assert f'Evaluated on 40 users with {num_pairs} test interactions' in page.text


def test_curves_show_what_was_trained(runs):
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


def test_quality_by_activity_and_popularity(each):
    """Against lists of the model itself."""
    train = each.items_of_users('edge_index')
    test = each.items_of_users('test_edge_label_index')
    wanted = [(user, item) for user in test for item in test[user]]
    lists = each.model.recommend(list(test), 20)[0].tolist()
    by_item = [sum(item in row for row in train.values()) for item in range(50)]
    best = sorted(range(50), key=lambda item: (-by_item[item], item))
    popular = [[x for x in best if x not in train[user]][:20] for user in test]
    pairs = each.data[RATES].edge_index
    others = [
        rank_items(each.baselines[x], torch.tensor([*test]), 50, pairs, 20).tolist()
        for x in ('item_knn', 'ease')
    ]
    answers = lists, popular, *others
    by_user, widths = each.page.bars("Recall by users' activity")
    assert len(widths) == len(by_user) * 4 / 6
    for at in range(0, len(by_user), 6):
        interval, note, *shown = by_user[at : at + 6]
        low, high = ends(interval)
        inside = [user for user in test if low <= len(train[user]) <= high]
        assert note == f'{len(inside)} users'
        for value, given in zip(answers, shown, strict=True):
            recalls = [found(value, [(u, i) for i in test[u]]) for u in inside]
            assert given == f'{sum(recalls) / len(recalls):.3f}'
    by_popularity, _ = each.page.bars("Interactions found by items' popularity")
    assert len(by_popularity) == 24
    for at in range(0, 24, 6):
        interval, note, *shown = by_popularity[at : at + 6]
        low, high = ends(interval)
        inside = [pair for pair in wanted if low <= by_item[pair[1]] <= high]
        assert note == f'{len({item for _, item in inside})} items'
        assert shown == [f'{found(x, inside):.1%}' for x in answers]
    listed, *others = (len({*sum(x, [])}) for x in answers)
    assert (
        f'40 lists of 20 hold {listed} of 50 items ({listed / 50:.0%}); other '
        'lists {} by popularity, {} by ItemKNN, {} by EASE.'.format(*others)
    ) in each.page.text


def test_three_lists_with_names(each):
    train = each.items_of_users('edge_index')
    test = each.items_of_users('test_edge_label_index')
    parts = each.page.html.split('<div><h3>User ')[1:]
    assert len(parts) == 3
    names = each.model.vocabulary.item_titles or [f'item {item}' for item in range(50)]
    users = each.model.vocabulary.user_ids or [str(user) for user in range(40)]
    activity = []
    for part in parts:
        user = users.index(part.partition('<')[0])
        activity.append(len(train[user]))
        items = each.model.recommend([user], 20)[0][0].tolist()
        marks, shown = zip(
            *re.findall('<li( class=found)?>(.*?)</li>', part), strict=True
        )
        assert list(shown) == [names[item] for item in items[:10]]
        assert list(map(bool, marks)) == [item in test[user] for item in items[:10]]
        hits = len(test[user] & {*items})
        assert f'{hits} of {len(test[user])} test items' in part
        seen = re.search(r'<p>has (.*?)[;<]', part)[1]
        assert seen in {names[item] for item in train[user]}
    assert activity == sorted(activity)


def test_the_bytes_are_those_of_the_file(each):
    texts, widths = each.page.bars('Bytes of the file by group of tensors')
    assert widths == sorted(widths, reverse=True)
    names, shares = texts[::3], [float(x.rstrip('%')) for x in texts[1::3]]
    assert 'other tensors' not in names and len(names) == len({*names}) > 4
    assert ('ids and titles' in names) == (each.metrics['recipe'] == 'fast')
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    size = (each.out / 'model.safetensors').stat().st_size
    assert f'model.safetensors has {size:,} bytes' in each.page.text


def test_a_page_on_sampled_users(runs, tmp_path, monkeypatch):
    """Those drawn for the figures; and of many users at most so many."""
    run = runs['paper']
    page = run.write(tmp_path, with_sampled_users(run.data, 7, 0), eval_users=7)
    assert 'Evaluated on 7 users (drawn at random) with' in page.text
    assert 'Coverage: 7 lists of 20' in page.text
    monkeypatch.setattr(report, 'MOST_USERS', 9)
    page = run.write(tmp_path)
    assert 'Evaluated on 40 users with' in page.text
    assert 'Coverage: 9 lists of 20' in page.text
    assert run.write(tmp_path).html == page.html


def test_names_are_escaped(runs, tmp_path):
    run, titles = runs['fast'], ['<b>&"' for _ in range(50)]
    run.model.vocabulary = Vocabulary(40, 50, item_titles=titles)
    page = run.write(tmp_path, dataset='a<b', command='train --x "<i>"')
    assert page.open == [] and page.words.count('<b>&"') == 30
    assert 'a<b' in page.text and 'train --x "<i>"' in page.text
