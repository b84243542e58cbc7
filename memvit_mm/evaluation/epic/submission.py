"""Write, read and check submissions to the EPIC-KITCHENS-100 challenges.

The format is that of the official evaluation, version 0.2: a JSON file, for the upload
in a zip as ``test.json``, with scores of all verbs and nouns for every segment.
"""

import io
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn, Optional

import numpy as np

from memvit_mm.io.whole_file import read_bytes, write_bytes

from .labels import NUM_CLASSES, PARTS
from .predictions import EpicPredictions, some

VERSION = '0.2'
CHALLENGES = {
    'recognition': 'action_recognition',
    'anticipation': 'action_anticipation',
}
NUM_ACTIONS = 100
"""Explicit actions of a segment: exactly these many, or none."""

DEFAULT_FIELDS = {'sls_pt': 2, 'sls_tl': 3, 'sls_td': 3}
"""The levels of supervision, each from 0 to 5: pretraining on labelled images and video
(2), segments' start and stop times (3), trained on the training set (3; 4 with the
validation set)."""

MEMBER = 'test.json'
SUFFIXES = ('.json', '.zip')
LARGEST = sys.float_info.max


class SubmissionError(ValueError):
    """A submission that the official evaluation would reject, and why."""


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Logits as log-probabilities, in the very same order.

    What is subtracted from a row is rounded up to a multiple of 2**-20, so that the
    subtraction is exact in float64 for scores that come from float32 or smaller: what
    was equal stays equal, sums of a verb's and a noun's score too.

    Args:
        scores (np.ndarray): ``[N, C]``, logits or log-probabilities.

    Returns:
        np.ndarray: float64 ``[N, C]``, at most 0.

    Examples:
        >>> log_probabilities(np.zeros((1, 4))).round(4)
        array([[-1.3863, -1.3863, -1.3863, -1.3863]])
    """
    scores = scores.astype(np.float64)
    best = scores.max(1, keepdims=True)
    total = best + np.log(np.exp(scores - best).sum(1, keepdims=True))
    return scores - np.ceil(total * 2**20) / 2**20


def write_submission(
    path: str,
    predictions: EpicPredictions,
    task: str,
    fields: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write a submission.

    Verbs and nouns are written as log-probabilities, since the official evaluation
    takes the softmax itself. Explicit actions are written as they are, the 100 best of
    each segment; without them the official evaluation forms them as we do.

    Args:
        path (str): A ``.json`` file, or a ``.zip`` file ready for the upload.
        predictions (EpicPredictions): Of every segment of the split.
        task (str): ``'recognition'`` or ``'anticipation'``.
        fields (Mapping, optional): Top-level fields, over the defaults: ``version``
            ('0.2'), ``challenge`` (the task's), ``sls_pt`` (2), ``sls_tl`` (3),
            ``sls_td`` (3). Others are written, too.

    Raises:
        ValueError: If scores are not finite, explicit actions are fewer than 100, a
            field is not possible, or the file cannot be written.
    """
    predictions.check()
    header = header_of(task, fields)
    if not path.endswith(SUFFIXES):
        raise ValueError(f'A submission is a .json or a .zip file, not {path}.')
    given = predictions.action_scores
    if given is not None and given.shape[1] < NUM_ACTIONS:
        raise ValueError(
            f'{predictions.source} has explicit scores of {given.shape[1]} actions for '
            f'each segment and a submission needs {NUM_ACTIONS}: score more, or leave '
            'them out.'
        )
    # One segment at a time: as a whole the dicts would take gigabytes.
    results = ', '.join(
        f'{json.dumps(name)}: {json.dumps(blocks)}'
        for name, blocks in _blocks(predictions)
    )
    content = f'{json.dumps(header)[:-1]}, "results": {{{results}}}}}'.encode()
    if path.endswith('.zip'):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MEMBER, content)
        content = packed.getvalue()
    write_bytes(path, content)


def header_of(task: str, fields: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
    """The top-level fields of a submission, without the results.

    Raises:
        ValueError, TypeError: If the task is unknown, or a field is not possible.
    """
    header = {'version': VERSION, 'challenge': _challenge(task), **DEFAULT_FIELDS}
    header.update(fields or {})
    if 'results' in header:
        raise ValueError(
            "The field 'results' of a submission holds the scores: leave it out of the "
            'fields.'
        )
    _check_levels(header)
    json.dumps(header, allow_nan=False)
    return header


def _blocks(predictions: EpicPredictions) -> Iterator[tuple[str, dict]]:
    """Each segment and its scores."""
    scores = predictions.action_scores
    pairs = predictions.action_pairs
    keys = [_keys(part.shape[1]) for part in (predictions.verb, predictions.noun)]
    verb = log_probabilities(predictions.verb)
    noun = log_probabilities(predictions.noun)
    for row, name in enumerate(predictions.narration_ids):
        blocks = {
            'verb': dict(zip(keys[0], verb[row].tolist())),
            'noun': dict(zip(keys[1], noun[row].tolist())),
        }
        if scores is not None:
            of_row = pairs[row] if pairs.ndim == 3 else pairs
            best = np.lexsort((of_row[:, 1], of_row[:, 0], -scores[row]))[:NUM_ACTIONS]
            actions = map('{0[0]},{0[1]}'.format, of_row[best].tolist())
            blocks['action'] = dict(zip(actions, scores[row][best].tolist()))
        yield name, blocks


def read_submission(
    path: str,
    num_classes: Sequence[int] = NUM_CLASSES,
    task: Optional[str] = None,
    narration_ids: Optional[Collection[str]] = None,
) -> tuple[dict[str, Any], EpicPredictions]:
    """Read a submission.

    Args:
        path (str): A ``.json`` file, or a ``.zip`` file with ``test.json`` in it.
        num_classes, task, narration_ids: As for :func:`validate_submission`.

    Returns:
        The top-level fields without ``results``, and the predictions.

    Raises:
        FileNotFoundError, ValueError: If the file is missing or something else, or
            :func:`validate_submission` refuses it.
    """
    try:
        content = load_submission(path)
        predictions = validate_submission(content, task, narration_ids, num_classes)
    except SubmissionError as error:
        raise SubmissionError(f'{path}: {error}') from error
    predictions.source = path
    return {k: v for k, v in content.items() if k != 'results'}, predictions


def load_submission(path: str) -> Any:
    """Read a submission's JSON without checking what it holds.

    Raises:
        FileNotFoundError, ValueError: If the file is missing or no JSON.
        SubmissionError: If it names a segment twice.
    """
    content = read_bytes(path)
    try:
        if path.endswith('.zip'):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read(MEMBER)
        return json.loads(content, object_pairs_hook=_no_key_twice)
    except KeyError as error:
        raise ValueError(
            f'{path} has no {MEMBER} in it: a submission is a zip of this one file.'
        ) from error
    except zipfile.BadZipFile as error:
        raise ValueError(
            f'{path} is not a zip file, or damaged: write it again.'
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not JSON ({error}): write it again.') from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise SubmissionError(
            f'The submission has {twice!r} twice in one place: every segment and every '
            'class may come once.'
        )
    return found


def validate_submission(
    content: Any,
    task: Optional[str] = None,
    narration_ids: Optional[Collection[str]] = None,
    num_classes: Sequence[int] = NUM_CLASSES,
) -> EpicPredictions:
    """Check a submission as the official evaluation does, with three stricter rules.

    The challenge must be named in full, scores must be finite, and no action may come
    twice.

    Args:
        content: What the JSON holds.
        task (str, optional): ``'recognition'`` or ``'anticipation'``; by default
            either.
        narration_ids (Collection[str], optional): The segments that must be there, and
            no others; not checked by default.
        num_classes (Sequence[int]): Numbers of verbs and nouns.

    Returns:
        EpicPredictions: Its scores.

    Raises:
        SubmissionError: A ``ValueError`` with one sentence: the first thing wrong.
    """
    _check_header(content, task)
    results = content['results']
    if not isinstance(results, dict) or not results:
        _refuse("The submission's results are no dict of segments.")
    if narration_ids is not None:
        expected = set(narration_ids)
        missing = [name for name in narration_ids if name not in results]
        unknown = [name for name in results if name not in expected]
        if missing:
            _refuse(f'The submission misses {some(missing)} of {len(expected)}.')
        if unknown:
            _refuse(f'The submission has {some(unknown)} not in the split.')
    verb, noun, actions, without = [], [], {}, []
    for name, blocks in results.items():
        if not isinstance(blocks, dict):
            _refuse(f'Segment {name!r} has a {type(blocks).__name__}, not a dict.')
        for part, scores, number in zip(PARTS, (verb, noun), num_classes):
            scores.append(_class_scores(name, part, blocks.get(part), number))
        if 'action' in blocks:
            actions[name] = _action_scores(name, blocks['action'])
        else:
            without.append(name)
    if actions and without:
        _refuse(
            f'The submission has actions for {some(list(actions))} and none for '
            f'{some(without)}: give them for all segments or for none.'
        )
    pairs, scores = zip(*actions.values()) if actions else (None, None)
    predictions = EpicPredictions(
        list(results),
        np.array(verb, dtype=np.float64),
        np.array(noun, dtype=np.float64),
        scores and np.array(scores, dtype=np.float64),
        pairs and np.array(pairs),
        'The submission',
        content['challenge'],
    )
    try:
        predictions.check(num_classes)
    except ValueError as error:
        raise SubmissionError(str(error)) from None
    return predictions


def _refuse(sentence: str) -> NoReturn:
    raise SubmissionError(sentence)


def _check_header(content: Any, task: Optional[str]) -> None:
    if not isinstance(content, dict):
        _refuse(f'The submission is a {type(content).__name__}, not a dict.')
    for field in ('version', 'challenge', *DEFAULT_FIELDS, 'results'):
        if field not in content:
            _refuse(f'The submission has no {field!r}.')
    if content['version'] != VERSION:
        _refuse(f'The version is {content["version"]!r}, expected {VERSION!r}.')
    expected = [_challenge(task)] if task else list(CHALLENGES.values())
    if content['challenge'] not in expected:
        _refuse(
            f'The challenge is {content["challenge"]!r}, expected '
            f'{" or ".join(map(repr, expected))}.'
        )
    _check_levels(content)


def _challenge(task: str) -> str:
    if task not in CHALLENGES:
        raise ValueError(f'task must be one of {", ".join(CHALLENGES)}, got {task!r}.')
    return CHALLENGES[task]


def _check_levels(header: Mapping[str, Any]) -> None:
    for field in DEFAULT_FIELDS:
        level = header[field]
        if not isinstance(level, (int, float)) or not 0 <= level <= 5:
            _refuse(
                f'The submission has the {field} {level!r}, expected a number from 0 '
                'to 5.'
            )


@lru_cache
def _keys(number: int) -> tuple[str, ...]:
    """The keys of the classes, in order."""
    return tuple(map(str, range(number)))


def _class_scores(name: str, part: str, block: Any, number: int) -> list:
    """The scores of one segment's verbs or nouns, in the order of the classes."""
    if not isinstance(block, dict):
        _refuse(f'Segment {name!r} has no {part} scores by class.')
    keys = _keys(number)
    missing = [f'lacks {part} {key}' for key in keys if key not in block]
    if missing or len(block) > number:
        unknown = sorted(set(block) - set(keys))
        wrong = [f'has the {part} class {key!r}' for key in unknown]
        _refuse(
            f'Segment {name!r} {" and ".join([*wrong[:1], *missing[:1]])}: expected '
            f'the classes "0" to "{number - 1}".'
        )
    return _numbers(name, part, {key: block[key] for key in keys})


def _action_scores(name: str, block: Any) -> tuple[list[tuple[int, int]], list]:
    if not isinstance(block, dict) or len(block) != NUM_ACTIONS:
        count = len(block) if isinstance(block, dict) else 'no'
        _refuse(
            f'Segment {name!r} has {count} actions, expected exactly {NUM_ACTIONS} or '
            "no 'action' at all."
        )
    pairs = [_pair(key) for key in block]
    if None in pairs:
        wrong = list(block)[pairs.index(None)]
        _refuse(f'Segment {name!r} has the action {wrong!r}, expected "verb,noun".')
    return pairs, _numbers(name, 'action', block)


@lru_cache(maxsize=100_000)
def _pair(key: str) -> Optional[tuple[int, int]]:
    """Verb and noun of an action's key; None if it is of another form."""
    found = re.fullmatch(r'\s*(\d{1,9})\s*,\s*(\d{1,9})\s*', key)
    return found and (int(found[1]), int(found[2]))


def _numbers(name: str, part: str, scores: Mapping[str, Any]) -> list:
    for key, value in scores.items():
        # An int can be beyond all floats.
        if not isinstance(value, (int, float)) or abs(value) > LARGEST:
            _refuse(
                f'Segment {name!r} has the score {value!r} for {part} {key!r}, '
                'expected a finite number.'
            )
    return list(scores.values())
