"""Our operators for an mmcv without compiled ones, against numbers of those."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from memvit_mm import mmcv_ops

sys.path.insert(0, str(Path(__file__).resolve().parent))

import mmcv.ops
import mmcv_ops_cases as cases

NUMBERS = np.load(Path(__file__).parent / 'data' / 'mmcv_ops' / 'compiled.npz')
MODULES = [sys.modules[f'mmcv.ops.{name}'] for name in ('nms', 'roi_align')]
COMPILED = mmcv_ops.describe() == 'compiled'


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Our plain operators, also where mmcv has compiled ones or torchvision works."""
    for module in MODULES:
        monkeypatch.setattr(
            module, 'ext_module', mmcv_ops.Operators(mmcv_ops.NAME), raising=True
        )
    monkeypatch.setattr(mmcv_ops, 'torchvision_ops', lambda: None)


class TestRoIAlign:
    @pytest.mark.parametrize('name', cases.ROI_CASES)
    def test_equals_the_compiled_one(self, name):
        output, grad = cases.run_roi(name)
        expected = NUMBERS[f'{name}/output'], NUMBERS[f'{name}/grad']
        np.testing.assert_allclose(output, expected[0], rtol=0, atol=5e-6)
        np.testing.assert_allclose(grad, expected[1], rtol=0, atol=2e-5)
        assert np.abs(expected[0]).max() > 0.1 and np.abs(expected[1]).max() > 0.1

    @pytest.mark.parametrize('name', ['adaptive', 'outside', 'large_map'])
    def test_both_forms_and_any_chunk_are_equal(self, name, monkeypatch):
        results = []
        for small, gathered in ((0, 2**26), (10**9, 2**26), (10**9, 2000)):
            monkeypatch.setattr(mmcv_ops, 'SMALL_MAP', small)
            monkeypatch.setattr(mmcv_ops, 'GATHERED', gathered)
            results.append(cases.run_roi(name))
        for output, grad in results[1:]:
            torch.testing.assert_close(output, results[0][0], rtol=0, atol=1e-5)
            torch.testing.assert_close(grad, results[0][1], rtol=0, atol=2e-5)

    @pytest.mark.parametrize(
        'dtype, close', [(torch.bfloat16, 0.05), (torch.float16, 0.006)]
    )
    @pytest.mark.parametrize('name', ['fixed_samples', 'large_map'])
    def test_half_precision(self, name, dtype, close, monkeypatch):
        # Both of the rounded inputs: half a cell's rounding moves a box by much.
        exact = cases.roi_inputs(name)
        rounded = tuple(tensor.to(dtype).float() for tensor in exact)
        monkeypatch.setattr(cases, 'roi_inputs', lambda name: rounded)
        for half, full in zip(cases.run_roi(name, dtype), cases.run_roi(name)):
            assert half.dtype == dtype
            torch.testing.assert_close(half.float(), full, rtol=close, atol=close)

    def test_nobody(self):
        maps = torch.rand(2, 3, 7, 7, requires_grad=True)
        layer = mmcv.ops.RoIAlign(8, 1 / 16)
        output = layer(maps, torch.zeros(0, 5))
        assert output.shape == (0, 3, 8, 8)
        output.sum().backward()
        assert not maps.grad.any()

    def test_boxes_of_one_image_do_not_read_the_other(self):
        maps = torch.zeros(2, 1, 7, 7)
        maps[1] = 1
        boxes = torch.tensor([[0, 0, 0, 50, 50.0], [1, 0, 0, 50, 50]])
        output = mmcv.ops.RoIAlign(2, 1 / 16)(maps, boxes)
        assert not output[0].any() and (output[1] == 1).all()

    def test_maximum_is_refused(self):
        layer = mmcv.ops.RoIAlign(2, 1.0, pool_mode='max')
        with pytest.raises(NotImplementedError, match="take pool_mode='avg' or"):
            layer(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2, 2.0]]))

    def test_compiles_without_a_break(self):
        maps, boxes, _ = cases.roi_inputs('adaptive')
        layer = mmcv.ops.RoIAlign((8, 8), 1 / 16, 0, 'avg', True)
        compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
        torch.testing.assert_close(compiled(maps, boxes), layer(maps, boxes))

    def test_a_detector_with_a_feature_pyramid_can_be_used(self, monkeypatch):
        """1000 boxes of all sizes on a map of 200 x 304 take a second or so."""
        draw = np.random.RandomState(0)
        corner = draw.rand(1000, 2) * 600
        side = draw.rand(1000, 2) * 224
        boxes = np.concatenate([np.zeros((1000, 1)), corner, corner + side], axis=1)
        boxes, maps = torch.from_numpy(boxes).float(), torch.rand(1, 64, 200, 304)
        layer = mmcv.ops.RoIAlign(7, 1 / 4, 0)
        start = time.process_time()
        output = layer(maps, boxes)
        assert time.process_time() - start < 10
        monkeypatch.setattr(mmcv_ops, 'SMALL_MAP', 10**9)
        torch.testing.assert_close(output[:10], layer(maps, boxes[:10]))

    def test_autocast_leaves_it_in_full_precision(self):
        maps, boxes, _ = cases.roi_inputs('adaptive')
        layer = mmcv.ops.RoIAlign((8, 8), 1 / 16)
        with torch.autocast('cpu', torch.bfloat16):
            output = layer(maps, boxes)
        torch.testing.assert_close(output, layer(maps, boxes), rtol=0, atol=1e-6)

    @pytest.mark.parametrize('size', [6, 40])
    def test_gradients_in_float64(self, size):
        maps = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
        boxes = torch.tensor([[0, 0.3, 0.2, 5.1, 4.4]], dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda maps: mmcv.ops.roi_align(maps, boxes, 2), maps
        )

    @pytest.mark.parametrize('size', [7, 40])
    @pytest.mark.parametrize('samples', [0, 2])
    @pytest.mark.parametrize('value', [float('nan'), float('inf')])
    def test_boxes_that_are_not_finite_cover_nothing(self, size, samples, value):
        boxes = torch.tensor([[0, 1, 1, value, 5], [0, 1, 1, 5, 5]])
        output = mmcv.ops.RoIAlign(2, 1.0, samples)(torch.ones(1, 1, size, size), boxes)
        assert not output[0].any() and (output[1] == 1).all()


class TestSuppression:
    @pytest.mark.parametrize('name', cases.NMS_CASES)
    def test_equals_the_compiled_one(self, name):
        ties = cases.NMS_CASES[name]['count'] % 1000 == 0
        if ties and NUMBERS['cpu'] != cases.cpu():
            pytest.skip('torch sorts equal scores otherwise on this processor')
        boxes, kept = cases.run_nms(name)
        np.testing.assert_array_equal(kept, NUMBERS[f'{name}/kept'])
        np.testing.assert_allclose(
            boxes[:, 4], NUMBERS[f'{name}/scores'], rtol=0, atol=1e-6
        )

    @pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
    def test_nobody(self, kind):
        boxes, kept = getattr(mmcv.ops, kind)(torch.zeros(0, 4), torch.zeros(0), 0.5)
        assert boxes.shape == (0, 5) and kept.shape == (0,)

    def test_half_precision(self):
        boxes, scores, _ = cases.nms_inputs(500)
        for dtype in (torch.float16, torch.bfloat16):
            half, half_scores = boxes.to(dtype), scores.to(dtype)
            kept = mmcv.ops.nms(half, half_scores, 0.5)[1]
            expected = mmcv.ops.nms(half.float(), half_scores.float(), 0.5)[1]
            torch.testing.assert_close(kept, expected)


class TestPersonDetectors:
    @pytest.mark.filterwarnings('ignore')
    @pytest.mark.parametrize('name', cases.DETECTORS)
    def test_finds_who_it_finds_with_compiled_operators(self, name, monkeypatch):
        people = cases.detect(name)
        if COMPILED:
            monkeypatch.undo()
            expected, close = cases.detect(name), 1e-4
        else:
            # Other processors round otherwise, which moves boxes of drawn weights.
            expected = NUMBERS[f'{name}/people']
            close = 1e-4 if NUMBERS['cpu'] == cases.cpu() else 1.0
        assert len(people) == len(expected) > 3
        order = [np.lexsort(boxes[:, :4].round(2).T) for boxes in (people, expected)]
        difference = np.abs(people[order[0]] - expected[order[1]])
        assert np.quantile(difference, 1 if close == 1e-4 else 0.95) <= close


class TestInPlaceOfTheModule:
    def test_other_operators_are_refused_by_name(self):
        operators = mmcv_ops.Operators('mmcv._ext')
        with pytest.raises(
            NotImplementedError, match='deform_conv_forward is compiled'
        ):
            operators.deform_conv_forward(1, weight=2)

    def test_all_of_mmcv_imports_and_is_found(self):
        """Without a compiled module, and with one that does not load."""
        code = """
import importlib.abc, importlib.util, logging, sys

logging.basicConfig(level='WARNING')
BROKEN = sys.argv[1] == 'broken'

class Loader(importlib.abc.Loader):
    def exec_module(self, module):
        raise ImportError('undefined symbol: _ZN2at')

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            if not BROKEN:
                raise ModuleNotFoundError(f'No module named {name!r}', name=name)
            return importlib.util.spec_from_loader(name, Loader())

sys.meta_path.insert(0, Finder())
import memvit_mm
import mmcv.ops, mmdet.models, mmaction.models
from mmcv.utils import collect_env
assert importlib.util.find_spec('mmcv._ext') is not None
print(memvit_mm.compat.applied()[0], collect_env()['MMCV Compiler'])
"""
        kinds = [('broken', True)]
        if COMPILED:
            # Elsewhere it is missing here, too: all tests show that it works.
            kinds.append(('missing', False))
        for kind, warned in kinds:
            done = subprocess.run(
                [sys.executable, '-c', code, kind], capture_output=True, text=True
            )
            assert done.stdout.splitlines()[-1].startswith('mmcv_ops plain'), (
                done.stderr
            )
            told = 'do not load (undefined symbol: _ZN2at)' in done.stderr
            assert told == warned, done.stderr

    def test_a_compiled_module_is_left_alone(self):
        if not COMPILED:
            pytest.skip('mmcv has no compiled operators here')
        assert not mmcv_ops.needed()
        assert importlib.import_module('mmcv._ext').__file__.endswith('.so')

    def test_torchvision_where_it_works(self, monkeypatch):
        torchvision = pytest.importorskip('torchvision')
        monkeypatch.undo()
        mmcv_ops.torchvision_ops.cache_clear()
        if mmcv_ops.torchvision_ops() is None:
            pytest.skip(f'torchvision {torchvision.__version__} has no operators here')
        boxes, scores, _ = cases.nms_inputs(3000)
        found = mmcv_ops.nms(boxes, scores, 0.5, 0)
        monkeypatch.setattr(mmcv_ops, 'torchvision_ops', lambda: None)
        torch.testing.assert_close(found, mmcv_ops.nms(boxes, scores, 0.5, 0))
