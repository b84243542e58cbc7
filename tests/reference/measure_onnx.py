"""Measure an exported model beside PyTorch: size, speed, mAP, what takes its time.

    python tests/reference/measure_onnx.py configs/memvit_demo.py K.pth model.onnx --map

Both run clip by clip in one process, in turn, with the same number of threads. The int8
form is onnxruntime's dynamic quantisation of the products. With --map each is tested as
tools/test.py tests. With --profile FILE's slowest operators are printed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData

import memvit_mm  # noqa: F401
from memvit_mm.apis.models.load_model import build_model, load_config
from memvit_mm.apis.streams.runners import OnnxRunner, TorchRunner
from memvit_mm.deploy import OnnxModel


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint', help="'-' for random weights")
    parser.add_argument('onnx')
    parser.add_argument('--clips', type=int, default=12, help='of each, to be timed')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--people', type=int, default=3, help='in each clip (3)')
    parser.add_argument('--map', action='store_true')
    parser.add_argument('--profile', action='store_true')
    return parser.parse_args()


def load(path, threads: int, profile: bool = False) -> OnnxModel:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = profile
    options.profile_file_prefix = os.path.join(tempfile.gettempdir(), 'onnx_profile')
    return OnnxModel(path, ['CPUExecutionProvider'], options)


def quantised(path: str) -> str:
    """The same with weights of products in int8, beside it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = str(Path(path).with_suffix('.int8.onnx'))
    quantize_dynamic(
        path,
        target,
        op_types_to_quantize=['MatMul', 'Gemm'],
        weight_type=QuantType.QInt8,
    )
    return target


def inputs_of(model: OnnxModel, people: int, seed: int) -> dict:
    """A clip and people in it, as the pipeline of a test packs them."""
    from mmaction.structures import ActionDataSample

    rng = np.random.default_rng(seed)
    size = model.clip_shape[2:]
    sample = ActionDataSample()
    sample.set_metainfo(dict(video_id='video', timestamp=seed, img_shape=size))
    clip = torch.from_numpy(rng.integers(0, 256, model.clip_shape).astype(np.uint8))
    if not model.detects:
        return dict(inputs=clip[None], data_samples=sample)
    corner = rng.random((people, 2)) * np.array(size[::-1]) / 2
    boxes = np.hstack([corner, corner + np.array(size[::-1]) / 3]).astype(np.float32)
    sample.proposals = InstanceData(bboxes=torch.from_numpy(boxes))
    return dict(inputs=clip, data_samples=sample)


def time_in_turn(runners: dict, exported: OnnxModel, clips: int, people: int) -> None:
    seconds = {name: [] for name in runners}
    for seed in range(clips + 3):
        for name, runner in runners.items():
            data = inputs_of(exported, people, seed)
            begin = time.perf_counter()
            runner.run([data])
            seconds[name].append(time.perf_counter() - begin)
    # The first ones allocate, and fill the memory.
    medians = {name: median(values[3:]) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    for name, value in medians.items():
        print(f'{name:8} {value * 1e3:8.1f} ms a clip (median), {first / value:.2f} x')


def test(cfg, runner) -> dict:
    """The metrics of the test set."""
    loader_cfg = dict(cfg.test_dataloader, num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(loader_cfg, seed=0)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)
    for batch in loader:
        data = [
            dict(inputs=clip, data_samples=sample)
            for clip, sample in zip(batch['inputs'], batch['data_samples'])
        ]
        found = [sample for one in data for sample in runner.run([one])]
        evaluator.process(data_samples=found, data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))


def profile(path: str, people: int, clips: int = 5) -> None:
    model = load(path, 1, profile=True)
    runner = OnnxRunner(model)
    for seed in range(clips):
        runner.run([inputs_of(model, people, seed)])
    events = json.loads(Path(model.session.end_profiling()).read_text())
    kinds, nodes = Counter(), Counter()
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('kernel_time'):
            about = event['args']
            took = event['dur'] / clips / 1e3
            kinds[about['op_name'], about['provider']] += took
            shapes = [list(s.values())[0] for s in about['input_type_shape']]
            nodes[about['op_name'], str(shapes)] += took
    total = sum(kinds.values())
    print(f'{total:.1f} ms of operators a clip')
    for (kind, provider), took in kinds.most_common(10):
        print(f'{took:8.1f} ms {took / total:6.1%}  {kind} ({provider})')
    print('the slowest, those of one kind and shape together')
    for (kind, shapes), took in nodes.most_common(10):
        print(f'{took:8.1f} ms {took / total:6.1%}  {kind} {shapes}')


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    cfg = load_config(args.config)
    if args.profile:
        profile(args.onnx, args.people)
        return
    int8 = quantised(args.onnx)
    checkpoint = None if args.checkpoint == '-' else args.checkpoint
    exported = load(args.onnx, args.threads)
    runners = dict(
        PyTorch=TorchRunner(build_model(cfg, checkpoint, 'cpu')),
        ONNX=OnnxRunner(exported),
        int8=OnnxRunner(load(int8, args.threads)),
    )
    for path in (args.onnx, int8):
        print(f'{path}: {os.path.getsize(path) / 1e6:.1f} MB')
    time_in_turn(runners, exported, args.clips, args.people)
    if args.map:
        for name, runner in runners.items():
            runner.memory.reset()
            metrics = {k: round(v, 4) for k, v in test(cfg, runner).items()}
            print(name, metrics, file=sys.stdout)


if __name__ == '__main__':
    main()
