import re

import pytest
from epic_data import HEADER, TEST_HEADER, row, write_classes, write_csv

from memvit_mm.datasets.epic.files import (
    parse_seconds,
    read_classes,
    read_segments,
    read_video_info,
    settle,
)

ROWS = [
    row('P01_11_0', 0, 1.89, 0, 2),
    row('P01_11_10', 3661.5, 3665.25, 96, 299),
    row('P01_11_2', 4, 4.1, 3, 4),
    row('P02_101_7', 1.25, 2, 5, 6),
]


def refusal(function, *args, **kwargs):
    """The sentence with which a call is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        function(*args, **kwargs)
    sentence = str(caught.value)
    assert '\n' not in sentence and sentence.endswith('.')
    return sentence


def test_reads_the_official_format(tmp_path):
    for newline in ('\n', '\r\n'):
        segments = read_segments(write_csv(tmp_path / 'a.csv', ROWS, newline=newline))
        assert [segment[:7] for segment in segments] == [
            ('P01_11_0', 'P01', 'P01_11', 0.0, 1.89, 0, 2),
            ('P01_11_10', 'P01', 'P01_11', 3661.5, 3665.25, 96, 299),
            ('P01_11_2', 'P01', 'P01_11', 4.0, 4.1, 3, 4),
            ('P02_101_7', 'P02', 'P02_101', 1.25, 2.0, 5, 6),
        ]
        assert [segment.number for segment in segments] == [0, 10, 2, 7]


def test_reads_the_test_set_without_labels(tmp_path):
    path = write_csv(tmp_path / 'test.csv', ROWS, TEST_HEADER)
    assert {(s.verb, s.noun) for s in read_segments(path)} == {(-100, -100)}
    assert refusal(read_segments, path, need_labels=True).startswith(
        f"Annotation file {path} lacks the column 'verb_class' (it has narration_id, "
    )


def test_byte_order_mark_blank_lines_and_other_columns(tmp_path):
    path = tmp_path / 'a.csv'
    header = ['more', *reversed(HEADER)]
    write_csv(path, ROWS, header)
    path.write_text('\ufeff' + path.read_text().replace('\n', '\n\n'))
    assert [s.narration_id for s in read_segments(str(path))] == [
        row['narration_id'] for row in ROWS
    ]


@pytest.mark.parametrize('column', ['narration_id', 'stop_timestamp', 'noun_class'])
def test_a_missing_column_is_named(tmp_path, column):
    header = [name for name in HEADER if name != column]
    path = write_csv(tmp_path / 'a.csv', ROWS, header)
    assert f'{path} lacks the column {column!r} (it has' in refusal(read_segments, path)


@pytest.mark.parametrize(
    'fields, sentence',
    [
        (
            dict(verb_class=97),
            "narration 'P01_11_3' has the verb_class '97', expected a number from 0 "
            'to 96: check the row, and class_files or num_classes if there are more '
            'classes.',
        ),
        (dict(noun_class=300), "the noun_class '300', expected a number from 0 to 299"),
        (dict(verb_class=-1), "the verb_class '-1', expected"),
        (dict(noun_class='pan'), "the noun_class 'pan', expected"),
        (
            dict(start_timestamp='12.5'),
            "narration 'P01_11_3' has the start_timestamp '12.5', expected HH:MM:SS.cc "
            'such as 00:01:02.50.',
        ),
        (dict(stop_timestamp='00:61:00.00'), "the stop_timestamp '00:61:00.00'"),
        (dict(stop_timestamp='00:00:nan'), "the stop_timestamp '00:00:nan'"),
        (dict(stop_timestamp='-1:00:00.00'), "the stop_timestamp '-1:00:00.00'"),
        (
            dict(narration_id='P01_11_10'),
            "narration 'P01_11_10' is already in line 3: every narration_id may come "
            'once, remove one.',
        ),
        (dict(narration_id=''), "the row of narration '' of video 'P01_11' does not"),
        (dict(video_id=''), "the row of narration 'P01_11_3' of video '' does not"),
    ],
)
def test_rows_that_are_refused(tmp_path, fields, sentence):
    rows = [*ROWS, row('P01_11_3', 1, 2, **fields)]
    path = write_csv(tmp_path / 'a.csv', rows)
    found = refusal(read_segments, path)
    assert found.startswith(f'{path}:6: ') and sentence in found


def test_files_that_are_refused(tmp_path):
    missing = refusal(read_segments, str(tmp_path / 'no.csv'))
    assert 'no.csv does not exist: check ann_file' in missing
    path = tmp_path / 'a.csv'
    path.write_text('')
    assert 'lacks the column' in refusal(read_segments, str(path))
    write_csv(path, [])
    assert 'has a header and no row' in refusal(read_segments, str(path))
    write_csv(path, ROWS)
    path.write_text(path.read_text() + 'P01_11_9,P01\n')
    damaged = refusal(read_segments, str(path))
    assert f"{path}:6: the row 'P01_11_9,P01' has 2 fields and the header 15" in damaged
    write_csv(path, [*ROWS, row('P01_11_3', 1, 2, noun='"' + 'long' * 50000)])
    assert f'{path}:6: this is no CSV file (field' in refusal(read_segments, str(path))


def test_number_of_classes(tmp_path):
    path = write_csv(tmp_path / 'a.csv', ROWS)
    assert 'from 0 to 9' in refusal(read_segments, path, num_classes=(10, 300))
    assert len(read_segments(path, num_classes=(200, 500))) == 4


def test_timestamps():
    assert parse_seconds('00:02:00.20') == 120.2
    assert parse_seconds('00:01:36.46') == 96.46 != 60 + 36.46
    assert parse_seconds('01:00:00.125') == 3600.125  # not hundredths
    assert parse_seconds('100:00:00') == 360000
    for text in ('1:2', '00:00:1e1', '00:00:+1', '00: 0:01', '00:00:60.00', ''):
        with pytest.raises(ValueError):
            parse_seconds(text)


def segments_of(tmp_path, *rows):
    return read_segments(write_csv(tmp_path / 'odd.csv', rows))


def test_odd_rows_are_settled_and_counted(tmp_path):
    segments = segments_of(
        tmp_path,
        row('a_1_0', 1, 2),
        row('a_1_1', 2, 2),
        row('a_1_2', 3, 1),
        row('a_1_3', 4, 5, stop_timestamp=''),
        row('a_1_4', 5, 6, start_timestamp=''),
        row('a_1_5', 8, 11),
        row('a_1_6', 10, 11),
        row('a_1_7', 3, 4, verb='', verb_class=''),
        row('b_1_0', 50, 60),
        row('a_1_8', 5, 6, participant_id='', narration_timestamp=''),
    )
    durations = {'a_1': 10.0}
    kept, odd = settle(segments, durations, test_mode=False)
    assert {s.narration_id: (s.start, s.stop) for s in kept} == {
        'a_1_0': (1, 2),
        'a_1_1': (2, 2),
        'a_1_2': (3, 3),
        'a_1_3': (4, 4),
        'a_1_5': (8, 10),
        'a_1_7': (3, 4),
        'a_1_8': (5, 6),
        'b_1_0': (50, 60),
    }
    assert {s.narration_id: s.verb for s in kept}['a_1_7'] == -100
    assert kept[-1].participant_id == 'a'
    assert odd == [
        '3 stopping no later than it starts (taken as an instant)',
        '1 without a start (left out)',
        '1 ending after the video (cut there)',
        '1 starting after the video (left out)',
        '1 without a class (label -100)',
    ]
    kept, odd = settle(segments, durations, test_mode=True)
    assert {s.narration_id: (s.start, s.stop) for s in kept}['a_1_6'] == (10, 10)
    assert '1 starting after the video (taken as its last frame)' in odd


def test_nothing_odd_is_counted_in_the_test_set(tmp_path):
    segments = read_segments(write_csv(tmp_path / 't.csv', ROWS, TEST_HEADER))
    assert settle(segments, {}, test_mode=True) == (segments, [])


def test_video_info(tmp_path):
    path = tmp_path / 'info.csv'
    path.write_text(
        'video_id,duration,fps,resolution\nP01_01,1652.152817,59.9400599,1920x1080\n'
    )
    assert read_video_info(str(path)) == {'P01_01': (1652.152817, 59.9400599)}
    path.write_text(path.read_text() + 'P01_02,10.5,0,1920x1080\n')
    assert refusal(read_video_info, str(path)) == (
        f"{path}:3: video 'P01_02' has the duration '10.5' and the fps '0', expected "
        'seconds and frames per second.'
    )
    path.write_text('video_id,duration\n')
    assert "lacks the column 'fps'" in refusal(read_video_info, str(path))


def test_classes(tmp_path):
    path = write_classes(tmp_path / 'classes.csv', 3)
    assert read_classes(path) == ['class0', 'class1', 'class2']
    (tmp_path / 'classes.csv').write_text('id,key\n0,tap\n2,spoon\n')
    assert re.match(
        r".*:3: class 'spoon' has the id '2', expected 1: ids count from 0, in order\.",
        refusal(read_classes, path),
    )
    (tmp_path / 'classes.csv').write_text('id,key\n')
    assert 'has no class' in refusal(read_classes, path)
