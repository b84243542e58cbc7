"""tests/reference/measure_decoding.py on a small video, and what it refuses."""

import json
import multiprocessing
import sys
from pathlib import Path

import measure_decoding
import pytest
from fork_server import python
from measure_decoding import make_video

HERE = Path(__file__).resolve().parent

VIDEO = str(HERE / 'data' / 'h264_closed_gop.mp4')


def measure(monkeypatch, *options) -> None:
    monkeypatch.setattr(sys, 'argv', ['measure_decoding.py', *map(str, options)])
    measure_decoding.main()


def test_figures(monkeypatch, capsys, tmp_path):
    multiprocessing.set_executable(python())
    measure(
        monkeypatch,
        *(VIDEO, '--clip-len', 8, '--frame-interval', 3, '--stride', 0.4),
        *('--rounds', 2, '--clips', 8, '--json', tmp_path / 'figures.json'),
    )
    output = capsys.readouterr().out
    result = json.loads((tmp_path / 'figures.json').read_text())
    assert result['video']['frames_per_key_frame'] == 37.5
    speed = result['speed']
    assert speed['read_in_order'] and speed['identical_clips'] in output
    done, compared = map(int, speed['identical_clips'].split(' of '))
    assert done == compared > 0
    assert speed['decoded_per_new_frame'] <= 1.1
    assert speed['ratio'] > 0 and f'{speed["ratio"]:.1f} x' in output
    assert all(ram['peak'] > 0 for ram in result['ram'].values())


def test_refuses(monkeypatch, capsys):
    for options, words in (
        (('none.mp4',), 'there is no video none.mp4'),
        ((VIDEO, '--clips', 0), '--clips must be above 0, got 0'),
    ):
        with pytest.raises(SystemExit):
            measure(monkeypatch, *options)
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match=r'lasts 6.0 s, too short for clips of 3.2 s'):
        measure(monkeypatch, VIDEO, '--frame-interval', 5, '--stride', 2)


def test_needs_ffmpeg_to_make_a_video(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='ffmpeg, .* is not installed: install'):
        make_video(str(tmp_path / 'a.mp4'), seconds=1)
    (tmp_path / 'ffmpeg').write_text('#!/bin/sh\necho no such encoder >&2; exit 1\n')
    (tmp_path / 'ffmpeg').chmod(0o755)
    with pytest.raises(ValueError, match='could not make .*a.mp4: no such encoder'):
        make_video(str(tmp_path / 'a.mp4'), seconds=1)
