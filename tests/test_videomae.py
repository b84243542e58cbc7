"""MMAction2's checkpoints of VideoMAE, converted or not: predictions stay."""

import re
from pathlib import Path

import pytest
import torch
from mmaction.apis import init_recognizer as mmaction_init
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.structures import InstanceData

import memvit_mm  # noqa: F401
from memvit_mm.apis import init_detector_model, init_recognizer
from memvit_mm.models.checkpoints.checkpoint import convert_checkpoint, load_weights
from memvit_mm.models.checkpoints.key_map import BLOCK, Kind, recognize
from memvit_mm.models.checkpoints.memory_weights import GATE, MEMORY
from memvit_mm.paths import get_config_path

ZOO = dict(
    detector='detection/videomae/'
    'vit-base-p16_videomae-k400-pre_8xb8-16x4x1-20e-adamw_ava-kinetics-rgb.py',
    recognizer='recognition/videomae/'
    'vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400.py',
)
DIMS, SIZE = 32, (48, 32)
LEVELS = [dict(type='kmeans', ages=(1, 2), tokens=4)]


def small(cfg: Config) -> Config:
    """Make the backbone of a config small, and its head to fit."""
    cfg.model.backbone.update(img_size=32, embed_dims=DIMS, depth=4, num_heads=2)
    if 'memory_levels' in cfg.model.backbone:
        cfg.model.backbone.memory_levels = LEVELS
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.in_channels = DIMS
    else:
        cfg.model.cls_head.in_channels = DIMS
    cfg.model.pop('init_cfg', None)
    return cfg


def ours(name: str) -> Config:
    return small(Config.fromfile(get_config_path(f'{name}.py')))


def with_memory() -> Config:
    """MMAction2's config for Kinetics, its classes replaced by ours."""
    cfg = small(get_config(f'mmaction::{ZOO["recognizer"]}'))
    cfg.custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)
    cfg.model.type = 'MemoryRecognizer3D'
    cfg.model.backbone.update(type='MemoryViT', memory_levels=LEVELS)
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    init_default_scope('mmaction')
    return MODELS.build(cfg.model).eval()


@pytest.fixture(scope='module')
def zoo(tmp_path_factory) -> dict:
    """Small models of MMAction2's configs, and their checkpoints as mmengine writes
    them: by kind, (model, file)."""
    folder, made = tmp_path_factory.mktemp('zoo'), {}
    for kind, name in ZOO.items():
        torch.manual_seed(0)
        model = build(small(get_config(f'mmaction::{name}')))
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        path = str(folder / f'{kind}.pth')
        hub = MessageHub.get_instance(f'zoo_{kind}')
        hub.update_scalar('train/lr', 0.1)
        content = dict(
            meta=dict(epoch=20, iter=10, cfg='model = dict()', mmengine_version='0.7'),
            state_dict=model.state_dict(),
            message_hub=hub.state_dict(),
            param_schedulers=[],
        )
        save_checkpoint(content, path)
        made[kind] = model, path
    return made


def clips(count: int = 4) -> list:
    """Inputs [3, T, H, W] and samples of a stream, with people and labels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for time in range(count):
        sample = ActionDataSample()
        boxes = torch.tensor([[2.0, 2.0, 20.0, 30.0], [8.0, 4.0, 30.0, 44.0]])
        sample.proposals = InstanceData(bboxes=boxes)
        sample.set_metainfo(dict(video_id='a', timestamp=time, img_shape=SIZE))
        found.append((torch.randn(3, 16, *SIZE, generator=generator), sample))
    return found


def predictions(model: torch.nn.Module) -> list:
    """What a model tells of the clips of a stream, one after the other."""
    if hasattr(model, 'memory'):
        model.reset_memory()
    found = []
    for clip, sample in clips():
        detects = hasattr(model, 'roi_head')
        inputs = clip[None] if detects else clip[None, None]
        with torch.no_grad():
            (result,) = model(inputs, [sample.clone()], mode='predict')
        instances = result.pred_instances if detects else None
        found += (
            [instances.bboxes, instances.scores] if detects else [result.pred_score]
        )
    return found


def assert_same_predictions(model: torch.nn.Module, reference: torch.nn.Module) -> None:
    assert model.backbone.memory_layers == (0, 2)
    for found, wanted in zip(predictions(model), predictions(reference)):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    # There was something to read.
    last = predictions(model)[-1]
    for layer in model.backbone.memory_layers:
        model.backbone.blocks[layer].attn.gate.data.fill_(1.0)
    assert (predictions(model)[-1] - last).abs().max() > 1e-4


@pytest.mark.parametrize('converted', [True, False])
@pytest.mark.parametrize('kind', list(ZOO))
def test_predictions_stay(kind, converted, zoo, tmp_path):
    """With memory full: by load_from, and by our loaders."""
    reference, path = zoo[kind]
    cfg = ours('videomae_memory_ava') if kind == 'detector' else with_memory()
    if converted:
        source, path = path, str(tmp_path / 'converted.pth')
        report = convert_checkpoint(source, path, cfg)
        assert report.kind is Kind.VIDEOMAE
        assert not report.left_out and not report.changed
    model = build(cfg)
    load_checkpoint(model, path, map_location='cpu')
    assert_same_predictions(model, reference)
    init = init_detector_model if kind == 'detector' else init_recognizer
    with pytest.warns(UserWarning, match='has been trained without memory: the 4 we'):
        model = init(cfg, path, device='cpu')
    assert_same_predictions(model, reference)


def test_mmaction2s_own_loader_and_init_cfg(zoo):
    reference, path = zoo['recognizer']
    assert_same_predictions(mmaction_init(with_memory(), path, 'cpu'), reference)
    cfg = with_memory()
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=path, prefix='backbone.'
    )
    model = build(cfg)
    model.init_weights()
    model.cls_head.load_state_dict(reference.cls_head.state_dict())
    assert_same_predictions(model, reference)
    cfg = ours('videomae_memory_ava')
    reference, path = zoo['detector']
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=path)
    model = build(cfg)
    model.init_weights()
    assert_same_predictions(model, reference)


def test_positions_that_are_computed_need_not_be_there(zoo, tmp_path):
    """Its authors' checkpoints, and so perhaps what was made of them, have none."""
    reference, path = zoo['detector'][0], tmp_path / 'source.pth'
    state = dict(reference.state_dict())
    del state['backbone.pos_embed']
    torch.save(dict(state_dict=state), path)
    cfg = ours('videomae_memory_ava')
    report = convert_checkpoint(path, tmp_path / 'dst.pth', cfg)
    reason = report.initial['backbone.pos_embed']
    assert reason == 'sines and cosines, computed from the config'
    for file in ('source', 'dst'):
        with pytest.warns(UserWarning, match='without memory'):
            model = init_detector_model(cfg, tmp_path / f'{file}.pth', device='cpu')
        assert_same_predictions(model, reference)
    # Learned ones are missing.
    cfg.model.backbone.use_learnable_pos_emb = True
    with pytest.raises(ValueError, match='1 weights .*backbone.pos_embed .of the mode'):
        convert_checkpoint(path, tmp_path / 'learned.pth', cfg)
    with pytest.raises(ValueError, match='missing, the first is backbone.pos_embed'):
        init_detector_model(cfg, path, device='cpu')


def test_the_report_says_what_is_new(zoo, tmp_path):
    path = zoo['detector'][1]
    cfg = ours('videomae_memory_ava')
    cfg.model.backbone.memory_levels = [
        *LEVELS,
        dict(type='pool', ages=(3,), tokens=2),
    ]
    report = convert_checkpoint(path, tmp_path / 'a.pth', cfg)
    text = str(report)
    assert "Recognized: MMAction2's VideoMAE (VisionTransformer)." in text
    assert 'initial value in the model, 2: starts at 0: memory changes no pred' in text
    assert 'backbone.blocks.{0,2}.attn.gate' in text
    assert 'backbone.blocks.{0,2}.attn.rel_pos_age0' in text
    assert 'backbone.blocks.{0,2}.attn.compress1_query' in text
    assert not report.left_out
    # Without a config nothing is new.
    report = convert_checkpoint(path, tmp_path / 'b.pth')
    assert 'Not checked against a model' in str(report) and not report.initial
    assert len(report.used) == len(zoo['detector'][0].state_dict())


def test_kinetics_weights_for_a_detector_and_back(zoo, tmp_path):
    state = zoo['recognizer'][0].state_dict()
    cfg, dst = ours('videomae_memory_ava'), tmp_path / 'dst.pth'
    report = convert_checkpoint(zoo['recognizer'][1], dst, cfg)
    norms = {f'backbone.fc_norm.{part}' for part in ('weight', 'bias')}
    head = {f'cls_head.fc_cls.{part}' for part in ('weight', 'bias')}
    assert set(report.left_out) == norms | head
    text = str(report)
    assert 'the model differs in use_mean_pooling' in text
    assert 'the checkpoint differs in use_mean_pooling' in text
    assert 'the checkpoint has no classifier of these classes' in text
    model = build(cfg)
    load_checkpoint(model, str(dst), map_location='cpu')
    assert model.backbone.blocks[1].attn.q_bias.equal(
        state['backbone.blocks.1.attn.q_bias']
    )
    # EPIC-KITCHENS' has the norm, and another classifier.
    report = convert_checkpoint(
        zoo['recognizer'][1], tmp_path / 'epic.pth', ours('videomae_memory_epic_cls')
    )
    assert set(report.left_out) == head
    assert norms <= set(report.used)
    report = convert_checkpoint(zoo['detector'][1], tmp_path / 'b.pth', with_memory())
    assert 'backbone.norm.weight' in report.left_out


def test_a_checkpoint_without_any_norm_is_incomplete(zoo, tmp_path):
    state = dict(zoo['detector'][0].state_dict())
    del state['backbone.norm.weight']
    torch.save(dict(state_dict=state), tmp_path / 'src.pth')
    with pytest.raises(
        ValueError, match='1 weights .* namely backbone.norm.weight .of the m'
    ):
        cfg = ours('videomae_memory_ava')
        convert_checkpoint(tmp_path / 'src.pth', tmp_path / 'dst.pth', cfg)


def test_our_own_checkpoints(zoo, tmp_path):
    model = build(ours('videomae_memory_ava'))
    assert recognize(model.state_dict()) is Kind.OURS
    path = tmp_path / 'ours.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    report = convert_checkpoint(path, tmp_path / 'a.pth', ours('videomae_memory_ava'))
    assert not report.left_out and not report.initial
    cfg = ours('videomae_memory_ava')
    cfg.model.backbone.reading = 'joint'
    assert recognize(build(cfg).state_dict()) is Kind.OURS
    # Without memory it is MMAction2's.
    cfg.model.backbone.memory_layers = ()
    assert recognize(build(cfg).state_dict()) is Kind.VIDEOMAE
    report = convert_checkpoint(path, tmp_path / 'b.pth', cfg)
    assert len(report.left_out) == 2 * 2
    assert all('the model has no memory' in why for why in report.left_out.values())


def saved(cfg: Config, folder: Path, without: str = 'nothing') -> tuple[Path, dict]:
    """A checkpoint of a config's model, of which weights may be missing."""
    path, model = folder / 'src.pth', build(cfg)
    state = {n: v for n, v in model.state_dict().items() if not re.search(without, n)}
    torch.save(dict(state_dict=state), path)
    return path, state


def variant(**backbone) -> Config:
    cfg = ours('videomae_memory_ava')
    cfg.model.backbone.update(backbone)
    return cfg


def refused(path: Path, cfg: Config, sentence: str) -> None:
    """By the loaders and by the converter."""
    with pytest.raises(ValueError, match=sentence):
        init_detector_model(cfg, path, device='cpu')
    dst = path.with_name('dst.pth')
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(path, dst, cfg)
    assert not dst.exists()


@pytest.mark.parametrize('pair', [('gated', 'joint'), ('joint', 'gated')])
def test_another_reading_is_refused(pair, tmp_path):
    trained, wanted = pair
    path = saved(variant(reading=trained), tmp_path)[0]
    sentence = (
        f"its memory was trained with reading='{trained}', and the model reads with "
        f"'{wanted}': set model.backbone.reading='{trained}'"
    )
    refused(path, variant(reading=wanted), sentence)
    refused(path, variant(reading=wanted, memory_layers=(1, 3)), sentence)


@pytest.mark.parametrize('missing', ['gate', 'rel_pos_age0'])
def test_half_a_memory_is_refused(missing, tmp_path):
    path = saved(variant(), tmp_path, rf'blocks\.2\.attn\.{missing}')[0]
    sentence = f'is damaged: memory without attn.{missing} in layer 2, which others ha'
    refused(path, variant(), sentence)
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(path, path.with_name('dst.pth'))
    pooled = variant(memory_levels=[dict(type='pool', ages=(1, 2), tokens=2)])
    path = saved(pooled, tmp_path, r'blocks\.2\.attn\.(gate|rel_pos_age0)')[0]
    with pytest.raises(ValueError, match='2 of its .* missing, .*; take the config'):
        init_detector_model(pooled, path, device='cpu')
    with pytest.raises(ValueError, match='2 weights .*attn.rel_pos_age0 .of the model'):
        convert_checkpoint(path, path.with_name('dst.pth'), pooled)


def test_memory_in_more_layers(tmp_path):
    path, state = saved(variant(), tmp_path)
    for layers, where in (
        ((0, 1, 2, 3), 'layers 1, 3: the 4 .* is read in them'),
        ((0, 2, 3), 'layer 3: the 2 .* is read in it'),
        ((1, 3), 'layers 1, 3: the 4'),
    ):
        cfg = variant(memory_layers=layers)
        with pytest.warns(UserWarning, match=f'trained without memory in {where}'):
            model = init_detector_model(cfg, path, device='cpu')
        for name, value in model.state_dict().items():
            assert name not in state or value.equal(state[name])
        report = convert_checkpoint(path, tmp_path / 'dst.pth', cfg, overwrite=True)
        assert any('blocks.3.attn.gate' in name for name in report.initial)
    joint = variant(reading='joint')
    path = saved(joint, tmp_path)[0]
    joint.model.backbone.memory_layers = (0, 1, 2)
    with pytest.raises(ValueError, match=r'1 of its .*: train it first .load_from.\.$'):
        init_detector_model(joint, path, device='cpu')


KMEANS = [dict(type='kmeans', ages=(age,), tokens=4) for age in (1, 2)]
POOL = [dict(type='pool', ages=(1,), stride=(4, 1, 1)), dict(KMEANS[1], type='pool')]


def test_from_kmeans_to_learned_compression_and_back(tmp_path):
    path = saved(variant(memory_levels=KMEANS), tmp_path)[0]
    pooled, dst = variant(memory_levels=POOL), tmp_path / 'dst.pth'
    report = convert_checkpoint(path, dst, pooled)
    reason = "the checkpoint's memory has no learned compression; training teaches it"
    assert set(report.initial.values()) == {reason} and not report.left_out
    # Of each layer, convolutions or a query, and norms.
    assert len(report.initial) == 2 * (6 + 5)
    with pytest.raises(ValueError, match='22 of its .*: train it first .load_from.'):
        init_detector_model(pooled, dst, device='cpu')
    path = saved(pooled, tmp_path)[0]
    dst.unlink()
    report = convert_checkpoint(path, dst, variant(memory_levels=KMEANS))
    reason = "the model's level of memory keeps clips without parameters"
    assert set(report.left_out.values()) == {reason} and not report.initial
    init_detector_model(variant(memory_levels=KMEANS), dst, device='cpu')


@pytest.mark.parametrize('trained', ['MMAction2', 'ours'])
def test_a_backbone_alone(trained, zoo, tmp_path):
    model = zoo['detector'][0]
    if trained == 'ours':
        model = build(ours('videomae_memory_ava'))
    path, dst = tmp_path / 'src.pth', tmp_path / 'dst.pth'
    torch.save(model.backbone.state_dict(), path)
    report = convert_checkpoint(path, dst, ours('videomae_memory_ava'))
    assert report.kind is (Kind.OURS if trained == 'ours' else Kind.VIDEOMAE)
    head = {name for name in model.state_dict() if not name.startswith('backbone.')}
    assert head == {name for name in report.initial if 'roi_head' in name}
    state = torch.load(dst, weights_only=True)['state_dict']
    assert all(value.equal(model.state_dict()[name]) for name, value in state.items())
    with pytest.raises(ValueError, match='2 of its .*first is roi_head.bbox_head.fc_c'):
        init_detector_model(ours('videomae_memory_ava'), path, device='cpu')


def test_weights_that_would_change_predictions_are_asked_for(zoo):
    cfg = ours('videomae_memory_ava')
    cfg.model.backbone.reading = 'joint'
    with pytest.raises(
        ValueError,
        match="2 of its .* the first is .*rel_pos_age0; .*backbone.reading='gated'",
    ):
        init_detector_model(cfg, zoo['detector'][1], device='cpu')
    # And a classifier always.
    with pytest.raises(
        ValueError, match='first is backbone.norm.weight; take the conf'
    ):
        init_detector_model(
            ours('videomae_memory_ava'), zoo['recognizer'][1], device='cpu'
        )


def test_what_belongs_elsewhere_is_refused(zoo, tmp_path):
    small_mvit = Config.fromfile(get_config_path('memvit_demo.py'))
    dst = tmp_path / 'dst.pth'
    with pytest.raises(ValueError, match='of MemoryViT .*such as videomae_memory_ava'):
        convert_checkpoint(zoo['detector'][1], dst, small_mvit)
    path = tmp_path / 'memvit.pth'
    torch.save(dict(state_dict=build(small_mvit).state_dict()), path)
    with pytest.raises(ValueError, match='of MeMViT or MViT, .*such as memvit_ava.py'):
        convert_checkpoint(path, dst, ours('videomae_memory_ava'))
    cfg = ours('videomae_memory_ava')
    cfg.model.backbone.depth = 6
    with pytest.raises(
        ValueError, match='4 layers .* 6 .*backbone.depth and embed_dim'
    ):
        convert_checkpoint(zoo['detector'][1], dst, cfg)
    vit = zoo['detector'][0].backbone.state_dict()
    for key, form, message in (
        (
            'model',
            {f'encoder.{n}': v for n, v in vit.items()}
            | {'mask_token': vit['pos_embed']},
            'of VideoMAE from pre-training, its encoder and decoder: take one',
        ),
        (
            'module',
            {
                n.replace('projection', 'proj').replace('layers.0.0', 'fc1'): v
                for n, v in vit.items()
            },
            "checkpoint of VideoMAE in its authors' form: take one of MMAction2's mo",
        ),
    ):
        torch.save({key: form}, path)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, dst, ours('videomae_memory_ava'))
    assert not dst.exists()


def test_every_name_of_our_blocks_is_in_the_tables():
    cfg = ours('videomae_memory_ava')
    cfg.model.backbone.update(init_values=0.1)
    for name in build(cfg).backbone.state_dict():
        match = re.fullmatch(r'blocks\.\d+\.(.*)', name)
        known = f'{BLOCK}|{MEMORY}'
        assert (
            match is None
            or re.fullmatch(known, match[1])
            or re.fullmatch(GATE, f'backbone.{name}')
        )


def test_what_lacks_a_classifier_alone_is_to_be_trained():
    model = build(with_memory())
    weights = {n: w for n, w in model.state_dict().items() if 'fc_cls' not in n}
    sentence = (
        'has no classifier of these classes: train one first, with load_from=x.pth'
    )
    with pytest.raises(ValueError, match=sentence):
        load_weights(model, weights, 'x.pth', 'x.py', 'take another config')
