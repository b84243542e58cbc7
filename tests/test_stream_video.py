"""tools/deployment/stream_video.py as its users call it, and as they interrupt it."""

import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
import time
import warnings
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from fork_server import python

sys.path.insert(0, str(Path(__file__).resolve().parent / 'apis'))

import person_data
import stream_data as data
from stream_data import FPS

from memvit_mm.apis import read_lines
from memvit_mm.paths import get_tool_path

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')

TOOL = get_tool_path('stream_video.py')
EPIC = ['--config', 'memvit_demo_epic_cls.py', '--device', 'cpu']
AVA = ['--config', 'memvit_demo.py', '--device', 'cpu']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stream_video')
    data.write_video(folder / 'kitchen.mp4', data.pictures(FPS * 6))
    person_data.write_street(folder / 'street.mp4', 4)
    person_data.write_detector(folder)
    (folder / 'verbs.txt').write_text('take\nput\nwash\ncut\n')
    (folder / 'nouns.txt').write_text('\n'.join(f'noun {n}' for n in range(6)))
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the tool in this process; returns its exit code and what it prints."""
    monkeypatch.syspath_prepend(str(Path(TOOL).parent))
    monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def call(*line):
        monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, line)])
        with pytest.raises(SystemExit) as exit, warnings.catch_warnings():
            warnings.simplefilter('default')
            runpy.run_path(TOOL, run_name='__main__')
        said = capsys.readouterr()
        return exit.value.code, said.out, said.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def seconds_of(path) -> float:
    """How long a video plays, each frame decoded."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    return count / capture.get(cv2.CAP_PROP_FPS)


def test_everything(call, folder, tmp_path):
    out = tmp_path / 'a' / 'b'
    code, said, _ = call(
        folder / 'kitchen.mp4', *EPIC,
        '--label-map', folder / 'verbs.txt', folder / 'nouns.txt',
        '--out', out / 'o.mp4', '--json', out / 'o.jsonl',
        '--timeline', out / 'o.png', '--report', out / 'o.html',
    )  # fmt: skip
    assert code == 0
    assert said.startswith('3 predictions of 6.0 s of video in ')
    for name in ('o.mp4', 'o.jsonl', 'o.png', 'o.html'):
        assert f'Wrote {out / name}\n' in said
        assert (out / name).stat().st_size > 1000
    assert seconds_of(out / 'o.mp4') == 6
    first, lines, _ = read_lines(out / 'o.jsonl')
    assert first['config'] == 'memvit_demo_epic_cls.py'
    assert {name for name, _ in lines[0]['top_verbs']} == {'take', 'put', 'wash', 'cut'}
    assert 'without_memory' in lines[2]


def test_people_of_a_detector(call, folder, tmp_path):
    code, said, _ = call(
        folder / 'street.mp4', *AVA, '--no-comparison',
        '--det-config', folder / 'white.py', '--det-checkpoint', folder / 'white.pth',
        '--out', tmp_path / 'o.webm', '--json', tmp_path / 'o.jsonl',
    )  # fmt: skip
    assert code == 0
    _, lines, _ = read_lines(tmp_path / 'o.jsonl')
    assert [line['time'] for line in lines] == [1, 2, 3]
    assert all(line['people'] for line in lines)
    assert lines[0]['people'][0]['track_id'] == 0
    assert 'without_memory' not in lines[0]
    assert seconds_of(tmp_path / 'o.webm') == pytest.approx(4, abs=0.1)


def test_proposals(call, folder, tmp_path):
    boxes = np.float32([[0.1, 0.1, 0.6, 0.9, 0.95]])
    path = tmp_path / 'p.pkl'
    path.write_bytes(pickle.dumps({f'main,{902 + n:04d}': boxes for n in range(3)}))
    line = [folder / 'street.mp4', *AVA, '--boxes', path, '--json', tmp_path / 'o.json']
    code, _, said = call(*line)
    assert code == 1 and "no boxes of 'street', but of main: give the" in said
    code, _, said = call(*line, '--video-id', 'main')
    assert code == 0 and 'Without --checkpoint the weights are random' in said
    people = [len(line['people']) for line in read_lines(tmp_path / 'o.json')[1]]
    assert people == [0, 1, 1]


def test_short_video(call, tmp_path):
    data.write_video(tmp_path / 'a.mp4', data.pictures(7))
    code, said, _ = call(tmp_path / 'a.mp4', *EPIC, '--json', tmp_path / 'a.jsonl')
    assert (code, said.split()[0]) == (0, '1')
    assert read_lines(tmp_path / 'a.jsonl')[1][0]['time'] == pytest.approx(7 / FPS)


def test_damaged(call, tmp_path):
    data.write_video(tmp_path / 'a.mp4', data.pictures(FPS * 12))
    data.damage(tmp_path / 'a.mp4')
    line = [tmp_path / 'a.mp4', *EPIC, '--out', tmp_path / 'o.mp4']
    code, said, warned = call(*line)
    assert code == 0
    # Said once, though it is read twice, and without lines of code.
    assert warned.count('is damaged: its frames from second') == 1
    assert 'Warning: Video' in warned and 'stacklevel' not in warned
    assert seconds_of(tmp_path / 'o.mp4') == pytest.approx(12, abs=0.2)
    code, _, said = call(*line, '--on-damage', 'stop')
    assert code == 1 and 'is damaged' in said
    assert 3 < seconds_of(tmp_path / 'o.mp4') < 6


def lines_in(path) -> int:
    return path.read_text().count('\n') if path.exists() else 0


class TestInterrupt:
    """With the signals that Ctrl-C and a scheduler send."""

    def check(self, folder, code, said, warned, number) -> None:
        assert code == 128 + number, warned
        assert said.startswith('Interrupted: ') and 'Traceback' not in warned
        _, lines, last = read_lines(folder / 'o.jsonl')
        assert (last['complete'], last['reason']) == (False, 'interrupted')
        assert 3 <= len(lines) == last['predictions'] < 120
        # Up to the last prediction, or to where it was being drawn.
        end = lines[-1]['time']
        assert end - 2 - 2 / FPS <= seconds_of(folder / 'o.mp4') <= end + 2 / FPS
        assert cv2.imread(str(folder / 'o.png')) is not None
        assert not [p for p in folder.iterdir() if '.part' in p.name]

    @pytest.fixture
    def line(self, tmp_path):
        data.write_video(tmp_path / 'a.mp4', data.pictures(FPS * 240))
        line = [tmp_path / 'a.mp4', *EPIC, '--out', tmp_path / 'o.mp4']
        line += ['--json', tmp_path / 'o.jsonl', '--timeline', tmp_path / 'o.png']
        return [str(word) for word in line]

    def test_ctrl_c(self, line, tmp_path):
        line = [python(), TOOL, *line, '--report', str(tmp_path / 'o.html')]
        pipe = subprocess.PIPE
        process = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True)
        try:
            deadline = time.monotonic() + 120
            while lines_in(tmp_path / 'o.jsonl') < 4:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            said, warned = process.communicate(timeout=60)
        finally:
            process.kill()
        self.check(tmp_path, process.returncode, said, warned, signal.SIGINT)
        assert (tmp_path / 'o.html').stat().st_size > 1000

    def test_terminated(self, call, line, tmp_path):
        def terminate():
            while lines_in(tmp_path / 'o.jsonl') < 4 and not over.wait(0.02):
                pass
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

        over = threading.Event()
        thread = threading.Thread(target=terminate)
        thread.start()
        try:
            code, said, warned = call(*line)
        finally:
            over.set()
            thread.join()
        self.check(tmp_path, code, said, warned, signal.SIGTERM)


class TestErrors:
    """Each is one sentence, and said before a model is built."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        def build(*_):
            raise AssertionError('the model was built')

        monkeypatch.setattr('memvit_mm.apis.models.load_model.MODELS.build', build)

    def fails(self, call, *line) -> str:
        code, _, said = call(*line)
        assert code == 1
        assert 'Traceback' not in said
        return said

    def test_videos(self, call, tmp_path):
        pytest.importorskip('decord')  # OpenCV does not tell sound from damage
        with wave.open(str(tmp_path / 'a.wav'), 'wb') as sound:
            sound.setparams((1, 2, 8000, 0, 'NONE', ''))
            sound.writeframes(np.arange(8000, dtype=np.int16).tobytes())
        (tmp_path / 'a.mp4').touch()
        (tmp_path / 'b.mp4').write_text('no video')
        cv2.imwrite(str(tmp_path / 'a.png'), data.pictures(1)[0])
        for name, sentence in {
            'no.mp4': 'no.mp4 does not exist: check its path',
            'a.wav': 'a.wav has sound, but no video',
            'a.mp4': 'a.mp4 is empty (0 bytes)',
            'b.mp4': 'b.mp4 cannot be opened or decoded',
            'a.png': 'a.png is a still image',
            '0': '0 is a camera, it seems',
            'http://here/video': 'video is a camera, it seems',
            '.': 'is a folder, not a video',
        }.items():
            path = name if name[0] in '0h' else tmp_path / name
            said = self.fails(call, path, *EPIC, '--out', 'o.mp4')
            assert sentence in said

    @pytest.mark.parametrize(
        'options, sentence',
        [
            ([], 'Give at least one of --out, --json, --timeline, --report.'),
            (['--out', 'o.gif'], 'o.gif must end in .mp4, .webm'),
            (['--json', 'o.txt'], 'o.txt must end in .jsonl or .json'),
            (['--timeline', '.'], 'must end in .png'),
            (['--out', 'kitchen.mp4'], 'kitchen.mp4 is the video that is read'),
            (['--out', 'verbs.txt/o.mp4'], 'cannot be written (verbs.txt is a file)'),
            (['--out', '/proc/none/o.mp4'], 'o.mp4 cannot be written (No such file'),
            (['--out', 'o.mp4', '--det-config', 'a'], 'leave --det-config and'),
            (['--out', 'o.mp4', '--top', '0'], 'top=0 must be 1 to 20'),
            (['--out', 'o.mp4', '--checkpoint', 'no.pth'], 'no checkpoint file no.pth'),
            (['--out', 'o.mp4', '--config', 'no.py'], 'There is no config file no.py'),
            (['--out', 'o.mp4', '--stride', '-1'], 'stride=-1.0 must be seconds'),
            (['--out', 'o.mp4', '--label-map', 'no.txt'], 'no.txt does not exist'),
            (['--out', 'o.mp4', '--codec', 'x'], "codec='x' must be four letters"),
            (['--out', 'o.mp4', '--device', 'gpu'], '--device gpu is no device'),
            (['--out', 'o.mp4', '--device', 'cuda:9'], '--device cuda:9'),
            (['--out', 'o.mp4', *AVA], 'give --det-config and --det-checkpoint of'),
            (['--out', 'o.mp4', *AVA, '--det-config', 'a', '--boxes', 'b'],
             '(both given)'),
            (['--out', 'o.mp4', *AVA, '--det-config', 'white.py'],
             '--det-config needs --det-checkpoint'),
            (['--out', 'o.mp4', *AVA, '--boxes', 'no.pkl'], 'no.pkl'),
        ],
        ids=lambda value: None if isinstance(value, list) else value[:20],
    )  # fmt: skip
    def test_options(self, call, folder, monkeypatch, options, sentence):
        monkeypatch.chdir(folder)
        before = sorted(folder.iterdir())
        assert sentence in self.fails(call, 'kitchen.mp4', *EPIC, *options)
        assert sorted(folder.iterdir()) == before

    def test_three_label_maps(self, call):
        code, _, said = call('a.mp4', *EPIC, '--out', 'o.mp4', '--label-map', *'abc')
        assert code == 2 and '--label-map takes one file, or two: of verbs' in said
