"""PersonDetector: a real detector of mmdet, on real frames."""

import copy
import socket

import numpy as np
import person_data
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from person_data import HEIGHT, WIDTH, places, street
from stream_data import FPS, ava_model, read_video

from memvit_mm.apis import MultiStream, PersonDetector, VideoStream, inference_stdet
from memvit_mm.apis.people.load_detector import (
    build_detector,
    find_person,
    frame_pipeline,
    load_detector_config,
)

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')

REGISTRY = """
from mmengine.registry import DATASETS as D, MODELS as M, TRANSFORMS as T, Registry

where = dict(scope='madedet', locations=['madedet.parts'])
DATASETS = Registry('dataset', parent=D, **where)
MODELS = Registry('model', parent=M, **where)
TRANSFORMS = Registry('transform', parent=T, **where)
"""
PARTS = """
from mmdet.datasets import CocoDataset
from mmdet.models import FCOS

from .registry import DATASETS, MODELS, TRANSFORMS


@DATASETS.register_module()
class MadeDataset(CocoDataset):
    METAINFO = dict(classes=('pedestrian', 'cyclist'))


@MODELS.register_module()
class MadeDetector(FCOS):
    pass


@TRANSFORMS.register_module()
class MadeStep:
    def __call__(self, results):
        results['img'] = results['img'][::-1].copy()
        return results
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('persons')


@pytest.fixture(scope='module')
def files(folder):
    return person_data.write_detector(folder)


@pytest.fixture(scope='module')
def detector(files):
    return PersonDetector(*files, device='cpu')


@pytest.fixture(scope='module')
def video(folder):
    return person_data.write_street(folder / 'street.mp4')


@pytest.fixture(scope='module')
def frames(video):
    return read_video(video)


@pytest.fixture(scope='module')
def model():
    return ava_model()


@pytest.fixture(scope='module')
def found(model, detector, video):
    """What a stream says who does what, by second."""
    return list(VideoStream(model, boxes=detector).run(video))


class TestBoxes:
    def test_people_are_where_they_are(self, detector):
        assert detector.person == 0
        for number, frame in enumerate(street(3)[::FPS]):
            found = detector(frame)
            assert found.shape == (2, 5) and found.dtype == np.float32
            assert (found[:, 4] > 0.5).all() and found[0, 4] >= found[1, 4]
            found = found[np.argsort(found[:, 1])]
            for box, (left, top) in zip(found, places(number)):
                center = (box[:2] + box[2:4]) / 2 - (left, top)
                assert abs(center - (WIDTH / 2, HEIGHT / 2)).max() < 6
            assert (found[:, :4] >= 0).all()
            assert (found[:, 2] <= 64).all() and (found[:, 3] <= 48).all()
        assert detector(np.zeros((48, 64, 3), np.uint8)).shape == (0, 5)

    def test_as_mmdet(self, detector, frames):
        from mmdet.apis import inference_detector

        image = np.ascontiguousarray(frames[30][..., ::-1])
        with DefaultScope.overwrite_default_scope('mmdet'):
            found = inference_detector(detector.model, image).pred_instances
        found = found[(found.labels == 0) & (found.scores >= 0.5)]
        boxes = detector(frames[30])
        np.testing.assert_allclose(boxes[:, 4], found.scores, atol=1e-6)
        limits = [64, 48, 64, 48]
        expected = found.bboxes.numpy().clip(0, limits)
        np.testing.assert_allclose(boxes[:, :4], expected, atol=1e-4)

    def test_colors(self, files):
        """What is red for us is red for the detector."""
        detector = PersonDetector(*files, device='cpu')
        weight = detector.model.backbone.conv1.weight
        weight.data[0] = 0
        weight.data[0, 0] = 1 / weight[0, 0].numel()
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[10:30, 20:40, 0] = 255
        assert len(detector(frame)) and not len(detector(frame[..., ::-1]))

    def test_batches(self, files, detector, frames):
        odd = np.zeros((96, 64, 3), np.uint8)
        odd[20:50, 20:40] = 255
        images = [*frames[:5], odd, *frames[40:44]]
        alone = [detector(image) for image in images]
        assert all(map(np.array_equal, detector.detect(images), alone))
        sizes = []
        together = PersonDetector(
            *files, device='cpu', batch_size=4, one_by_one=False, score_thr=0.1
        )
        step = together.model.test_step
        together.model.test_step = lambda data: (
            sizes.append(len(data['inputs'])),
            step(data),
        )[1]
        found = together.detect(images)
        # Those of another size do not run with the others.
        assert sizes == [4, 4, 1, 1]
        for one, other in zip(found, alone):
            np.testing.assert_allclose(one, other, atol=1e-4)
        assert detector.detect([]) == []

    def test_a_model_that_is_built(self, detector, files, frames):
        found = PersonDetector(detector.model, score_thr=0.95)
        assert found.model is detector.model and len(found(frames[0])) == 0
        with pytest.raises(ValueError, match='a FCOS, which has its weights: leave'):
            PersonDetector(detector.model, files[1])
        with pytest.raises(ValueError, match='det_model is a Linear without a config'):
            PersonDetector(torch.nn.Linear(1, 1))


class TestConfigs:
    def test_of_mmdet_by_name(self):
        name = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
        cfg = load_detector_config(name)
        assert cfg.model.type == 'YOLOX'
        # A pipeline inside a wrapper, with a step that reads labels.
        steps = frame_pipeline(cfg)
        assert steps[0]['type'] == 'mmdet.LoadImageFromNDArray'
        assert 'LoadAnnotations' not in [step['type'] for step in steps]
        with pytest.raises(FileNotFoundError, match='config file .*configs/no/no.py'):
            load_detector_config('mmdet::no/no.py')
        # Not even what mmengine would install.
        for package in ('mmnowhere', ''):
            with pytest.raises(
                FileNotFoundError, match=f"package '{package}' is not installed"
            ):
                load_detector_config(f'{package}::a/b.py')

    def test_nothing_is_downloaded(self, files, monkeypatch):
        def refuse(*args):
            raise AssertionError(f'a connection to {args}')

        monkeypatch.setattr(socket.socket, 'connect', refuse)
        monkeypatch.setattr(socket, 'getaddrinfo', refuse)
        cfg = Config.fromfile(files[0])
        assert cfg.model.backbone.init_cfg.type == 'Pretrained'
        model = build_detector(cfg, files[1], 'cpu')
        model.init_weights()
        # The old way to say it, and a list.
        cfg.model.backbone.pop('init_cfg')
        cfg.model.backbone.pretrained = 'torchvision://resnet18'
        cfg.model.neck.init_cfg = [
            dict(type='Pretrained', checkpoint='https://x/y.pth'),
            dict(type='Xavier', layer='Conv2d'),
        ]
        model = build_detector(cfg, device='cpu')
        model.init_weights()

    def test_another_scope(self, files, folder, monkeypatch, frames, detector):
        """A package on top of mmdet, as mmyolo is, with names of its own."""
        package = folder / 'packages' / 'madedet'
        package.mkdir(parents=True)
        (package / '__init__.py').touch()
        (package / 'registry.py').write_text(REGISTRY)
        (package / 'parts.py').write_text(PARTS)
        monkeypatch.syspath_prepend(str(package.parent))
        cfg = Config.fromfile(files[0])
        cfg.default_scope = 'madedet'
        cfg.model.type = 'MadeDetector'
        for part in ('data_preprocessor', 'backbone', 'neck', 'bbox_head'):
            cfg.model[part]._scope_ = 'mmdet'
        dataset = cfg.test_dataloader.dataset
        for step in dataset.pipeline[1:]:
            step.type = f'mmdet.{step.type}'
        dataset.pipeline.insert(1, dict(type='MadeStep'))
        dataset.type = 'MadeDataset'
        made = PersonDetector(cfg, device='cpu', person='pedestrian')
        assert type(made.model).__module__ == 'madedet.parts' and made.person == 0
        made.model.load_state_dict(detector.model.state_dict())
        # Its step turns pictures upside down.
        turned = np.ascontiguousarray(frames[0][::-1])
        np.testing.assert_array_equal(made(turned), detector(frames[0]))
        assert len(made(turned)) == 2

    def test_a_scope_that_is_not_installed(self, files, folder):
        cfg = Config.fromfile(files[0])
        cfg.default_scope = 'mmyolo'
        cfg.dump(folder / 'yolo.py')
        sentence = r"yolo.py has default_scope='mmyolo', but mmyolo.registry cannot be"
        with pytest.raises(ValueError, match=sentence):
            PersonDetector(folder / 'yolo.py', device='cpu')

    def test_classes(self, files, folder, monkeypatch):
        model = build_detector(files[0], device='cpu')
        # Those of the config's dataset, as no checkpoint says them.
        assert model.dataset_meta['classes'][:2] == ('person', 'bicycle')
        assert find_person(model, 'Bicycle') == 1 and find_person(model, 7) == 7
        for classes, number in ((('car', 'Person'), 1), ('person', 0)):
            monkeypatch.setattr(model, 'dataset_meta', dict(CLASSES=classes))
            assert find_person(model) == number
        monkeypatch.setattr(model, 'dataset_meta', dict(classes=('cat', 'dog')))
        with pytest.raises(ValueError, match=r"no class 'person', .* are cat, dog"):
            find_person(model)
        monkeypatch.setattr(model, 'dataset_meta', None)
        with pytest.raises(ValueError, match='its classes are not known: give the'):
            PersonDetector(model)
        cfg = Config.fromfile(files[0])
        cfg.test_dataloader.dataset.metainfo = dict(classes=('ape', 'human'))
        found = PersonDetector(cfg, device='cpu', person='human')
        assert found.person == 1

    def test_errors(self, files, folder, detector, frames):
        config, checkpoint = files
        with pytest.raises(FileNotFoundError, match='no config file no.py of a pers'):
            PersonDetector('no.py')
        with pytest.raises(FileNotFoundError, match='no checkpoint file no.pth'):
            PersonDetector(config, 'no.pth')
        (folder / 'bare.py').write_text('x = 1\n')
        with pytest.raises(ValueError, match="bare.py has no 'model'"):
            PersonDetector(folder / 'bare.py')
        cfg = Config.fromfile(config)
        del cfg.test_dataloader.dataset.pipeline[0]
        with pytest.raises(ValueError, match='no test_dataloader.dataset.pipe'):
            PersonDetector(cfg, device='cpu')
        cfg = Config(dict(model=cfg.model))
        with pytest.raises(ValueError, match='no test_dataloader.dataset.pipe'):
            PersonDetector(cfg, device='cpu', person=0)
        with pytest.raises(ValueError, match='score_thr=-1 must be at least 0'):
            PersonDetector(config, score_thr=-1)
        with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
            PersonDetector(config, batch_size=0)
        with pytest.raises(
            ValueError, match=r'Frame 1 is .*float.*: give an array \[H'
        ):
            detector.detect([frames[0], frames[0] / 255])
        with pytest.raises(ValueError, match='Frame 0 is str: give an array'):
            detector('a.png')

    def test_checkpoints(self, files, folder):
        config, checkpoint = files
        content = torch.load(checkpoint, weights_only=True)
        state = content['state_dict']
        less = {k: v for k, v in state.items() if 'conv_cls' not in k}
        # What counts batches need not be there.
        less = {k: v for k, v in less.items() if 'num_batches' not in k}
        torch.save(dict(state_dict=less), folder / 'less.pth')
        with pytest.raises(ValueError, match=r'less.pth does not fit .*: 2 of'):
            PersonDetector(config, folder / 'less.pth', device='cpu')
        other = dict(state, **{'bbox_head.conv_cls.bias': torch.zeros(3)})
        torch.save(dict(state_dict=other), folder / 'other.pth')
        with pytest.raises(ValueError, match='other.pth .* 1 have another shape'):
            PersonDetector(config, folder / 'other.pth', device='cpu')
        (folder / 'text.pth').write_text('no weights')
        with pytest.raises(ValueError, match='text.pth'):
            PersonDetector(config, folder / 'text.pth', device='cpu')

    def test_models_without_boxes(self, files, frames):
        detector = PersonDetector(*files, device='cpu')
        predict = detector.model.test_step

        def masks_only(data):
            samples = predict(data)
            for sample in samples:
                del sample.pred_instances
            return samples

        detector.model.test_step = masks_only
        with pytest.raises(
            ValueError, match='FCOS predicts no boxes .*: give a model for'
        ):
            detector(frames[0])


class TestEndToEnd:
    """A video, a detector of mmdet, a MemoryFastRCNN: who does what, by second."""

    def test_stream(self, found, model, detector, frames):
        assert [p.time for p in found] == [1, 2, 3, 4, 5]
        for prediction in found:
            frame = frames[int(prediction.time) * FPS]
            np.testing.assert_allclose(prediction.boxes, detector(frame)[:, :4])
            assert prediction.scores.shape == (2, 6)
            assert len(prediction.top(1)) == len(prediction.track_ids) == 2
        # Both of them are known all the time.
        assert {i for p in found for i in p.track_ids.tolist()} == {0, 1}
        order = [p.track_ids[np.argsort(p.boxes[:, 1])].tolist() for p in found]
        assert order == [order[0]] * 5

    def same(self, other, found):
        assert [p.time for p in other] == [p.time for p in found]
        for one, two in zip(other, found):
            np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-4)
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
            assert np.array_equal(one.track_ids, two.track_ids)

    def test_every_way(self, found, model, detector, video, frames):
        boxes = dict(labels=list('abcdef'))
        self.same(inference_stdet(model, video, det_model=detector, **boxes), found)
        stream = VideoStream(model, boxes=detector, fps=FPS)
        fed = [p for frame in frames for p in stream.feed(frame)] + stream.finish()
        self.same(fed, found)
        streams = MultiStream(
            model, dict(a=video, b=list(frames)), boxes=detector, fps=FPS
        )
        both: dict = dict(a=[], b=[])
        for prediction in streams:
            both[prediction.stream].append(prediction)
        self.same(both['a'], found)
        self.same(both['b'], found)

    def test_a_model_of_mmdet(self, found, model, detector, video):
        """As mmdet.apis.init_detector returns it."""
        built = copy.copy(detector.model)
        options = dict(labels=list('abcdef'), score_thr=0.5)
        self.same(inference_stdet(model, video, det_model=built, **options), found)
        (first, *_) = VideoStream(model, boxes=built).run(video)
        assert np.array_equal(first.boxes, found[0].boxes)

    def test_without_numbers(self, model, detector, video):
        untracked = PersonDetector(detector.model, track=False)
        assert next(VideoStream(model, boxes=untracked).run(video)).track_ids is None
