"""EpicMetric: EPIC-KITCHENS-100's official numbers in validation and test."""

import json
import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
from mmaction.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from memvit_mm.io.whole_file import require_place, write_bytes
from memvit_mm.structures import is_skipped, samples_of, skipped_samples

from .labels import NUM_CLASSES, EpicLabels, read_labels
from .prediction_files import write_npz
from .predictions import (
    ARRAYS,
    SCORES,
    EpicPredictions,
    fill,
    gather,
    match,
    prediction_of,
    some,
)
from .scores import TASKS, EpicResult, epic_metrics, format_table
from .submission import NUM_ACTIONS, SUFFIXES, header_of, write_submission


@METRICS.register_module()
class EpicMetric(BaseMetric):
    """The official recognition or anticipation metrics of EPIC-KITCHENS-100.

    Recognition: top-1 and top-5 accuracy. Anticipation: class-mean recall@5. Each of
    verbs, nouns and actions, over all segments, those of unseen participants, and those
    of tail classes; see :func:`epic_metrics`, which does the counting::

        test_evaluator = dict(
            type='EpicMetric', task='anticipation', annotations='data/epic/annotations',
            dump='work_dirs/predictions.npz')

    Reads ``verb_logits`` ``[num_verbs]``, ``noun_logits`` ``[num_nouns]`` (logits or
    log-probabilities) and ``narration_id`` of each data sample, and, if it has them,
    ``action_scores`` ``[K]`` and ``action_pairs`` ``[K, 2]``, which then rank the
    actions instead of the sums of verb and noun. Samples whose ``narration_id`` is None
    (clips between segments) do not count, nor do clips that could not be read
    (``on_bad_clip='skip'``), which the log tells.

    Args:
        task (str): ``'recognition'`` or ``'anticipation'``.
        annotations (str, optional): Folder of the official CSV files.
        split (str): ``'validation'``, ``'test'`` or ``'train'``: which of them. The
            test set has no labels: there is no number, only what ``submission`` and
            ``dump`` write.
        ann_file (str, optional): A file of segments instead of the folder's.
        num_verbs (int, optional): By default as many as in the folder's files of
            classes, else 97.
        num_nouns (int, optional): In the same way; else 300.
        submission (str, optional): A ``.json`` or ``.zip`` file to write, in the format
            of the challenge.
        submission_fields (dict, optional): Its top-level fields, see
            :func:`write_submission`: ``dict(sls_pt=2, sls_tl=3, sls_td=3)`` ...
        dump (str, optional): An ``.npz`` file to which predictions are written before
            they are checked and scored; ``tools/analysis_tools/eval_epic.py`` reads it.
            Without it they are written beside the log if they cannot be scored.
        allow_missing (bool): Score the segments there are, if some have no prediction.
            By default that is an error.
        collect_device, prefix, collect_dir: As mmengine's ``BaseMetric``.

    Results, in percent, have the official names after the prefix ``epic/``:
    ``epic/all_action_accuracy_at_1``, ``epic/overall_action_mt5r`` (best checkpoints:
    ``save_best='epic/overall_action_mt5r', rule='greater'``). A subset without segments
    has none. The log has them as a table.

    Raises:
        ValueError, FileNotFoundError: In one sentence that names file, row or segment.
    """

    default_prefix = 'epic'

    def __init__(
        self,
        task: str,
        annotations: Optional[str] = None,
        split: str = 'validation',
        ann_file: Optional[str] = None,
        num_verbs: Optional[int] = None,
        num_nouns: Optional[int] = None,
        submission: Optional[str] = None,
        submission_fields: Optional[Mapping[str, Any]] = None,
        dump: Optional[str] = None,
        allow_missing: bool = False,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
        collect_dir: Optional[str] = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if task not in TASKS:
            raise ValueError(f'task must be one of {", ".join(TASKS)}, got {task!r}.')
        if (num_verbs is None) != (num_nouns is None):
            raise ValueError(
                f'num_verbs={num_verbs} and num_nouns={num_nouns}: give both or none.'
            )
        # Now, since a mistake must not cost a whole test.
        num_classes = None if num_verbs is None else (num_verbs, num_nouns)
        self.labels = read_labels(annotations, split, ann_file, num_classes)
        if submission is not None:
            require_place(submission, SUFFIXES, 'submission')
        if dump is not None:
            require_place(dump, ('.npz',), 'dump')
        header_of(task, submission_fields)
        self.task = task
        self.submission = submission
        self.submission_fields = submission_fields
        self.dump = dump
        self.allow_missing = allow_missing
        self._shapes: Optional[dict] = None
        self._expected = set(self.labels.narration_ids)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of a batch.

        Args:
            data_batch: As the DataLoader gave it; tells which clips were skipped.
            data_samples: One per clip that was read, see the class.

        Raises:
            ValueError: If a sample has no ``narration_id``, or one without logits or
                with as many as there are no classes.
        """
        # One entry for every clip of the dataset, in its order, whatever it is:
        # mmengine cuts off what a distributed sampler has repeated by counting them.
        found = [self._entry(sample) for sample in data_samples]
        samples = samples_of(data_batch)
        if len(samples) - len(skipped_samples(data_batch)) == len(found):
            entries = iter(found)
            found = [
                dict(skipped=sample.metainfo.get('narration_id'))
                if is_skipped(sample)
                else next(entries)
                for sample in samples
            ]
        self.results += found

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write, check and score the predictions; log the table."""
        logger = MMLogger.get_current_instance()
        found = [one for one in results if 'narration_id' in one]
        predictions = gather(found, 'The model')
        skipped = sorted({one['skipped'] for one in results if one.get('skipped')})
        if self.dump is not None:
            write_npz(self.dump, predictions, skipped)
            logger.info(f'The predictions are in {self.dump}.')
        try:
            return self._score(predictions, skipped, logger)
        except ValueError as error:
            if self.dump is not None:
                raise
            folder = osp.dirname(logger._log_file or '')
            path = osp.join(folder, 'unscored_predictions.npz')
            write_npz(path, predictions, skipped)
            raise ValueError(
                f'{str(error).rstrip(".")}; the predictions are in {path}, which '
                'tools/analysis_tools/eval_epic.py scores.'
            ) from error

    def _score(
        self, predictions: EpicPredictions, skipped: list[str], logger: MMLogger
    ) -> dict[str, float]:
        left_out = (self.dataset_meta or {}).get('left_out', ())
        predictions = match(
            predictions, self.labels, self.allow_missing, [*skipped, *left_out]
        )
        for names, why in ((skipped, 'could not be read'), (left_out, 'are left out')):
            if names:
                logger.warning(
                    f'{some(names)} {why} and do not count: the numbers are those of '
                    'the others, and cannot be compared with published ones.'
                )
        values = {}
        if self.labels.has_labels:
            result = epic_metrics(self.task, predictions, self.labels)
            logger.info('\n' + format_table(result, self.labels))
            values = {k: v for k, v in result.values.items() if not np.isnan(v)}
        else:
            remedy = '' if self.submission else '; submission=OUT.zip writes them'
            logger.info(
                f'{self.labels.source} has no labels, so there are no numbers{remedy}.'
            )
        if self.submission is not None:
            self._submit(predictions, logger)
        return values

    def _entry(self, sample: dict) -> dict:
        """The prediction in a data sample, whose shapes are checked."""
        found = prediction_of(sample)
        if found is None:
            return {}
        name = found['narration_id']
        if name not in self._expected:
            raise ValueError(
                f'The dataset has segment {name!r}, which is not in '
                f'{self.labels.source}: dataset and EpicMetric must read the same '
                "split; for the test set, set split='test'."
            )
        # They must fit into one array later, when all is computed.
        shapes = {key: list(found[key].shape) for key in SCORES if key in found}
        if self._shapes is None:
            logits = zip(ARRAYS, ([number] for number in self.labels.num_classes))
            self._shapes = {**shapes, **dict(logits)}
        if shapes != self._shapes:
            raise ValueError(
                f'Segment {name!r} has scores of the shapes {shapes}, expected '
                f'{self._shapes}: num_verbs and num_nouns of the head and of '
                'EpicMetric must agree, and all segments have as many actions.'
            )
        if self.submission and 0 < len(found.get('action_scores', ())) < NUM_ACTIONS:
            raise ValueError(
                f'Segment {name!r} has explicit scores of '
                f'{len(found["action_scores"])} actions and a submission needs '
                f'{NUM_ACTIONS}: score more, or leave them out.'
            )
        return found

    def _submit(self, predictions: EpicPredictions, logger: MMLogger) -> None:
        there = set(predictions.narration_ids)
        missing = [name for name in self.labels.narration_ids if name not in there]
        if missing:
            logger.warning(
                f'{some(missing)} have no prediction: since the challenge wants all '
                f'segments, {self.submission} has equal scores for all classes there.'
            )
            predictions = fill(predictions, missing)
        write_submission(
            self.submission, predictions, self.task, self.submission_fields
        )
        logger.info(submission_note(self.submission, self.labels))


def submission_note(path: str, labels: EpicLabels) -> str:
    """What to do with a submission that has been written."""
    note = f'The submission is in {path}'
    if path.endswith('.json'):
        note += '; for the upload it goes into a zip as test.json (OUT.zip does that)'
    if tuple(labels.num_classes) != NUM_CLASSES:
        verbs, nouns = labels.num_classes
        note += (
            f'; with {verbs} verbs and {nouns} nouns it is none for the challenge, '
            'which has 97 and 300'
        )
    return note + '.'


def write_json(path: str, result: EpicResult) -> None:
    """Write the numbers by their official names; null where there is no segment."""
    values = {k: None if np.isnan(v) else v for k, v in result.values.items()}
    write_bytes(path, (json.dumps(values, indent=1) + '\n').encode())
