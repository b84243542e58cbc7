"""What is drawn, how often and in which range; and what a draw does to a clip."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmaction.datasets.transforms import Flip, RandomCrop

from memvit_mm.datasets import ClipColors, ResizeShortSide
from memvit_mm.datasets.transforms.clips import seeded
from memvit_mm.datasets.transforms.picture import ColorDraw

EIGVAL = np.array([0.225, 0.224, 0.229])
EIGVEC = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)


def assert_distribution(draws, cdf):
    """Kolmogorov and Smirnov's test, at one in a thousand."""
    draws = np.sort(draws)
    ranks = np.arange(1, len(draws) + 1) / len(draws)
    expected = cdf(draws)
    apart = max((ranks - expected).max(), (expected - ranks + 1 / len(draws)).max())
    assert apart < 1.95 / len(draws) ** 0.5


def uniform(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


# --- short side


def test_the_inverse_of_the_short_side_is_uniform():
    resize = ResizeShortSide((256, 320))
    with seeded(0):
        sides = [resize(dict(img_shape=(480, 640)))['short_edge'] for _ in range(6000)]
    assert all(isinstance(side, int) for side in sides)
    assert (min(sides), max(sides)) == (256, 320)
    # Within a pixel nothing can be told.
    with seeded(1):
        spread = np.array(sides) + np.random.uniform(-0.5, 0.5, len(sides))

    assert_distribution(1 / spread.clip(256, 320), uniform(1 / 320, 1 / 256))
    with pytest.raises(AssertionError):
        assert_distribution(spread, uniform(256, 320))


@pytest.mark.parametrize('shape', [(480, 640), (720, 1280), (340, 256), (90, 91)])
def test_the_other_side_is_rounded_down(shape):
    short, long = sorted(shape)
    for side in (224, 256, 287, 320):
        results = ResizeShortSide(side)(
            dict(
                img_shape=shape,
                gt_bboxes=np.array([[0.0, 0.0, shape[1], shape[0]]]),
                proposals=np.array([[10.0, 20.0, 30.0, 40.0]]),
            )
        )
        height, width = results['img_shape']
        assert min(height, width) == side
        assert max(height, width) == int(side * long / short + 1e-9)
        assert (width > height) == (shape[1] > shape[0])
        np.testing.assert_allclose(results['gt_bboxes'], [[0, 0, width, height]])
        scale = np.tile([width / shape[1], height / shape[0]], 2)
        np.testing.assert_allclose(
            results['proposals'], [[10, 20, 30, 40] * scale], rtol=1e-6
        )


def test_frames_are_scaled_bilinearly():
    frame = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    results = ResizeShortSide(52)(dict(imgs=[frame] * 2, img_shape=(40, 60)))
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    expected = F.interpolate(planes, (52, 78), mode='bilinear')[0].permute(1, 2, 0)
    for found in results['imgs']:
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize('size', [0, (320, 256), (1, 2, 3), (0, 4)])
def test_wrong_sides_are_refused(size):
    with pytest.raises(ValueError, match=r'must be pixels, or \(low, high\) with 1'):
        ResizeShortSide(size)


# --- MMAction2's crop and flip, which the recipe takes


def test_crops_are_anywhere_and_half_the_clips_are_flipped():
    crop, flip = RandomCrop(224), Flip(flip_ratio=0.5)
    with seeded(0):
        left, top, _, _ = np.array(
            [crop(dict(img_shape=(300, 400)))['crop_bbox'] for _ in range(4000)]
        ).T
        given = dict(img_shape=(4, 4), modality='RGB')
        flips = [flip(dict(given))['flip'] for _ in range(4000)]
    assert (left.min(), left.max()) == (0, 175) and (top.min(), top.max()) == (0, 75)
    for places, number in ((left, 176), (top, 76)):
        with seeded(1):
            spread = places + np.random.uniform(size=len(places))
        assert_distribution(spread, uniform(0, number))
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / len(flips) ** 0.5


# --- colours


def test_what_is_drawn_of_colours():
    colors = ClipColors()
    with seeded(0):
        draws = [colors.draw() for _ in range(6000)]
    orders = [tuple(name for name, _ in draw.steps) for draw in draws]
    expected = set(itertools.permutations(('brightness', 'contrast', 'saturation')))
    assert set(orders) == expected
    share = len(draws) / 6
    assert all(abs(orders.count(order) - share) < 4 * share**0.5 for order in expected)
    factors = {
        name: np.array([dict(draw.steps)[name] for draw in draws]) for name in orders[0]
    }
    for of_name in factors.values():
        assert 0.6 <= of_name.min() < 0.601 and 1.399 < of_name.max() <= 1.4
        assert_distribution(of_name, uniform(0.6, 1.4))
    # none from another, nor from the order
    assert abs(np.corrcoef(list(factors.values())) - np.eye(3)).max() < 0.05
    first = np.array([order[0] == 'contrast' for order in orders])
    assert abs(np.corrcoef(first, factors['contrast'])[0, 1]) < 0.05


# The published ones are so alike that they hardly tell one direction from another.
@pytest.mark.parametrize('eigval', [EIGVAL, np.array([0.5, 0.2, 0.05])])
def test_lighting_has_the_given_covariance(eigval):
    given = {} if eigval is EIGVAL else dict(eigval=eigval.tolist())
    colors = ClipColors(brightness=0, contrast=0, saturation=0, **given)
    frames = [np.full((2, 2, 3), level, np.uint8) for level in (90, 200)]
    with seeded(0):
        added = np.array(
            [
                np.subtract(colors(dict(imgs=frames))['imgs'], frames)
                for _ in range(4000)
            ]
        )
    # one colour for all pixels and frames: [draws, T, H, W, 3] -> [draws, 3]
    assert np.ptp(added, axis=(1, 2, 3)).max() < 1e-4
    added = added[:, 0, 0, 0] / 255
    covariance = EIGVEC @ np.diag((0.1 * eigval) ** 2) @ EIGVEC.T
    deviation = np.diag(covariance) ** 0.5
    assert (abs(added.mean(0)) < 4 * deviation / len(added) ** 0.5).all()
    # 4 standard errors of an estimate of a normal's covariance
    error = np.sqrt((covariance**2 + np.outer(deviation, deviation) ** 2) / len(added))
    assert (abs(np.cov(added.T) - covariance) < 4 * error).all()
    with seeded(0):
        shares = np.concatenate([colors.draw().lighting for _ in range(4000)])
    assert abs(np.std(shares) - 0.1) < 0.003 and abs(shares).max() > 0.3


def blend(clip, name, factor):
    """A step of the published augmentation on a clip [T, H, W, 3] in [0, 1]."""
    grey = clip @ [0.299, 0.587, 0.114]
    other = dict(
        brightness=np.zeros_like(clip),
        contrast=np.broadcast_to(grey.mean((1, 2))[:, None, None, None], clip.shape),
        saturation=np.broadcast_to(grey[..., None], clip.shape),
    )
    return clip * factor + other[name] * (1 - factor)


@pytest.mark.parametrize(
    'order', list(itertools.permutations(('brightness', 'contrast', 'saturation')))
)
def test_colours_are_the_published_steps(order, monkeypatch):
    factors = dict(brightness=1.4, contrast=1.37, saturation=0.64)
    steps = [(name, factors[name]) for name in order]
    lighting = np.array([0.15, -0.2, 0.07])
    monkeypatch.setattr(ClipColors, 'draw', lambda self: ColorDraw(steps, lighting))
    random = np.random.RandomState(0)
    # frames of other means, as a crop leaves them: not in one piece
    frames = [random.randint(low, low + 156, (20, 30, 3)) for low in (0, 50, 100)]
    frames = [frame.astype(np.uint8)[2:18, 4:25] for frame in frames]
    given = np.stack(frames)
    found = ClipColors()(dict(imgs=frames))['imgs']
    clip = given / 255
    for name, factor in steps:
        clip = blend(clip, name, factor)
    clip = clip + EIGVEC @ (lighting * EIGVAL)
    assert all(frame.dtype == np.float32 for frame in found)
    np.testing.assert_allclose(np.array(found) / 255, clip, atol=2e-6)
    assert clip.min() < 0 and clip.max() > 1  # nothing is cut off
    np.testing.assert_array_equal(frames, given)


def test_wrong_strengths_are_refused():
    with pytest.raises(ValueError, match='contrast must be between 0 and 1, got 1.5'):
        ClipColors(contrast=1.5)
    with pytest.raises(ValueError, match='lighting must be at least 0, got -0.1'):
        ClipColors(lighting=-0.1)


def test_reprs():
    assert repr(ResizeShortSide((256, 320))) == 'ResizeShortSide(short_side=(256, 320))'
    assert repr(ClipColors()) == (
        'ClipColors(brightness=0.4, contrast=0.4, saturation=0.4, lighting=0.1)'
    )
