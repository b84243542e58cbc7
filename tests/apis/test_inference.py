"""MMAction2's inference functions and inferencers, and ours, on real videos."""

import json
import time

import numpy as np
import pytest
import torch
from mmaction.apis import (
    ActionRecogInferencer,
    MMAction2Inferencer,
)
from mmaction.apis import inference_recognizer as mmaction_inference
from mmaction.apis import init_recognizer as mmaction_init
from mmaction.datasets.transforms import PackActionInputs
from mmengine.config import Config
from mmengine.dataset import Compose
from stream_data import (
    PREPROCESSOR,
    damage,
    epic_model,
    pictures,
    read_video,
    small_models,
    write_video,
)

from memvit_mm.apis import (
    MemViTInferencer,
    VideoFile,
    VideoStream,
    inference_recognizer,
    init_recognizer,
)
from memvit_mm.apis.whole_video import WholeVideoPipeline
from memvit_mm.models import Stream
from memvit_mm.paths import get_config_path

CONFIG = 'memvit_demo_epic_cls.py'
VERBS, NOUNS = ['take', 'put', 'cut', 'wash'], ['a', 'b', 'c', 'd', 'e', 'f']
FPS = 12


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    write_video(folder / 'a.mp4', pictures(FPS * 7))
    write_video(folder / 'b.mp4', pictures(FPS * 5, seed=1, size=(48, 80)))
    return folder


@pytest.fixture(scope='module')
def video(folder):
    return str(folder / 'a.mp4')


@pytest.fixture(scope='module')
def weights(folder):
    """A checkpoint, as a run of mmengine writes it."""
    torch.manual_seed(0)
    model = mmaction_init(get_config_path(CONFIG), device='cpu')
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    meta = dict(dataset_meta=dict(verb_classes=VERBS, noun_classes=NOUNS))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'weights.pth')
    return str(folder / 'weights.pth')


@pytest.fixture(scope='module')
def model(weights):
    return init_recognizer(CONFIG, weights, device='cpu')


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def streamed(model, video):
    """What a stream of the same video says, which the tests of streams vouch for."""
    return list(VideoStream(model).run(video))


def assert_as_streamed(result, streamed):
    assert result.clip_times.tolist() == [p.time for p in streamed]
    expected = np.stack([p.scores for p in streamed])
    np.testing.assert_allclose(result.clip_scores.numpy(), expected, atol=1e-5)


class TestMMAction2s:
    def test_inference_recognizer(self, elsewhere, weights, video, streamed):
        model = mmaction_init(get_config_path(CONFIG), weights, device='cpu')
        result = mmaction_inference(model, video)
        assert result.clip_times.tolist() == [2, 4, 6]
        assert_as_streamed(result, streamed)
        # The video's: the mean of its clips' probabilities.
        mean = result.clip_scores.mean(dim=0)
        torch.testing.assert_close(result.pred_score, mean)
        assert result.pred_label.tolist() == [mean[:4].argmax(), mean[4:].argmax()]
        torch.testing.assert_close(result.verb_logits.exp(), mean[:4])
        assert result.video_id == video

    def test_each_call_begins_with_an_empty_memory(self, model, video):
        first, second = (mmaction_inference(model, video) for _ in range(2))
        assert torch.equal(first.clip_scores, second.clip_scores)
        assert len(model.memory) == 0

    def test_memory_reaches_from_clip_to_clip(self, model, video, monkeypatch):
        remembered = mmaction_inference(model, video).clip_scores
        monkeypatch.setattr(model.memory, 'put', lambda *_: None)
        forgotten = mmaction_inference(model, video).clip_scores
        assert torch.equal(remembered[0], forgotten[0])
        assert (remembered[1:] - forgotten[1:]).abs().max() > 1e-4

    def test_memory_of_others_is_left_alone(self, model, video, streamed):
        model.memory.step([Stream('other')], [1]).commit()
        assert_as_streamed(mmaction_inference(model, video), streamed)
        assert model.memory.streams == [Stream('other')]
        model.reset_memory()

    def test_few_clips_ahead(self, model, tmp_path, monkeypatch):
        """However long a video is, few of its frames are held."""
        long = write_video(tmp_path / 'long.mp4', pictures(FPS * 30))
        read, told = [], []
        frames, predict = VideoFile.__iter__, model.predict

        def reading(self):
            for frame in frames(self):
                read.append(frame.time)
                yield frame

        def think(*args, **kwargs):
            time.sleep(0.05)
            told.append(len(read))
            return predict(*args, **kwargs)

        monkeypatch.setattr(VideoFile, '__iter__', reading)
        monkeypatch.setattr(model, 'predict', think)
        mmaction_inference(model, long)
        # Two clips wait, and one is with the thread that reads.
        assert len(told) == 15 and len(read) == FPS * 30
        for number, count in enumerate(told):
            assert count <= 2 * FPS * (number + 4) + 1

    def test_own_pipeline(self, model, video, streamed):
        # A Compose made by the user, and a sample of a data set.
        pipeline = WholeVideoPipeline(model.cfg.test_pipeline)
        assert_as_streamed(mmaction_inference(model, video, pipeline), streamed)
        sample = dict(filename=video, timestamp=2.0, video_id='v', label=[1, 2])
        packed = pipeline(dict(sample, narration_id=None, start_index=0))
        assert packed['inputs'].shape == (1, 3, 8, 48, 48)
        assert packed['data_samples'].gt_label.tolist() == [1, 2]

    def test_inferencers(self, elsewhere, weights, folder, video, streamed, tmp_path):
        videos = [video, str(folder / 'b.mp4')]
        whole = MMAction2Inferencer(
            rec=f'memvit_mm::{CONFIG}', rec_weights=weights, device='cpu'
        )
        out = tmp_path / 'out.json'
        both = whole(videos, batch_size=2, pred_out_file=str(out))['predictions']
        assert json.loads(out.read_text()) == dict(predictions=both)
        one = ActionRecogInferencer(get_config_path(CONFIG), weights, device='cpu')
        alone = [
            one(v, return_datasamples=True)['predictions'][0]  # each by itself
            for v in videos
        ]
        assert_as_streamed(alone[0], streamed)
        assert alone[1].clip_times.tolist() == [2, 4]
        for pair, single in zip(both, alone):
            np.testing.assert_allclose(
                pair['rec_scores'][0], single.pred_score.tolist(), atol=1e-5
            )
            assert pair['rec_labels'] == [single.pred_label.tolist()]

    def test_arrays_and_frames(self, weights, video, streamed, tmp_path):
        cfg = Config.fromfile(get_config_path(CONFIG))
        frames = np.stack(read_video(video))
        made = dict(weights=weights, device='cpu')
        array = ActionRecogInferencer(cfg, input_format='array', **made)
        array.pipeline.fps = FPS
        result = array(frames, return_datasamples=True)['predictions'][0]
        assert_as_streamed(result, streamed)

        import cv2

        for number, frame in enumerate(frames, 1):
            name = str(tmp_path / f'img_{number:05}.jpg')
            cv2.imwrite(name, frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        folder = ActionRecogInferencer(cfg, input_format='rawframes', **made)
        folder.pipeline.fps = FPS
        result = folder(str(tmp_path), return_datasamples=True)['predictions'][0]
        assert result.clip_times.tolist() == [2, 4, 6]
        expected = np.stack([p.scores for p in streamed])
        np.testing.assert_allclose(result.clip_scores, expected, atol=0.05)

    def test_plain_models_read_one_clip(self, video):
        pytest.importorskip('decord')  # MMAction2's own needs it
        cfg = Config.fromfile(get_config_path('memvit_16_k400.py'))
        cfg.model.backbone.update(
            arch=dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]),
            spatial_size=32,
            temporal_size=8,
        )
        cfg.model.cls_head.in_channels = 16
        for step in cfg.test_pipeline:
            if step['type'] == 'SampleFrames':
                step.update(clip_len=8, num_clips=2)
            if 'crop_size' in step:
                step['crop_size'] = 32
            if step['type'] == 'Resize':
                step['scale'] = (-1, 32)
        assert cfg.model.type == 'Recognizer3D'
        model = mmaction_init(cfg, device='cpu')
        result = mmaction_inference(model, video)
        assert result.pred_score.shape == (400,) and 'clip_scores' not in result
        # Ours does the same.
        again = inference_recognizer(model, video)
        assert torch.equal(again.pred_score, result.pred_score)

    def test_anticipation_answers_with_the_last_clip(self, video):
        model = init_recognizer('memvit_demo_epic_anticipation.py', device='cpu')
        result = mmaction_inference(model, video)
        assert torch.equal(result.pred_score, result.clip_scores[-1])
        model.test_cfg = dict(whole_video='mean')
        mean = mmaction_inference(model, video)
        torch.testing.assert_close(mean.pred_score, result.clip_scores.mean(dim=0))
        model.test_cfg = dict(whole_video='best')
        with pytest.raises(ValueError, match="whole_video='best', it takes 'mean'"):
            mmaction_inference(model, video)


class TestOurs:
    def test_inputs(self, model, video, streamed, tmp_path):
        assert_as_streamed(inference_recognizer(model, video), streamed)
        frames = np.stack(read_video(video))
        assert_as_streamed(inference_recognizer(model, frames, fps=FPS), streamed)
        sample = dict(array=frames, modality='RGB', fps=FPS)
        assert_as_streamed(inference_recognizer(model, sample), streamed)

    def test_pipelines(self, model, video, streamed):
        steps = model.cfg.test_pipeline
        for pipeline in (steps, Compose(steps)):
            result = inference_recognizer(model, video, pipeline)
            assert_as_streamed(result, streamed)

    def test_any_recognizer(self, video):
        # One without memory and without our reading of whole videos.
        with_memory = epic_model()
        cfg = with_memory.cfg
        result = inference_recognizer(with_memory, video)
        assert result.clip_times.tolist() == [1, 2, 3, 4, 5, 6, 7]
        model = dict(
            type='Recognizer3D',
            backbone=small_models.backbone_cfg(memory_layers=()),
            cls_head=dict(
                type='MViTHead', num_classes=5, in_channels=small_models.DIMS
            ),
            data_preprocessor=PREPROCESSOR,
        )
        plain = init_recognizer(Config(dict(cfg, model=model)), device='cpu')
        result = inference_recognizer(plain, video)
        assert result.clip_scores.shape == (7, 5)
        mean = result.clip_scores.mean(dim=0)
        assert torch.equal(result.pred_score, mean)
        assert result.pred_label.item() == mean.argmax()
        plain.cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
        with pytest.raises(
            AttributeError, match='it is a whole video, .* use inference'
        ):
            mmaction_inference(plain, video)

    @pytest.mark.parametrize(
        'name', [CONFIG, CONFIG[:-3], f'configs/{CONFIG}', f'memvit_mm::{CONFIG}']
    )
    def test_names_of_configs(self, elsewhere, name, weights):
        assert init_recognizer(name, weights, device='cpu').cfg.model.type

    def test_what_training_started_from_is_not_needed(self, weights):
        cfg = Config.fromfile(get_config_path(CONFIG))
        pretrained = dict(type='Pretrained', checkpoint='/not/there.pth')
        cfg.model.backbone.init_cfg = [*cfg.model.backbone.init_cfg, pretrained]
        model = init_recognizer(cfg, weights, device='cpu')
        assert len(cfg.model.backbone.init_cfg) == 3, 'the config is not changed'
        assert model.dataset_meta['verb_classes'] == VERBS

    def test_a_video_shorter_than_a_clip(self, model, tmp_path):
        short = write_video(tmp_path / 'short.mp4', pictures(4))
        result = inference_recognizer(model, short)
        assert result.clip_times.tolist() == [3 / FPS]

    def test_a_damaged_clip(self, model, tmp_path):
        pytest.importorskip('decord')  # OpenCV also loses the clip after the damage
        broken = tmp_path / 'broken.mp4'
        write_video(broken, pictures(FPS * 20))
        damage(broken)
        with pytest.raises(ValueError, match=r"second 8\.\d+ to 10.*on_bad_clip='sk"):
            inference_recognizer(model, broken)
        assert len(model.memory) == 0
        with pytest.warns(UserWarning, match='broken.mp4 has no frame .* clip at 10,'):
            result = inference_recognizer(model, broken, on_bad_clip='skip')
        assert result.clip_times.tolist() == [2, 4, 6, 8, 12, 14, 16, 18, 20]

    def test_no_clip_that_can_be_read(self, model, tmp_path):
        for number in range(1, FPS * 3):
            (tmp_path / f'img_{number:05}.jpg').write_text('no picture')
        with pytest.raises(ValueError, match=r'cannot be decoded .*img_00001.jpg'):
            inference_recognizer(model, tmp_path)
        with (
            pytest.warns(UserWarning, match='img_00002.jpg., and are left out'),
            pytest.raises(ValueError, match='has no clip that can be read'),
        ):
            inference_recognizer(model, tmp_path, on_bad_clip='skip')

    def test_a_damaged_frame(self, model, video, streamed, tmp_path):
        import cv2

        for number, frame in enumerate(read_video(video), 1):
            cv2.imwrite(str(tmp_path / f'img_{number:05}.png'), frame[..., ::-1])
        # That at second 4.
        (tmp_path / f'img_{FPS * 4 + 1:05}.png').write_text('no picture')
        folder = dict(frame_dir=str(tmp_path), filename_tmpl='img_{:05}.png', fps=FPS)
        with pytest.warns(UserWarning, match='Frames cannot be decoded'):
            result = inference_recognizer(model, folder, on_bad_clip='skip')
        assert result.clip_times.tolist() == [2, 6]


class TestInferencer:
    def test_names(self, elsewhere, weights, video, streamed, capsys):
        recognize = MemViTInferencer(f'configs/{CONFIG}', weights, device='cpu')
        results = recognize(video, print_result=True, progress=False)
        prediction = results['predictions'][0]
        json.dumps(results['predictions'])
        name, score = prediction['top_verbs'][0]
        assert VERBS.index(name) == prediction['pred_labels'][0]
        assert score == max(prediction['pred_scores'][:4])
        assert len(prediction['top_nouns']) == 5
        assert [clip['time'] for clip in prediction['clips']] == [2, 4, 6]
        for clip, expected in zip(prediction['clips'], streamed):
            assert clip['top_verbs'][0][0] == expected.top_verbs()[0][0]
        printed = capsys.readouterr().out.splitlines()
        assert printed[0].startswith(f'{video}: {name} {score:.2f}, ')
        assert [line.split(' s ')[0].strip() for line in printed[1:4]] == [
            '2.00',
            '4.00',
            '6.00',
        ]

    def test_the_papers_model(self, elsewhere, folder):
        """MeMViT-16 at its real size, as one would type it in a checkout."""
        rec = 'configs/memvit_epic_cls.py'
        torch.manual_seed(0)
        model = init_recognizer(rec, device='cpu')
        torch.save(dict(state_dict=model.state_dict()), folder / 'paper.pth')
        short = write_video(folder / 'short.mp4', pictures(FPS * 3))
        expected = inference_recognizer(model, short)
        recognize = MemViTInferencer(
            rec=rec, weights=str(folder / 'paper.pth'), device='cpu'
        )
        (prediction,) = recognize(short, progress=False)['predictions']
        assert len(prediction['clips']) == 1 and len(prediction['top_nouns']) == 5
        np.testing.assert_allclose(
            prediction['pred_scores'], expected.pred_score.numpy(), atol=1e-5
        )

    def test_names_from_files(self, weights, video, tmp_path):
        (tmp_path / 'verbs.txt').write_text('\n'.join('wxyz'))
        recognize = MemViTInferencer(
            CONFIG,
            weights,
            device='cpu',
            labels=dict(verbs=str(tmp_path / 'verbs.txt'), nouns=NOUNS),
            top_k=1,
        )
        prediction = recognize(video, progress=False)['predictions'][0]
        assert prediction['top_verbs'][0][0] in 'wxyz'
        assert len(prediction['clips'][0]['top_nouns']) == 1

    def test_without_names(self, video):
        recognize = MemViTInferencer(CONFIG, device='cpu')
        prediction = recognize(video, progress=False)['predictions'][0]
        assert prediction['top_verbs'][0][0].startswith('class ')


class TestErrors:
    def test_videos(self, model, tmp_path):
        for name in ('no.mp4', tmp_path / 'no.mp4'):
            with pytest.raises(
                FileNotFoundError, match=r'Video .*no.mp4 does not exist'
            ):
                inference_recognizer(model, name)
        with pytest.raises(FileNotFoundError, match='Video no.mp4 does not exist'):
            mmaction_inference(model, dict(filename='no.mp4'))
        with pytest.raises(FileNotFoundError, match='There is no folder of frames no'):
            mmaction_inference(model, dict(frame_dir='no'))
        with pytest.raises(
            ValueError, match=r'has no frames: expected .*img_00001.jpg'
        ):
            inference_recognizer(model, tmp_path)
        with pytest.raises(ValueError, match='no video in a dict of label'):
            inference_recognizer(model, dict(label=1))
        with pytest.raises(
            ValueError, match=r'\[frames, H, W, 3\] .* got an array \[3, 4\]'
        ):
            inference_recognizer(model, np.zeros((3, 4)))
        with pytest.raises(ValueError, match="^'3' is no video"):
            inference_recognizer(model, 3)
        with pytest.raises(ValueError, match=r"^'\[1\]' is no video"):
            inference_recognizer(model, [1])
        text = tmp_path / 'text.mp4'
        text.write_text('no video')
        with pytest.raises(ValueError, match='text.mp4 cannot be opened .* no video'):
            inference_recognizer(model, text)

    def test_options(self, model, video):
        with pytest.raises(ValueError, match='fps=0 must be frames per second'):
            inference_recognizer(model, video, fps=0)
        with pytest.raises(ValueError, match="on_bad_clip must be one of .* 'ask'"):
            inference_recognizer(model, video, on_bad_clip='ask')
        with pytest.raises(ValueError, match="input_format must be one of .* 'film'"):
            MemViTInferencer(CONFIG, device='cpu', input_format='film')

    def test_input_format(self, video):
        for input_format, given, named in (
            ('video', np.zeros((9, 8, 8, 3), np.uint8), 'ndarray'),
            ('array', video, 'str'),
        ):
            recognize = MemViTInferencer(
                CONFIG, device='cpu', input_format=input_format
            )
            with pytest.raises(ValueError, match=f'{input_format!r} and got a {named}'):
                recognize(given, progress=False)

    def test_configs(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='no config file nope.py. There is'):
            init_recognizer('nope.py')
        with pytest.raises(
            ValueError, match='a MemoryFastRCNN, not a recognizer: use init_d'
        ):
            init_recognizer('memvit_demo.py')
        with pytest.raises(
            FileNotFoundError, match='no config file /not/there/configs'
        ):
            init_recognizer(f'/not/there/configs/{CONFIG}')
        (tmp_path / 'bare.py').write_text('x = 1\n')
        with pytest.raises(ValueError, match="bare.py has no 'model'"):
            init_recognizer(tmp_path / 'bare.py')
        (tmp_path / 'odd.py').write_text("model = dict(type='BMN')\n")
        with pytest.raises(ValueError, match='odd.py is a BMN, not a recognizer.$'):
            init_recognizer(tmp_path / 'odd.py')

    def test_models_and_pipelines(self, model, video, monkeypatch):
        plain = torch.nn.Linear(1, 1)
        with pytest.raises(ValueError, match='The model has no cfg'):
            inference_recognizer(plain, video)
        monkeypatch.setattr(model, 'cfg', Config(dict(model=dict())))
        with pytest.raises(ValueError, match='has no test_pipeline and no test_data'):
            inference_recognizer(model, video)

    def test_checkpoints(self, weights, tmp_path):
        with pytest.raises(FileNotFoundError, match='no checkpoint file no.pth'):
            init_recognizer(CONFIG, 'no.pth', device='cpu')
        state = torch.load(weights, weights_only=True)['state_dict']
        less = {k: v for k, v in state.items() if 'fc_verb' not in k}
        less['cls_head.fc_noun.bias'] = torch.zeros(3)
        torch.save(less, tmp_path / 'less.pth')
        with pytest.raises(ValueError) as error:
            init_recognizer(CONFIG, str(tmp_path / 'less.pth'), device='cpu')
        for part in (
            'less.pth does not fit the model of ',
            '2 of its ',
            'the first is cls_head.fc_verb.weight',
            'cls_head.fc_noun.bias ([3], not [6])',
            'convert_checkpoint.py',
        ):
            assert part in str(error.value)

    def test_weights_that_are_not_used_are_told(self, weights, tmp_path):
        state = torch.load(weights, weights_only=True)['state_dict']
        torch.save({**state, 'extra': torch.zeros(1)}, tmp_path / 'more.pth')
        with pytest.warns(UserWarning, match='has 1 weights that .* first is extra'):
            init_recognizer(CONFIG, str(tmp_path / 'more.pth'), device='cpu')

    def test_meta_keys(self, model, video, streamed):
        """Whose clips they are is known without the pipeline's help."""
        steps = Compose(model.cfg.test_pipeline).transforms
        steps[-1] = PackActionInputs(meta_keys=('img_shape',))
        assert_as_streamed(inference_recognizer(model, video, Compose(steps)), streamed)
