"""The published model's numbers, through the converter and models built from configs.

Each file is run as it is, and once more in batches of another size: what was computed
alone beside a stranger's stream, what was computed side by side alone.
"""

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from parity import FILES, Parity

from memvit_mm.models.checkpoints.checkpoint import convert_checkpoint


@pytest.fixture(params=FILES)
def parity(request) -> Parity:
    return Parity(request.param)


@pytest.fixture
def converted(parity, tmp_path):
    """The model of a file, its weights through the converter; and the report."""
    config = tmp_path / 'config.py'
    config.write_text(f"default_scope = 'mmaction'\nmodel = {parity.model_cfg()!r}\n")
    source, path = tmp_path / 'published.pyth', tmp_path / 'ours.pth'
    torch.save(parity.published(), source)
    report = convert_checkpoint(source, path, config)
    init_default_scope('mmaction')
    model = MODELS.build(Config.fromfile(config).model)
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    return model.eval(), report


def samples_of(parity: Parity, step: int, rows: list[int]) -> list[ActionDataSample]:
    """Samples of some rows; row -1 is a stranger, with a person of its own."""
    samples = []
    for row in rows:
        video = 'stranger' if row < 0 else str(parity.meta['videos'][step][row])
        sample = ActionDataSample()
        sample.set_metainfo(
            dict(
                video_id=video,
                timestamp=step,
                img_shape=tuple(parity.meta['input_hw']),
            )
        )
        if parity.meta.get('det'):
            boxes = torch.tensor([[3.0, 5.0, 30.0, 40.0]])
            if row >= 0:
                boxes = parity.boxes(step)[row]
            sample.proposals = InstanceData(bboxes=boxes)
        samples.append(sample)
    return samples


def tokens_of(features) -> torch.Tensor:
    """The backbone's output as tokens, class token first if there is one."""
    last = features[-1]
    patches, cls_token = last if isinstance(last, list) else (last, None)
    tokens = patches.flatten(2).transpose(1, 2)
    if cls_token is not None:
        tokens = torch.cat([cls_token[:, None], tokens], dim=1)
    return tokens


def run(parity: Parity, model, clips: torch.Tensor, step: int, rows: list[int]):
    """Tokens and outputs (a list, one per head) of some rows of one step."""
    weight = next(model.parameters())
    clips = clips.to(weight)
    samples = [s.to(weight.device) for s in samples_of(parity, step, rows)]
    if parity.meta.get('det'):
        features, scores = model(clips, samples, mode='tensor')
        return tokens_of(features), [scores[:, 1:].sigmoid()]
    features = model(clips[:, None], samples, mode='tensor')
    logits = model.cls_head(features)
    logits = logits if isinstance(logits, tuple) else [logits]
    return tokens_of(features), [part.softmax(-1) for part in logits]


def run_batch(parity: Parity, model, clip: torch.Tensor, step: int, batch: str):
    """Tokens and outputs of one step of a file, in batches of one kind or another."""
    rows = list(range(len(clip)))
    if batch == 'as published':
        return run(parity, model, clip, step, rows)
    if len(rows) == 1:
        # Beside a stranger, who comes first.
        noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(step))
        tokens, outputs = run(parity, model, torch.cat([noise, clip]), step, [-1, 0])
        return tokens[1:], [output[1:] for output in outputs]
    # Each alone.
    parts = [run(parity, model, clip[row : row + 1], step, [row]) for row in rows]
    tokens, outputs = zip(*parts)
    return torch.cat(tokens), [torch.cat(heads) for heads in zip(*outputs)]


def close(ours: torch.Tensor, published: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, published, atol=atol, rtol=0)


@pytest.mark.parametrize('batch', ['as published', 'of another size'])
def test_published_numbers_at_every_step(parity, converted, batch):
    model, report = converted
    last = parity.meta['steps'] - 1
    for step, clip in enumerate(parity.clips()):
        with torch.set_grad_enabled(step == last):
            tokens, outputs = run_batch(parity, model, clip, step, batch)
        det = parity.meta.get('det', False)
        compare_tokens(tokens, parity[f'tokens_{step}'], det)
        heads = len(outputs)
        for head, output in enumerate(outputs):
            key = f'output_{step}' + (f'_{head}' if heads > 1 else '')
            close(output, parity[key].reshape(output.shape))

    loss = sum(output.square().sum() for output in outputs)
    torch.testing.assert_close(loss, parity['last_loss'], rtol=1e-5, atol=0)
    loss.backward()
    check_gradients(parity, model, report)

    model.reset_memory()
    with torch.no_grad():
        _, outputs = run_batch(parity, model, clip, last, batch)
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


def check_gradients(parity: Parity, model, report) -> None:
    """Norms of all gradients, and that the compression has one, unlike published."""
    parameters = dict(model.named_parameters())
    ours_by_name = {source: ours for ours, source in report.used.items()}
    norms = parity.prefixed('gradnorm/')
    for name, norm in norms.items():
        grad = parameters[ours_by_name[name]].grad.norm()
        # The key bias shifts all scores alike: its gradient is rounding alone.
        torch.testing.assert_close(grad, norm, rtol=1e-3, atol=5e-6, msg=name)
    assert len(norms) > 100
    compress = [p for n, p in parameters.items() if 'compress' in n]
    assert compress and all(p.grad.norm() > 0 for p in compress)


def test_every_weight_is_used_or_explained(parity, converted):
    model, report = converted
    names = set(parity.prefixed('state/'))
    assert set(report.used.values()) | set(report.left_out) == names
    assert set(report.used) == set(model.state_dict()) and not report.initial
    memory = {name for name in names if 'compress' in name or 'rel_pos_mem' in name}
    assert set(report.left_out) == {n for n in memory if int(n.split('.')[1]) % 2}
    assert set(report.left_out.values()) == {
        'the model has no memory in this layer (the published model carries memory '
        'parameters in every layer and uses them in even ones only)'
    }
    kind = 'published MeMViT for AVA' if parity.meta.get('det') else 'classification'
    assert kind in str(report)
