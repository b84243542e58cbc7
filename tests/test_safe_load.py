"""Checkpoints: mmengine's own resume, everything else is weights or is refused."""

import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

import memvit_mm  # noqa: F401
from memvit_mm.io import safe_load


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Unknown:
    """Harmless, but of no type that we know."""


def history():
    buffer = HistoryBuffer([0.5, 0.25], [1, 1])
    return dict(
        meta=dict(epoch=1, iter=2, seed=np.int64(3), dataset_meta=dict(classes=('a',))),
        state_dict=OrderedDict(weight=torch.ones(2)),
        message_hub=dict(log_scalars=OrderedDict(loss=buffer), runtime_info={}),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[]),
        param_schedulers=[dict(last_step=1, base_values=[np.float64(0.1)])],
    )


class TestLoad:
    @pytest.mark.parametrize('zipped', [True, False])
    def test_log_history(self, tmp_path, zipped):
        path = str(tmp_path / 'epoch_1.pth')
        torch.save(history(), path, _use_new_zipfile_serialization=zipped)
        loaded = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        assert loaded['meta']['seed'] == 3
        buffer = loaded['message_hub']['log_scalars']['loss']
        assert buffer.mean() == 0.375 and buffer.statistics('max') == 0.5
        assert torch.equal(loaded['state_dict']['weight'], torch.ones(2))

    @pytest.mark.parametrize(
        'old, new',
        [('numpy._core.multiarray', 'numpy.core.multiarray')]
        if np.lib.NumpyVersion(np.__version__) >= '2.0.0'
        else [('numpy.core.multiarray', 'numpy._core.multiarray')],
    )
    def test_log_history_of_the_other_numpy(self, tmp_path, old, new):
        path, renamed = tmp_path / 'here.pth', tmp_path / 'there.pth'
        torch.save(history(), path)
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(renamed, 'w') as target:
            for name in source.namelist():
                content = source.read(name)
                assert old.encode() in content or not name.endswith('data.pkl')
                target.writestr(name, content.replace(old.encode(), new.encode()))
        loaded = CheckpointLoader.load_checkpoint(str(renamed))
        assert loaded['message_hub']['log_scalars']['loss'].current() == 0.25

    @pytest.mark.parametrize('zipped', [True, False])
    def test_code_is_refused_and_not_run(self, tmp_path, zipped):
        path = str(tmp_path / 'evil.pth')
        checkpoint = dict(state_dict=dict(weight=Evil(tmp_path / 'made')))
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
        model = nn.Linear(1, 1)
        with pytest.raises(ValueError, match=r'evil.pth holds more than weights \(\w'):
            load_checkpoint(model, path)
        assert not (tmp_path / 'made').exists()

    @pytest.mark.parametrize(
        'reached', [(HistoryBuffer, '__init__'), (nn, 'Linear'), (HistoryBuffer, 1)]
    )
    def test_getattr_reaches_nothing_but_statistics(self, tmp_path, reached):
        class Reach:
            def __reduce__(self):
                return getattr, reached

        path = str(tmp_path / 'reach.pth')
        if reached[0] is nn:  # a module cannot be pickled
            with pytest.raises(Exception, match='getattr'):
                safe_load._history_statistic(*reached)
            return
        torch.save(dict(state_dict=Reach()), path)
        with pytest.raises(ValueError, match='getattr'):
            CheckpointLoader.load_checkpoint(path)

    @pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04broken'])
    def test_damaged(self, tmp_path, content):
        path = tmp_path / 'broken.pth'
        path.write_bytes(content)
        with pytest.raises(ValueError, match='broken.pth is no readable checkpoint'):
            CheckpointLoader.load_checkpoint(str(path))

    def test_truncated(self, tmp_path):
        path = tmp_path / 'half.pth'
        torch.save(history(), path)
        path.write_bytes(path.read_bytes()[:-400])
        with pytest.raises(ValueError, match='half.pth is no readable checkpoint'):
            CheckpointLoader.load_checkpoint(str(path))

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='none.pth'):
            CheckpointLoader.load_checkpoint(str(tmp_path / 'none.pth'))

    def test_pretrained_initialization(self, tmp_path):
        from mmengine.model import BaseModule

        class Net(BaseModule):
            def __init__(self, init_cfg):
                super().__init__(init_cfg)
                self.layer = nn.Linear(1, 1)

        path = str(tmp_path / 'evil.pth')
        torch.save(dict(state_dict=dict(weight=Evil(tmp_path / 'made'))), path)
        with pytest.raises(ValueError, match='more than weights'):
            Net(dict(type='Pretrained', checkpoint=path)).init_weights()
        assert not (tmp_path / 'made').exists()

    def test_torch_load_is_given_back(self, tmp_path):
        before = torch.load
        with pytest.raises(FileNotFoundError):
            CheckpointLoader.load_checkpoint(str(tmp_path / 'none.pth'))
        assert torch.load is before


def test_oldest_format_is_refused(tmp_path):
    """torch < 2.6 would unpickle it."""
    path = tmp_path / 'old.pth'
    with tarfile.open(path, 'w') as tar:
        (tmp_path / 'pickle').write_bytes(pickle.dumps(Evil(tmp_path / 'made')))
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            tar.add(tmp_path / 'pickle', name)
    with pytest.raises(ValueError, match='old.pth is no readable checkpoint'):
        CheckpointLoader.load_checkpoint(str(path))
    assert not (tmp_path / 'made').exists()


def test_download_is_restricted_too(tmp_path, monkeypatch):
    # torch.hub passes weights_only=False itself.
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(dict(weight=Evil(tmp_path / 'made')), cache / 'evil.pth')
    with pytest.raises(ValueError, match='more than weights'):
        CheckpointLoader.load_checkpoint('https://example.org/evil.pth')
    assert not (tmp_path / 'made').exists()


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).square().mean())


def make_runner(work_dir, epochs, **options):
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=torch.utils.data.DataLoader(
            [dict(inputs=torch.ones(2))] * 4, batch_size=2
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EMAHook')],
        experiment_name=f'{work_dir}-{epochs}-{len(options)}',
        log_level='WARNING',
        **options,
    )


class TestResume:
    def test_own_run(self, tmp_path):
        first = make_runner(tmp_path, 1)
        first.train()
        second = make_runner(tmp_path, 2, resume=True)
        second.train()
        assert second.epoch == 2
        assert len(second.message_hub.get_scalar('train/loss').data[0]) == 4

    def test_what_no_list_knows(self, tmp_path):
        """A user's hook may leave any object in the message hub."""
        first = make_runner(tmp_path, 1)
        first.message_hub.update_info('unknown', Unknown())
        first.train()
        with pytest.raises(
            ValueError, match=r'Unknown\), and opening .*add_safe_globals, or load'
        ):
            make_runner(tmp_path, 2, resume=True).train()
        with safe_globals_of(Unknown):
            second = make_runner(tmp_path, 3, resume=True)
            second.train()
        assert isinstance(second.message_hub.get_info('unknown'), Unknown)


@contextmanager
def safe_globals_of(kind):
    """As ``torch.serialization.safe_globals``, which torch 2.4 does not have."""
    before = torch.serialization.get_safe_globals()[:]
    torch.serialization.add_safe_globals([kind])
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_message_hub_round_trip_keeps_custom_statistics(tmp_path):
    hub = MessageHub.get_instance('round_trip')
    hub.update_scalar('loss', 1.0)
    path = str(tmp_path / 'hub.pth')
    torch.save(dict(message_hub=hub.state_dict()), path)
    loaded = CheckpointLoader.load_checkpoint(path)
    hub.load_state_dict(loaded['message_hub'])
    assert hub.get_scalar('loss').mean() == 1.0


def test_it_is_installed_once(monkeypatch):
    loader = CheckpointLoader.load_checkpoint
    assert safe_load.is_installed()
    safe_load.install()
    assert CheckpointLoader.load_checkpoint == loader
    monkeypatch.setattr(
        CheckpointLoader, 'load_checkpoint', classmethod(lambda cls: None)
    )
    assert not safe_load.is_installed()
