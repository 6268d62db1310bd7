"""What an interrupted run goes on from: the states after its last two epochs.

They take turns in two files, so that one is whole whatever happens to the other.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from pyg_c2f.checkpoint import UNFIT, read_tensors, write_tensors
from pyg_c2f.typing import InputError, Stage

logger = logging.getLogger(__name__)

RESUME_FILES = ('resume-0.safetensors', 'resume-1.safetensors')


@dataclass
class Progress:
    """Where a stage stands; all that a resumed run needs beside tensors."""

    stage: Stage
    phase: int = 1
    epoch: int = 0
    best: float = -1.0
    bad_evaluations: int = 0
    seconds: float = 0.0
    evaluate_seconds: float = 0.0


State = tuple[dict[str, Tensor], dict[str, Any]]


def resume_files(out: Path) -> list[Path]:
    """The files of an interrupted run that are there."""
    return [path for name in RESUME_FILES if (path := out / name).exists()]


def delete_resume(out: Path) -> None:
    """Deletes what an interrupted run has left."""
    for name in RESUME_FILES:
        (out / name).unlink(missing_ok=True)


def write_resume(out: Path, tensors: dict[str, Tensor], content: Any) -> None:
    """Writes the state after an epoch, in place of the one before the last.

    Args:
        out (Path): The directory of the run.
        tensors (Dict): The tensors of the state.
        content (Dict): What JSON can hold of it; ``progress`` has ``stage``, ``epoch``.
    """
    path = out / RESUME_FILES[content['progress']['epoch'] % 2]
    write_tensors(path, tensors, {'resume': json.dumps(content)})


def read_resume(out: Path) -> State | None:
    """The newest complete state in a directory, or :obj:`None`.

    Raises:
        InputError: If all that is there is damaged.
    """
    states: dict[Path, State] = {}
    errors: dict[Path, InputError] = {}
    for path in resume_files(out):
        try:
            states[path] = _read(path)
        except InputError as error:
            errors[path] = error
    if not states and not errors:
        return None
    if not states:
        paths = ' and '.join(map(str, errors))
        raise InputError(
            f'{next(iter(errors.values()))}: no complete state is left to resume from; '
            f'delete {paths} to start again'
        )
    newest = max(states, key=lambda path: _place(states[path]))
    for path in errors:
        logger.warning(
            '%s is damaged: going on from %s, epoch %d of stage %s',
            path,
            newest.name,
            _place(states[newest])[1],
            states[newest][1]['progress']['stage'],
        )
    return states[newest]


def _place(state: State) -> tuple[bool, int]:
    progress = state[1]['progress']
    return progress['stage'] == 'fine', progress['epoch']


def _read(path: Path) -> State:
    tensors, meta = read_tensors(path)
    try:
        content = json.loads(meta['resume'])
        kinds = get_type_hints(Progress) | {'stage': str}
        for key, value in asdict(Progress(**content['progress'])).items():
            if type(value) is not kinds[key]:
                raise TypeError(f'{key} is {value!r}')
        phases, seconds = (content['context'][key] for key in ('phases', 'seconds'))
        if not all(isinstance(x, dict) for x in (phases, seconds, content['results'])):
            raise TypeError('phases, seconds or results are missing')
    except UNFIT as error:
        raise InputError(f'{path}: holds no interrupted run ({error!r})') from None
    return tensors, content
