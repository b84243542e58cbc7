"""EpicHead: on every kind of backbone, with and without labels, frame by frame."""

import pytest
import torch
from mmaction.apis.inferencers import ActionRecogInferencer
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.model import BaseModel
from small_models import (
    DIMS,
    FRAMES,
    backbone_cfg,
    build,
    clip,
    randomize,
    vit_cfg,
    vit_map_cfg,
)

from memvit_mm.models.heads.epic_head import EpicHead, EpicScores

VERBS, NOUNS = 5, 7
HEAD = dict(type='EpicHead', num_verbs=VERBS, num_nouns=NOUNS, dropout_ratio=0.0)
MVIT = {**backbone_cfg(), 'type': 'MViT'}
RESNET = dict(type='ResNet', depth=18, norm_eval=False)
SLOW_ONLY = dict(
    type='ResNet3dSlowOnly',
    depth=18,
    lateral=False,
    conv1_kernel=(1, 7, 7),
    inflate=(0, 0, 1, 1),
    norm_eval=False,
)
PATHWAY = dict(
    type='resnet3d', depth=18, conv1_kernel=(1, 7, 7), lateral=False, norm_eval=False
)
# Backbone, its channels, recognizer, time steps of its features (None: no time).
BACKBONES = {
    'MeMViT, class token': (backbone_cfg(), DIMS, 'MemoryRecognizer3D', 4),
    'MeMViT, patches': (
        backbone_cfg(output_cls_token=False),
        DIMS,
        'MemoryRecognizer3D',
        4,
    ),
    'MemoryViT': (vit_cfg(), DIMS, 'MemoryRecognizer3D', None),
    'MemoryViT, patches': (vit_map_cfg(), DIMS, 'MemoryRecognizer3D', 4),
    'MViT, class token': (MVIT, DIMS, 'Recognizer3D', 4),
    'MViT, two scales': (
        dict(MVIT, output_cls_token=False, out_scales=[1, 2]),
        DIMS,
        'Recognizer3D',
        4,
    ),
    'ResNet3dSlowOnly': (SLOW_ONLY, 512, 'Recognizer3D', FRAMES),
    'ResNet3dSlowOnly, memory': (SLOW_ONLY, 512, 'MemoryRecognizer3D', FRAMES),
    'ResNet3dSlowFast': (
        dict(
            type='ResNet3dSlowFast',
            resample_rate=4,
            speed_ratio=4,
            channel_ratio=8,
            slow_pathway=dict(PATHWAY, lateral=True, fusion_kernel=7),
            fast_pathway=dict(PATHWAY, base_channels=8),
        ),
        512 + 64,
        'Recognizer3D',
        None,
    ),
    'SwinTransformer3D': (
        dict(
            type='SwinTransformer3D',
            arch=dict(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
            pretrained2d=False,
            window_size=(2, 2, 2),
        ),
        96,
        'Recognizer3D',
        FRAMES // 2,
    ),
    'TSN': (RESNET, 512, 'Recognizer2D', FRAMES),
    'TSM': (
        dict(RESNET, type='ResNetTSM', num_segments=FRAMES),
        512,
        'Recognizer2D',
        FRAMES,
    ),
}
EVERY = pytest.mark.parametrize('name', BACKBONES)


def model_of(name: str, **head) -> BaseModel:
    backbone, channels, kind, _ = BACKBONES[name]
    cls_head = {**HEAD, 'in_channels': channels, **head}
    cfg = dict(type=kind, backbone=backbone, cls_head=cls_head)
    return randomize(build(cfg)).train()


def inputs_of(name: str, batch: int, views: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (3, FRAMES, 32, 32)
    x = torch.randn(batch, views, *shape, generator=generator)
    if BACKBONES[name][2] == 'Recognizer2D':
        # (B, 1, C, T, H, W) -> (B, T, C, H, W): frames are segments.
        x = x.squeeze(1).transpose(1, 2).contiguous()
    return x


def samples_of(*labels) -> list:
    return [
        ActionDataSample(
            metainfo=dict(video_id=f'P01_{i:02d}', timestamp=1.5, narration_id=f'n{i}')
        ).set_gt_label(label)
        for i, label in enumerate(labels)
    ]


@EVERY
def test_every_backbone_trains_and_predicts(name):
    model = model_of(name)
    samples = samples_of([4, 6], [0, 1])
    losses = model(inputs_of(name, 2), samples, mode='loss')
    assert set(losses) == {
        *('loss_verb', 'loss_noun'),
        *('verb_top1_acc', 'noun_top1_acc', 'action_top1_acc'),
    }
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.cls_head.fc_verb.weight.grad.norm() > 0

    model.eval()
    with torch.no_grad():
        results = model(inputs_of(name, 2), samples, mode='predict')
        (alone,) = model(inputs_of(name, 2)[1:], samples_of([0, 1]), mode='predict')
    for result in results:
        assert result.verb_logits.shape == (VERBS,)
        assert result.noun_logits.shape == (NOUNS,)
        assert result.verb_logits.exp().sum() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(
        results[1].noun_logits, alone.noun_logits, rtol=1e-4, atol=1e-4
    )
    assert not results[0].noun_logits.equal(results[1].noun_logits)


@EVERY
def test_frame_level_on_every_backbone_with_time(name):
    steps = BACKBONES[name][3]
    model = model_of(name, frame_level=True)
    samples = samples_of([4, 6], [0, 1])
    if steps is None:
        with pytest.raises(ValueError, match='frame_level=True needs'):
            model.eval()(inputs_of(name, 2), samples, mode='predict')
        return
    model.train()
    losses = model(inputs_of(name, 2), samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        feats, kwargs = model.extract_feat(inputs_of(name, 2), data_samples=samples)
        scores = model.cls_head(feats, **kwargs)
        results = model(inputs_of(name, 2), samples, mode='predict')
    assert scores.verb.shape == (2, steps, VERBS)
    assert scores.noun.shape == (2, steps, NOUNS)
    last = scores.noun[:, -1].log_softmax(-1)
    for row, result in enumerate(results):
        torch.testing.assert_close(result.noun_logits, last[row], rtol=1e-4, atol=1e-4)


def test_class_token_or_patch_tokens():
    head = build(dict(HEAD, in_channels=8)).eval()
    patches, cls_token = torch.randn(2, 8, 4, 3, 3), torch.randn(2, 8)
    assert head.pre_logits(([patches, cls_token],)).equal(cls_token)
    torch.testing.assert_close(head.pre_logits((patches,)), patches.mean((2, 3, 4)))
    torch.testing.assert_close(head.pre_logits(patches), patches.mean((2, 3, 4)))
    assert head.pre_logits(cls_token).equal(cls_token)
    # Of scales, the last one; of pathways, both.
    other = torch.randn(2, 4, 8, 6, 6)
    torch.testing.assert_close(
        head.pre_logits((other, patches)), patches.mean((2, 3, 4))
    )
    head = build(dict(HEAD, in_channels=12))
    expected = torch.cat([other.mean((2, 3, 4)), patches.mean((2, 3, 4))], dim=1)
    torch.testing.assert_close(head.pre_logits((other, patches)), expected)
    frames = build(dict(HEAD, in_channels=8, frame_level=True))
    expected = patches.mean((3, 4)).transpose(1, 2)
    torch.testing.assert_close(frames.pre_logits(([patches, cls_token],)), expected)


# ------------------------------------------------------------------------- labels


def scores_of(rows: int, steps: int = 0) -> EpicScores:
    shape = (rows, steps) if steps else (rows,)
    generator = torch.Generator().manual_seed(0)
    return EpicScores(
        *(torch.randn(*shape, n, generator=generator) for n in (VERBS, NOUNS))
    )


def test_the_loss_is_the_mean_over_what_is_labelled():
    head = build(dict(HEAD, in_channels=8))
    scores = scores_of(4)
    labels = [[1, 2], [-100, -100], [3, -100], [0, 6]]
    losses = head.loss_by_feat(scores, samples_of(*labels))
    verb, noun = torch.tensor(labels).unbind(1)
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(losses['loss_verb'], cross_entropy(scores[0], verb))
    torch.testing.assert_close(losses['loss_noun'], cross_entropy(scores[1], noun))
    right = [s.argmax(1) == label for s, label in zip(scores, (verb, noun))]
    assert losses['verb_top1_acc'] == right[0][[0, 2, 3]].float().mean()
    assert losses['noun_top1_acc'] == right[1][[0, 3]].float().mean()
    assert losses['action_top1_acc'] == (right[0] & right[1])[[0, 3]].float().mean()


@pytest.mark.parametrize('frame_level', [False, True])
def test_a_batch_of_context_clips_has_a_zero_loss_for_every_parameter(frame_level):
    backbone = backbone_cfg(output_cls_token=not frame_level)
    head = dict(HEAD, in_channels=DIMS, frame_level=frame_level)
    model = randomize(
        build(dict(type='MemoryRecognizer3D', backbone=backbone, cls_head=head))
    ).train()
    samples = samples_of([-100, -100], [-100, -100])
    losses = model(torch.randn(2, 1, 3, FRAMES, 32, 32), samples, mode='loss')
    assert set(losses) == {'loss_verb', 'loss_noun'}
    loss, _ = model.parse_losses(losses)
    assert loss == 0
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert len(model.memory) == 2  # they are remembered


def test_labels_of_each_time_step():
    head = build(dict(HEAD, in_channels=8, frame_level=True))
    scores = scores_of(2, steps=3)
    # Verbs, then nouns, as EpicFrameLabels has them.
    labels = [[[1, -100, 3], [2, -100, 4]], [[-100] * 3] * 2]
    losses = head.loss_by_feat(scores, samples_of(*labels))
    for name, logits, label in zip(
        ('verb', 'noun'), scores, torch.tensor(labels).unbind(1)
    ):
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), label.flatten()
        )
        torch.testing.assert_close(losses[f'loss_{name}'], expected)
    # The label of a clip holds for all of its time steps.
    one = head.loss_by_feat(scores, samples_of([1, 2], [-100, -100]))
    each = head.loss_by_feat(scores, samples_of([[1] * 3, [2] * 3], [[-100] * 3] * 2))
    assert one == each


def test_label_smoothing():
    head = build(dict(HEAD, in_channels=8, label_smooth_eps=0.1))
    scores, labels = scores_of(3), [[1, 2], [-100, -100], [4, 0]]
    losses = head.loss_by_feat(scores, samples_of(*labels))
    expected = torch.nn.functional.cross_entropy(
        scores[0], torch.tensor([1, -100, 4]), label_smoothing=0.1
    )
    torch.testing.assert_close(losses['loss_verb'], expected)


@pytest.mark.parametrize(
    'label, sentence',
    [
        ([5, 0], 'n0, video_id P01_00, timestamp 1.5\\) has verb 5, but the head has '
         'num_verbs=5: take 0 to 4, -100 for no label'),
        ([0, 7], 'has noun 7, but the head has num_nouns=7: take 0 to 6'),
        ([0, -1], 'has noun -1, but'),
        (3, 'gt_label of shape \\(1,\\), torch.int64; EpicHead takes class ids '
         'of shape \\(2,\\), \\[verb, noun\\]: check'),
        (torch.rand(2), 'gt_label of shape \\(2,\\), torch.float32'),
    ],
)  # fmt: skip
def test_labels_that_are_none(label, sentence):
    head = build(dict(HEAD, in_channels=8))
    with pytest.raises(ValueError, match=sentence):
        head.loss_by_feat(scores_of(1), samples_of(label))


def test_labels_of_other_numbers_of_time_steps():
    head = build(dict(HEAD, in_channels=8, frame_level=True))
    with pytest.raises(ValueError, match=r'\(2, 3\), .*, or \(2, 4\): check'):
        head.loss_by_feat(scores_of(1, steps=4), samples_of([[0] * 3] * 2))


@pytest.mark.parametrize(
    'argument, sentence',
    [
        (dict(average_clips=None), "average_clips=None must be 'prob' or 'score'"),
        (dict(num_verbs=0), 'num_verbs=0 must be at least 1'),
    ],
)
def test_arguments_out_of_range(argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        MODELS.build({**HEAD, 'in_channels': 8, **argument})


def test_features_of_other_channels():
    head = build(dict(HEAD, in_channels=8))
    with pytest.raises(ValueError, match='in_channels=8, but .* set in_channels=16'):
        head(torch.rand(2, 16, 4, 3, 3))


# -------------------------------------------------------------------- predictions


@pytest.mark.parametrize('average', ['prob', 'score'])
def test_views_are_averaged(average):
    head = build(dict(HEAD, in_channels=8, average_clips=average))
    scores = scores_of(6)
    results = head.predict_by_feat(scores, samples_of([0, 0], [1, 1]))
    for row, result in enumerate(results):
        for logits, part in zip((result.verb_logits, result.noun_logits), scores):
            views = part[3 * row : 3 * row + 3]
            if average == 'prob':
                expected = views.softmax(1).mean(0).log()
            else:
                expected = views.mean(0)
            torch.testing.assert_close(logits, expected)


def test_views_of_a_clip_through_the_recognizer():
    model = model_of('MeMViT, class token')
    inputs = inputs_of('MeMViT, class token', 2, views=3)
    losses = model(inputs, samples_of([1, 2], [3, 4]), mode='loss')
    model.reset_memory()
    feats, kwargs = model.extract_feat(inputs, data_samples=samples_of([1, 2], [3, 4]))
    logits = model.cls_head(feats, **kwargs).verb
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor([1, 1, 1, 3, 3, 3])
    )
    torch.testing.assert_close(losses['loss_verb'], expected)


def test_what_other_readers_of_results_find():
    head = build(dict(HEAD, in_channels=8))
    (result,) = head.predict_by_feat(scores_of(1), samples_of([0, 0]))
    assert result.pred_score.shape == (VERBS + NOUNS,)
    verb, noun = result.pred_score.split([VERBS, NOUNS])
    torch.testing.assert_close(verb, result.verb_logits.exp())
    torch.testing.assert_close(noun, result.noun_logits.exp())
    found = ActionRecogInferencer.pred2dict(None, result)
    assert found['pred_labels'] == [verb.argmax(), noun.argmax()]
    assert len(found['pred_scores']) == VERBS + NOUNS
    assert result.to_dict()['verb_logits'].dtype == torch.float32


@pytest.mark.parametrize('frame_level', [False, True])
def test_bfloat16_trains_and_predicts(frame_level):
    model = model_of('MeMViT, patches', frame_level=frame_level)
    inputs = inputs_of('MeMViT, patches', 2)
    samples = samples_of([1, 2], [-100, -100])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(inputs, samples, mode='loss')
    loss, log = model.parse_losses(losses)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        results = model(inputs, samples, mode='predict')
    assert results[0].verb_logits.dtype == torch.float32
    assert results[0].verb_logits.exp().sum() == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------- causal


def test_later_frames_do_not_change_an_earlier_prediction():
    """Of a clip with memory: each time step knows frames up to its patches' last."""
    backbone = backbone_cfg(causal=True, output_cls_token=False, memory_gap=1)
    head = dict(HEAD, in_channels=DIMS, frame_level=True)
    model = randomize(
        build(dict(type='MemoryRecognizer3D', backbone=backbone, cls_head=head))
    ).eval()

    def predict(last: torch.Tensor, video: str, remember: bool = True) -> torch.Tensor:
        """Verb logits [T, verbs] of the last of four clips of a video."""
        model.reset_memory()
        clips = [clip('P01_01', time) for time in range(3)] if remember else []
        for time, frames in enumerate([*clips, last]):
            sample = ActionDataSample(metainfo=dict(video_id=video, timestamp=time))
            with torch.no_grad():
                feats, _ = model.extract_feat(frames[None, None], data_samples=[sample])
        return model.cls_head(feats).verb[0].detach()

    frames = clip('P01_01', 3)
    expected = predict(frames, 'a')
    assert expected.shape == (FRAMES // 2, VERBS)
    for step in range(FRAMES // 2):
        # The patches of a step cover frames 2 * step - 1 to 2 * step + 1.
        changed = frames.clone()
        changed[:, 2 * step + 2 :] += 3
        result = predict(changed, 'a')
        assert result[: step + 1].equal(expected[: step + 1])
        if step + 1 < FRAMES // 2:
            assert not result[step + 1 :].isclose(expected[step + 1 :]).all(1).any()
    # The memory has its part in every step, the first one too.
    alone = predict(frames, 'b', remember=False)
    assert not alone.isclose(expected).all(1).any()


def test_a_clip_between_segments_gets_no_prediction():
    head = EpicHead(in_channels=8, num_verbs=4, num_nouns=6).eval()
    samples = [
        ActionDataSample(metainfo=dict(narration_id=n)) for n in (None, 'a', None)
    ]
    for sample, label in zip(samples, ([-100, -100], [-100, -100], None)):
        if label is not None:
            sample.set_gt_label(label)
    head.predict(torch.rand(3, 8, 4, 7, 7), samples)
    # The third is of a stream that nobody has annotated.
    assert ['verb_logits' in sample for sample in samples] == [False, True, True]


def test_a_sample_without_labels_is_named():
    head = EpicHead(in_channels=8, num_verbs=4, num_nouns=6)
    with pytest.raises(ValueError, match='Sample 0 of the batch .* has no gt_label'):
        head.loss(torch.rand(1, 8, 4, 7, 7), [ActionDataSample()])


def test_the_best_actions_are_those_that_the_metric_ranks():
    """With `num_actions`, an explicit list: the sums of log-probabilities, sorted."""
    torch.manual_seed(0)
    config = {**HEAD, 'in_channels': 4, 'num_actions': 6}
    head = MODELS.build(config)
    head.init_weights()
    features = torch.randn(1, 4)
    (sample,) = head.eval().predict(features, [ActionDataSample()])
    verb, noun = (part[0].log_softmax(-1) for part in head(features))
    table = {(v, n): verb[v] + noun[n] for v in range(VERBS) for n in range(NOUNS)}
    best = sorted(table, key=table.get, reverse=True)[:6]
    assert [tuple(pair) for pair in sample.action_pairs.tolist()] == best
    expected = torch.stack([table[pair] for pair in best])
    torch.testing.assert_close(sample.action_scores, expected)
    (plain,) = MODELS.build({**config, 'num_actions': 0}).predict(
        features, [ActionDataSample()]
    )
    assert 'action_pairs' not in plain
    with pytest.raises(ValueError, match=f'num_actions=36 must be 0 to {5 * 7}, all'):
        MODELS.build({**config, 'num_actions': 36})
