"""Made data in EPIC-KITCHENS' official format, and videos that count their frames."""

import csv

import cv2
import numpy as np

HEADER = (
    'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,'
    'stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,'
    'all_nouns,all_noun_classes'
).split(',')
TEST_HEADER = HEADER[:8]
BITS, CELL = 16, 16


def timestamp(seconds):
    """``HH:MM:SS.cc`` of seconds."""
    cents = round(seconds * 100)
    return (
        f'{cents // 360000:02d}:{cents // 6000 % 60:02d}:'
        f'{cents // 100 % 60:02d}.{cents % 100:02d}'
    )


def row(narration, start, stop, verb=0, noun=0, **fields):
    """A row as in the official files; its frame columns would lead astray."""
    video = narration.rpartition('_')[0]
    return dict(
        narration_id=narration,
        participant_id=video.partition('_')[0],
        video_id=video,
        narration_timestamp='',
        start_timestamp=timestamp(start),
        stop_timestamp=timestamp(stop),
        start_frame=int(start * 60) + 10**6,
        stop_frame=int(stop * 60) + 10**6,
        narration='take "the" pan, then\u2028turn',
        verb='take-from',
        verb_class=verb,
        noun='pan:hot',
        noun_class=noun,
        all_nouns="['pan:hot', 'lid']",
        all_noun_classes='[3, 4]',
    ) | {key: value for key, value in fields.items()}


def write_csv(path, rows, header=HEADER, newline='\n'):
    """Write rows as the official files are written."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(
            file, header, extrasaction='ignore', lineterminator=newline
        )
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_classes(path, count):
    path.write_text(
        'id,key,instances,category\r\n'
        + ''.join(f"{i},class{i},\"['a', 'b']\",kind\r\n" for i in range(count))
    )
    return str(path)


def numbered(number):
    """A frame [64, 64, 3] with its number in black and white squares."""
    bits = (number >> np.arange(BITS)) & 1
    squares = np.kron(bits.reshape(4, 4), np.ones((CELL, CELL)))
    return np.repeat((squares * 255).astype(np.uint8)[..., None], 3, axis=-1)


def read_number(frame):
    """The number that is painted into a frame [H, W, C]."""
    squares = frame.mean(-1).reshape(4, CELL, 4, CELL).mean((1, 3)).ravel()
    assert ((squares < 64) | (squares > 192)).all()
    return int(((squares > 128) << np.arange(BITS)).sum())


def write_video(path, fps, frames):
    """A video whose frames say which they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # OpenCV chooses the container by the extension in lower case.
    made = path.with_suffix('.mp4')
    writer = cv2.VideoWriter(str(made), cv2.VideoWriter_fourcc(*'mp4v'), fps, (64, 64))
    for number in range(frames):
        writer.write(numbered(number))
    writer.release()
    made.rename(path)
    return str(path)


def write_frames(folder, frames, template='frame_{:010d}.jpg', first=1):
    """A folder of extracted frames that say which they are, counting from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        cv2.imwrite(str(folder / template.format(number + first)), numbered(number))
    return str(folder)
