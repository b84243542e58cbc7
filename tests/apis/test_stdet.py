"""inference_stdet: what each person in a video does, as tools/test.py says."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from stream_data import pictures, read_video, threads, write_video

from memvit_mm.apis import VideoStream, inference_stdet, init_detector_model, iter_stdet
from memvit_mm.datasets.ava.files import read_proposals
from memvit_mm.demo.ava import DemoSettings, action_list, make_demo_dataset
from memvit_mm.models import Stream
from memvit_mm.paths import get_config_path

CONFIG = 'memvit_demo.py'
SETTINGS = DemoSettings(num_train=1, num_val=1, seconds=17, size=96)
CLASSES = 15


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('demo')
    make_demo_dataset(folder, SETTINGS, workers=1)
    return folder


@pytest.fixture(scope='module')
def name() -> str:
    return SETTINGS.scenes('val')[0].video_id


@pytest.fixture(scope='module')
def video(demo, name) -> str:
    return str(next((demo / 'videos').glob(f'{name}.*')))


@pytest.fixture(scope='module')
def proposals(demo) -> str:
    return str(demo / 'annotations' / 'proposals_val.pkl')


@pytest.fixture(scope='module')
def weights(demo) -> str:
    torch.manual_seed(0)
    model = init_detector_model(CONFIG, device='cpu')
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    torch.save(dict(state_dict=model.state_dict()), demo / 'weights.pth')
    return str(demo / 'weights.pth')


@pytest.fixture(scope='module')
def config(demo) -> Config:
    """The demo's config for the data where they are."""
    cfg = Config.fromfile(get_config_path(CONFIG))
    text = cfg.dump().replace('data/memvit_demo/', f'{demo}/')
    return Config.fromstring(text, '.py')


@pytest.fixture(scope='module')
def model(config, weights):
    return init_detector_model(config, weights, device='cpu')


@pytest.fixture(scope='module')
def labels(demo) -> str:
    return str(demo / 'annotations' / 'action_list.pbtxt')


@pytest.fixture(scope='module')
def results(model, video, proposals) -> list:
    return inference_stdet(model, video, proposals)


@pytest.fixture(scope='module')
def boxes(results) -> dict:
    """The same people, in pixels by second."""
    return {r.time: np.column_stack([r.boxes, r.box_scores]) for r in results}


@pytest.fixture(scope='module')
def yolo():
    """A real person detector of mmdet, which knows nothing yet."""
    from mmdet.apis import init_detector
    from mmdet.utils import get_test_pipeline_cfg
    from mmengine.utils import get_installed_path

    path = Path(get_installed_path('mmdet'), '.mim', 'configs', 'yolox')
    cfg = Config.fromfile(path / 'yolox_tiny_8xb8-300e_coco.py')
    cfg.model.backbone.update(deepen_factor=0.33, widen_factor=0.125)
    cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    cfg.model.neck.num_csp_blocks = 1
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32)
    cfg.model.test_cfg = dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.1))
    for step in get_test_pipeline_cfg(cfg):
        if 'scale' in step:
            step.scale = (64, 64)
    cfg.test_dataloader.dataset.pipeline = get_test_pipeline_cfg(cfg)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match='checkpoint is None'):
        return init_detector(cfg, device='cpu')


def assert_same(found, expected, atol=1e-5):
    assert [r.time for r in found] == [r.time for r in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=atol)


class TestResults:
    def test_as_tools_test(self, config, weights, results, tmp_path):
        cfg = copy.deepcopy(config)
        # Excluded keyframes are no clips there; boxes have all.
        cfg.test_dataloader.dataset.exclude_file = None
        cfg.work_dir, cfg.load_from = str(tmp_path), weights
        cfg.test_evaluator = dict(
            type='DumpResults', out_file_path=str(tmp_path / 'out.pkl')
        )
        cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
        Runner.from_cfg(cfg).test()
        with open(tmp_path / 'out.pkl', 'rb') as file:
            tested = {s['timestamp'] - 900: s for s in pickle.load(file)}
        assert [r.time for r in results] == sorted(tested)
        assert len(results) > 10
        for result in results:
            people = tested[result.time]['pred_instances']
            assert len(result.boxes) > 0
            np.testing.assert_allclose(
                result.scores, people['scores'].numpy(), atol=1e-5
            )
            fractions = result.boxes / SETTINGS.size
            np.testing.assert_allclose(fractions, people['bboxes'].numpy(), atol=1e-5)

    def test_as_a_stream(self, model, video, name, proposals, results):
        times = [result.time for result in results]
        stream = VideoStream(model, boxes=proposals, clip_times=times, name=name)
        assert_same(list(stream.run(video)), results)

    def test_what_it_says(self, results, video):
        result = results[0]
        assert result.names[1:] == [
            line.split('"')[1] for line in action_list().splitlines() if '"' in line
        ]
        top = result.top(k=2)
        assert len(top) == len(result.boxes)
        assert top[0][0] == (
            result.names[result.scores[0].argmax()],
            pytest.approx(result.scores[0].max()),
        )
        assert result.stream == video
        assert result.start < result.time < result.end
        assert result.end - result.start == pytest.approx(7 / SETTINGS.fps)
        assert set(result.to_dict()) >= {'time', 'boxes', 'scores', 'box_scores'}

    def test_memory(self, model, video, proposals, results, monkeypatch):
        model.memory.step([Stream('other')], [1]).commit()
        assert_same(inference_stdet(model, video, proposals), results)
        assert model.memory.streams == [Stream('other')]
        model.reset_memory()
        monkeypatch.setattr(model.memory, 'put', lambda *_: None)
        without = inference_stdet(model, video, proposals)
        assert np.array_equal(without[0].scores, results[0].scores)
        assert abs(without[-1].scores - results[-1].scores).max() > 1e-4

    def test_as_they_come(self, model, video, proposals, results):
        keyframes = iter_stdet(model, video, proposals)
        assert len(model.memory) == 0
        first = next(keyframes)
        assert first.time == results[0].time
        assert len(model.memory) == 1 and threads()
        keyframes.close()
        assert len(model.memory) == 0 and not threads()


class TestPeople:
    def test_by_second(self, model, video, boxes, results):
        assert_same(inference_stdet(model, video, boxes), results)

    def test_tables(self, model, video, name, proposals, results):
        table = read_proposals(proposals)
        named = {f'{n},{second:04d}': b for (n, second), b in table.items()}
        assert_same(inference_stdet(model, video, named), results)
        other = {key.replace(name, 'other'): b for key, b in named.items()}
        assert_same(inference_stdet(model, video, other, video_id='other'), results)
        later = {f'{n},{second + 7}': b for (n, second), b in table.items()}
        again = inference_stdet(model, video, later, timestamp_start=907)
        assert_same(again, results)

    def test_threshold(self, model, video, proposals, results):
        more = inference_stdet(model, video, proposals, score_thr=0.0)
        assert sum(len(r.boxes) for r in more) > sum(len(r.boxes) for r in results)
        assert all((r.box_scores >= 0.9).all() for r in results)

    def test_nobody(self, model, video, boxes):
        times = sorted(boxes)[:3]
        some = {second: boxes[second] for second in times}
        some[times[1]] = np.zeros((0, 4))
        found = inference_stdet(model, video, some)
        assert found[1].boxes.shape == (0, 4)
        assert found[1].scores.shape == (0, CLASSES)
        assert found[1].top() == []
        assert len(found[2].boxes) > 0

    def test_a_function(self, model, video, boxes, results):
        asked = []

        def detect(frame, second):
            asked.append((frame.shape, second))
            return torch.as_tensor(boxes[second]) if second in boxes else []

        found = inference_stdet(model, video, det_model=detect)
        size = SETTINGS.size
        assert asked == [((size, size, 3), second) for second in range(1, 17)]
        assert [r.time for r in found] == list(range(1, 17))
        assert len(results[0].boxes) == len(found[int(results[0].time) - 1].boxes)

    def test_mmdet(self, model, video, yolo):
        from mmdet.apis import inference_detector
        from mmengine.registry import DefaultScope

        frame = read_video(video)[8 * SETTINGS.fps]
        with DefaultScope.overwrite_default_scope('mmdet'):
            said = inference_detector(yolo, np.ascontiguousarray(frame[..., ::-1]))
        said = said.pred_instances
        person = int(said.labels.mode().values)
        said = said[said.labels == person]
        found = inference_stdet(
            model, video, det_model=yolo, score_thr=0.0, stride=4, det_cat_id=person
        )
        assert [r.time for r in found] == [4, 8, 12, 16]
        assert all(len(r.boxes) for r in found)
        expected = said.bboxes.numpy().clip(0, SETTINGS.size)
        sound = (expected[:, 2:] > expected[:, :2]).all(axis=1)
        np.testing.assert_allclose(found[1].boxes, expected[sound], atol=1e-3)
        np.testing.assert_allclose(found[1].box_scores, said.scores[sound], atol=1e-5)
        # What they do is what is said of these boxes from elsewhere.
        boxes = {r.time: r.boxes for r in found}
        assert_same(inference_stdet(model, video, boxes), found)
        # Of what is no person, or not sure enough, nothing is said.
        settings = dict(det_model=yolo, stride=8)
        for sieve in (dict(det_cat_id=80), dict(score_thr=1.1)):
            nobody = inference_stdet(model, video, **settings, **sieve)
            assert [len(r.boxes) for r in nobody] == [0, 0]


class TestVideos:
    def test_arrays_and_frames(self, model, video, boxes, results, tmp_path):
        import cv2

        frames = np.stack(read_video(video))
        fps = SETTINGS.fps
        assert_same(inference_stdet(model, frames, boxes, fps=fps), results)
        for number, frame in enumerate(frames, 1):
            name = str(tmp_path / f'img_{number:05}.png')
            cv2.imwrite(name, frame[..., ::-1])
        sample = dict(frame_dir=str(tmp_path), filename_tmpl='img_{:05}.png', fps=fps)
        found = inference_stdet(model, sample, boxes)
        assert_same(found, results)
        assert found[0].start == pytest.approx(results[0].start)

    def test_damaged(self, model, video, boxes, tmp_path):
        data = bytearray(Path(video).read_bytes())
        middle = len(data) // 2
        data[middle - 6000 : middle + 6000] = bytes(12000)
        (tmp_path / 'broken.mp4').write_bytes(data)
        broken = tmp_path / 'broken.mp4'
        with pytest.raises(ValueError, match=r'broken.mp4 is damaged: .* from second'):
            inference_stdet(model, broken, boxes)
        with pytest.warns(UserWarning, match='broken.mp4 has no frame .* is left out'):
            found = inference_stdet(model, broken, boxes, on_bad_clip='skip')
        assert 1 < len(found) < len(boxes)


class TestModels:
    def test_another_directory(self, weights, tmp_path, monkeypatch, video, boxes):
        monkeypatch.chdir(tmp_path)
        model = init_detector_model(f'configs/{CONFIG}', weights, device='cpu')
        with pytest.warns(UserWarning, match='Names of the 15 classes are not known'):
            found = inference_stdet(model, video, boxes)
        assert found[0].names == [f'class {number}' for number in range(CLASSES)]

    def test_labels(self, model, video, boxes, labels):
        one = {second: boxes[second] for second in list(boxes)[:1]}
        for given in (labels, {1: 'a', 2: 'b'}, list('abc')):
            names = inference_stdet(model, video, one, labels=given)[0].names
            assert len(names) == CLASSES
        with pytest.raises(FileNotFoundError, match='no.pbtxt does not exist'):
            inference_stdet(model, video, one, labels='no.pbtxt')
        with pytest.raises(ValueError, match='20 names for 15 classes'):
            inference_stdet(model, video, one, labels=['x'] * 20)

    def test_custom_classes(self, config, video, boxes):
        cfg = copy.deepcopy(config)
        cfg.test_dataloader.dataset.custom_classes = [3, 5]
        cfg.model.roi_head.bbox_head.update(num_classes=3, topk=(1,))
        model = init_detector_model(cfg, device='cpu')
        one = {second: boxes[second] for second in list(boxes)[:1]}
        names = inference_stdet(model, video, one)[0].names
        everything = [
            line.split('"')[1] for line in action_list().splitlines() if '"' in line
        ]
        assert names == ['class 0', everything[2], everything[4]]

    def test_mmaction2s_own(self, config, video, boxes):
        """A detector without memory, with the sampler that reads frames late."""
        cfg = copy.deepcopy(config)
        cfg.model.update(type='FastRCNN', _scope_='mmdet')
        cfg.model.pop('memory', None)
        cfg.model.backbone.memory_layers = ()
        cfg.model.roi_head.type = 'AVARoIHead'
        cfg.model.roi_head.pop('shared_head')
        steps = cfg.test_dataloader.dataset.pipeline
        steps[1].type = 'SampleAVAFrames'
        model = init_detector_model(cfg, device='cpu')
        times = sorted(boxes)[:2]
        some = {times[0]: boxes[times[0]], times[1]: []}
        found = inference_stdet(model, video, some)
        assert found[0].scores.shape == (len(boxes[times[0]]), CLASSES)
        assert found[1].scores.shape == (0, CLASSES)


class TestErrors:
    @pytest.mark.parametrize(
        ('boxes', 'message'),
        [
            (None, 'give boxes .* or det_model .*, got neither'),
            ([[1, 2, 3, 4]], 'boxes is a list: it takes a dict from seconds'),
            ({}, 'boxes is empty'),
            (
                {1.0: [[1, 2, 3]]},
                r'boxes returned \[1, 3\] at 1 seconds, expected \[people, 4\]',
            ),
            ({1.0: [1, 2, 3, 4]}, r'boxes returned \[4\] at 1 seconds'),
            ({1.0: 'x'}, 'boxes are str that are no numbers'),
            ({-1: [[1, 2, 3, 4]]}, 'boxes has the key -1, expected seconds from 0 on'),
            ({None: [[1, 2, 3, 4]]}, 'boxes has the key None'),
            ({1: [[0.1, 0.2, 0.3, 0.4]]}, 'boxes returned fractions of the frame at 1'),
            ({1: [[1, 2, float('nan'), 4]]}, 'boxes returned nan or infinity at 1'),
            (
                {1: [[50, 20, 30, 40]]},
                r'boxes has \[50.0, 20.0, .* which is empty',
            ),
            ({'a;7': [[0, 0, 1, 1]]}, "boxes has the key 'a;7', expected 'video,sec"),
            (
                {'a,0902': [[0, 0, 1, 1]]},
                "no boxes for '.*'; they have a: set video_id",
            ),
            ({40: [[1, 2, 30, 40]]}, '17.00 seconds long, but boxes has a keyframe at'),
            ('no.pkl', 'no.pkl'),
            ({}, 'boxes is empty: give the boxes of one keyframe or more'),
        ],
    )
    def test_boxes(self, model, video, boxes, message):
        # At once, before the video is read.
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            iter_stdet(model, video, boxes)

    def test_proposals_before_the_video(self, model, video, name):
        early = {f'{name},0003': [[0, 0, 1, 1]]}
        with pytest.raises(ValueError, match='second 3, before the video does'):
            inference_stdet(model, video, early)

    def test_detectors(self, model, video, boxes):
        with pytest.raises(ValueError, match='det_model .*, got both'):
            inference_stdet(model, video, boxes, det_model=len)
        with pytest.raises(ValueError, match='det_model is a str: it takes what'):
            inference_stdet(model, video, det_model='yolo')
        with pytest.raises(ValueError, match='det_model is a Linear without a config'):
            inference_stdet(model, video, det_model=torch.nn.Linear(1, 1))
        with pytest.raises(ValueError, match=r'boxes returned \[1, 3\] at 1 seconds'):
            inference_stdet(model, video, det_model=lambda *_: [[1, 2, 3]])

    def test_videos(self, model, boxes, tmp_path):
        with pytest.raises(FileNotFoundError, match='Video no.mp4 does not exist'):
            inference_stdet(model, 'no.mp4', boxes)
        short = write_video(tmp_path / 'short.mp4', pictures(5))
        with pytest.raises(
            ValueError, match='short.mp4 has 5 frames, fewer than the 8'
        ):
            inference_stdet(model, short, {0.2: [[1, 2, 30, 40]]})
        with pytest.raises(
            ValueError, match='short.mp4 ended .* before its first clip, which is'
        ):
            inference_stdet(model, short, det_model=lambda *_: [])

    def test_models(self, model, video, boxes, monkeypatch):
        with pytest.raises(ValueError, match='Linear is no action detector'):
            inference_stdet(torch.nn.Linear(1, 1), video, boxes)
        with pytest.raises(
            ValueError, match='not an action detector: use init_recognizer'
        ):
            init_detector_model('memvit_demo_epic_cls.py')
        with pytest.raises(FileNotFoundError, match='no config file nope.py'):
            init_detector_model('nope.py')
        cfg = copy.deepcopy(model.cfg)
        cfg.test_dataloader.dataset.pipeline = [dict(type='VideoInit')]
        with monkeypatch.context() as patch:
            patch.setattr(model, 'cfg', cfg)
            with pytest.raises(ValueError, match='test pipeline .* has none of'):
                inference_stdet(model, video, boxes)
            patch.setattr(model, 'cfg', None)
            with pytest.raises(ValueError, match='The model has no config'):
                inference_stdet(model, video, boxes)

    def test_a_checkpoint_of_another_model(self, weights):
        with pytest.raises(ValueError, match='weights.pth does not fit the model of'):
            init_detector_model('memvit_ava.py', weights, device='cpu')
        # The baseline without memory has all that it needs, and more.
        with pytest.warns(UserWarning, match='weights that the model .* does not use'):
            init_detector_model('memvit_demo_no_memory.py', weights, device='cpu')
