"""What else is in a test batch changes no bit of a prediction, nor does padding."""

import pytest
import torch
from small_models import (
    CLASSES,
    backbone_cfg,
    batch,
    clip,
    detector,
    randomize,
    recognizer,
    sample,
    scores,
    vit_cfg,
    vit_recognizer,
)

from memvit_mm.models import Stream

KINDS = {
    'recognizer': recognizer,
    'detector': detector,
    'ViT': vit_recognizer,
}
ALL = pytest.mark.parametrize('kind', list(KINDS))
TIMES = range(6)


def together(model, *batches: str) -> dict:
    """Scores of videos that are read side by side, by video and time."""
    model.reset_memory()
    return {
        (video, t): result
        for t in TIMES
        for videos in batches
        for video, result in zip(videos, scores(model, *[(v, t) for v in videos]))
    }


@ALL
def test_bit_for_bit_in_any_batch_on_the_cpu(kind):
    model = KINDS[kind]()
    expected = together(model, *'abcde')
    for batches in (['abcde'], ['ed', 'cba'], ['ab', 'cd', 'e']):
        results = together(model, *batches)
        assert all(torch.equal(results[key], expected[key]) for key in expected)


@ALL
def test_rows_together_where_that_is_asked_for(kind):
    test_cfg = dict(one_by_one=False, **({'rcnn': None} if 'detector' in kind else {}))
    model = KINDS[kind](test_cfg=test_cfg)
    rows = []
    model.backbone.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    results = together(model, 'abc')
    assert set(rows) == {3}
    expected = together(KINDS[kind](), *'abc')
    for key in expected:
        torch.testing.assert_close(results[key], expected[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    'kind, one_by_one',
    [('recognizer', True), ('recognizer', False), ('ViT', False)],
)
def test_padding_reaches_no_result_of_a_recognizer(kind, one_by_one):
    model = KINDS[kind](test_cfg=dict(one_by_one=one_by_one))
    sizes = {'a': (32, 48), 'b': (32, 32), 'c': (48, 32), 'd': (32, 32)}

    def predict(inputs, samples):
        with torch.no_grad():
            return [r.pred_score for r in model(inputs, samples, mode='predict')]

    expected = {}
    for video, size in sizes.items():
        for t in TIMES:
            inputs = clip(video, t, size)[None, None]
            expected[video, t] = predict(inputs, [sample(video, t, size)])[0]
    model.reset_memory()
    for t in TIMES:
        padded = torch.full((4, 1, 3, 8, 48, 48), 100.0)
        for row, (video, size) in enumerate(sizes.items()):
            padded[row, 0, :, :, : size[0], : size[1]] = clip(video, t, size)
        samples = [sample(video, t, size) for video, size in sizes.items()]
        for video, result in zip(sizes, predict(padded, samples)):
            torch.testing.assert_close(
                result, expected[video, t], atol=1e-5 * (not one_by_one), rtol=0
            )


def test_views_of_a_sample_run_together():
    model = recognizer()
    inputs, samples = batch(('a', 0), ('b', 0))
    views = torch.cat([inputs, inputs.flip(-1)], dim=1)
    with torch.no_grad():
        results = model(views, samples, mode='predict')
    assert [tuple(r.pred_score.shape) for r in results] == [(CLASSES,)] * 2
    assert {(s.video, s.view) for s in model.memory.streams} == {
        (video, view) for video in 'ab' for view in (0, 1)
    }


@pytest.mark.parametrize('cfg', [backbone_cfg, vit_cfg])
def test_a_backbone_without_memory_needs_no_streams(cfg):
    model = recognizer(cfg(memory_layers=()))
    inputs, samples = batch(('a', 0), ('a', 0), ('b', 1))
    for row in samples:
        row.set_metainfo({})
        del row.video_id, row.timestamp
    with torch.no_grad():
        results = model(inputs, samples, mode='predict')
    assert torch.equal(results[0].pred_score, results[1].pred_score)
    assert not torch.equal(results[0].pred_score, results[2].pred_score)


@ALL
def test_a_full_memory_forgets_no_stream_of_the_batch(kind):
    # 'b' ends where 'c', earlier in its time, begins: 'a' must not make room for it.
    model = KINDS[kind](memory=dict(type='ClipMemory', max_streams=2))
    randomize(model)
    for t in range(5, 9):
        scores(model, ('a', t), ('b', t + 1))
    kept = model.memory.state_dict()['streams']
    assert [entry['stream'][0] for entry in kept] == ['a', 'b']
    result, _ = scores(model, ('a', 9), ('c', 0))
    assert {stream.video for stream in model.memory.streams} == {'a', 'c'}

    other = KINDS[kind]()
    randomize(other)
    for t in range(5, 9):
        scores(other, ('a', t))
    assert torch.equal(result, scores(other, ('a', 9))[0])
    with pytest.raises(ValueError, match='3 streams, but .* max_streams=2'):
        scores(model, ('a', 10), ('c', 1), ('d', 1))
    assert Stream('a') in model.memory.streams
