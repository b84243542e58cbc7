"""``python -m memvit_mm``: the demo, its weights, and what a bug report needs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from fork_server import python
from mmengine.config import Config
from mmengine.runner import Runner

import memvit_mm
from memvit_mm.cli.demo import WEIGHTS, Gesture, tell
from memvit_mm.demo import DemoSettings, make_demo_dataset
from memvit_mm.paths import get_config_path

sys.path.insert(0, str(Path(__file__).resolve().parent / 'apis'))

from browser import open_browser, open_page

KINDS = ('html', 'mp4', 'png')


def call(folder, *options):
    return subprocess.run(
        [python(), '-m', 'memvit_mm', *map(str, options)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ,
    )


def check_files(folder: Path, seconds: float) -> None:
    """That the demo's page, video and picture are there and whole."""
    page = (folder / 'demo.html').read_text()
    assert 100_000 < len(page) < 2_000_000 and 'give_yellow' in page
    capture = cv2.VideoCapture(str(folder / 'demo.mp4'))
    count = 0
    while True:
        done, frame = capture.read()
        if not done:
            break
        count += 1
        last = frame.shape
    assert count == seconds * capture.get(cv2.CAP_PROP_FPS)
    assert min(last[:2]) >= 640
    height, width = cv2.imread(str(folder / 'demo.png')).shape[:2]
    assert width > 1000 and height > 600


class TestWeights:
    def test_they_are_small_and_nothing_else(self):
        content = torch.load(WEIGHTS, weights_only=True)
        assert set(content) == {'meta', 'state_dict'}
        assert {value.dtype for value in content['state_dict'].values()} == {
            torch.float32
        }
        assert WEIGHTS.stat().st_size < 700_000

    def test_map_on_videos_that_nobody_has_seen(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        settings = DemoSettings(num_train=1, num_val=4, seed=9)
        make_demo_dataset('data/memvit_demo', settings, workers=1)
        cfg = Config.fromfile(get_config_path('memvit_demo.py'))
        cfg.load_from, cfg.work_dir = str(WEIGHTS), str(tmp_path / 'work')
        cfg.log_level = 'ERROR'
        cfg.model.test_cfg.one_by_one = False
        cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
        found = Runner.from_cfg(cfg).test()
        # The same model, whose memory is emptied before every clip.
        cfg.custom_hooks[0].every_clip = True
        cfg.experiment_name = 'cleared'
        cleared = Runner.from_cfg(cfg).test()
        assert found['mAP/memory'] > 0.92 and found['mAP/overall'] > 0.85
        # A guess among four objects gives 0.25.
        assert 0.2 < cleared['mAP/memory'] < 0.35


class TestDemo:
    @pytest.fixture(scope='class')
    def run(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp('somewhere')
        # As an earlier run would have left them.
        (folder / 'work_dirs').mkdir()
        for kind in KINDS:
            (folder / 'work_dirs' / f'demo.{kind}').touch()
        done = call(folder, 'demo')
        assert done.returncode == 0, done.stderr
        return folder, done.stdout

    def test_it_leaves_a_page_a_video_and_a_picture(self, run):
        check_files(run[0] / 'work_dirs', 40)
        # And not the video that it drew.
        names = sorted(path.name for path in (run[0] / 'work_dirs').iterdir())
        assert names == [f'demo.{kind}' for kind in KINDS]

    def test_it_says_what_it_left_and_what_to_look_at(self, run):
        lines = run[1].splitlines()
        assert [line.split()[0] for line in lines[:3]] == [
            os.path.join('work_dirs', f'demo.{kind}') for kind in KINDS
        ]
        assert re.match(r'What to look at: at 0:\d\d person \d takes', lines[4])
        told = r'Of (\d+) closed boxes .* content of (\d+) with memory and of (\d+) wi'
        boxes, known, alone = map(int, re.match(told, lines[5]).groups())
        assert boxes > 15 and known > 0.9 * boxes and alone < 0.5 * boxes

    def test_the_page_opens_in_a_browser(self, run):
        path = run[0] / 'work_dirs' / 'demo.html'
        with open_browser() as browser, open_page(browser, path) as page:
            assert 'memvit_demo.pth' in page.inner_text('body')

    @pytest.mark.parametrize(
        'options, told',
        [
            (['--seed', -1], 'seed is -1; the demo data takes 0 to '),
            (['--checkpoint', 'no.pth'], 'There is no checkpoint file no.pth.'),
            (['--out-dir', 'file'], r'The video file file.demo\.mp4 cannot be written'),
        ],
    )
    def test_mistakes(self, options, told, tmp_path):
        (tmp_path / 'file').touch()
        done = call(tmp_path, 'demo', *options)
        assert done.returncode == 1
        assert re.match(f'Error: {told}', done.stderr.splitlines()[-1]), done.stderr

    def test_the_moment_where_memory_made_a_difference(self):
        know = Gesture(1, 'red', 3, 5, 'lift_red', 'lift_red', 0.9, 'lift_red', 0.3)
        gain = Gesture(2, 'blue', 61, 65, 'give_blue', 'give_blue', 0.8, 'give_red', 0)
        told = tell([know, gain, know._replace(said='lift_blue')])
        assert 'at 1:01 person 2 takes something blue' in told
        assert 'At 1:05 they give the closed white box that holds it: with' in told
        assert 'Of 3 closed boxes' in told and 'of 2 with memory and of 2 wi' in told


class TestInfo:
    def test_versions_device_operators_and_fixes(self, tmp_path):
        done = call(tmp_path, 'info')
        assert done.returncode == 0, done.stderr
        facts = dict(
            re.split(' {2,}', line, maxsplit=1) for line in done.stdout.splitlines()
        )
        assert facts['memvit_mm'].split(', ')[0] == memvit_mm.__version__
        assert facts['torch'] == torch.__version__
        assert (
            facts['mmaction2'].startswith('1.2') and facts['OpenCV'] != 'not installed'
        )
        assert (
            'CPU with' in facts['Devices'] and 'decord' in facts['Videos are read by']
        )
        assert set(memvit_mm.compat.applied()) == set(
            facts['Fixes by compat'].split(', ')
        )
        kind = memvit_mm.mmcv_ops.describe()
        ours = "mmcv's own, compiled" if kind == 'compiled' else f"memvit_mm's, {kind}"
        assert facts['Operators'] == ours

    def test_where_nothing_is_installed(self, tmp_path):
        (tmp_path / 'memvit_mm').symlink_to(Path(memvit_mm.__file__).parent)
        code = (
            'import runpy, sys; sys.path.insert(0, sys.argv.pop(1));'
            "runpy.run_module('memvit_mm', run_name='__main__', alter_sys=True)"
        )
        # -S: no site-packages.
        line = [sys.executable, '-IS', '-c', code, str(tmp_path)]
        done = subprocess.run([*line, 'info'], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.search('torch +not installed', done.stdout)
        assert 'nothing is registered, since torch, mmengine' in done.stdout
        done = subprocess.run([*line, 'demo'], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith('Error: memvit_mm.models needs torch, mmengine')

    def test_where_a_part_is_missing(self):
        code = (
            'import runpy, sys; sys.modules["mmdet"] = None;'
            "runpy.run_module('memvit_mm', run_name='__main__', alter_sys=True)"
        )
        line = [sys.executable, '-c', code, 'info']
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 'nothing is registered, since mmdet is not installed' in done.stdout
        assert f'{torch.__version__}\n' in done.stdout


def test_no_command_is_a_mistake(tmp_path):
    done = call(tmp_path)
    assert done.returncode == 2 and 'COMMAND' in done.stderr
