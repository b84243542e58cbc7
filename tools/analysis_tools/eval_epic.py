#!/usr/bin/env python
"""Score predictions for EPIC-KITCHENS-100 as the official evaluation does.

python tools/analysis_tools/eval_epic.py --task recognition \\
    --annotations FOLDER --scores FILE
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run


def parse_args():
    parser = argparse.ArgumentParser(
        description='Score predictions of verbs, nouns and actions: top-1 and top-5 '
        'accuracy (recognition) or class-mean recall@5 (anticipation), over all '
        'segments, unseen participants and tail classes'
    )
    parser.add_argument(
        '--task', choices=['recognition', 'anticipation'], required=True
    )
    parser.add_argument(
        '--annotations',
        required=True,
        metavar='FOLDER',
        help='folder of the official CSV files (EPIC_100_validation.csv, '
        'EPIC_100_tail_verbs.csv, ...)',
    )
    parser.add_argument(
        '--scores',
        required=True,
        metavar='FILE',
        help='.npz with narration_id, verb_logits and noun_logits (and perhaps '
        'action_scores and action_pairs), a .pkl of tools/test.py --dump, or a '
        'submission, .json or .zip',
    )
    parser.add_argument(
        '--split',
        choices=['validation', 'train'],
        default='validation',
        help='whose labels to compare with (default: validation)',
    )
    parser.add_argument(
        '--allow-missing',
        action='store_true',
        help='score the segments there are, if not all were predicted',
    )
    parser.add_argument(
        '--json', metavar='OUT', help='write the numbers by their official names'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    import_package()
    from memvit_mm.evaluation import epic_metrics, read_labels
    from memvit_mm.evaluation.epic.metric import write_json
    from memvit_mm.evaluation.epic.prediction_files import read_predictions
    from memvit_mm.evaluation.epic.predictions import match
    from memvit_mm.evaluation.epic.scores import format_table
    from memvit_mm.io.whole_file import require_place

    if args.json is not None:
        require_place(args.json, ('.json',), '--json')
    labels = read_labels(args.annotations, args.split)
    if not labels.has_labels:
        raise ValueError(
            f'{labels.source} has no labels to compare with: choose another --split.'
        )
    predictions = read_predictions(args.scores, labels.num_classes)
    predictions = match(predictions, labels, args.allow_missing)
    result = epic_metrics(args.task, predictions, labels)
    print(format_table(result, labels))
    if len(predictions) < len(labels.narration_ids):
        print(
            f'{len(labels.narration_ids) - len(predictions)} segments have no '
            'prediction and do not count: not comparable with published numbers.'
        )
    if predictions.challenge not in (None, f'action_{args.task}'):
        print(f'{args.scores} is a submission to {predictions.challenge}.')
    if args.json is not None:
        write_json(args.json, result)


if __name__ == '__main__':
    run(main)
