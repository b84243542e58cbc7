"""The command lines: what they do with wrong options and files, and that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import _common
import measure_stream
import plot_demo
import pytest
import quickstart
import test as test_tool
import train as train_tool
from fork_server import python
from mmengine.config import Config

TOOLS = Path(__file__).resolve().parents[1] / 'tools'

# A whole training in a second: no video, no MMAction2 model.
CONFIG = """
custom_imports = dict(imports=['memvit_mm', 'toy'], allow_failed_imports=False)
default_scope = 'mmaction'
model = dict(type='Toy')
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='ToyData'),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
test_dataloader = dict(
    train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False)
)
test_cfg = dict()
test_evaluator = dict(type='ToyMetric')
log_level = 'WARNING'
"""
TOY = """
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel

from mmaction.registry import DATASETS, METRICS, MODELS


@MODELS.register_module()
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.layer(torch.stack(list(inputs)))
        return dict(loss=output.square().mean()) if mode == 'loss' else list(output)


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.full((2,), float(index)))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(count=float(len(results)))
"""


@pytest.fixture
def toy(tmp_path):
    (tmp_path / 'toy.py').write_text(TOY)
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path


def call(folder, *command, **environment):
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
            'PYTHON': python(),
            **environment,
        },
    )


def arguments(tool, monkeypatch, *options):
    monkeypatch.setattr(sys, 'argv', ['tool', *map(str, options)])
    return tool.parse_args()


class TestTrain:
    @pytest.fixture
    def merge(self, toy, monkeypatch):
        def merge(*options, **settings):
            args = arguments(train_tool, monkeypatch, toy / 'config.py', *options)
            monkeypatch.syspath_prepend(str(toy))
            cfg = _common.load_config(args)
            cfg.merge_from_dict(settings)
            return train_tool.merge_args(cfg, args)

        return merge

    def test_work_dir(self, merge, toy):
        assert merge().work_dir == os.path.join('work_dirs', 'config')
        assert merge('--cfg-options', 'work_dir=a').work_dir == 'a'
        both = merge('--work-dir', 'b', '--cfg-options', 'work_dir=a')
        assert both.work_dir == 'b'

    def test_resume(self, merge, toy):
        assert (merge('--resume').resume, merge('--resume').load_from) == (True, None)
        (toy / 'a.pth').touch()
        assert merge('--resume', toy / 'a.pth').load_from == str(toy / 'a.pth')
        with pytest.raises(FileNotFoundError, match='no checkpoint file b.pth'):
            merge('--resume', 'b.pth')

    def test_compile(self, merge, capsys):
        assert 'CompileHook' not in str(merge().get('custom_hooks'))
        for given, mode in ([], 'default'), (['reduce-overhead'], 'reduce-overhead'):
            hook = merge('--compile', *given).custom_hooks[-1]
            assert hook == dict(type='CompileHook', mode=mode)
        with pytest.raises(SystemExit):
            merge('--compile', 'eager')
        assert 'max-autotune' in capsys.readouterr().err

    def test_seed(self, merge):
        assert merge().randomness == dict(seed=None)
        given = dict(randomness=dict(seed=1))
        assert merge(**given).randomness.seed == 1
        assert merge('--seed', 2, **given).randomness.seed == 2
        deterministic = merge('--deterministic', '--diff-rank-seed').randomness
        assert deterministic.deterministic and deterministic.diff_rank_seed

    def test_no_validate(self, merge):
        cfg = merge('--no-validate', val_cfg=dict(), val_dataloader=dict())
        assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None

    def test_auto_scale_lr(self, merge):
        with pytest.raises(ValueError, match='--auto-scale-lr needs auto_scale_lr='):
            merge('--auto-scale-lr')
        cfg = merge('--auto-scale-lr', auto_scale_lr=dict(base_batch_size=16))
        assert cfg.auto_scale_lr.enable

    def test_amp(self, merge, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch, 'set_float32_matmul_precision', lambda kind: None)
        for has_bf16 in (True, False):
            monkeypatch.setattr(
                torch.cuda, 'is_bf16_supported', lambda has=has_bf16, **kwargs: has
            )
            wrapper = merge('--amp').optim_wrapper
            assert wrapper.type == 'AmpOptimWrapper'
            assert wrapper.get('dtype') == ('bfloat16' if has_bf16 else None)
            scale = dict(enabled=False) if has_bf16 else 'dynamic'
            assert wrapper.loss_scale == scale
        given = dict(type='OptimWrapper', dtype='float16')
        wrapper = merge('--amp', optim_wrapper=given).optim_wrapper
        assert (wrapper.dtype, wrapper.loss_scale) == ('float16', 'dynamic')
        with pytest.raises(ValueError, match='not Other; leave out --amp'):
            merge('--amp', optim_wrapper=dict(type='Other'))
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        wrapper = merge('--amp').optim_wrapper
        assert (wrapper.type, wrapper.loss_scale) == ('CPUAmpOptimWrapper', 'dynamic')


class TestTest:
    @pytest.fixture
    def merge(self, toy, monkeypatch):
        def merge(*options, checkpoint='a.pth'):
            (toy / 'a.pth').touch()
            options = (toy / 'config.py', toy / checkpoint, *options)
            args = arguments(test_tool, monkeypatch, *options)
            cfg = Config(dict(test_evaluator=dict(type='A')))
            return test_tool.merge_args(cfg, args)

        return merge

    def test_dump(self, merge):
        evaluators = merge('--dump', 'a.pkl').test_evaluator
        assert [evaluator.type for evaluator in evaluators] == ['DumpResults', 'A']
        with pytest.raises(ValueError, match='writes a .pkl file, not a.json'):
            merge('--dump', 'a.json')

    def test_show_without_hook(self, merge):
        with pytest.raises(ValueError, match='need default_hooks.visualization'):
            merge('--show-dir', 'pictures')

    def test_missing_checkpoint(self, merge):
        with pytest.raises(FileNotFoundError, match='no checkpoint file .*b.pth'):
            merge(checkpoint='b.pth')


class TestErrors:
    def test_one_sentence(self, toy):
        done = call(toy, python(), TOOLS / 'train.py', 'none.py')
        assert done.returncode == 1
        assert done.stderr.startswith('Error: There is no config file none.py.')
        assert 'Traceback' not in done.stderr

    @pytest.mark.parametrize(
        'error, text',
        [
            (ValueError('Say this.'), 'Say this.'),
            (KeyError('Toy is not in the registry.'), 'Toy is not in the registry.'),
            (KeyError('gap'), "the key 'gap' is missing."),
            (SyntaxError('bad', ('a.py', 3, 1, '')), 'a.py, line 3: bad.'),
        ],
    )
    def test_sentence(self, error, text):
        assert _common.sentence(error) == text

    @pytest.mark.parametrize(
        'error, text',
        [
            (
                ValueError('Video a.mp4 cannot be opened.'),
                'Video a.mp4 cannot be opened.',
            ),
            (FileNotFoundError('There is no a.mp4.'), 'There is no a.mp4.'),
            (KeyError('label'), "the key 'label' is missing."),
        ],
        ids=['ValueError', 'FileNotFoundError', 'KeyError'],
    )
    def test_error_in_a_worker(self, error, text, capsys, monkeypatch):
        from torch.utils.data import DataLoader

        class Broken:
            def __len__(self):
                return 2

            def __getitem__(self, index):
                raise error from OSError('no such disk')

        monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
        with pytest.raises(SystemExit):
            _common.run(lambda: list(DataLoader(Broken(), num_workers=1)))
        assert capsys.readouterr().err.splitlines()[0] == f'Error: {text}'

    def test_wrong_arguments_in_a_config(self, capsys, monkeypatch):
        from mmengine.registry import Registry

        class Model:
            def __init__(self, width, **kwargs):
                if kwargs:
                    raise TypeError('Model found no memory: use another.')

        class Other:
            def __init__(self):
                self.width = None + 1

        models = Registry('model')
        models.register_module(module=Model)
        models.register_module(module=Other)

        def error_of(cfg):
            with pytest.raises(SystemExit):
                _common.run(lambda: models.build(cfg))
            return capsys.readouterr().err.splitlines()[0]

        monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
        assert error_of(dict(type='Model')).startswith(
            'Error: Model missing 1 required'
        )
        unknown = error_of(dict(type='Other', gpa=3))
        assert unknown.startswith('Error: Other got an unexpected keyword argument')
        assert "'gpa'" in unknown
        raised = error_of(dict(type='Model', width=1, gap=3))
        assert raised.endswith('Model found no memory: use another.')
        # A mistake of ours keeps its traceback.
        with pytest.raises(TypeError, match='unsupported operand'):
            _common.run(lambda: models.build(dict(type='Other')))

    def test_environment_without_the_stack(self):
        error = ModuleNotFoundError("No module named 'mmengine'", name='mmengine')
        text = _common.sentence(error)
        assert text.startswith(f"No module named 'mmengine' in {sys.prefix}: run")
        assert 'activate' in text

    def test_debug_shows_the_traceback(self, monkeypatch):
        def fail():
            raise ValueError('Say this.')

        monkeypatch.setenv('MEMVIT_DEBUG', '1')
        with pytest.raises(ValueError):
            _common.run(fail)
        monkeypatch.setenv('MEMVIT_DEBUG', '0')
        with pytest.raises(SystemExit) as exit:
            _common.run(fail)
        assert exit.value.code == 1

    @pytest.mark.parametrize('kind', ['train', 'test'])
    @pytest.mark.parametrize('launcher', ['dist', 'slurm'])
    def test_launchers_without_arguments(self, tmp_path, kind, launcher):
        done = call(tmp_path, 'bash', TOOLS / f'{launcher}_{kind}.sh')
        assert (
            done.returncode == 2 and 'bash' in done.stderr and 'CONFIG' in done.stderr
        )


class TestRun:
    def test_two_processes_train_and_test(self, toy):
        import torch

        if torch.cuda.is_available() and torch.cuda.device_count() < 2:
            pytest.skip('two processes need two GPUs, or none')
        port = str(20000 + os.getpid() % 20000)
        train = call(toy, 'bash', TOOLS / 'dist_train.sh', 'config.py', 2, PORT=port)
        assert train.returncode == 0, train.stderr[-3000:]
        checkpoint = toy / 'work_dirs' / 'config' / 'epoch_1.pth'
        assert checkpoint.is_file()

        # In a process that has imported nothing.
        options = ('--work-dir', 'tested', '--dump', 'tested.pkl')
        command = (sys.executable, TOOLS / 'test.py', 'config.py', checkpoint)
        test = call(toy, *command, *options)
        assert test.returncode == 0, test.stderr[-3000:]
        result = next((toy / 'tested').glob('*/*.json'))
        assert json.loads(result.read_text())['count'] == 8
        assert (toy / 'tested.pkl').is_file()

    def test_slurm_starts_one_task_per_gpu(self, toy):
        srun = toy / 'srun'
        srun.write_text('#!/bin/sh\necho "$@"\n')
        srun.chmod(0o755)
        done = call(
            toy,
            'bash',
            TOOLS / 'slurm_train.sh',
            'part',
            'job',
            'config.py',
            '--amp',
            PATH=f'{toy}{os.pathsep}{os.environ["PATH"]}',
            GPUS='16',
            SRUN_ARGS='--time 1:00',
        )
        assert done.returncode == 0, done.stderr
        assert '--partition=part --job-name=job' in done.stdout
        assert '--ntasks=16 --ntasks-per-node=8' in done.stdout
        assert '--time 1:00' in done.stdout
        assert done.stdout.rstrip().endswith('config.py --amp --launcher slurm')


class TestPlotDemo:
    @pytest.fixture
    def runs(self, tmp_path):
        for name, gain in (('memvit_demo', 0.5), ('memvit_demo_no_memory', 0.0)):
            log = tmp_path / name / '20260101_000000' / 'vis_data' / 'scalars.json'
            log.parent.mkdir(parents=True)
            records = [dict(loss=1.0, step=1)] + [
                {'mAP/overall': 0.3 + gain * step / 3, 'mAP/memory': 0.2, 'step': step}
                for step in (1, 2, 3)
            ]
            log.write_text(''.join(json.dumps(record) + '\n' for record in records))
            test = tmp_path / name / 'test' / '20260101_000100'
            test.mkdir(parents=True)
            metrics = {'ava/mAP/overall': 0.3 + gain, 'ava/mAP/memory': 0.25 + gain}
            (test / '20260101_000100.json').write_text(json.dumps(metrics))
        return tmp_path

    def main(self, monkeypatch, runs, *options):
        folders = [runs / 'memvit_demo', runs / 'memvit_demo_no_memory']
        out = ('--out', runs / 'out' / 'demo.png')
        monkeypatch.setattr(sys, 'argv', ['', *map(str, [*folders, *options, *out])])
        plot_demo.main()

    def test_table_and_picture(self, runs, monkeypatch, capsys):
        self.main(monkeypatch, runs, '--seconds', 210, 190)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == (
            ['mAP', 'all', 'classes', 'need', 'memory', 'seconds', 'of', 'training']
        )
        assert lines[1].split()[-3:] == ['0.800', '0.750', '210']
        assert lines[2].split() == ['without', 'memory', '0.300', '0.250', '190']
        assert lines[3].split() == ['difference', '+0.500', '+0.500']
        assert (runs / 'out' / 'demo.png').stat().st_size > 1000

    def test_a_row_for_the_memory_cleared(self, runs, monkeypatch, capsys):
        folder = runs / 'memvit_demo' / 'test'
        self.main(monkeypatch, runs, '--seconds', 210, 190, '--cleared', folder)
        lines = capsys.readouterr().out.splitlines()
        assert lines[3].split()[-6:] == (
            ['cleared', 'before', 'every', 'clip', '0.800', '0.750']
        )
        assert lines[4].split() == ['difference', '+0.500', '+0.500']

    def test_a_name_for_each(self, runs, monkeypatch, capsys):
        with pytest.raises(SystemExit):
            self.main(monkeypatch, runs, '--names', 'a')
        assert '--names has 1 values for 2 runs' in capsys.readouterr().err

    def test_no_log(self, runs, monkeypatch):
        for log in (runs / 'memvit_demo').glob('*/vis_data/scalars.json'):
            log.unlink()
        with pytest.raises(FileNotFoundError, match='no training log .*train first'):
            self.main(monkeypatch, runs)

    def test_no_test(self, runs, monkeypatch):
        for result in (runs / 'memvit_demo' / 'test').glob('*/*.json'):
            result.unlink()
        with pytest.raises(FileNotFoundError, match='no test result .*tools/test.py'):
            self.main(monkeypatch, runs)

    def test_broken_log(self, runs, monkeypatch):
        log = next((runs / 'memvit_demo').glob('*/vis_data/scalars.json'))
        log.write_text(log.read_text() + '{"mAP/over')
        with pytest.raises(ValueError, match='scalars.json, line 5 is no JSON'):
            self.main(monkeypatch, runs)


def test_too_short_a_stream_to_measure(monkeypatch):
    options = ['memory', '--hours', '0.01', '--fps', '4']
    monkeypatch.setattr(sys, 'argv', ['measure_stream.py', *options])
    sentence = '--hours 0.01 is less than two minutes, so nothing was measured: give'
    with pytest.raises(ValueError, match=sentence):
        measure_stream.measure_memory(measure_stream.parse_args())


class TestQuickstart:
    """Its steps, with trainings of a second in place of the demo's."""

    @pytest.fixture(autouse=True)
    def processes(self, toy, monkeypatch):
        monkeypatch.setattr(sys, 'executable', python())
        path = f'{toy}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
        monkeypatch.setenv('PYTHONPATH', path)

    def start(self, toy, name, *options):
        config = toy / f'{name}.py'
        config.write_text(
            CONFIG.replace("'WARNING'", "'INFO'").replace(
                'max_epochs=1', 'max_epochs=3'
            )
            + 'val_dataloader = test_dataloader\nval_cfg = test_cfg\n'
            'val_evaluator = test_evaluator\n'
            'default_hooks = dict(logger=dict(type="LoggerHook", interval=2))\n'
        )
        command = (TOOLS / 'train.py', config, '--work-dir', toy / name, *options)
        return quickstart.Step(toy / f'{name}.log', *command, name=name)

    def test_a_line_for_each_validation(self, toy, monkeypatch, capsys):
        text = (toy / 'toy.py').read_text()
        (toy / 'toy.py').write_text(text.replace('count=', "**{'mAP/overall': 0.5},n="))
        steps = [self.start(toy, name) for name in ('with memory', 'without')]
        quickstart.wait(*steps, show=True)
        lines = capsys.readouterr().out.splitlines()
        for step in steps:
            last = [line for line in lines if line.startswith(f'  {step.name} ')][-1]
            assert last.split('epoch ')[1] == '3  mAP 0.500  done'
            assert step.seconds > 0 and 'Epoch(train)' in step.log.read_text()
        assert max(map(len, lines)) < 80 and len(lines) < 10

    def test_a_step_that_fails(self, toy, monkeypatch):
        step = self.start(toy, 'wrong', '--cfg-options', 'model.type=Nothing')
        with pytest.raises(SystemExit, match=r'Error: .*Nothing.*\n.*see .*wrong\.log'):
            quickstart.wait(step)
