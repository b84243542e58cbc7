#!/usr/bin/env python
"""Make a submission to an EPIC-KITCHENS-100 challenge of predictions, or check one.

python tools/analysis_tools/make_epic_submission.py --task anticipation \\
    --annotations FOLDER --scores predictions.pkl --submission test.zip
python tools/analysis_tools/make_epic_submission.py --task anticipation \\
    --annotations FOLDER --check test.zip
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run

FIELDS = ('sls_pt', 'sls_tl', 'sls_td')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Write predictions in the format of the EPIC-KITCHENS-100 '
        'challenges (JSON, version 0.2), or check such a file'
    )
    parser.add_argument(
        '--task', choices=['recognition', 'anticipation'], required=True
    )
    parser.add_argument(
        '--annotations',
        required=True,
        metavar='FOLDER',
        help='folder of the official CSV files',
    )
    parser.add_argument(
        '--scores',
        metavar='FILE',
        help='.npz with narration_id, verb_logits and noun_logits (and perhaps '
        'action_scores and action_pairs), a .pkl of tools/test.py --dump, or another '
        'submission',
    )
    parser.add_argument(
        '--submission',
        metavar='OUT',
        help='.zip, ready for the upload, or .json to write',
    )
    parser.add_argument(
        '--check', metavar='FILE', help='write nothing, check this submission'
    )
    parser.add_argument(
        '--split',
        choices=['test', 'validation'],
        default='test',
        help='whose segments must be there (default: test, '
        'EPIC_100_test_timestamps.csv)',
    )
    for field, what in zip(
        FIELDS,
        (
            'pretraining: 0 none, 1 images, 2 images and video, 3 self-supervised, '
            '4 the same with EPIC, 5 private data',
            'labels: 3 start and stop times',
            'training data: 3 training set, 4 with validation set',
        ),
    ):
        parser.add_argument(
            f'--{field.replace("_", "-")}', type=int, metavar='N', help=what
        )
    parser.add_argument(
        '--field',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='other top-level fields, such as version=0.2',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    import_package()
    from memvit_mm.evaluation import read_labels, write_submission
    from memvit_mm.evaluation.epic.metric import submission_note
    from memvit_mm.evaluation.epic.prediction_files import read_predictions
    from memvit_mm.evaluation.epic.predictions import match
    from memvit_mm.evaluation.epic.submission import (
        SUFFIXES,
        header_of,
        read_submission,
    )
    from memvit_mm.io.whole_file import require_place

    wanted = (args.scores is not None, args.submission is not None)
    if wanted != (args.check is None,) * 2:
        raise ValueError('Give --scores FILE and --submission OUT, or --check FILE.')
    if args.check is None:
        require_place(args.submission, SUFFIXES, '--submission')
    labels = read_labels(args.annotations, args.split)
    if args.check is not None:
        header, _ = read_submission(
            args.check, labels.num_classes, args.task, labels.narration_ids
        )
        print(
            f'{args.check} is a valid submission of {len(labels.narration_ids)} '
            f'segments for {header["challenge"]}.'
        )
        return
    fields = dict(map(parse_field, args.field))
    fields.update(
        (field, getattr(args, field))
        for field in FIELDS
        if getattr(args, field) is not None
    )
    header = header_of(args.task, fields)
    predictions = match(read_predictions(args.scores, labels.num_classes), labels)
    write_submission(args.submission, predictions, args.task, fields)
    print(submission_note(args.submission, labels))
    print(f'{len(predictions)} segments; {json.dumps(header)}')


def parse_field(text):
    """``('team', 'x')`` of ``team=x``; always text."""
    key, equals, value = text.partition('=')
    if not key or not equals:
        raise ValueError(f'--field takes KEY=VALUE, got {text!r}.')
    return key, value


if __name__ == '__main__':
    run(main)
