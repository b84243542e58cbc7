"""What the documentation says is so: examples, Python, configs, links.

- `Examples:` of docstrings run.
- Python blocks of README.md and docs/*.md run, a page's in their order in one folder,
  with the videos and weights that they name. A block with `_base_` is a config: it is
  loaded, and its model and its pipelines are built.
- A diff block changes a config of MMAction2: the result trains for two epochs on drawn
  data, with memory, and is validated.
- Links, anchors and files that are named exist.

What is in bash blocks is looked at in test_docs_commands.py; test_docs_build.py builds
the pages; test_tutorial.py runs the notebook.
"""

import csv
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from doc_pages import PAGES, anchors, blocks, links, pages_with, prose
from fork_server import python
from mmaction.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import memvit_mm
from memvit_mm.apis import init_detector_model, init_recognizer
from memvit_mm.apis.people.load_detector import build_detector
from memvit_mm.datasets import SequentialClipSampler
from memvit_mm.demo import DemoSettings, make_demo_dataset
from memvit_mm.paths import get_config_path, get_tool_path

sys.path.insert(0, str(Path(__file__).resolve().parent / 'apis'))

from network_camera import NetworkCamera
from stream_data import FPS, pictures, write_video

# The address of a camera in the pages.
CAMERA = 'http://192.168.0.7:8080/video'
# What blocks print, by something that is in no other block.
PRINTED = {
    "run('kitchen.mp4')": "4.0 [('",
    f"run('{CAMERA}')": '2.0',
    'MultiStream(': 'no.mp4 does not exist',
    'PersonDetector(': "2.0 0 [('",
    'extra_repr()': '32',
    'print(model.memory)': 'ClipMemory(streams=1',
}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(memvit_mm.__path__, 'memvit_mm.')
    if '.mim' not in module.name and not module.name.endswith('__main__')
)


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


# ------------------------------------------------------------------------------- Python


def write_epic(path: Path) -> None:
    model = init_recognizer('memvit_demo_epic_cls.py', device='cpu')
    torch.save(dict(state_dict=model.state_dict()), path)


def write_ava(path: Path) -> None:
    model = init_detector_model('memvit_demo.py', device='cpu')
    torch.save(dict(state_dict=model.state_dict()), path)


def write_yolox(path: Path) -> None:
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
    torch.save(dict(meta=meta, state_dict=yolox.state_dict()), path)


def write_predictions(path: Path) -> None:
    """Of the demo's detector, as tools/test.py dumps them."""
    write_ava(path.with_name('ava.pth'))
    data = DemoSettings(num_train=1, num_val=1, seconds=17)
    make_demo_dataset(path.parent / 'data/memvit_demo', data, workers=1)
    loader = ('num_workers=0', 'persistent_workers=False', 'dataset.indices=4')
    few = [f'test_dataloader.{option}' for option in loader]
    config = get_config_path('memvit_demo.py')
    tool('test', config, 'ava.pth', '--dump', path, '--cfg-options', *few)


def tool(name: str, *options) -> None:
    line = [python(), get_tool_path(name), *map(str, options)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What blocks read.
FILES = {
    'kitchen.mp4': lambda path: write_video(path, pictures(5 * FPS)),
    'street.mp4': lambda path: write_video(path, pictures(3 * FPS)),
    'epic.pth': write_epic,
    'ava.pth': write_ava,
    'yolox_tiny.pth': write_yolox,
    'predictions.pkl': write_predictions,
}


# tests/test_deploy.py has an exported model, and runs those of its page.
@pytest.mark.filterwarnings('ignore:torch.meshgrid', 'ignore:Names of the 15 classes')
@pytest.mark.parametrize('page', sorted({*pages_with('python')} - {'docs/deploy.md'}))
def test_python_runs(page, checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks('python', page)
    for name, write in FILES.items():
        if any(f"'{name}'" in block.text for block in code):
            write(tmp_path / name)
    with NetworkCamera(pictures(3 * FPS), FPS) as camera:
        for block in code:
            if '_base_ =' in block.text:
                build(block, checkout, tmp_path)
                continue
            # Each line runs: only that this camera has another address.
            text = block.text.replace(CAMERA, camera.url)
            # It hangs up in the end, which VideoStream says.
            gone = f"run('{CAMERA}')" in block.text
            # Lines of errors are those of the page.
            text = '\n' * (block.line - 1) + text
            with pytest.raises(ConnectionError) if gone else nullcontext():
                exec(compile(text, block.page, 'exec'), {'__name__': 'page'})
            out = capsys.readouterr().out
            for last, told in PRINTED.items():
                assert last not in block.text or told in out, (block.place, out)


def test_what_is_printed_is_in_the_pages():
    texts = [block.text for block in blocks('python')]
    for last in PRINTED:
        assert any(last in text for text in texts), last


def build(block, checkout, folder) -> Config:
    """Load a block as a config of ours, and build its model and its transforms."""
    configs = shutil.copytree(checkout / 'configs', folder / 'configs')
    cfg = load(configs / 'block_of_a_page.py', block.text)
    init_default_scope(cfg.default_scope)
    MODELS.build(cfg.model)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        Compose([TRANSFORMS.build(step) for step in cfg[name].dataset.pipeline])
    return cfg


def load(path: Path, text: str) -> Config:
    path.write_text(text)
    cfg = Config.fromfile(path)
    cfg.model.pop('init_cfg', None)
    cfg.model.backbone.pop('init_cfg', None)
    return cfg


# --------------------------------------------------------------------------------- diff


def changed(text: str) -> str:
    """What a diff leaves: its first column tells what goes and what comes."""
    lines = text.splitlines()
    assert lines[0].startswith(' _base_ ='), lines[0]
    assert all(line[:1] in ('', ' ', '+', '-') for line in lines), text
    return '\n'.join(line[1:] for line in lines if not line.startswith('-'))


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Data in AVA's format, of which four keyframes of each video are labelled."""
    out = tmp_path_factory.mktemp('drawn') / 'data'
    settings = DemoSettings(num_train=2, num_val=1, seconds=32)
    make_demo_dataset(out, settings, rawframes=True, workers=1)
    for split in ('train', 'val'):
        path = out / 'annotations' / f'{split}.csv'
        rows = list(csv.reader(path.open()))
        first = sorted({row[1] for row in rows})[:4]
        with path.open('w', newline='') as file:
            csv.writer(file).writerows(row for row in rows if row[1] in first)
    return out


SMALL = {
    'RandomRescale': dict(scale_range=(64, 80)),
    'RandomCrop': dict(size=64),
    'Resize': dict(scale=(-1, 64)),
}


def on_drawn_data(cfg: Config, data: Path, folder: Path) -> Config:
    """A detector's config with other data, two small layers and two epochs.

    Pictures are a quarter as wide and high, which takes a sixteenth of the time.
    """
    notes = data / 'annotations'
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            ann_file=str(notes / f'{split}.csv'),
            proposal_file=str(notes / f'proposals_{split}.pkl'),
            label_file=str(notes / 'action_list.pbtxt'),
            exclude_file=None,
            data_prefix=dict(img=str(data / 'rawframes')),
            filename_tmpl='img_{:05}.jpg',
            fps=12,
            timestamp_end=932,
        )
        for step in loader.dataset.pipeline:
            step.update(SMALL.get(step.type, {}))
    cfg.val_evaluator.update(
        ann_file=str(notes / 'val.csv'),
        label_file=str(notes / 'action_list.pbtxt'),
        exclude_file=None,
    )
    cfg.train_cfg.update(max_epochs=2, val_begin=2)
    cfg.model.backbone.update(img_size=64, depth=2, embed_dims=96, num_heads=2)
    cfg.model.roi_head.bbox_head.in_channels = 96
    cfg.work_dir = str(folder / 'work_dir')
    return cfg


@pytest.mark.parametrize('block', blocks('diff'), ids=lambda block: block.page)
def test_diff_makes_a_config_that_trains_with_memory(
    block, drawn, tmp_path, monkeypatch
):
    """Two epochs, whose second one begins with an empty memory, and a validation."""
    monkeypatch.chdir(tmp_path)
    with_memory = changed(block.text)
    added = [line for line in block.text.splitlines() if line.startswith('+')]
    assert len(added) == 5
    cfg = on_drawn_data(load(tmp_path / 'changed.py', with_memory), drawn, tmp_path)
    runner = Runner.from_cfg(cfg)
    model, kept, losses = runner.model, [], []
    step = model.train_step

    def watched(data, optim_wrapper):
        kept.append(model.memory.num_bytes)
        loss = step(data, optim_wrapper)
        losses.append(float(loss['loss']))
        return loss

    monkeypatch.setattr(model, 'train_step', watched)
    runner.train()
    assert len(losses) == 8 and all(map(torch.isfinite, torch.tensor(losses)))
    assert kept[0] == kept[4] == 0 and min(kept[1:4] + kept[5:]) > 0
    assert isinstance(runner.train_dataloader.batch_sampler, SequentialClipSampler)
    # Of the layer with memory; it is nonzero where past clips are read.
    assert model.backbone.blocks[0].attn.gate.detach().abs().max() > 0


# ------------------------------------------------------------------------ pages, links


def test_languages():
    known = {'', 'bash', 'python', 'diff', 'json', 'text'}
    for block in blocks():
        directive = block.page == 'docs/index.md' and block.language == '{toctree}'
        assert directive or block.language in known, block.place
        # Without a language: figures and output, no code that nobody would run.
        code = re.search(
            r'^(python|bash|pip|import|from|\$) ', block.text, re.MULTILINE
        )
        assert block.language or not code, block.place


def test_readme_is_read_in_one_sitting(checkout):
    assert len((checkout / 'README.md').read_text().splitlines()) <= 160


@pytest.mark.parametrize(
    'page', [*PAGES, 'configs/README.md', 'memvit_mm/README.md'], ids=str
)
def test_links_lead_somewhere(page, checkout):
    for target in links(page):
        path, _, anchor = target.partition('#')
        file = (checkout / page).parent / path if path else checkout / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(checkout)), target


@pytest.mark.parametrize('page', PAGES)
def test_files_that_are_named_exist(page, checkout):
    text = (checkout / page).read_text()
    named = re.findall(
        r'(?<![\w/.-])((?:configs|tools|tests|docs|memvit_mm)/[\w./-]+\.\w+)', text
    )
    # Without those of MMAction2, and what pytest adds behind the name.
    for name in named:
        assert (checkout / name).is_file(), name


def test_every_page_is_looked_at():
    assert {'README.md', 'docs/index.md'} <= set(PAGES)
    assert len(prose('README.md')) > 1000 and len(pages_with('python')) >= 5
    assert pages_with('diff') and links('README.md') and anchors('docs/vit.md')
