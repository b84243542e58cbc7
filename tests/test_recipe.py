"""The AVA recipe: a clip, the schedule and the start, by the published formulas."""

import math
import re
from argparse import ArgumentParser

import cv2
import numpy as np
import pytest
import torch
import torch.nn as nn
from mmaction.registry import MODELS, TRANSFORMS
from mmaction.structures import ActionDataSample
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from memvit_mm.datasets import ClipColors, ClipIndex
from memvit_mm.datasets.transforms.picture import ColorDraw
from memvit_mm.models.checkpoints.checkpoint import convert_checkpoint
from memvit_mm.paths import get_config_path


def config(name: str) -> Config:
    init_default_scope('mmaction')
    return Config.fromfile(get_config_path(f'{name}.py'))


# --- a clip

SIZE, FRAMES = (90, 121), 140
DRAWN = ('frame_inds', 'short_edge', 'crop_bbox', 'flip')
COLOR = ColorDraw(
    [('contrast', 0.7), ('brightness', 1.35), ('saturation', 0.62)],
    np.array([0.11, -0.21, 0.05]),
)


def clip_of(cfg: Config, split: str, video: str, epoch: int = 0, second: int = 902):
    """A clip that a config's pipeline and data preprocessor make, and its sample."""
    pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
    steps = [
        dict(type='ArrayDecode') if step.type == 'RawFrameDecode' else step
        for step in pipeline[:-1]
    ]
    meta_keys = (*pipeline[-1].meta_keys, *DRAWN)
    packing = dict(type='PackActionInputs', meta_keys=meta_keys)
    video_seed = sum(video.encode())
    array = np.random.RandomState(video_seed).randint(0, 256, (FRAMES, *SIZE, 3))
    packed = Compose([TRANSFORMS.build(step) for step in (*steps, packing)])(
        dict(
            array=array.astype(np.uint8),
            modality='RGB',
            video_id=video,
            timestamp=second,
            timestamp_start=900,
            fps=30,
            total_frames=FRAMES,
            sample_idx=ClipIndex(0, epoch=epoch),
            gt_bboxes=np.array([[30.0, 20.0, 95.0, 80.0]]),
            gt_labels=np.ones((1, 81), np.float32),
            proposals=np.array([[0.0, 0.0, 121.0, 90.0], [10.0, 5.0, 40.0, 60.0]]),
        )
    )
    prepare = MODELS.build(cfg.model.data_preprocessor)
    inputs = prepare.preprocess([packed['inputs']], [packed['data_samples']])[0][0]
    return array.astype(np.uint8), inputs.numpy(), packed['data_samples']


def published_clip(array, inds, short, crop, flip, color):
    """The published formulas: uint8 [T, H, W, 3] -> [3, T, h, w]."""
    height, width = SIZE
    size = (math.floor(short * width / height), short)
    left, top, right, bottom = crop
    frames = []
    for index in inds:
        frame = cv2.resize(array[index], size, interpolation=cv2.INTER_LINEAR)
        frames.append(frame[top:bottom, left:right])
    clip = np.stack(frames) / 255
    if flip:
        clip = clip[:, :, ::-1]
    for name, factor in color.steps if color else ():
        grey = clip @ [0.299, 0.587, 0.114]
        if name == 'brightness':
            clip = clip * factor
        elif name == 'contrast':
            clip = clip * factor + grey.mean((1, 2))[:, None, None, None] * (1 - factor)
        else:
            clip = clip * factor + grey[..., None] * (1 - factor)
    if color:
        eigvec = [
            [-0.5675, 0.7192, 0.4009],
            [-0.5808, -0.0045, -0.8140],
            [-0.5836, -0.6948, 0.4203],
        ]
        clip = clip + eigvec @ (color.lighting * [0.225, 0.224, 0.229])
    return ((clip - 0.45) / 0.225).transpose(3, 0, 1, 2)


def published_boxes(boxes, short, crop, flip):
    height, width = SIZE
    size = np.array([math.floor(short * width / height), short])
    boxes = np.asarray(boxes) * np.tile(size / [width, height], 2)
    left, top, right, bottom = crop
    boxes = boxes - [left, top, left, top]
    # As MMAction2 cuts boxes off.
    last = np.tile([right - left - 1, bottom - top - 1], 2)
    boxes = np.clip(boxes, 0, last)
    if flip:
        boxes[:, [0, 2]] = right - left - boxes[:, [2, 0]]
    return boxes


@pytest.mark.parametrize(
    'name, length, interval',
    [('memvit_ava', 16, 4), ('memvit_ava_published', 16, 4), ('memvit_24_ava', 32, 3)],
)
def test_a_training_clip_is_the_published_one(name, length, interval, monkeypatch):
    monkeypatch.setattr(ClipColors, 'draw', lambda self: COLOR)
    cfg = config(name)
    flips, moved = set(), set()
    for video in ('a', 'b', 'c', 'd'):
        array, inputs, sample = clip_of(cfg, 'train', video)
        assert inputs.dtype == np.float32
        inds = sample.frame_inds
        moves = inds - (60 + (np.arange(length) - length // 2) * interval)
        assert moves.min() >= -2 and moves.max() <= interval - 3
        short, crop, flip = sample.short_edge, sample.crop_bbox, sample.flip
        assert 256 <= short <= 320 and tuple(crop[2:] - crop[:2]) == (224, 224)
        flips.add(bool(flip))
        moved.add(tuple(moves))
        expected = published_clip(array, inds, short, crop, flip, COLOR)
        np.testing.assert_allclose(inputs, expected, atol=5e-6)
        for boxes, given in (
            (sample.gt_instances.bboxes, [[30, 20, 95, 80]]),
            (sample.proposals.bboxes, [[0, 0, 121, 90], [10, 5, 40, 60]]),
        ):
            expected = published_boxes(given, short, crop, flip)
            np.testing.assert_allclose(boxes, expected, rtol=1e-5)
    assert flips == {False, True} and len(moved) == 4


def test_scope_of_the_draws():
    def drawn(name):
        cfg, seconds = config(name), (901, 902, 903)
        samples = [clip_of(cfg, 'train', 'a', second=second)[2] for second in seconds]
        return {(s.short_edge, tuple(s.crop_bbox), s.flip) for s in samples}

    assert len(drawn('memvit_ava')) == 1
    assert len(drawn('memvit_ava_published')) == 3


def test_published_choices_by_options(checkout):
    """What the page says for MeMViT-24 is what the leaf of MeMViT-16 does."""
    page = (checkout / 'docs' / 'recipe.md').read_text()
    command, *_ = re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
    command = command.replace('\\\n', ' ').split()
    at = command.index('--cfg-options')
    cfg = config('memvit_24_ava')
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(command[at:]).cfg_options)
    leaf = config('memvit_ava_published')
    ours, published = (c.train_dataloader.dataset.pipeline for c in (cfg, leaf))
    assert ours[2:] == published[2:]
    assert cfg.optim_wrapper.paramwise_cfg == leaf.optim_wrapper.paramwise_cfg
    # Nothing else differs.
    usual = config('memvit_ava')
    usual.train_dataloader.dataset.pipeline[2].per = 'clip'
    usual.optim_wrapper.paramwise_cfg = leaf.optim_wrapper.paramwise_cfg
    for key in {*usual.keys(), *leaf.keys()} - {'train_pipeline'}:
        assert usual[key] == leaf[key], key


@pytest.mark.parametrize('split', ['test', 'val'])
def test_a_test_clip_is_the_published_one(split):
    array, inputs, sample = clip_of(config('memvit_ava'), split, 'a')
    inds = 60 + (np.arange(16) - 8) * 4
    np.testing.assert_array_equal(sample.frame_inds, inds)
    crop = np.array([0, 0, 301, 224])  # floor(224 * 121 / 90)
    if split == 'val':
        crop = np.array([38, 0, 262, 224])
    expected = published_clip(array, inds, 224, crop, False, None)
    np.testing.assert_allclose(inputs, expected, atol=1e-6)
    assert sample.img_shape == tuple(inputs.shape[2:])


def test_people_of_a_crop_are_reported_whole():
    cfg = config('memvit_demo')
    model = MODELS.build(cfg.model).eval()
    boxes = torch.tensor([[0.0, 0.0, 20.0, 47.0], [10.0, 5.0, 40.0, 30.0]])
    whole = np.array([[-0.1, 0.0, 0.3, 0.9], [0.2, 0.1, 0.7, 0.6]], np.float32)

    def predict(**meta):
        sample = ActionDataSample(proposals=InstanceData(bboxes=boxes.clone()))
        sample.set_metainfo(dict(video_id='a', timestamp=1, img_shape=(48, 48), **meta))
        model.memory.reset()
        torch.manual_seed(0)
        clips = torch.rand(1, 3, 8, 48, 48)
        return model(clips, [sample], mode='predict')[0].pred_instances

    cut, reported = predict(), predict(whole_frame_boxes=dict(proposals=whole))
    torch.testing.assert_close(cut.bboxes, boxes / 48)
    np.testing.assert_array_equal(reported.bboxes, whole)
    torch.testing.assert_close(reported.scores, cut.scores)


# --- the schedule


class Line(BaseModel):
    """Weights of every kind, and one that is named as the compression."""

    def __init__(self):
        super().__init__()
        self.compress_k = nn.Linear(2, 2)
        self.norm, self.proj = nn.LayerNorm(2), nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.rel_pos_h = nn.Parameter(torch.zeros(3, 2))

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = self.norm(self.compress_k(torch.stack(inputs))) + self.rel_pos_h.mean(0)
        return dict(loss=self.scale * self.proj(x).square().mean())


class Rates(Hook):
    """The learning rates and gradients of every iteration."""

    def __init__(self):
        self.rates, self.rates_of_compression = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        of_compression = set(map(id, runner.model.compress_k.parameters()))
        found = {False: set(), True: set()}
        for group in runner.optim_wrapper.optimizer.param_groups:
            for parameter in group['params']:
                found[id(parameter) in of_compression].add(group['lr'])
        (rate,), (rate_of_compression,) = found.values()
        self.rates.append(rate)
        self.rates_of_compression.append(rate_of_compression)


def run(cfg: Config, folder, epoch_length: int, model: BaseModel) -> Rates:
    """Train a few weights with a config's optimizer and schedule, to the end."""
    batch_size = cfg.train_dataloader.batch_size
    clips = [
        dict(inputs=torch.rand(2), data_samples=i)
        for i in range(epoch_length * batch_size)
    ]
    loader = dict(
        dataset=clips,
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    rates = Rates()
    runner = Runner(
        model,
        str(folder),
        train_dataloader=loader,
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        auto_scale_lr=cfg.auto_scale_lr,
        default_hooks=dict(checkpoint=None, logger=None),
        default_scope='mmaction',
        experiment_name=folder.name,
        log_level='ERROR',
    )
    runner.register_hook(rates)
    runner.train()
    assert len(rates.rates) == cfg.train_cfg.max_epochs * epoch_length
    return rates


@pytest.mark.parametrize('gpus', [None, 4])
@pytest.mark.parametrize(
    'name, epochs, warm_up, clips',
    [('memvit_ava', 30, 5, 16), ('memvit_24_ava', 40, 6, 256)],
)
def test_the_published_schedule(
    name, epochs, warm_up, clips, gpus, tmp_path, monkeypatch
):
    cfg = config(name)
    if gpus:
        # As tools/train.py --auto-scale-lr does.
        cfg.auto_scale_lr.enable = True
        clips = gpus * cfg.train_dataloader.batch_size
        monkeypatch.setattr(Runner, 'world_size', gpus)
    length = 20
    hook = run(cfg, tmp_path, length, Line())
    rates = hook.rates
    assert len(rates) == epochs * length
    # All three grow with the clips of a step.
    start, peak, end = (rate * clips / 16 for rate in (1e-6, 0.075, 1e-6))

    def published(iteration):
        epoch = iteration / length
        if epoch < warm_up:
            return start + (peak - start) * epoch / warm_up
        part = (epoch - warm_up) / (epochs - warm_up)
        return end + (peak - end) * (1 + math.cos(math.pi * part)) / 2

    assert rates[0] == pytest.approx(start, rel=1e-9)
    top = warm_up * length
    # mmengine's warm-up reaches the peak one iteration before its end, and is ahead of
    # the formula by that much.
    for iteration in (1, top // 2, top - 1):
        ahead = start + (peak - start) * iteration / (top - 1)
        assert rates[iteration] == pytest.approx(ahead, rel=1e-9)
        assert rates[iteration] == pytest.approx(published(iteration), rel=1.02 / top)
    middle = (top + len(rates)) // 2
    assert rates[top] == pytest.approx(peak, rel=1e-9)
    assert rates[middle] == pytest.approx((peak + end) / 2, rel=1e-9)
    for iteration in range(top, len(rates)):
        assert rates[iteration] == pytest.approx(published(iteration), rel=1e-6)
    assert rates[-1] - end < 1e-3 * peak
    # Set every iteration.
    assert len(set(rates[: top - 1])) == top - 1
    assert hook.rates_of_compression == rates


def test_the_published_optimizer():
    for name, clip in (('memvit_ava', None), ('memvit_24_ava', dict(max_norm=5.0))):
        wrapper = build_optim_wrapper(Line(), config(name).optim_wrapper)
        assert type(wrapper.optimizer) is torch.optim.SGD
        assert wrapper.clip_grad_kwargs == clip
        for group in wrapper.optimizer.param_groups:
            assert (group['momentum'], group['nesterov'], group['dampening']) == (
                (0.9, True, 0)
            )
            for parameter in group['params']:
                decay = 0.0 if parameter.ndim == 1 else 1e-8
                assert group['weight_decay'] == decay


def test_compression_is_trained_and_not_where_published_code_does_not(tmp_path):
    for name in ('memvit_ava', 'memvit_ava_published'):
        cfg = config(name)
        cfg.train_cfg.max_epochs = 2
        model = Line()
        before = model.compress_k.weight.detach().clone()
        hook = run(cfg, tmp_path / name, 4, model)
        stays = name == 'memvit_ava_published'
        assert torch.equal(model.compress_k.weight, before) == stays
        assert min(hook.rates) > 0
        assert hook.rates_of_compression == ([0.0] * 8 if stays else hook.rates)


# --- the start


def is_normal(values, deviation):
    """Whether values are like draws of a normal around 0, within 5 standard errors."""
    # One draw in 2**24 of mmengine's truncated normal is its lower end, 100 deviations
    # away: torch's uniform numbers in float32 hold -1, of which it takes the erfinv.
    values = values[values > -2]
    error = deviation / values.numel() ** 0.5
    return abs(values.mean()) < 5 * error and abs(values.std() - deviation) < 5 * error


def test_what_kinetics_does_not_bring_starts_as_published(tmp_path):
    kinetics = MODELS.build(config('memvit_16_k400').model)
    generator = torch.Generator().manual_seed(0)
    for parameter in kinetics.parameters():
        parameter.data.normal_(1, 0.3, generator=generator)
    source, weights = tmp_path / 'source.pth', tmp_path / 'k400.pth'
    torch.save(dict(state_dict=kinetics.state_dict()), source)
    report = convert_checkpoint(source, weights, get_config_path('memvit_ava.py'))

    cfg = config('memvit_ava')
    cfg.update(work_dir=str(tmp_path), load_from=str(weights), log_level='ERROR')
    cfg.randomness = dict(seed=1)
    runner = Runner.from_cfg(cfg)
    # What Runner.train begins with.
    runner._init_model_weights()
    runner.load_or_resume()
    model = runner.model

    new = set(report.initial)
    brought = kinetics.state_dict()
    for name, value in model.state_dict().items():
        if name not in new:
            assert torch.equal(value, brought[name]), name
    seen = {kind: 0 for kind in ('conv', 'norm', 'bias', 'linear', 'position')}
    for name, value in model.named_parameters():
        if name not in new:
            continue
        value = value.detach()
        module = model.get_submodule(name.rpartition('.')[0])
        if isinstance(module, nn.LayerNorm):
            kind = 'norm'
            assert (value == (1 if name.endswith('weight') else 0)).all(), name
        elif name.endswith('bias'):
            kind = 'bias'
            assert (value == 0).all(), name
        elif isinstance(module, nn.Conv3d):
            kind = 'conv'
            # torch's default: uniform within 1 / sqrt(7 * 3 * 3).
            bound = 63**-0.5
            assert value.abs().max() <= bound and value.abs().max() > 0.99 * bound
            assert is_normal(value, bound / 3**0.5), name
        else:
            kind = 'position' if 'rel_pos' in name else 'linear'
            assert is_normal(value, 0.02), name
        seen[kind] += 1
    # 8 layers with memory, one of people with q, k, v, proj and two of the MLP, the
    # classifier.
    assert seen == dict(conv=16, norm=36, bias=7, linear=7, position=24)


def test_drop_path_grows_over_the_layers_from_nothing():
    cfg = config('memvit_ava').model.roi_head.shared_head
    (layer,) = MODELS.build(cfg).blocks
    assert isinstance(layer.drop_path, nn.Identity) and cfg.drop_path_rate == 0.1
    cfg.num_layers = 3
    first, *others = (block.drop_path for block in MODELS.build(cfg).blocks)
    assert isinstance(first, nn.Identity)
    assert [layer.drop_prob for layer in others] == pytest.approx([0.05, 0.1])


def test_the_demo_keeps_its_own_start():
    torch.manual_seed(0)
    model = MODELS.build(config('memvit_demo').model)
    model.init_weights()
    classifier = model.roi_head.bbox_head.fc_cls
    # Xavier's, as MMAction2's box head starts.
    assert is_normal(classifier.weight.detach(), (2 / (48 + 15)) ** 0.5)
    assert (classifier.bias == 0).all()
    linear = model.roi_head.shared_head.blocks[0].attn['q'].weight
    assert abs(linear).max() > 0.2
