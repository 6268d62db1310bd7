"""``pyg-c2f recommend``: lists for people, and similar items."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from pyg_c2f.checkpoint import load, model_file
from pyg_c2f.cli import torchrun
from pyg_c2f.cli.common import fail
from pyg_c2f.files import whole_file
from pyg_c2f.shards import one_block_each
from pyg_c2f.typing import ITEM, USER, InputError
from pyg_c2f.vocabulary import NamedModel

# Users whose lists are computed at once for --all.
LIST_USERS = 256
# Most lines of standard input that are answered at once.
BLOCK_LINES = 256
BLOCK_BYTES = 1 << 16
# Whether a request is for a new person, leaves out seen items, and its candidates: one
# call of the model answers all that are alike.
Kind = tuple[bool, bool, tuple[int, ...] | None]


def run(args: argparse.Namespace) -> int:
    """Prints lists for people, or similar items."""
    model = load(args.checkpoint)
    if args.k is None:
        args.k = min(20, model.num_items)
    check_length(args.k, '-k', model)
    if args.all != (args.out is not None):
        raise InputError('--all and --out FILE go together')
    options: dict[str, Any] = {'exclude_seen': not args.include_seen}
    if args.candidates is not None:
        items = read_items(model, args.candidates, '--candidates')
        options['candidates'] = tuple(items.tolist())
    if args.all:
        return write_lists(model, args, options)
    # The terminal may not be able to show every title.
    sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    return (answer_lines if args.jsonl else print_lists)(model, args, options)


def check_length(k: int, name: str, model: NamedModel) -> None:
    """Refuses the length of a list that the model cannot fill."""
    if not 1 <= k <= model.num_items:
        raise InputError(f'{name} {k}: choose a length from 1 to {model.num_items}')


def print_lists(
    model: NamedModel, args: argparse.Namespace, options: dict[str, Any]
) -> int:
    """Prints lists for a person to read."""
    if args.similar is not None:
        if args.include_seen or args.candidates is not None:
            raise InputError('--similar takes no --include-seen or --candidates')
        items = read_items(model, args.similar, '--similar')
        who = [model.vocabulary.name(x, ITEM) for x in items.tolist()]
        lists = model.similar_items(items, args.k)
    elif args.history is not None:
        history = read_items(model, args.history, '--history')
        who = [' '.join(args.history)]
        lists = model.recommend(k=args.k, history=history.unsqueeze(0), **options)
    else:
        who = args.user
        lists = model.recommend(model.numbers(who, USER), args.k, **options)
    names = model.vocabulary
    for asked, ids, scores in zip(who, *lists, strict=True):
        print(f'for {asked}:')
        for rank, (item, score) in enumerate(zip(*filled(ids, scores), strict=True), 1):
            name, title = names.name(item, ITEM), names.title(item)
            text = f'{rank:4}  {name:>10}  {score:8.4f}  {title}'
            print(text.rstrip())
    return 0


def write_lists(
    model: NamedModel, args: argparse.Namespace, options: dict[str, Any]
) -> int:
    """Writes the lists of all known users; several processes share the users."""
    group, out = one_block_each(torchrun.join_quietly()), Path(args.out)
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise InputError(f'--out {out}: name a file in a folder that exists')
    if out.resolve() == model_file(args.checkpoint).resolve():
        raise InputError(f'--out {out}: is the checkpoint itself; name another file')
    # The blocks do not depend on the number of processes: the last digits of a score
    # depend on which users are scored together.
    blocks = torch.arange(model.num_users).split(LIST_USERS)
    own = group.rows(len(blocks)).local(blocks)
    parts = [out.with_name(f'{out.name}.part-{rank}') for rank in range(group.size)]
    show = sys.stderr.isatty() and group.rank == 0
    try:
        with parts[group.rank].open('w', encoding='utf-8') as file:
            for block in tqdm(own, disable=not show, leave=False):
                lists = model.recommend(block, args.k, **options)
                for user, ids, scores in zip(block.tolist(), *lists, strict=True):
                    name = model.vocabulary.name(user, USER)
                    answer = as_answer(model, *filled(ids, scores))
                    file.write(json.dumps({'user': name} | answer) + '\n')
        group.wait()
        if group.rank == 0:
            with whole_file(out) as target, target.open('wb') as file:
                for part in parts:
                    with part.open('rb') as read:
                        shutil.copyfileobj(read, file)
        group.wait()
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f'{out}: cannot be written ({why}); make room, or name another file'
        ) from error
    finally:
        parts[group.rank].unlink(missing_ok=True)
    if group.rank == 0:
        print(f'wrote {out}')
    return 0


def read_items(model: NamedModel, words: list[str], option: str) -> torch.Tensor:
    """The numbers of the items in an option."""
    tokens = [x.strip() for word in words for x in word.split(',') if x.strip()]
    if not tokens:
        raise InputError(f'{option} is empty: give item ids, such as 12 7 40')
    return model.numbers(tokens, ITEM)


def filled(ids: torch.Tensor, scores: torch.Tensor) -> tuple[list[int], list[float]]:
    """Items and scores of a list, without its empty places."""
    return ids[ids >= 0].tolist(), scores[ids >= 0].tolist()


def answer_lines(
    model: NamedModel, args: argparse.Namespace, options: dict[str, Any]
) -> int:
    """Answers standard input line by line, in blocks."""
    given = {'k': args.k} | options
    num_lines = num_wrong = 0
    for lines in blocks_of_lines(sys.stdin.buffer):
        answers: dict[int, dict[str, Any]] = {}
        alike: dict[Kind, list[tuple[int, Any, int]]] = {}
        for number, line in enumerate(lines, num_lines + 1):
            try:
                kind, who, k = read_request(model, line, given)
                alike.setdefault(kind, []).append((number, who, k))
            except InputError as error:
                answers[number] = {'error': f'line {number}: {error}'}
        num_lines += len(lines)
        num_wrong += len(answers)
        for (is_new, exclude_seen, candidates), group in alike.items():
            _, whom, lengths = zip(*group, strict=True)
            lists = model.recommend(
                None if is_new else list(whom),
                max(lengths),  # A shorter list is the beginning of the longest one.
                history=list(whom) if is_new else None,
                exclude_seen=exclude_seen,
                candidates=candidates,
            )
            for (number, _, k), ids, scores in zip(group, *lists, strict=True):
                answers[number] = as_answer(model, *filled(ids[:k], scores[:k]))
        for number in sorted(answers):
            print(json.dumps(answers[number]))
        sys.stdout.flush()
    if num_wrong:
        return fail(f'{num_wrong} of {num_lines} lines were answered by an error')
    return 0


def blocks_of_lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a stream, as many at once as have arrived, but at least one."""
    rest = b''
    while chunk := stream.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
        *lines, rest = (rest + chunk).split(b'\n')
        for start in range(0, len(lines), BLOCK_LINES):
            yield lines[start : start + BLOCK_LINES]
    if rest:
        yield [rest]


def read_request(
    model: NamedModel, line: bytes, given: dict[str, Any]
) -> tuple[Kind, int | list[int], int]:
    """The kind of a request, for whom it is, and the length of the list.

    The options of the call are the defaults.
    """
    try:
        asked = json.loads(line.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'not JSON ({error})') from None
    if not isinstance(asked, dict) or ('user' in asked) == ('history' in asked):
        raise InputError('expected an object with either a "user" or a "history"')
    unknown = set(asked) - {'user', 'history', 'k', 'candidates', 'exclude_seen'}
    if unknown:
        raise InputError(f'unknown key {min(unknown)!r}')
    k, exclude_seen = (asked.get(x, given[x]) for x in ('k', 'exclude_seen'))
    if type(k) is not int:
        raise InputError(f'"k" is a whole number, not {k!r}')
    check_length(k, '"k"', model)
    if type(exclude_seen) is not bool:
        raise InputError(f'"exclude_seen" is true or false, not {exclude_seen!r}')
    is_new = 'history' in asked
    who: int | list[int]
    if is_new:
        who = read_ids(model, asked['history'], 'history')
    else:
        (who,) = read_ids(model, [asked['user']], 'user')
    candidates = given.get('candidates')
    if 'candidates' in asked:
        candidates = tuple(read_ids(model, asked['candidates'], 'candidates'))
    return (is_new, exclude_seen, candidates), who, k


def read_ids(model: NamedModel, values: Any, key: str) -> list[int]:
    """The numbers of the ids in a line."""
    if not isinstance(values, list) or not values:
        raise InputError(f'"{key}" is a list of item ids, not {values!r}')
    for value in values:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise InputError(f'an id is a text or a number, not {value!r}')
    kind = USER if key == 'user' else ITEM
    return model.numbers([str(value) for value in values], kind).tolist()


def as_answer(model: NamedModel, ids: list[int], scores: list[float]) -> dict[str, Any]:
    """A list as an answer; scores have the digits of single precision."""
    answer: dict[str, Any] = {
        'items': [model.vocabulary.name(item, ITEM) for item in ids],
        'scores': [float(f'{score:.7g}') for score in scores],
    }
    if model.vocabulary.item_titles is not None:
        answer['titles'] = [model.vocabulary.title(item) for item in ids]
    return answer
