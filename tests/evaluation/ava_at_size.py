"""A made set of any size, and MMAction2's evaluation of it without files of results.

At the size of AVA's validation set, with the greatest difference between the two:

    python tests/evaluation/ava_at_size.py 57000 --official
"""

import argparse
import resource
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from mmaction.evaluation.functional.ava_evaluation import metrics
from mmaction.evaluation.functional.ava_utils import read_csv, tpfp_single

from memvit_mm.evaluation import MemoryAVAMetric

CLASSES = 80
PEOPLE = 3
# AVA's list for evaluation has 60 of the 80.
EVALUATED = [label for label in range(1, CLASSES + 1) if label % 4]


def made_set(folder: Path, num_keyframes: int) -> tuple[dict, list[dict]]:
    """Files of ground truth, and predictions in which no two scores are equal.

    Two people are annotated with three labels each. Their detections are off, some too
    far, and the third is false. An eighth of the scores are below 0.002. Every tenth
    keyframe has no ground truth, and every 50th is excluded.
    """
    random = np.random.RandomState(0)
    corner = random.uniform(0, 0.4, (num_keyframes, PEOPLE, 2))
    size = random.uniform(0.2, 0.5, (num_keyframes, PEOPLE, 2))
    boxes = np.concatenate([corner, corner + size], 2)
    # Skewed: the rarest label is 80 times as rare as the most frequent one.
    chance = 1 / np.arange(1, CLASSES + 1)
    drawn = random.choice(CLASSES, (num_keyframes, 2, 3), p=chance / chance.sum())
    drawn[::10] = -1
    rank = random.uniform(size=(num_keyframes, PEOPLE, CLASSES))
    lines, excluded = [], []
    for number in range(num_keyframes):
        key = f'v{number // 897},{902 + number % 897:04d}'
        if number % 50 == 1:
            excluded.append(f'{key}\n')
        for person in range(2):
            box = ','.join(f'{value:.3f}' for value in boxes[number, person])
            for label in sorted(set(drawn[number, person]) - {-1}):
                rank[number, person, label] += random.uniform(0, 0.8)
                # The official evaluation counts the truth of excluded keyframes.
                if number % 50 != 1:
                    lines.append(f'{key},{box},{label + 1},{person}\n')
    # [keyframes, people, classes] -> distinct for each class, down to about 1e-16
    ranks = rank.reshape(-1, CLASSES).argsort(0).argsort(0).reshape(rank.shape)
    scores = ((ranks + 1) / (num_keyframes * PEOPLE + 1)) ** 3
    scores = np.pad(scores, ((0, 0), (0, 0), (1, 0))).astype(np.float32)
    found = boxes + random.normal(0, 0.06, boxes.shape) * np.tile(size, 2)
    found = found.astype(np.float32)

    labels = ''.join(
        f'label {{\n  name: "does {label}"\n  label_id: {label}\n}}\n'
        for label in EVALUATED
    )
    files = dict(ann_file=lines, exclude_file=excluded, label_file=[labels])
    for name, content in files.items():
        (folder / name).write_text(''.join(content))
        files[name] = str(folder / name)
    samples = [
        dict(
            video_id=f'v{number // 897}',
            timestamp=902 + number % 897,
            pred_instances=dict(
                bboxes=torch.from_numpy(found[number]),
                scores=torch.from_numpy(scores[number]),
            ),
        )
        for number in range(num_keyframes)
    ]
    return files, samples


def official(files: dict, samples: list[dict]) -> dict[int, float]:
    """Average precision of each label as ``mmaction.evaluation.ava_eval`` has it.

    Its own steps, on every detection; as in the official evaluation, detections on
    keyframes without ground truth count.
    """
    with open(files['ann_file']) as file:
        truth, truth_labels, _ = read_csv(file, EVALUATED)
    excluded = set(Path(files['exclude_file']).read_text().split())
    count = np.bincount(
        np.concatenate(list(truth_labels.values())), minlength=CLASSES + 1
    )
    scores, hits = defaultdict(list), defaultdict(list)
    places = np.array(EVALUATED)
    for sample in samples:
        key = f'{sample["video_id"]},{sample["timestamp"]:04d}'
        if key in excluded:
            continue
        found = sample['pred_instances']
        # As its file of detections: y1, x1, y2, x2, the best score first.
        score = found['scores'].numpy()[:, places].astype(np.float64).ravel()
        order = np.argsort(-score, kind='stable')
        boxes = found['bboxes'].numpy().astype(np.float64)[:, [1, 0, 3, 2]]
        parts = tpfp_single(
            (
                truth.get(key, []),
                truth_labels.get(key, []),
                boxes[order // len(places)].tolist(),
                places[order % len(places)].tolist(),
                score[order].tolist(),
            )
        )
        for label, part in parts[0].items():
            scores[label].append(part)
            hits[label].append(parts[1][label])
    result = {}
    for label in EVALUATED:
        curve = metrics.compute_precision_recall(
            np.concatenate(scores[label]), np.concatenate(hits[label]), count[label]
        )
        result[label] = metrics.compute_average_precision(*curve)
    return result


def by_label(files: dict) -> MemoryAVAMetric:
    """The metric, with the precision of each label in its results."""
    return MemoryAVAMetric(
        **files,
        num_classes=CLASSES + 1,
        class_groups={str(label): [label] for label in EVALUATED},
    )


def highest_memory() -> float:
    """What this process has taken at most, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('keyframes', type=int)
    parser.add_argument('--official', action='store_true', help='and the official one')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as folder:
        files, samples = made_set(Path(folder), args.keyframes)
        metric = by_label(files)
        memory = highest_memory()
        start = time.perf_counter()
        for sample in samples:
            metric.process(None, [sample])
        processed = time.perf_counter()
        result = metric.compute_metrics(metric.results)
        print(
            f'process {processed - start:.1f} s, '
            f'compute_metrics {time.perf_counter() - processed:.1f} s, at most '
            f'{highest_memory() - memory:.2f} GiB more than before, mAP '
            f'{result["overall"]}'
        )
        if args.official:
            start = time.perf_counter()
            expected = official(files, samples)
            print(
                f'official {time.perf_counter() - start:.0f} s, mAP '
                f'{np.mean(list(expected.values()))}, greatest difference of a label '
                f'{max(abs(result[str(k)] - v) for k, v in expected.items())}'
            )


if __name__ == '__main__':
    main()
