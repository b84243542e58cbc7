"""Rows that could not be read are as if they had not been in the batch."""

import pytest
import torch
from small_models import batch, detector, recognizer, vit_detector, vit_recognizer

from memvit_mm.models.memory.remember import nothing_read

KINDS = [recognizer, detector, vit_recognizer, vit_detector]
# Said once per model; a test says that it is.
pytestmark = pytest.mark.filterwarnings('ignore:A clip is left out')
STEPS = [
    [('a', 0), ('b', 0), ('c', 0)],
    [('a', 1), ('b', 1), ('c', 1)],
    [('a', 2), ('b', 2), ('c', 2)],
    [('a', 3), ('b', 3)],
    [('a', 4), ('b', 4)],
]
BAD = {('b', 0), ('c', 1), ('b', 2), ('b', 4)}


@pytest.fixture(params=KINDS, ids=lambda build: build.__name__)
def model(request):
    return request.param()


def samples_of(model, clips, bad=()):
    """A batch in which some clips stand in for others."""
    inputs, samples = batch(*clips)
    for row, (clip, sample) in enumerate(zip(clips, samples)):
        if clip in bad:
            inputs[row] = float('nan')
            sample.set_metainfo(dict(skipped='It is damaged.'))
            del sample.gt_instances, sample.gt_label
            sample.proposals = sample.proposals[:0]
    if hasattr(model, 'roi_head'):
        inputs = inputs.squeeze(1)
    return inputs, samples


def runs(model, mode):
    """The outputs of all steps, with rows that are bad, and without these rows."""
    for leave_out in (False, True):
        model.reset_memory()
        outputs = []
        for clips in STEPS:
            if leave_out:
                clips = [clip for clip in clips if clip not in BAD]
            torch.manual_seed(0)
            outputs.append(model(*samples_of(model, clips, BAD), mode=mode))
        yield outputs, model.memory.state_dict()


def equal_memories(a, b) -> bool:
    def flat(state):
        return {
            (stream['stream'], clip['time'], name, form): pair['key']
            for stream in state['streams']
            for clip in stream['clips']
            for name, kept in clip['layers'].items()
            for form, pair in kept['forms'].items()
        }

    a, b = flat(a), flat(b)
    return bool(a) and a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def test_losses_and_memory(model):
    model.train()
    (losses, memory), (expected, expected_memory) = runs(model, 'loss')
    for found, wanted in zip(losses, expected):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if 'loss' in name:
                assert torch.equal(found[name], value)
    assert equal_memories(memory, expected_memory)


def test_predictions_and_memory(model):
    with torch.no_grad():
        (found, memory), (expected, expected_memory) = runs(model, 'predict')

    def results(steps):
        return [
            (
                sample.video_id,
                sample.timestamp,
                sample.pred_instances.scores
                if hasattr(model, 'roi_head')
                else sample.pred_score,
            )
            for step in steps
            for sample in step
        ]

    assert len(results(found)) == sum(map(len, STEPS)) - len(BAD)
    for (*key, score), (*wanted, expected_score) in zip(
        results(found), results(expected)
    ):
        assert key == wanted and torch.equal(score, expected_score)
    assert equal_memories(memory, expected_memory)


@pytest.mark.filterwarnings('error')
def test_it_is_said_once(model):
    clips = [('a', 0), ('b', 0)]
    with pytest.warns(UserWarning, match='A clip is left out: It is damaged. .*once'):
        model(*samples_of(model, clips, bad=clips[:1]), mode='predict')
    model(*samples_of(model, clips[:1], bad=clips), mode='predict')


def test_no_row_could_be_read(model):
    """The step takes place, with a gradient of zero for every parameter."""
    model.train()
    inputs, samples = samples_of(model, [('a', 0), ('b', 0)])
    model(inputs, samples, mode='loss')
    remembered = model.memory.state_dict()
    clips = [('a', 1), ('b', 1)]
    inputs, samples = samples_of(model, clips, bad=clips)
    loss, logged = model.parse_losses(model(inputs, samples, mode='loss'))
    loss.backward()
    assert logged.keys() == {'loss'} and loss == 0
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert equal_memories(model.memory.state_dict(), remembered)


def test_no_prediction(model):
    """What mmengine's loops take for no outputs at all."""
    from mmengine.runner.loops import _update_losses

    clips = [('a', 0), ('b', 0)]
    inputs, samples = samples_of(model, clips, bad=clips)
    outputs = model.test_step(dict(inputs=list(inputs), data_samples=samples))
    assert _update_losses(outputs, {}) == ([], {})
    assert len(model.memory) == 0


def test_others_would_wait():
    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match='other processes wait .* SyncBatchNorm: take'):
        nothing_read(model, 'loss')
