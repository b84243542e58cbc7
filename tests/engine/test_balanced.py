"""What mmengine adds to a training (averages, accumulation, precision, validation,
early stopping) leaves memory and losses as they are without it."""

import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_runs import runner_of

from memvit_mm.engine import CPUAmpOptimWrapper

EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=30, val_interval=4)
KEEP = dict(checkpoint=dict(type='MemoryCheckpointHook', interval=100))


@HOOKS.register_module()
class Watch(Hook):
    """Each iteration's clips, its loss, and what is remembered after it."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        memory = runner.model.memory
        self.seen.append(
            (
                [(s.video_id, s.timestamp) for s in data_batch['data_samples']],
                outputs['loss'].item(),
                {
                    stream: [
                        (
                            clip.time,
                            clip.layers['layer0'].tensors[0].double().sum().item(),
                        )
                        for clip in clips
                    ]
                    for stream, clips in memory._clips.items()
                },
            )
        )
        for clips in memory._clips.values():
            assert not any(
                k.tensors[0].requires_grad for c in clips for k in c.layers.values()
            )


def trained(folder, train_cfg, hooks=(), validate=True, **kwargs) -> Runner:
    """A training with dropout, so that its random numbers matter."""
    if not validate:
        kwargs.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    runner = runner_of(
        folder,
        train_cfg,
        custom_hooks=[dict(type='MemoryResetHook'), dict(type='Watch'), *hooks],
        default_hooks=KEEP,
        **kwargs,
    )
    runner.train()
    return runner


def watched(runner) -> list:
    return next(hook for hook in runner.hooks if isinstance(hook, Watch)).seen


@pytest.fixture(scope='module', params=[EPOCHS, ITERATIONS], ids=['epochs', 'iters'])
def plain(request, tmp_path_factory):
    """A training with nothing beside it."""
    folder = tmp_path_factory.mktemp('plain')
    runner = trained(folder, request.param, validate=False)
    return request.param, watched(runner)


@pytest.mark.parametrize(
    'beside',
    [
        dict(),
        dict(hooks=[dict(type='EMAHook', momentum=0.1)]),
        dict(
            hooks=[
                dict(
                    type='EarlyStoppingHook',
                    monitor='first_class',
                    rule='greater',
                    patience=99,
                ),
                dict(type='SyncBuffersHook'),
            ]
        ),
    ],
    ids=['validation', 'EMA', 'early stopping'],
)
def test_what_is_beside_changes_nothing(plain, beside, tmp_path):
    train_cfg, seen = plain
    assert len({loss for _, loss, _ in seen}) == len(seen) >= 30
    assert watched(trained(tmp_path, train_cfg, **beside)) == seen


def test_memory_of_a_training_is_each_videos_last_clips(plain):
    _, seen = plain
    for number, (clips, _, memory) in enumerate(seen):
        now = {
            stream.video: [time for time, _ in kept] for stream, kept in memory.items()
        }
        for video, time in clips:
            assert now[video][-1] == time
            assert now[video] == list(range(time - len(now[video]) + 1, time + 1))
        if number and any(time > 0 for _, time in clips):
            assert any(len(times) > 1 for times in now.values())


def test_the_average_is_validated_with_its_own_memory(tmp_path):
    """Validation inside training is a test of the averaged weights, from nothing."""
    ema = [dict(type='EMAHook', momentum=0.3)]
    runner = trained(tmp_path / 'a', EPOCHS, hooks=ema)
    inside = runner.message_hub.get_scalar('val/first_class').data[0][-1]
    path = str(tmp_path / 'a' / 'epoch_3.pth')
    fresh = runner_of(tmp_path / 'b', EPOCHS, load_from=path)
    assert fresh.test()['first_class'] == pytest.approx(inside, abs=1e-6)
    raw = dict(runner.model.named_parameters())
    averaged = dict(fresh.model.named_parameters())
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_early_stopping_ends_with_memory_in_order(tmp_path):
    stop = dict(
        type='EarlyStoppingHook',
        monitor='first_class',
        rule='greater',
        min_delta=1e9,
        patience=1,
    )
    runner = trained(tmp_path, dict(EPOCHS, max_epochs=50), hooks=[stop])
    assert 1 < runner.epoch < 50
    # The validation that stopped it gave back the training's memory.
    assert not runner.model.memory._aside
    assert runner.test() == runner.test()


def test_accumulated_gradients_are_those_of_the_clips_one_by_one(tmp_path):
    """Two steps of memory for one of the weights; compared with a loop by hand."""
    no_dropout = dict(cls_head=dict(dropout_ratio=0.0))
    wrapper = dict(optimizer=dict(type='SGD', lr=0.05), accumulative_counts=2)
    runner = trained(
        tmp_path / 'a',
        dict(type='EpochBasedTrainLoop', max_epochs=1),
        optim_wrapper=wrapper,
        **changed_model(**no_dropout),
    )
    again = runner_of(
        tmp_path / 'b',
        dict(type='EpochBasedTrainLoop', max_epochs=1),
        **changed_model(**no_dropout),
    )
    model = again.model
    again._init_model_weights()
    model.train()
    loader = again.build_dataloader(again._train_dataloader, seed=again.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for number, batch in enumerate(loader):
        data = model.data_preprocessor(batch, training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        (loss / 2).backward()
        if number % 2 == 1 or number == len(loader) - 1:
            optimizer.step()
            optimizer.zero_grad()
    expected = dict(model.named_parameters())
    for name, parameter in runner.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def changed_model(**parts) -> dict:
    from small_runs import MODEL

    return dict(model={**MODEL, **{k: {**MODEL[k], **v} for k, v in parts.items()}})


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision_remembers_what_full_precision_does(dtype, tmp_path):
    """With weights that stand still; a scale that overflows skips every step."""
    still = dict(optimizer=dict(type='SGD', lr=0.0))
    full = watched(
        trained(tmp_path / 'full', EPOCHS, validate=False, optim_wrapper=still)
    )
    wrapper = dict(type='CPUAmpOptimWrapper', dtype=dtype)
    if dtype == 'float16':
        # infinite gradients: the scaler skips the step, memory must go on
        wrapper.update(loss_scale=2.0**100, optimizer=dict(type='SGD', lr=0.1))
    wrapper = {**still, **wrapper}
    runner = trained(tmp_path / 'half', EPOCHS, validate=False, optim_wrapper=wrapper)
    half = watched(runner)
    assert [clips for clips, _, _ in half] == [clips for clips, _, _ in full]
    tolerance = 0.1 if dtype == 'bfloat16' else 0.02
    for (_, loss, memory), (_, expected, remembered) in zip(half, full):
        assert loss == pytest.approx(expected, abs=tolerance)
        assert list(memory) == list(remembered)
        for stream, clips in memory.items():
            assert [t for t, _ in clips] == [t for t, _ in remembered[stream]]


def test_mixed_precision_learns(tmp_path):
    """And the scaler finds its scale."""
    for dtype in ('bfloat16', 'float16'):
        wrapper = dict(
            type='CPUAmpOptimWrapper',
            dtype=dtype,
            optimizer=dict(type='AdamW', lr=0.01),
        )
        runner = trained(
            tmp_path / dtype,
            dict(EPOCHS, max_epochs=8),
            validate=False,
            optim_wrapper=wrapper,
        )
        losses = [loss for _, loss, _ in watched(runner)]
        assert sum(losses[-12:]) < 0.8 * sum(losses[:12])


def test_a_wrong_loss_scale_is_named():
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(ValueError, match="loss_scale is 'static': it takes 'dynamic'"):
        CPUAmpOptimWrapper(loss_scale='static', optimizer=sgd)
    with pytest.raises(ValueError, match='dtype is torch.float64: mixed precision'):
        CPUAmpOptimWrapper(dtype='float64', optimizer=sgd)
    wrapper = CPUAmpOptimWrapper(512, 'float16', optimizer=sgd)
    assert wrapper.loss_scaler.get_scale() == 512
