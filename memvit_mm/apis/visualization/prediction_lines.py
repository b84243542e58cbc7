"""Predictions as lines of JSON: PredictionLines writes them, read_lines reads them."""

import json
from typing import Any, Optional, Union

import numpy as np

from memvit_mm.apis.models.classes import ClassScores
from memvit_mm.apis.models.results import EpicPrediction, PeoplePrediction, Prediction

from .stream_info import StreamInfo

DIGITS = 6


class PredictionLines:
    """Writes a file of JSON lines, which are whole at any time.

    The first line describes the rest: ``{"type": "stream", ...}`` with the video (its
    ``name``, ``fps``, ``size``, ``duration``), the model (``config``, ``checkpoint``)
    and the fields of :class:`StreamInfo`, among them ``kind`` and the names of all
    ``classes`` by number.

    Then a line per prediction, written and flushed when it is made: ``{"type":
    "prediction", "number", "time", "start", "end", ...}``, times in seconds, with

    - for ``kind`` 'actions': ``scores`` (a number per class) and ``top``, the best
      classes, ``[name, score]`` each;
    - for 'verbs and nouns': ``verb_scores``, ``noun_scores``, ``top_verbs`` and
      ``top_nouns``;
    - for 'people': ``people``, for each of them ``box`` (x1, y1, x2, y2 in pixels of
      the video), ``box_score``, ``track_id`` where they are tracked, ``scores`` and
      ``top``;
    - where the model has a memory, and unless it was not asked for,
      ``without_memory``: the same again (scores and best classes) of the clip alone.

    The last line is ``{"type": "end", "complete": true, ...}`` with the number of
    ``predictions``, ``frames``, ``dropped`` and ``skipped`` clips; ``complete`` is
    false if it was interrupted, with the ``reason``. :func:`read_lines` reads it all.

    Args:
        path (str): The file.
        info (StreamInfo): Of the stream.
        top (int): Best classes to name.
        **about: More for the first line.
    """

    def __init__(self, path: str, info: StreamInfo, top: int = 5, **about: Any) -> None:
        self.path = path
        self.info = info
        self.top = top
        self.count = 0
        """Predictions written."""
        # Without a buffer: on a disk that becomes full, lines stay whole.
        self._file = open(path, 'wb', buffering=0)  # noqa: SIM115 (until close())
        self._write(dict(type='stream', **about, **info.to_dict()))

    def write(self, prediction: Prediction) -> None:
        """Add a prediction."""
        line = dict(
            type='prediction',
            number=prediction.number,
            time=round(prediction.time, DIGITS),
            start=round(prediction.start, DIGITS),
            end=round(prediction.end, DIGITS),
            **self._scores(prediction),
        )
        if prediction.without_memory is not None:
            line['without_memory'] = self._scores(prediction.without_memory, True)
        self._write(line)
        self.count += 1

    def close(self, **counts: Any) -> None:
        """Add the last line."""
        if not self._file.closed:
            self._write(dict(type='end', **counts, predictions=self.count))
            self._file.close()

    def _write(self, line: dict) -> None:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        content = f'{text}\n'.encode()
        # A pipe cannot be cut off.
        begin = self._file.tell() if self._file.seekable() else None
        try:
            is_whole = self._file.write(content) == len(content)
        except OSError:
            is_whole = False
        if not is_whole:
            if begin is not None:
                self._file.truncate(begin)
                self._file.seek(begin)
            raise OSError(
                f'The lines file {self.path} could not be written any further, as if '
                'the disk was full: make room or name a file on another disk.'
            )

    def _scores(self, prediction: Prediction, alone: bool = False) -> dict[str, Any]:
        if isinstance(prediction, EpicPrediction):
            verbs, nouns = prediction.groups
            return dict(
                verb_scores=_plain(verbs.scores),
                noun_scores=_plain(nouns.scores),
                top_verbs=self._best(verbs),
                top_nouns=self._best(nouns),
            )
        (actions,) = prediction.groups
        if not isinstance(prediction, PeoplePrediction):
            return dict(scores=_plain(actions.scores), top=self._best(actions))
        people = []
        for number, scores in enumerate(prediction.scores):
            person = {}
            if not alone:
                person['box'] = _plain(prediction.boxes[number], 2)
                person['box_score'] = round(float(prediction.box_scores[number]), 6)
                if prediction.track_ids is not None:
                    person['track_id'] = int(prediction.track_ids[number])
            person['scores'] = _plain(scores)
            person['top'] = self._best(actions, number)
            people.append(person)
        return dict(people=people)

    def _best(self, group: ClassScores, row: Any = ...) -> list:
        best = group.best(self.top, row=row)
        return [[name, round(score, DIGITS)] for name, score in best]


def _plain(values: np.ndarray, digits: int = DIGITS) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def read_lines(path: str) -> tuple[dict, list[dict], Optional[dict]]:
    """Read what :class:`PredictionLines` wrote.

    Returns:
        tuple: The first line, the predictions' lines, and the last one; None for it if
        the file is still being written, or its writer was killed.

    Raises:
        ValueError: If a line is none of these.
    """
    lines: list[Union[dict, None]] = []
    with open(path, encoding='utf-8') as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                line = None
            expected = ('stream',) if number == 1 else ('prediction', 'end')
            if not isinstance(line, dict) or line.get('type') not in expected:
                raise ValueError(
                    f'{path}, line {number}: expected a JSON object with type '
                    f'{" or ".join(expected)}, as '
                    'tools/deployment/stream_video.py writes it.'
                )
            lines.append(line)
    if not lines:
        raise ValueError(f'{path} is empty: expected lines of predictions.')
    last = lines.pop() if lines[-1]['type'] == 'end' else None
    return lines[0], lines[1:], last
