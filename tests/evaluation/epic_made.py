"""A made set in EPIC-KITCHENS' format, scores for it, and a slow second opinion."""

import csv
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

VERBS, NOUNS = 97, 300
TAIL_VERBS, TAIL_NOUNS = [3, 7, 11], [2, 5, 8, 13]
HEADER = (
    'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,'
    'stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,'
    'all_nouns,all_noun_classes'
).split(',')


def make_rows(count=240, seed=0):
    """Segments of four people; few classes are frequent, and most do not occur."""
    random = np.random.RandomState(seed)
    rows = []
    for number in range(count):
        person = f'P{number % 4 + 1:02d}'
        verb, noun = (random.rand(2) ** 2 * (14, 17)).astype(int).tolist()
        rows.append(
            dict(
                narration_id=f'{person}_{number % 3 + 1:02d}_{number}',
                participant_id=person,
                video_id=f'{person}_{number % 3 + 1:02d}',
                start_timestamp=f'00:00:{number % 60:02d}.25',
                stop_timestamp='00:01:00.00',
                verb_class=verb,
                noun_class=noun,
                all_nouns="['pan', 'lid']",
                all_noun_classes=f'[{noun}, 4]',
            )
        )
    return rows


def write_csv(path, header, rows):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, header, restval='', extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)


def write_annotations(folder, rows, test_rows=()):
    """The official files of a split; no files of classes, so 97 and 300."""
    folder.mkdir(exist_ok=True)
    write_csv(folder / 'EPIC_100_validation.csv', HEADER, rows)
    write_csv(folder / 'EPIC_100_test_timestamps.csv', HEADER[:8], test_rows or rows)
    for kind, tail in (('verb', TAIL_VERBS), ('noun', TAIL_NOUNS)):
        path = folder / f'EPIC_100_tail_{kind}s.csv'
        write_csv(path, [kind], [{kind: number} for number in tail])
    path = folder / 'EPIC_100_unseen_participant_ids_validation.csv'
    write_csv(path, ['participant_id'], [{'participant_id': 'P03'}])
    return folder


def make_scores(rows, seed=0, steps=None):
    """Logits that are often right, ``[N, 97]`` and ``[N, 300]``.

    With ``steps`` they are multiples of 1/steps: there are many ties.
    """
    random = np.random.RandomState(seed)
    verb = random.normal(size=(len(rows), VERBS))
    noun = random.normal(size=(len(rows), NOUNS))
    for number, row in enumerate(rows):
        verb[number, row['verb_class']] += random.uniform(0, 5)
        noun[number, row['noun_class']] += random.uniform(0, 6)
    if steps:
        verb, noun = ((x * steps).round() / steps for x in (verb, noun))
    return verb.astype(np.float32), noun.astype(np.float32)


def write_npz(path, rows, verb, noun, **more):
    names = np.array([row['narration_id'] for row in rows])
    np.savez(path, narration_id=names, verb_logits=verb, noun_logits=noun, **more)
    return path


# --------------------------------------------------------------- a second opinion


def ranked(scores):
    """Keys of a dict by score, best first, the lower key first where they are equal."""
    return sorted(scores, key=lambda key: (-scores[key], key))


def second_opinion(rows, verb, noun, actions=None):
    """All official numbers, by plain loops, of rows, float scores, action scores.

    ``actions``: for each row a dict of (verb, noun) to score.
    """
    best = {'verb': [], 'noun': [], 'action': []}
    for number in range(len(rows)):
        v = dict(enumerate(map(float, verb[number])))
        n = dict(enumerate(map(float, noun[number])))
        a = {(i, j): v[i] + n[j] for i in v for j in n}
        if actions is not None:
            a = actions[number]
        best['verb'].append(ranked(v)[:5])
        best['noun'].append(ranked(n)[:5])
        best['action'].append(ranked(a)[:5])
    truth = {
        'verb': [row['verb_class'] for row in rows],
        'noun': [row['noun_class'] for row in rows],
        'action': [(row['verb_class'], row['noun_class']) for row in rows],
    }
    tail = {
        'verb': lambda row: row['verb_class'] in TAIL_VERBS,
        'noun': lambda row: row['noun_class'] in TAIL_NOUNS,
        'action': lambda row: (
            row['verb_class'] in TAIL_VERBS or row['noun_class'] in TAIL_NOUNS
        ),
    }
    recognition, anticipation = {}, {}
    for part in ('verb', 'noun', 'action'):
        for subset, within in (
            ('all', lambda row: True),
            ('unseen', lambda row: row['participant_id'] == 'P03'),
            ('tail', tail[part]),
        ):
            used = [i for i, row in enumerate(rows) if within(row)]
            for k in (1, 5) if subset == 'all' else (1,):
                hits = [truth[part][i] in best[part][i][:k] for i in used]
                key = f'{subset}_{part}_accuracy_at_{k}'
                recognition[key] = 100 * sum(hits) / len(hits)
            by_class = defaultdict(list)
            for i in used:
                by_class[truth[part][i]].append(truth[part][i] in best[part][i])
            recalls = [sum(hits) / len(hits) for hits in by_class.values()]
            name = 'overall' if subset == 'all' else subset
            anticipation[f'{name}_{part}_mt5r'] = 100 * sum(recalls) / len(recalls)
    return SimpleNamespace(recognition=recognition, anticipation=anticipation)
