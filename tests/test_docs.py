"""What the documentation says runs: `Examples:` in docstrings, README's code."""

import doctest
import importlib
import pkgutil
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import memvit_mm
from memvit_mm.apis import init_detector_model, init_recognizer
from memvit_mm.apis.people.load_detector import build_detector
from memvit_mm.paths import get_config_path

sys.path.insert(0, str(Path(__file__).resolve().parent / 'apis'))

from network_camera import NetworkCamera
from stream_data import FPS, pictures, write_video

# The address of a camera in the README.
CAMERA = 'http://192.168.0.7:8080/video'
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(memvit_mm.__path__, 'memvit_mm.')
    if '.mim' not in module.name
)


def blocks(text: str, language: str) -> list:
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


@pytest.fixture(scope='module')
def readme(checkout) -> str:
    return (checkout / 'README.md').read_text()


@pytest.mark.parametrize('name', MODULES)
def test_examples_in_docstrings_run(name):
    init_default_scope('mmaction')
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {
        test.name
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    for part in (
        'MeMViT',
        'ClipMemory',
        'MemoryRecognizer3D',
        'ActorMemoryHead',
        'SequentialClipSampler',
    ):
        assert any(name.endswith('.' + part) for name in found), part


def write_files(folder: Path) -> None:
    """The videos and weights that the README's code reads."""
    write_video(folder / 'kitchen.mp4', pictures(5 * FPS))
    write_video(folder / 'street.mp4', pictures(3 * FPS))
    model = init_recognizer('memvit_demo_epic_cls.py', device='cpu')
    torch.save(dict(state_dict=model.state_dict()), folder / 'epic.pth')
    model = init_detector_model('memvit_demo.py', device='cpu')
    torch.save(dict(state_dict=model.state_dict()), folder / 'ava.pth')
    yolox = build_detector('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', device='cpu')
    head = yolox.bbox_head
    for name in ('cls', 'obj', 'reg'):
        for level, conv in enumerate(getattr(head, f'multi_level_conv_{name}')):
            torch.nn.init.zeros_(conv.weight)
            # People everywhere, who are as large as the picture.
            torch.nn.init.constant_(conv.bias, 2.6 if name == 'reg' else 5)
            if name == 'obj' and level < 2:
                torch.nn.init.constant_(conv.bias, -20)
    meta = dict(dataset_meta=yolox.dataset_meta)
    torch.save(
        dict(meta=meta, state_dict=yolox.state_dict()), folder / 'yolox_tiny.pth'
    )


@pytest.mark.filterwarnings('ignore:torch.meshgrid', 'ignore:Names of the 15 classes')
def test_python_in_the_readme_runs(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    code = blocks(readme, 'python')
    assert len(code) >= 7
    printed = {}
    with NetworkCamera(pictures(3 * FPS), FPS) as camera:
        for block in code:
            # Each line runs: only that this camera has another address.
            block = block.replace(CAMERA, camera.url)
            # It hangs up in the end, which VideoStream says.
            gone = f"run('{camera.url}')" in block
            with pytest.raises(ConnectionError) if gone else nullcontext():
                exec(compile(block, 'README.md', 'exec'), {'__name__': 'readme'})
            printed[block] = capsys.readouterr().out
    for last, told in (
        ("run('kitchen.mp4')", "4.0 [('"),
        (f"run('{camera.url}')", '2.0'),
        ('MultiStream(', 'no.mp4 does not exist'),
        ('PersonDetector(', "2.0 0 [('"),
    ):
        (found,) = (block for block in printed if last in block)
        assert told in printed[found], (found, printed[found])
        assert len(found.splitlines()) < 10


def test_files_that_the_readme_names_exist(readme, checkout):
    config_dir = Path(get_config_path('memvit_ava.py')).parent
    named = set(re.findall(r'\b((?:configs|tools|tests)/[\w./]+\.(?:py|sh))', readme))
    assert {'tools/quickstart.sh', 'configs/memvit_ava.py'} <= named
    for name in sorted(named):
        assert (checkout / name).is_file(), name
        if name.startswith('configs/'):
            Config.fromfile(config_dir / name[len('configs/') :])
    for target in re.findall(r'\]\((?!http|#)([^)]+)\)', readme):
        assert (checkout / target).exists(), target
