"""Recognizer and detector with memory: nothing outside a video changes a result."""

import warnings

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.structures import InstanceData
from small_models import (
    CLASSES,
    DIMS,
    FRAMES,
    backbone_cfg,
    batch,
    batch_for,
    build,
    clip,
    detector,
    long_detector,
    recognizer,
    sample,
    scores,
    vit_cfg,
    vit_detector,
    vit_map_cfg,
    vit_recognizer,
)

KINDS = {'recognizer': recognizer, 'detector': detector}
BOTH = pytest.mark.parametrize('kind', list(KINDS))
# These read the clips two and four back.
TWO_BACK = {**KINDS, 'ViT': vit_recognizer, 'ViT detector': vit_detector}
EACH = pytest.mark.parametrize('kind', list(TWO_BACK))
# This one reads every clip of the past, most of them coarsely.
READERS = {**TWO_BACK, 'long': long_detector}
ALL = pytest.mark.parametrize('kind', list(READERS))
# One of each sort, where no other can behave differently.
SOME = pytest.mark.parametrize('kind', ['ViT', 'detector', 'long'])


@pytest.fixture
def model(kind):
    return READERS[kind]()


def alone(model, video: str, times) -> list:
    """Scores of a video that is read by itself, clip by clip."""
    model.reset_memory()
    result = [scores(model, (video, t))[0] for t in times]
    model.reset_memory()
    return result


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@EACH
def test_memory_matters_and_the_first_clip_has_none(kind, model):
    with_memory = alone(model, 'a', range(6))
    fresh = [alone(model, 'a', [t])[0] for t in range(6)]
    for t in range(2):
        close(with_memory[t], fresh[t])
    for t in range(2, 6):
        assert (with_memory[t] - fresh[t]).abs().max() > 1e-3


@ALL
def test_interleaved_streams_are_each_as_alone(kind, model):
    expected = {v: alone(model, v, range(6)) for v in 'abcd'}
    for schedule in (
        [[(v, t) for v in 'abcd'] for t in range(6)],
        [[(v, t) for v in 'dbca'] for t in range(6)],
        [[('a', t), ('b', t)] for t in range(6)] + [[('c', t)] for t in range(6)],
        [[('a', 0)], [('a', 1), ('b', 0)], [('b', 1), ('c', 0), ('a', 2)]]
        + [[('a', t), ('c', t - 2), ('b', t - 1)] for t in range(3, 6)],
        # Two and three clips of one stream in a batch run one after the other.
        [[('a', 1), ('a', 0), ('b', 0)], [('b', 1), ('a', 4), ('a', 2), ('a', 3)]],
    ):
        model.reset_memory()
        for step in schedule:
            for (video, time), result in zip(step, scores(model, *step)):
                close(result, expected[video][time])


def training_step(model, *clips: tuple) -> tuple:
    """Losses of a batch, with their gradients."""
    inputs, samples = batch_for(model, *clips)
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    total = sum(v for k, v in losses.items() if 'loss' in k)
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@ALL
@pytest.mark.filterwarnings('error')
def test_two_clips_of_a_stream_in_a_training_batch(kind, model):
    """The loss of the batch is the mean of those of its clips, one after the other."""
    model.train()
    together = [('b', 0), ('a', 3), ('a', 2), ('a', 4)]
    results = []
    for batches in ([together], [[c] for c in sorted(together, key=lambda c: c[1])]):
        model.reset_memory()
        for t in range(2):
            training_step(model, ('a', t))
        steps = [training_step(model, *clips) for clips in batches]
        losses, gradients = zip(*steps)
        mean = {n: sum(g[n] for g in gradients) / len(steps) for n in gradients[0]}
        kept = {
            (stream.video, one.time, name): layer.tensors
            for stream, clips in model.memory._clips.items()
            for one in clips
            for name, layer in one.layers.items()
        }
        clips = {key[:2] for key in kept}
        assert clips == {('b', 0), *(('a', t) for t in (1, 2, 3, 4))}
        results.append((sum(losses) / len(steps), mean, kept))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@SOME
def test_a_new_video_in_a_batch_of_four(kind, model):
    expected = {v: alone(model, v, range(8)) for v in 'abcde'}
    for t in range(4):
        scores(model, *[(v, t) for v in 'abcd'])
    for t in range(4, 8):
        # 'c' ends, 'e' begins in its row.
        results = scores(model, ('a', t), ('b', t), ('e', t - 4), ('d', t))
        for video, time, result in zip('abed', (t, t, t - 4, t), results):
            close(result, expected[video][time])


@SOME
def test_a_jump_back_starts_afresh_with_one_warning(kind, model):
    fresh = alone(model, 'a', range(2, 6))
    for t in range(5):
        scores(model, ('a', t))
    with pytest.warns(UserWarning, match='SequentialClipSampler') as caught:
        results = [scores(model, ('a', t))[0] for t in range(2, 6)]
        scores(model, ('a', 1))
    assert len([w for w in caught if 'SequentialClip' in str(w.message)]) == 1
    for a, b in zip(results, fresh):
        close(a, b)


@SOME
def test_in_order_nothing_is_said(kind, model):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for t in range(4):
            scores(model, ('a', t), ('b', t))


@BOTH
@pytest.mark.parametrize('key', ['video_id', 'timestamp'])
def test_a_sample_without_its_stream_is_refused(kind, model, key):
    inputs, samples = batch(('a', 0), ('b', 0))
    meta = dict(video_id='b', timestamp=0, img_shape=(32, 32))
    meta.pop(key)
    samples[1] = ActionDataSample(metainfo=meta)
    samples[1].proposals = samples[0].proposals
    if kind != 'recognizer':
        inputs = inputs.squeeze(1)
    with pytest.raises(ValueError, match=f"Sample 1 .* no '{key}' .* meta_keys"):
        model(inputs, samples, mode='predict')


@EACH
def test_tensor_mode_uses_and_updates_memory(kind, model):
    other, detects = READERS[kind](), hasattr(model, 'roi_head')
    for t in range(5):
        inputs, samples = batch_for(model, ('a', t))
        with torch.no_grad():
            if detects:
                logits = model(inputs, samples, mode='tensor')[1]
                result = logits.sigmoid()
            else:
                logits = model(inputs, samples, mode='tensor', stage='head')
                result = logits
        assert len(model.memory) == 1
        expected = scores(other, ('a', t))[0]
        if detects:
            close(result, expected)
        else:
            close(result.softmax(-1)[0], expected)
    # Without data samples there is no stream, so no memory.
    model.reset_memory()
    with torch.no_grad():
        model(inputs, mode='tensor')
    assert len(model.memory) == 0


@SOME
def test_reset_of_one_video(kind, model):
    expected = {v: alone(model, v, range(6)) for v in 'ab'}
    fresh = alone(model, 'a', [4, 5])
    for t in range(4):
        scores(model, ('a', t), ('b', t))
    model.reset_memory('a')
    for t in (4, 5):
        a, b = scores(model, ('a', t), ('b', t))
        close(a, fresh[t - 4])
        close(b, expected['b'][t])


@EACH
def test_memory_saved_and_restored_in_mid_video(kind, model, tmp_path):
    expected = alone(model, 'a', range(7))
    for t in range(4):
        scores(model, ('a', t))
    torch.save(model.memory.state_dict(), tmp_path / 'memory.pth')
    other = READERS[kind]()
    state = torch.load(tmp_path / 'memory.pth', weights_only=True)
    other.memory.load_state_dict(state)
    for t in range(4, 7):
        close(scores(other, ('a', t))[0], expected[t])


def memvit(gap: int, pool_first: bool) -> tuple:
    """A backbone, and a recognizer's head for it. Patch tokens decide, so that the last
    block's positions matter."""
    cfg = backbone_cfg(memory_gap=gap, pool_first=pool_first, output_cls_token=False)
    head = dict(type='MViTHead', num_classes=CLASSES, in_channels=DIMS)
    return cfg, dict(head, with_cls_token=False)


def vit(gap: int, reading: str) -> tuple:
    """As :func:`memvit`."""
    kind = 'kmeans' if reading == 'gated' else 'pool'
    level = dict(type=kind, ages=(gap, 2 * gap), tokens=2)
    cfg = vit_map_cfg(reading=reading, memory_levels=[level], init_values=0.5)
    return cfg, dict(type='I3DHead', num_classes=CLASSES, in_channels=DIMS)


@BOTH
@pytest.mark.parametrize(
    'gap, parts, form',
    [
        *(
            (gap, memvit, pool_first)
            for gap in (1, 2, 3)
            for pool_first in (True, False)
        ),
        *((gap, vit, reading) for gap in (1, 3) for reading in ('gated', 'joint')),
    ],
)
def test_every_parameter_gets_a_gradient(kind, gap, parts, form):
    cfg, head = parts(gap, form)
    kwargs = dict(actors=dict(memory_gap=gap))
    if kind == 'recognizer':
        kwargs = dict(cls_head=head)
    model = KINDS[kind](cfg, **kwargs).train()
    for t in range(2 * gap + 1):
        model.zero_grad()
        inputs, samples = batch_for(model, ('a', t), ('b', t))
        inputs.requires_grad_()
        losses = model(inputs, samples, mode='loss')
        sum(v for k, v in losses.items() if 'loss' in k).backward()
        # DistributedDataParallel wants one for every parameter from the first step on.
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        assert inputs.grad.abs().sum() > 0
    zero = {n for n, p in model.named_parameters() if not p.grad.abs().max() > 0}
    assert not zero


@SOME
def test_no_gradient_reaches_past_clips(kind, model):
    model.train()
    past = []
    for t in range(5):
        inputs, samples = batch_for(model, ('a', t))
        inputs.requires_grad_()
        losses = model(inputs, samples, mode='loss')
        past.append(inputs)
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert past[-1].grad is not None
    assert all(inputs.grad is None for inputs in past[:-1])


@pytest.mark.parametrize(
    'build, cfg',
    [
        (recognizer, backbone_cfg()),
        (detector, backbone_cfg(output_cls_token=False)),
        (recognizer, vit_cfg(drop_rate=0.1, attn_drop_rate=0.1)),
        (detector, vit_map_cfg(reading='joint')),
    ],
)
def test_activation_checkpointing_same_loss_gradients_and_memory(build, cfg):
    results = []
    for with_cp in (False, True):
        model = build(dict(cfg, with_cp=with_cp, drop_path_rate=0.2)).train()
        torch.manual_seed(5)
        for t in range(5):
            inputs, samples = batch_for(model, ('a', t), ('b', t))
            losses = model(inputs, samples, mode='loss')
            loss = sum(v for k, v in losses.items() if 'loss' in k)
            loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        kept = [
            kept.tensors[0]
            for clips in model.memory._clips.values()
            for one in clips
            for kept in one.layers.values()
        ]
        results.append((loss, grads, kept, model.memory.num_bytes))
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


@ALL
def test_bfloat16_autocast_with_memory(kind, model):
    expected = torch.stack(alone(model, 'a', range(5)))
    fresh = torch.stack([alone(model, 'a', [t])[0] for t in range(5)])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        results = torch.stack([scores(model, ('a', t))[0].float() for t in range(5)])
    # Nearer to the exact numbers than those without memory are.
    assert (results - expected)[2:].norm() < 0.5 * (fresh - expected)[2:].norm()


@ALL
def test_portrait_landscape_and_larger_frames(kind, model):
    for size in ((48, 32), (32, 48), (64, 80), (37, 45)):
        model.reset_memory()
        for t in range(5):
            inputs = clip('a', t, size)[None]
            samples, detects = [sample('a', t, size)], hasattr(model, 'roi_head')
            with torch.no_grad():
                (result,) = model(
                    inputs if detects else inputs[None], samples, mode='predict'
                )
        values = result.pred_instances.scores if detects else result.pred_score
        assert values.isfinite().all()


@BOTH
@pytest.mark.parametrize('backbone', ['ResNet3dSlowOnly', 'MViT'])
def test_any_mmaction2_backbone_gets_no_memory(kind, backbone):
    if backbone == 'MViT':
        cfg = backbone_cfg(output_cls_token=kind == 'recognizer')
        cfg['type'] = 'mmaction.MViT'
        model = KINDS[kind](cfg)
    elif kind == 'recognizer':
        model = build(
            dict(
                type='MemoryRecognizer3D',
                backbone=slow_only(),
                cls_head=dict(type='I3DHead', num_classes=CLASSES, in_channels=2048),
            )
        ).eval()
    else:
        model = detector(slow_only(), actors=dict(in_channels=2048))
        model.roi_head.bbox_head = MODELS.build(
            dict(
                type='mmdet.BBoxHeadAVA',
                background_class=True,
                in_channels=2048,
                num_classes=CLASSES,
                topk=(2,),
            )
        )
    for t in range(3):
        assert scores(model, ('a', t))[0].isfinite().all()
    kept = {name for c in model.memory._clips.values() for x in c for name in x.layers}
    assert kept == ({'actors0'} if kind != 'recognizer' else set())


def slow_only() -> dict:
    return dict(
        type='mmaction.ResNet3dSlowOnly',
        depth=50,
        pretrained=None,
        conv1_kernel=(1, 7, 7),
        inflate=(0, 0, 1, 1),
    )


# ------------------------------------------------------------------ recognizer only


RECOGNIZERS = pytest.mark.parametrize('build', [recognizer, vit_recognizer])
DETECTORS = pytest.mark.parametrize('build', [detector, vit_detector])


@RECOGNIZERS
def test_views_are_streams_of_their_own(build):
    model = build()
    expected = {v: alone(model, v, range(5)) for v in 'abc'}
    for t in range(5):
        inputs = torch.stack([clip(v, t) for v in 'abc'])[None]
        with torch.no_grad():
            logits = model(
                inputs, [sample('video', t)], mode='tensor', stage='head'
            ).softmax(-1)
        for view, video in enumerate('abc'):
            close(logits[view], expected[video][t])
    assert {s.view for s in model.memory.streams} == {0, 1, 2}
    model.reset_memory('video')
    assert len(model.memory) == 0


def test_max_testing_views_changes_nothing():
    results = []
    for limit in (None, 2):
        model = recognizer(test_cfg=dict(max_testing_views=limit) if limit else None)
        for t in range(4):
            inputs = torch.stack([clip(v, t) for v in 'abc'])[None]
            with torch.no_grad():
                (result,) = model(inputs, [sample('x', t)], mode='predict')
        results.append(result.pred_score)
    close(*results)


# -------------------------------------------------------------------- detector only


def boxes_of(people: int) -> InstanceData:
    corner = torch.arange(people).float()[:, None].expand(-1, 2)
    return InstanceData(bboxes=torch.cat([corner, corner + 9], dim=1).reshape(-1, 4))


def predict(model, *rows: tuple):
    """rows: (video, time, number of boxes)."""
    inputs = torch.stack([clip(v, t) for v, t, _ in rows])
    samples = [sample(v, t) for v, t, _ in rows]
    for one, (_, _, people) in zip(samples, rows):
        one.proposals = boxes_of(people)
    with torch.no_grad():
        results = model(inputs, samples, mode='predict')
    return [result.pred_instances for result in results]


@DETECTORS
def test_any_batch_size_and_frames_without_a_box(build):
    model = build()
    rows = [('a', 3), ('b', 0), ('c', 1), ('d', 8)]
    alone_ = {}
    for video, people in rows:
        for t in range(5):
            alone_[video, t] = predict(model, (video, t, people if t != 2 else 0))[0]
    model.reset_memory()
    for t in range(5):
        got = predict(model, *[(v, t, n if t != 2 else 0) for v, n in rows])
        for (video, people), one in zip(rows, got):
            assert one.scores.shape == (people if t != 2 else 0, CLASSES)
            assert one.bboxes.shape == (people if t != 2 else 0, 4)
            close(one.scores, alone_[video, t].scores)
            close(one.bboxes, alone_[video, t].bboxes)


def test_boxes_come_back_as_fractions_of_the_frame():
    one = predict(detector(), ('a', 0, 2))[0]
    torch.testing.assert_close(one.bboxes, boxes_of(2).bboxes / 32)


def test_more_people_than_positions():
    # The first 6 are seen by others and remembered; the others get a result, too, and
    # change nobody else's, in this row or in another.
    model = detector()
    few = [predict(model, ('a', t, 6), ('b', t, 2)) for t in range(4)]
    model.reset_memory()
    many = [predict(model, ('a', t, 11), ('b', t, 2)) for t in range(4)]
    for (a, b), (more, same) in zip(few, many):
        assert more.scores.shape == (11, CLASSES)
        close(more.scores[:6], a.scores)
        close(same.scores, b.scores)


@DETECTORS
def test_padding_of_smaller_frames_reaches_no_result(build):
    model = build()
    sizes = {'wide': (32, 48), 'small': (32, 32)}
    expected = {}
    for video, size in sizes.items():
        for t in range(5):
            inputs = clip(video, t, size)[None]
            with torch.no_grad():
                (out,) = model(inputs, [sample(video, t, size)], mode='predict')
            expected[video, t] = out.pred_instances.scores
    model.reset_memory()
    for t in range(5):
        padded = torch.full((2, 3, FRAMES, 32, 48), 9.0)
        for row, (video, size) in enumerate(sizes.items()):
            padded[row, :, :, : size[0], : size[1]] = clip(video, t, size)
        samples = [sample(video, t, size) for video, size in sizes.items()]
        with torch.no_grad():
            results = model(padded, samples, mode='predict')
        for video, result in zip(sizes, results):
            close(result.pred_instances.scores, expected[video, t])


def test_plain_roi_head_and_plain_detector_take_the_parts():
    # mmdet's FastRCNN with MMAction2's AVARoIHead: backbone and actor head, no memory.
    cfg = dict(
        type='FastRCNN',
        _scope_='mmdet',
        backbone=backbone_cfg(output_cls_token=False, memory_layers=()),
        roi_head=dict(
            type='AVARoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
            ),
            shared_head=dict(
                type='ActorMemoryHead', in_channels=DIMS, num_heads=4, memory_length=0
            ),
            bbox_head=dict(
                type='BBoxHeadAVA',
                background_class=True,
                in_channels=DIMS,
                num_classes=CLASSES,
                topk=(2,),
            ),
        ),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
        ),
        train_cfg=dict(rcnn=detector().roi_head.train_cfg),
        test_cfg=dict(rcnn=None),
    )
    model = build(cfg)
    inputs, samples = batch(('a', 0), ('b', 0))
    losses = model(inputs.squeeze(1), samples, mode='loss')
    losses['loss_action_cls'].backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    model.eval()
    inputs, samples = batch(('a', 0))
    (result,) = model(inputs.squeeze(1), samples, mode='predict')
    assert result.pred_instances.scores.shape == (2, CLASSES)
    # And the other way round: our detector with MMAction2's RoI head.
    cfg.update(type='MemoryFastRCNN', backbone=backbone_cfg(output_cls_token=False))
    model = build(cfg).eval()
    for t in range(3):
        assert scores(model, ('a', t))[0].shape == (2, CLASSES)
    assert len(model.memory) == 1


@pytest.mark.parametrize('cfg', [backbone_cfg(output_cls_token=False), vit_map_cfg()])
def test_actor_memory_reaches_back_by_itself(cfg):
    model = detector(dict(cfg, memory_layers=()))
    with_memory = alone(model, 'a', range(5))
    for t in range(5):
        changed = (with_memory[t] - alone(model, 'a', [t])[0]).abs().max()
        assert (changed > 1e-4) == (t >= 2)


@pytest.mark.parametrize(
    'keys, message',
    [
        (dict(num_heads=5), 'num_heads=5 must divide in_channels=32'),
        (dict(memory_gap=0), 'memory_gap=0 must be at least 1'),
        (dict(max_actors=0), 'max_actors=0'),
    ],
)
def test_actor_head_refuses(keys, message):
    with pytest.raises(ValueError, match=message):
        detector(actors=keys)


def launches(model) -> list:
    """How many boxes each RoIAlign is for; none would be an invalid launch on a GPU."""
    launched = []

    def look(layer, inputs):
        assert len(inputs[1]) > 0, 'RoIAlign was called without a box.'
        launched.append(len(inputs[1]))

    model.roi_head.bbox_roi_extractor.roi_layer.register_forward_pre_hook(look)
    return launched


ACTORS = pytest.mark.parametrize(
    'build, actors',
    [
        (detector, dict()),
        (detector, None),
        (detector, dict(memory_length=0)),
        (vit_detector, dict()),
    ],
    ids=['actor memory', 'no actor head', 'actors of a clip', 'ViT'],
)


@ACTORS
@pytest.mark.parametrize('mode', ['predict', 'tensor'])
def test_nobody_in_a_batch(build, actors, mode):
    model = build(actors=actors)
    launched = launches(model)
    for t in range(4):
        inputs, samples = batch(('a', t), ('b', t))
        for one in samples:
            one.proposals = boxes_of(0)
        with torch.no_grad():
            out = model(inputs.squeeze(1), samples, mode=mode)
        if mode == 'tensor':
            assert out[1].shape == (0, CLASSES)
        else:
            sizes = [len(sample.pred_instances.scores) for sample in out]
            assert sizes == [0, 0]
    assert launched
    # Somebody enters.
    assert scores(model, ('a', 4))[0].shape == (2, CLASSES)


@ACTORS
@pytest.mark.parametrize('boxes', [0, 1])
@pytest.mark.parametrize('rows', ['one', 'all'])
def test_training_rows_in_which_nobody_is_annotated(boxes, rows, build, actors):
    model = build(actors=actors).train()
    launched = launches(model)
    for t in range(4):
        inputs, samples = batch(('a', t), ('b', t))
        for one in samples if rows == 'all' else samples[:1]:
            one.gt_instances = InstanceData(
                bboxes=torch.zeros(0, 4), labels=torch.zeros(0, CLASSES)
            )
            one.proposals = boxes_of(boxes)
        model.zero_grad()
        losses = model(inputs.squeeze(1), samples, mode='loss')
        losses['loss_action_cls'].backward()
        assert losses['loss_action_cls'].isfinite()
        assert (losses['loss_action_cls'] == 0) == (rows == 'all')
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        if rows == 'all':
            assert not any(p.grad.any() for p in model.parameters())
    assert launched


def test_a_row_without_proposals_trains_on_its_ground_truth():
    model = detector().train()
    inputs, samples = batch(('a', 0))
    samples[0].proposals = boxes_of(0)
    assert model(inputs.squeeze(1), samples, mode='loss')['loss_action_cls'] > 0


@pytest.mark.parametrize('mode', ['loss', 'predict', 'tensor'])
def test_a_sample_without_proposals_is_refused(mode):
    inputs, samples = batch(('a', 0))
    del samples[0].proposals
    with pytest.raises(ValueError, match='Sample 0 .* no proposals .* proposal_file'):
        detector()(inputs.squeeze(1), samples, mode=mode)


def test_a_sample_without_its_frame_size_is_refused():
    inputs, samples = batch(('a', 0))
    bare = ActionDataSample(metainfo=dict(video_id='a', timestamp=0))
    bare.proposals = samples[0].proposals
    with pytest.raises(ValueError, match="no 'img_shape' .* PackActionInputs"):
        detector()(inputs.squeeze(1), [bare], mode='predict')


@pytest.mark.parametrize('meta', [dict(timestamp=None), dict(video_id=['a'])])
def test_streams_and_times_that_are_none_are_refused(meta):
    inputs, samples = batch(('a', 0))
    samples[0].set_metainfo(meta)
    with pytest.raises(ValueError, match='must be a name or number'):
        recognizer()(inputs, samples, mode='predict')


@pytest.mark.parametrize('stream', ['rgb', 7, None, ('a', 0, 0)])
def test_a_stream_that_is_none_is_refused(stream):
    inputs, samples = batch(('a', 0))
    samples[0].set_metainfo(dict(stream=stream))
    with pytest.raises(
        ValueError, match=r'stream=.* must be \(video, view, run, epoch'
    ):
        recognizer()(inputs, samples, mode='predict')


def test_a_prediction_that_fails_leaves_no_trace():
    model = detector()
    predict(model, ('a', 0, 1))
    before = model.memory.state_dict()['streams'][0]['clips'][-1]['time']
    inputs, samples = torch.stack([clip('a', 1)]), [sample('a', 1)]
    samples[0].proposals = boxes_of(1)
    samples[0].set_metainfo(dict(whole_frame_boxes=dict(proposals='none')))
    with torch.no_grad(), pytest.raises(TypeError):
        model(inputs, samples, mode='predict')
    (stream,) = model.memory.state_dict()['streams']
    assert stream['clips'][-1]['time'] == before


def test_ids_and_times_may_be_tensors():
    model = recognizer()
    expected = alone(model, 'a', range(4))
    for t in range(4):
        inputs, samples = batch(('a', t))
        samples[0].set_metainfo(
            dict(video_id=torch.tensor(3), timestamp=torch.tensor(float(t)))
        )
        with torch.no_grad():
            (result,) = model(inputs, samples, mode='predict')
        close(result.pred_score, expected[t])


def transposed(model, pool_first: bool):
    """The model that does to transposed frames what this one does to frames."""
    axes = {'rel_pos_h': 'rel_pos_w', 'rel_pos_mem_h': 'rel_pos_mem_w'}
    axes.update({w: h for h, w in axes.items()})
    state = {}
    for name, value in model.state_dict().items():
        prefix, _, last = name.rpartition('.')
        name = f'{prefix}.{axes.get(last, last)}'
        state[name] = value.transpose(3, 4) if value.ndim == 5 else value
    other = recognizer(backbone_cfg(pool_first=pool_first))
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize('pool_first', [True, False])
def test_high_frames_follow_the_rule_of_wide_ones(pool_first):
    model = recognizer(backbone_cfg(pool_first=pool_first))
    other = transposed(model, pool_first)
    for t in range(5):
        wide = clip('a', t, (32, 48))[None, None]
        with torch.no_grad():
            (a,) = model(wide, [sample('a', t)], mode='predict')
            (b,) = other(wide.transpose(-1, -2), [sample('a', t)], mode='predict')
        close(a.pred_score, b.pred_score)


@RECOGNIZERS
def test_frames_that_turn_in_mid_video_start_afresh(build):
    # As many tokens, in another arrangement.
    model = build()
    for t in range(4):
        with torch.no_grad():
            model(clip('a', t, (32, 64))[None, None], [sample('a', t)], mode='predict')
    turned = clip('a', 4, (64, 32))[None, None]
    with torch.no_grad():
        with pytest.warns(UserWarning, match='changed their size'):
            (after,) = model(turned, [sample('a', 4)], mode='predict')
        model.reset_memory()
        (fresh,) = model(turned, [sample('a', 4)], mode='predict')
    close(after.pred_score, fresh.pred_score)
