"""tools/data/detect_persons.py: proposals of videos, on any number of processes."""

import json
import pickle
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fork_server import python
from mmengine.registry import init_default_scope

sys.path.insert(0, str(Path(__file__).resolve().parent / 'apis'))

import person_data
import stream_data as data
from stream_data import FPS, read_video

from memvit_mm.apis import PersonDetector, VideoStream, inference_stdet
from memvit_mm.apis.proposals.keyframes import find_videos, keyframes
from memvit_mm.apis.proposals.parts import ProposalParts, is_complete
from memvit_mm.datasets import MemoryAVADataset
from memvit_mm.datasets.ava.files import read_proposals
from memvit_mm.paths import get_tool_path

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')

SECONDS = dict(a=6, b=3, c=5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('detect')
    person_data.write_detector(folder)
    (folder / 'videos').mkdir()
    for name, seconds in SECONDS.items():
        person_data.write_street(folder / 'videos' / f'{name}.mp4', seconds)
    return folder


@pytest.fixture(scope='module')
def detector(folder):
    return PersonDetector(folder / 'white.py', folder / 'white.pth', device='cpu')


def lines_of(part) -> list:
    """The lines of a part file that are whole."""
    text = part.read_text() if part.exists() else ''
    return [json.loads(line) for line in text.split('\n')[:-1] if line]


def command(folder, out, *options, videos=()) -> list:
    given = dict(config=folder / 'white.py', checkpoint=folder / 'white.pth', out=out)
    pairs = [(f'--{name}', str(value)) for name, value in given.items()]
    videos = videos or [folder / 'videos']
    line = [*videos, *(word for pair in pairs for word in pair), *options]
    return [get_tool_path('detect_persons.py'), *map(str, line)]


class Call:
    """Runs the tool in this process; returns its exit code and what it prints."""

    def __init__(self, patch, capture) -> None:
        self.patch, self.capture = patch, capture
        patch.syspath_prepend(str(Path(get_tool_path('detect_persons.py')).parent))
        patch.setattr(sys, 'executable', python())
        for name in ('RANK', 'SLURM_PROCID', 'MEMVIT_DEBUG'):
            patch.delenv(name, raising=False)

    def __call__(self, line: list) -> tuple:
        self.patch.setattr(sys, 'argv', line)
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(line[0], run_name='__main__')
        said = self.capture.readouterr()
        return exit.value.code, said.out, said.err


@pytest.fixture
def call(monkeypatch, capsys):
    return Call(monkeypatch, capsys)


@pytest.fixture
def proposals(folder, call):
    """As one process writes them, one keyframe at a time."""
    out = folder / 'proposals.pkl'
    if not out.exists():
        code, said, _ = call(command(folder, out, '--batch-size', '1'))
        # From 1 on: second 6 of a video of six seconds is over.
        assert code == 0 and '22 boxes in 11 keyframes of 3 videos' in said
    return out


class TestTheFile:
    def test_boxes(self, proposals, folder, detector):
        table = pickle.loads(proposals.read_bytes())
        expected = [
            f'{name},{second + 900:04d}'
            for name, seconds in SECONDS.items()
            for second in range(1, seconds)
        ]
        assert list(table) == expected
        frames = read_video(str(folder / 'videos' / 'b.mp4'))
        for second in (1, 2):
            boxes = table[f'b,090{second}']
            assert boxes.dtype == np.float32 and boxes.shape == (2, 5)
            pixels = boxes * (64, 48, 64, 48, 1)
            found = detector(frames[second * FPS])
            np.testing.assert_allclose(pixels, found, atol=1e-4)

    def test_the_dataset_reads_it(self, proposals, folder):
        rows = [f'{n},0902,0.1,0.1,0.5,0.9,1,0\n' for n in SECONDS]
        (folder / 'ann.csv').write_text(''.join(rows))
        init_default_scope('mmaction')
        dataset = MemoryAVADataset(
            str(folder / 'ann.csv'),
            data.ava_pipeline(),
            proposal_file=str(proposals),
            person_det_score_thr=0.5,
            use_frames=False,
            data_prefix=dict(img=str(folder / 'videos')),
            num_classes=6,
            test_mode=True,
        )
        assert len(dataset) == 11
        sample = dataset[3]['data_samples']
        assert (sample.video_id, sample.timestamp) == ('a', 904)
        # Of a frame of 32 x 32.
        table = read_proposals(str(proposals))
        expected = table['a', 904][:, :4] * 32
        np.testing.assert_allclose(sample.proposals.bboxes, expected, atol=1e-4)

    def test_streams_read_it(self, proposals, folder, detector):
        model = data.ava_model()
        model.cfg.test_dataloader.dataset.person_det_score_thr = 0.5
        video = str(folder / 'videos' / 'a.mp4')
        found = list(VideoStream(model, boxes=detector).run(video))
        options = dict(labels=list('abcdef'), score_thr=0.5)
        for other in (
            list(VideoStream(model, boxes=proposals, track=True).run(video)),
            inference_stdet(model, video, str(proposals), track=True, **options),
        ):
            data.assert_same(other, found)
            for one, two in zip(other, found):
                np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-4)
                assert np.array_equal(one.track_ids, two.track_ids)


class TestProcesses:
    def test_killed_and_gone_on_by_others(self, proposals, folder, tmp_path, call):
        """With bad videos among them, which are named, counted and left out."""
        out, parts = tmp_path / 'out.pkl', tmp_path / 'out.pkl.parts'
        (tmp_path / 'empty.mp4').touch()
        (tmp_path / 'text.mp4').write_text('no video')
        data.write_video(tmp_path / 'short.mp4', data.pictures(5))
        videos = [*tmp_path.glob('*.mp4'), folder / 'videos']
        # The largest file comes first: this one last, and it takes its time.
        long = tmp_path / 'long' / 'z.mp4'
        long.parent.mkdir()
        data.write_video(long, [np.zeros((16, 16, 3), np.uint8)] * 600, 1)
        line = command(folder, out, videos=[folder / 'videos', long])
        killed = subprocess.Popen([python(), *line])
        finished = [parts / f'{name}.part' for name in 'abc']
        deadline = time.monotonic() + 120
        while not all('error' in (lines_of(part) or [[]])[-1] for part in finished):
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.02)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL and not out.exists()
        stamps = [part.stat().st_mtime_ns for part in finished]

        torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2']
        line = command(folder, out, '--batch-size=3', videos=videos)
        done = subprocess.run([*torchrun, *line], capture_output=True, text=True)
        assert done.returncode == 1
        assert 'out.pkl: 22 boxes in 11 keyframes of 3 videos' in done.stdout
        error = done.stderr
        assert '3 of 6 videos could not be read, and are not in it:' in error
        for sentence in (
            'empty.mp4 is empty (0 bytes)',
            'text.mp4 cannot be opened or decoded',
            'short.mp4 is 0.42 seconds long, but its first keyframe is 1 seconds',
        ):
            assert sentence in error
        assert out.read_bytes() == proposals.read_bytes()
        # What was found before was not sought again.
        assert [part.stat().st_mtime_ns for part in finished] == stamps
        # They are tried again the next time.
        for name in ('empty', 'text', 'short'):
            person_data.write_street(tmp_path / f'{name}.mp4', 2)
        code, said, _ = call(command(folder, out, videos=videos))
        assert code == 0 and '28 boxes in 14 keyframes of 6 videos' in said
        assert not parts.exists()

    def test_interrupted(self, proposals, folder, tmp_path, call, monkeypatch):
        out, detect = tmp_path / 'out.pkl', PersonDetector.detect
        seen = []

        def interrupted(self, images):
            seen.append(len(images))
            if len(seen) == 3:
                raise KeyboardInterrupt
            return detect(self, images)

        line = command(folder, out, '--batch-size', '2')
        with monkeypatch.context() as patch:
            patch.setattr(PersonDetector, 'detect', interrupted)
            code, _, error = call(line)
        assert code == 130 and 'Interrupted: the same command goes on.' in error
        part = lines_of(tmp_path / 'out.pkl.parts' / 'a.part')
        assert [line['second'] for line in part[1:]] == [1, 2, 3, 4]
        assert call(line)[0] == 0
        assert out.read_bytes() == proposals.read_bytes()

    @pytest.mark.parametrize(
        'names',
        [
            ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
            ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'),
        ],
    )
    def test_ranks(self, proposals, folder, tmp_path, call, monkeypatch, names):
        """As torchrun and srun start them; the last one merges."""
        out = tmp_path / 'out.pkl'
        for rank in (1, 0, 1):
            assert not out.exists() or rank == 1
            for name, value in zip(names, (rank, 2, rank)):
                monkeypatch.setenv(name, str(value))
            code, said, _ = call(command(folder, out))
            assert code == 0 and ('22 boxes' in said) == (rank == 0)
        assert out.read_bytes() == proposals.read_bytes()

    def test_what_is_found_is_not_sought_again(self, folder, tmp_path, call):
        out = tmp_path / 'out.pkl'
        videos = [folder / 'videos']
        (tmp_path / 'empty.mp4').touch()
        line = command(folder, out, videos=[*videos, tmp_path / 'empty.mp4'])
        code, _, error = call(line)
        assert code == 1 and '1 of 4 videos could not' in error
        # One is complete, one was stopped in the middle, and of a line.
        begin, *found, end = lines_of(tmp_path / 'out.pkl.parts' / 'a.part')
        assert [line['second'] for line in found] == [1, 2, 3, 4, 5]
        assert end == {'error': None}
        for line in found[:2]:
            line['boxes'] = line['boxes'][:1]

        def write(name, lines, cut=''):
            text = ''.join(f'{json.dumps(line)}\n' for line in lines)
            (tmp_path / 'out.pkl.parts' / f'{name}.part').write_text(text + cut)

        write('a', [begin, *found[:2]], cut='{"second": 3, "boxes": [[0.1')
        begin, *_ = lines_of(tmp_path / 'out.pkl.parts' / 'b.part')
        write('b', [begin, found[0], end])
        (tmp_path / 'empty.mp4').unlink()
        code, said, _ = call(command(folder, out))
        assert code == 0
        table = pickle.loads(out.read_bytes())
        counts = {key: len(boxes) for key, boxes in table.items() if key < 'c'}
        assert counts == {
            'a,0901': 1,
            'a,0902': 1,
            'a,0903': 2,
            'a,0904': 2,
            'a,0905': 2,
            'b,0901': 1,
        }

    def test_parts(self, folder, detector, tmp_path):
        videos = sorted((folder / 'videos').iterdir())
        shares = [ProposalParts.share(videos, rank, 2) for rank in range(2)]
        assert sorted(shares[0] + shares[1]) == videos
        assert abs(len(shares[0]) - len(shares[1])) == 1
        parts = ProposalParts(tmp_path / 'out.pkl', dict(x=1))
        assert parts.join(videos) is None
        # A video that has changed is read again.
        moved = Path(person_data.write_street(tmp_path / 'a.mp4', 2))
        for seconds in (2, 3):
            person_data.write_street(moved, seconds)
            assert parts.detect(detector, moved) is None
            lines = lines_of(parts.folder / 'a.part')
            assert [line['second'] for line in lines[1:-1]] == [*range(1, seconds)]
        assert parts.join([moved, *videos[1:]]) is None
        joined = parts.join([moved])
        assert (joined.videos, joined.keyframes, joined.errors) == (1, 2, [])
        assert is_complete(parts.out) and parts.join(videos) is None


class TestKeyframes:
    def test_which(self, folder):
        video = folder / 'videos' / 'a.mp4'
        frames = read_video(str(video))
        found = list(keyframes(video))
        assert [k.second for k in found] == [1, 2, 3, 4, 5]
        for second, image, _ in found:
            assert np.array_equal(image, frames[second * FPS])
        assert [k.read for k in found] == sorted(k.read for k in found)
        assert [k.second for k in keyframes(video, 2, 4)] == [2, 3, 4]
        assert [k.second for k in keyframes(video, 0, 1)] == [0, 1]
        with pytest.raises(ValueError, match='6.00 seconds long, .* keyframe is 9 sec'):
            list(keyframes(video, 9))

    def test_options(self, folder, tmp_path, call):
        video = folder / 'videos' / 'a.mp4'
        options = ['--timestamp-start', '0', '--first', '2', '--last', '3']
        options += ['--max-boxes', '1', '--score-thr', '0.5', '--person', '0']
        line = command(folder, tmp_path / 'p.pkl', *options, videos=[video])
        assert call(line)[0] == 0
        table = pickle.loads((tmp_path / 'p.pkl').read_bytes())
        assert {key: len(boxes) for key, boxes in table.items()} == {
            'a,0002': 1,
            'a,0003': 1,
        }
        # Nobody, and then: that it is there.
        line = command(folder, tmp_path / 'p.pkl', '--overwrite', '--person', 'zebra')
        code, said, error = call(line)
        assert code == 0 and '0 boxes' in said
        assert 'Nobody was found: lower --score-thr 0.05, or check that' in error
        line.remove('--overwrite')
        code, _, error = call(line)
        assert code == 1 and 'p.pkl exists already: pass --overwrite' in error

    def test_damaged(self, folder, tmp_path, call):
        video = tmp_path / 'damaged.mp4'
        data.write_video(video, person_data.street(20))
        data.damage(video, 0.4, 0.5)
        line = command(folder, tmp_path / 'p.pkl', videos=[video])
        code, _, error = call(line)
        assert code == 1 and 'damaged.mp4 is damaged: its frames from second' in error
        line += ['--on-damage', 'go_on']
        code, _, error = call(line)
        assert (
            code == 1 and "was made with on_damage='stop', now it is 'go_on'" in error
        )
        with pytest.warns(UserWarning, match='is damaged'):
            code, said, _ = call([*line, '--overwrite'])
        assert code == 0
        assert 0 < len(pickle.loads((tmp_path / 'p.pkl').read_bytes())) < 20


class TestErrors:
    def test_sentences(self, folder, tmp_path, call, monkeypatch):
        def error(*options, videos=(), **change):
            line = command(folder, tmp_path / 'p.pkl', *options, videos=videos)
            for name, value in change.items():
                line[line.index(f'--{name}') + 1] = str(value)
            code, _, said = call(line)
            assert code in (1, 2) and not (tmp_path / 'p.pkl.parts').exists()
            return said.replace('\n', ' ')

        (tmp_path / 'nothing').mkdir()
        other = tmp_path / 'a.mp4'
        other.write_bytes(b'x')
        for said, sentence in (
            (error(checkpoint='no.pth'), 'There is no checkpoint file no.pth.'),
            (error(config='no.py'), 'There is no config file no.py of a person detec'),
            (
                error('--person', 'yeti'),
                "has no class 'yeti', its classes are person, ",
            ),
            (error(videos=['no.mp4']), 'There is no video or folder no.mp4.'),
            (error(videos=[tmp_path / 'nothing']), 'nothing has no video (.mp4, '),
            (error(videos=[folder / 'videos', other]), 'would have the same name in'),
            (error(out=tmp_path), 'is a folder: name a file, such as p.pkl.'),
            (error('--score-thr', '2'), '--score-thr must be from 0 to 1, got 2.0'),
            (error('--max-boxes', '0'), '--max-boxes must be at least 1, got 0'),
            (error('--first', '899'), '--first 899 is before the videos begin'),
            (error('--last', '900'), '--last 900 is before the first keyframe, 901'),
        ):
            assert sentence in said
        monkeypatch.setenv('RANK', '0')
        monkeypatch.setenv('WORLD_SIZE', '2')
        monkeypatch.setenv('LOCAL_RANK', '0')
        assert '--overwrite is for one process' in error('--overwrite')

    def test_folders_and_files(self, folder):
        videos = folder / 'videos'
        assert [v.stem for v in find_videos([videos, videos / 'a.mp4'])] == list('abc')
