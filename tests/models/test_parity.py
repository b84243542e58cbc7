"""The published model's numbers, through registered models built from configs."""

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from parity import FILES, Parity, to_ours


def build(parity: Parity) -> torch.nn.Module:
    """Our model for a parity file, with its weights."""
    meta = parity.meta
    init_default_scope('mmaction')
    state = {
        to_ours(name, meta['depth'], len(meta['down'])): value
        for name, value in parity.prefixed('state/').items()
    }
    dims = meta['dim'] * 2 ** len(meta['down'])
    if meta.get('det'):
        model = MODELS.build(
            ConfigDict(
                type='MemoryFastRCNN',
                _scope_='mmdet',
                backbone=parity.backbone_cfg(),
                roi_head=dict(
                    type='MemoryAVARoIHead',
                    bbox_roi_extractor=dict(
                        type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
                    ),
                    shared_head=dict(
                        type='ActorMemoryHead',
                        in_channels=dims,
                        num_heads=2 ** len(meta['down']),
                    ),
                    bbox_head=dict(
                        type='BBoxHeadAVA',
                        background_class=True,
                        in_channels=dims,
                        num_classes=meta['classes'] + 1,
                    ),
                ),
                data_preprocessor=dict(
                    type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
                ),
                train_cfg=None,
                test_cfg=dict(rcnn=None),
            )
        )
        # Class 0 is reserved in MMAction2.
        for part in ('weight', 'bias'):
            rows = state.pop(f'head.{part}')
            state[f'roi_head.bbox_head.fc_cls.{part}'] = torch.cat(
                [torch.zeros_like(rows[:1]), rows]
            )
    else:
        cls_head = None
        if not meta.get('frame_level'):
            cls_head = dict(
                type='MViTHead', num_classes=meta['classes'], in_channels=dims
            )
        model = MODELS.build(
            dict(
                type='MemoryRecognizer3D',
                backbone=parity.backbone_cfg(),
                cls_head=cls_head,
            )
        )
        for part in ('weight', 'bias'):
            if f'head.{part}' in state:
                state[f'cls_head.fc_cls.{part}'] = state.pop(f'head.{part}')
    unused = model.load_state_dict(
        {k: v for k, v in state.items() if k and not k.startswith('head.')},
        strict=True,
    )
    assert not unused.missing_keys and not unused.unexpected_keys
    return model.eval()


def tokens_of(features) -> torch.Tensor:
    """The backbone's output as tokens, class token first if there is one."""
    last = features[-1]
    patches, cls_token = last if isinstance(last, list) else (last, None)
    tokens = patches.flatten(2).transpose(1, 2)
    if cls_token is not None:
        tokens = torch.cat([cls_token[:, None], tokens], dim=1)
    return tokens


def samples_of(parity: Parity, step: int):
    samples = []
    for row, video in enumerate(parity.meta['videos'][step]):
        sample = ActionDataSample()
        sample.set_metainfo(
            dict(
                video_id=str(video),
                timestamp=step,
                img_shape=tuple(parity.meta['input_hw']),
            )
        )
        if parity.meta.get('det'):
            sample.proposals = InstanceData(bboxes=parity.boxes(step)[row])
        samples.append(sample)
    return samples


def run(parity: Parity, model, clip, step: int, memory: bool = True):
    """Tokens and outputs (a list, one per head) of one step."""
    samples = samples_of(parity, step)
    if not memory:
        model.reset_memory()
    if parity.meta.get('det'):
        features, scores = model(clip, samples, mode='tensor')
        return tokens_of(features), [scores[:, 1:].sigmoid()]
    features = model(clip[:, None], samples, mode='tensor')
    if not parity.meta.get('frame_level'):
        logits = model.cls_head(features)
        return tokens_of(features), [logits.softmax(-1)]
    frames = features[-1].mean(dim=(3, 4)).transpose(1, 2)
    outputs = []
    for head in range(len(parity.meta['classes'])):
        weight = parity[f'state/head.projection.{head}.weight']
        bias = parity[f'state/head.projection.{head}.bias']
        outputs.append(torch.nn.functional.linear(frames, weight, bias).softmax(-1))
    return tokens_of(features), outputs


def close(ours: torch.Tensor, published: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, published, atol=atol, rtol=0)


@pytest.mark.parametrize('name', FILES)
def test_published_numbers_at_every_step(name):
    parity = Parity(name)
    model = build(parity)
    last = parity.meta['steps'] - 1
    for step, clip in enumerate(parity.clips()):
        with torch.set_grad_enabled(step == last):
            tokens, outputs = run(parity, model, clip, step)
        det = parity.meta.get('det', False)
        compare_tokens(tokens, parity[f'tokens_{step}'], det)
        heads = len(outputs)
        for head, output in enumerate(outputs):
            key = f'output_{step}' + (f'_{head}' if heads > 1 else '')
            close(output, parity[key].reshape(output.shape))

    loss = sum(output.square().sum() for output in outputs)
    torch.testing.assert_close(loss, parity['last_loss'], rtol=1e-5, atol=0)
    loss.backward()
    check_gradients(parity, model)

    with torch.no_grad():
        _, outputs = run(parity, model, clip, last, memory=False)
    published = parity['last_output_without_memory']
    close(outputs[0], published.reshape(outputs[0].shape))


def compare_tokens(tokens, expected, det: bool) -> None:
    if det:
        # The class token is dropped from a detector's output; every 7th token of
        # [class token, patches] is then every 7th patch from the 7th on.
        tokens = torch.cat([expected[:, :1], tokens], dim=1)
    if tokens.shape != expected.shape:
        tokens = tokens[:, ::7]
    close(tokens, expected)


def check_gradients(parity: Parity, model) -> None:
    """Norms of the gradients, and that the compression has one, unlike published."""
    meta = parity.meta
    parameters = dict(model.named_parameters())
    checked = 0
    for name, norm in parity.prefixed('gradnorm/').items():
        ours = to_ours(name, meta['depth'], len(meta['down']))
        if ours.startswith('head.'):
            if meta.get('frame_level'):
                continue
            prefix = 'roi_head.bbox_head.' if meta.get('det') else 'cls_head.'
            ours = prefix + ours.replace('head.', 'fc_cls.')
        grad = parameters[ours].grad.norm()
        # The key bias shifts all scores alike: its gradient is rounding alone.
        torch.testing.assert_close(grad, norm, rtol=1e-3, atol=5e-6, msg=name)
        checked += 1
    assert checked > 100
    compress = [p for n, p in parameters.items() if 'compress' in n]
    assert compress and all(p.grad.norm() > 0 for p in compress)
