"""Made-up predictions and pictures, for reports."""

import cv2
import numpy as np

from memvit_mm.apis import EpicPrediction, KeyFrame, PeoplePrediction, Prediction

COUNT, STRIDE = 12, 2.0
SIZE = (160, 120)
RUDE = '</script><script>alert(1)</script>'
VERBS = ['take', RUDE, '"><img src=x onerror=alert(1)>', "it's & co"]
NOUNS = [f'noun {number}' for number in range(9)]
ACTIONS = ['0', 'sit', 'stand', 'talk to <a person>', 'run']


def shares(rng, count, classes):
    scores = np.exp(3 * rng.normal(size=(count, classes)))
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


def clip(number, scores, names=None, stream='kitchen'):
    end = STRIDE * (number + 1)
    return Prediction(stream, number, end, end - STRIDE, end, scores, names)


def plain(count=COUNT, classes=4, names=None, seed=0):
    scores = shares(np.random.default_rng(seed), count, classes)
    return [clip(number, row, names) for number, row in enumerate(scores)]


def epic(seed):
    rng = np.random.default_rng(seed)
    verbs, nouns = shares(rng, COUNT, 4), shares(rng, COUNT, 9)
    return [
        EpicPrediction(
            **vars(clip(number, np.concatenate([verb, noun]))),
            verb_scores=verb,
            noun_scores=noun,
            verbs=VERBS,
            nouns=NOUNS,
        )
        for number, (verb, noun) in enumerate(zip(verbs, nouns))
    ]


def people(seed, tracked=True):
    """One person throughout, a second one from clip 4 on; nobody in the last clip."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(COUNT):
        ids = [] if number == COUNT - 1 else [7, 3] if number >= 4 else [7]
        boxes = [[10 + number, 20, 60 + number, 110], [90, 30, 150, 118]][: len(ids)]
        person = PeoplePrediction(
            'room',
            number,
            number + 1.0,
            float(number),
            number + 2.0,
            rng.random((len(ids), 5), dtype=np.float32),
            ACTIONS,
            boxes=np.float32(boxes).reshape(-1, 4),
            box_scores=np.float32([0.99, 0.9][: len(ids)]),
        )
        if tracked:
            person.track_ids = np.int64(ids)
        found.append(person)
    return found


def picture(level=100, size=SIZE):
    image = np.full((size[1], size[0], 3), level, np.uint8)
    return cv2.imencode('.jpg', image)[1].tobytes()


def keyframes(count=COUNT, step=STRIDE):
    return [KeyFrame(step * (n + 1), picture(20 * n)) for n in range(count)]


def written(path, codec):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, SIZE)
    for number in range(40):
        writer.write(np.full((SIZE[1], SIZE[0], 3), 6 * number, np.uint8))
    writer.release()
    return path
