"""What a worker of a real DataLoader was reading when it died, or did not answer."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))

import _common

from memvit_mm.datasets import BadClipMixin
from memvit_mm.datasets.worker_notes import note_of, noting


class Clips(BadClipMixin, BaseDataset):
    """Clips of a video; something happens in reading one, or after."""

    def __init__(self, happens, at=5, after=False):
        self.happens, self.at, self.after = happens, at, after
        super().__init__(pipeline=[self.read])

    def load_data_list(self):
        return [
            dict(video_id='a', timestamp=900 + i, filename='videos/a.mp4')
            for i in range(8)
        ]

    def read(self, results):
        if results['sample_idx'] == self.at and not self.after:
            self.happens()
        return results['sample_idx']

    def __getitem__(self, index):
        result = super().__getitem__(index)
        if index == self.at and self.after:
            self.happens()
        return result


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep():
    time.sleep(60)


def said_of(capsys, *args, **kwargs) -> str:
    """What a tool says that reads these clips."""
    with pytest.raises(SystemExit) as caught:
        _common.run(lambda: list(DataLoader(*args, **kwargs)))
    assert caught.value.code == 1
    return capsys.readouterr().err.splitlines()[0]


DIED = r'Error: DataLoader worker \(pid(\(s\))? \d+\) (is killed by|exited unexpected)'


@pytest.mark.parametrize('happens, workers', [(die, 1), (crash, 2)])
def test_a_worker_dies(happens, workers, capsys, monkeypatch):
    monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
    text = said_of(capsys, Clips(happens), num_workers=workers)
    assert re.match(DIED, text)
    assert (
        ", while it read sample 5, video 'a', second 905, file videos/a.mp4: if memory "
        'ran out' in text
    )


def test_a_worker_dies_after_reading(capsys, monkeypatch):
    monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
    text = said_of(capsys, Clips(die, after=True), num_workers=1)
    assert ", after it had read sample 5, video 'a', second 905, file" in text


def test_a_dataset_without_notes(capsys, monkeypatch):
    monkeypatch.delenv('MEMVIT_DEBUG', raising=False)

    class Plain:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            die()

    text = said_of(capsys, Plain(), num_workers=1)
    assert re.match(DIED, text) and 'while' not in text and ': if memory ran' in text


def test_a_worker_does_not_answer(capsys, monkeypatch):
    monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
    text = said_of(capsys, Clips(sleep, at=3), num_workers=1, timeout=1)
    assert text == (
        'Error: DataLoader timed out after 1 seconds: its workers are reading sample '
        "3, video 'a', second 903, file videos/a.mp4."
    )


def test_the_main_process_takes_no_notes():
    with noting('sample 0'):
        assert note_of(os.getpid()) is None
    dataset = Clips(die, at=99)
    assert [dataset[index] for index in range(3)] == [0, 1, 2]
    assert note_of(os.getpid()) is None


def test_other_runtime_errors_keep_their_traceback():
    def fail():
        raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')

    with pytest.raises(RuntimeError, match='mat1 and mat2'):
        _common.run(fail)
