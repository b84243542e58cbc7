"""Boxes without a label in the loss, from the head alone to whole detectors."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import TASK_UTILS
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from small_models import CLASSES, DIMS, backbone_cfg, batch, build, detector
from torch.utils._python_dispatch import TorchDispatchMode

from memvit_mm.models import MemoryBBoxHeadAVA
from memvit_mm.paths import get_config_path

BBoxHeadAVA = MemoryBBoxHeadAVA.__base__  # MMAction2's
RCNN = ConfigDict(pos_weight=1.0, sampler=dict(neg_pos_ub=-1))


def sampled(labels: torch.Tensor, num_negatives: int) -> SamplingResult:
    """A row of a batch as the sampler gives it: labelled boxes, then negatives."""
    result = SamplingResult.__new__(SamplingResult)
    result.pos_priors = torch.rand(len(labels), 4)
    result.neg_priors = torch.rand(num_negatives, 4)
    result.pos_gt_labels = labels
    return result


def random_rows(num_labelled: int = 5) -> tuple:
    """Scores [people, 81], and two rows of a batch, one of them with nobody annotated.

    The second row's labels are as MMAction2's assigner leaves them there.
    """
    labels = (torch.rand(num_labelled, 81) < 0.05).float()
    labels[:, 3] = 1
    rows = [sampled(labels, 4), sampled(torch.full((0,), -1), 3)]
    targets = torch.cat([labels, torch.zeros(7, 81)])
    return 3 * torch.randn(num_labelled + 7, 81), rows, targets


def head(**options) -> MemoryBBoxHeadAVA:
    return MemoryBBoxHeadAVA(True, in_channels=8, **options)


@pytest.mark.parametrize('focal', [dict(), dict(focal_alpha=0.7, focal_gamma=1.5)])
def test_the_loss_is_the_mean_over_all_boxes_and_classes(focal):
    torch.manual_seed(0)
    scores, rows, targets = random_rows()
    found = head(**focal).loss_and_target(scores, None, rows, RCNN)
    assert torch.equal(found['bbox_targets'][0], targets)
    loss = F.binary_cross_entropy_with_logits(
        scores[:, 1:], targets[:, 1:], reduction='none'
    )
    if focal:
        loss = 0.7 * (1 - torch.exp(-loss)) ** 1.5 * loss
    assert loss.shape == (12, 80)
    torch.testing.assert_close(found['loss_bbox']['loss_action_cls'], loss.mean())


def test_no_boxes_are_no_loss_and_a_gradient_of_zero():
    one = head()
    scores = one(torch.zeros(0, 8, 1, 7, 7))
    assert scores.shape == (0, 81)
    row = sampled(torch.full((0,), -1), 0)
    losses = one.loss_and_target(scores, None, [row], RCNN)['loss_bbox']
    losses['loss_action_cls'].backward()
    assert losses.keys() == {'loss_action_cls'} and losses['loss_action_cls'] == 0
    assert all(p.grad.abs().max() == 0 for p in one.parameters())


@pytest.mark.parametrize('background', [True, False])
def test_equals_mmactions_head_where_every_box_has_a_label(background):
    torch.manual_seed(0)
    scores, (row, _), _ = random_rows()
    row.neg_priors = row.neg_priors[:0]
    found, plain, expected = (
        kind(background, in_channels=8, **options).loss_and_target(
            scores[:5], None, [row], RCNN
        )
        for kind, options in (
            (MemoryBBoxHeadAVA, dict()),
            (MemoryBBoxHeadAVA, dict(negatives=False)),
            (BBoxHeadAVA, dict()),
        )
    )
    torch.testing.assert_close(found['loss_bbox'], expected['loss_bbox'])
    torch.testing.assert_close(plain['loss_bbox'], expected['loss_bbox'])


def test_recall_and_precision_are_mmactions_with_and_without_negatives():
    # MMAction2's are means over the boxes that have a label.
    torch.manual_seed(0)
    scores, rows, _ = random_rows(20)
    # MMAction2 cannot take the row in which nobody is annotated.
    rows[0].neg_priors, rows = torch.rand(7, 4), rows[:1]
    expected = BBoxHeadAVA(True, in_channels=8).loss_and_target(
        scores, None, rows, RCNN
    )['loss_bbox']
    for negatives in (True, False):
        found = head(negatives=negatives).loss_and_target(scores, None, rows, RCNN)
        found = found['loss_bbox']
        assert found.keys() == expected.keys()
        for name in expected.keys() - {'loss_action_cls'}:
            torch.testing.assert_close(found[name], expected[name])
            assert 0 < found[name] < 1


def test_the_number_of_steps_does_not_grow_with_the_people():
    class Count(TorchDispatchMode):
        steps = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.steps += 1
            return func(*args, **(kwargs or {}))

    steps = []
    for people in (2, 50):
        scores, rows, _ = random_rows(people)
        Count.steps = 0
        with Count():
            head().loss_and_target(scores, None, rows, RCNN)
        steps.append(Count.steps)
    assert steps[0] == steps[1] > 10


def test_errors():
    with pytest.raises(ValueError, match='negatives=True needs multilabel=True'):
        head(multilabel=False)
    head(multilabel=False, negatives=False)
    scores, rows, _ = random_rows()
    with pytest.raises(ValueError, match='neg_pos_ub=0 leaves out .*: set it to -1'):
        head().loss_and_target(
            scores, None, rows, ConfigDict(pos_weight=1.0, sampler=dict(neg_pos_ub=0))
        )


# ------------------------------------------------------------------------- detectors


def plain_detector() -> torch.nn.Module:
    """mmdet's ``FastRCNN`` and MMAction2's ``AVARoIHead`` with our head."""
    ours = detector(negatives=True)
    return build(
        dict(
            type='FastRCNN',
            _scope_='mmdet',
            backbone=backbone_cfg(output_cls_token=False, memory_layers=()),
            roi_head=dict(
                type='AVARoIHead',
                bbox_roi_extractor=dict(
                    type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
                ),
                bbox_head=dict(
                    type='MemoryBBoxHeadAVA',
                    background_class=True,
                    in_channels=DIMS,
                    num_classes=CLASSES,
                    topk=(2,),
                ),
            ),
            data_preprocessor=dict(
                type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
            ),
            train_cfg=dict(rcnn=ours.roi_head.train_cfg),
            test_cfg=dict(rcnn=None),
        )
    )


DETECTORS = {
    'ours': lambda: detector(negatives=True),
    'without actors': lambda: detector(negatives=True, actors=None),
    'plain': plain_detector,
}
NOBODY = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, CLASSES))


@pytest.mark.parametrize('kind', list(DETECTORS))
def test_a_detector_learns_from_detections_of_nobody(kind):
    model = DETECTORS[kind]()
    inputs, samples = batch(('a', 0), ('b', 1))
    far = torch.tensor([[1.0, 20, 9, 31], [20, 1, 30, 9]])
    # 'a': two annotated people, their two detections and two of nobody.
    truth = samples[0].gt_instances
    samples[0].proposals = InstanceData(bboxes=torch.cat([truth.bboxes, far]))
    # 'b': nobody is annotated, one is detected.
    samples[1].gt_instances = InstanceData(**NOBODY)
    samples[1].proposals = InstanceData(bboxes=far[:1].clone())
    seen = {}

    def keep(module, args, scores):
        seen['scores'] = scores

    model.roi_head.bbox_head.register_forward_hook(keep)
    losses = model(inputs.squeeze(1), samples, mode='loss')
    # Ground truth and its detections are not merged.
    targets = torch.cat([truth.labels, truth.labels, torch.zeros(3, CLASSES)])
    expected = F.binary_cross_entropy_with_logits(seen['scores'][:, 1:], targets[:, 1:])
    torch.testing.assert_close(losses['loss_action_cls'], expected)
    losses['loss_action_cls'].backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize('boxes', [0, 1])
@pytest.mark.parametrize('kind', list(DETECTORS))
def test_a_batch_in_which_nobody_is_annotated(kind, boxes):
    model = DETECTORS[kind]().train()
    for time in range(3):
        inputs, samples = batch(('a', time), ('b', time))
        for one in samples:
            one.gt_instances = InstanceData(**NOBODY)
            one.proposals = InstanceData(bboxes=torch.rand(boxes, 4) * 9)
            one.proposals.bboxes[:, 2:] += 15
        model.zero_grad()
        losses = model(inputs.squeeze(1), samples, mode='loss')
        losses['loss_action_cls'].backward()
        assert losses.keys() == {'loss_action_cls'}
        assert (losses['loss_action_cls'] > 0) == (boxes > 0)
        assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_detections_are_matched_before_the_crop():
    model = detector(negatives=True)
    inputs, samples = batch(('a', 0), ('b', 0))
    whole = torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.5, 0.1, 0.9, 0.9]])
    found = whole + torch.tensor([0.01, 0, 0.01, 0])  # overlaps of 0.95
    labels = samples[0].gt_instances.labels
    for one in samples:
        # The crop's right half is left: of the first person, nothing.
        cut = torch.tensor([32.0, 32, 32, 32]) * 2
        offset = torch.tensor([32.0, 16, 32, 16])
        one.gt_instances.bboxes = (whole * cut - offset).clamp(0, 31)
        one.proposals.bboxes = (found * cut - offset).clamp(0, 31)
    samples[1].set_metainfo(
        dict(
            whole_frame_boxes=dict(
                gt_bboxes=whole.double().numpy(), proposals=found.numpy()
            )
        )
    )
    seen = {}
    targets_of = model.roi_head.bbox_head.get_targets

    def keep(results, cfg):
        seen['labels'] = targets_of(results, cfg)[0]
        return seen['labels'], None

    model.roi_head.bbox_head.get_targets = keep
    model(inputs.squeeze(1), samples, mode='loss')
    ordered = torch.cat([labels, labels])
    # As MMAction2 does it, the first person's detection is nobody's.
    assert torch.equal(seen['labels'][3], torch.zeros(CLASSES))
    assert torch.equal(seen['labels'][4:], ordered)


@pytest.mark.parametrize('name', ['memvit_ava.py', 'memvit_24_ava.py'])
def test_the_recipe_keeps_every_box(name):
    cfg = Config.fromfile(get_config_path(name)).model
    assert cfg.roi_head.bbox_head.type == 'MemoryBBoxHeadAVA'
    assert cfg.roi_head.bbox_head.negatives
    assigner, sampler = (
        TASK_UTILS.build(dict(cfg.train_cfg.rcnn[part], _scope_='mmdet', **context))
        for part, context in (('assigner', {}), ('sampler', dict(context=None)))
    )
    corner = torch.arange(120.0)[:, None].expand(-1, 2) * 20
    boxes = torch.cat([corner, corner + 10], dim=1)
    truth = InstanceData(bboxes=boxes[:70], labels=torch.eye(81)[1:71])
    # 50 match (overlaps of 0.9 and 0.95), and 50 are nobody's (0.89 and none).
    moved = boxes.clone()
    moved[:25, 2] -= 1.0
    moved[25:50, 2] -= 0.5
    moved[50:70, 2] -= 1.1
    proposals = InstanceData(priors=torch.cat([moved[:70], boxes[90:]]))
    assigned = assigner.assign(proposals, truth, None)
    kept = sampler.sample(assigned, proposals, truth)
    assert (len(kept.pos_priors), len(kept.neg_priors)) == (120, 50)
    expected = torch.cat([truth.labels, truth.labels[:50]])
    assert torch.equal(kept.pos_gt_labels, expected)
