"""Small runs under real runners: videos of random clips, a small MeMViT."""

import torch
from mmaction.registry import DATASETS, METRICS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner

import memvit_mm  # noqa: F401

VIDEOS, SECONDS = 4, 6


@DATASETS.register_module()
class RandomClips(BaseDataset):
    """Videos of random clips, labelled by their video."""

    def load_data_list(self):
        return [
            dict(video_id=f'v{v}', timestamp=t, label=v)
            for v in range(VIDEOS)
            for t in range(SECONDS)
        ]

    def prepare_data(self, index):
        info = self.get_data_info(index)
        generator = torch.Generator().manual_seed(int(index))
        sample = ActionDataSample().set_gt_label(info['label'])
        sample.set_metainfo(
            {key: info[key] for key in ('video_id', 'timestamp', 'sample_idx')}
        )
        clip = torch.randn(1, 3, 4, 16, 16, generator=generator)
        return dict(inputs=clip, data_samples=sample)


@METRICS.register_module()
class Scores(BaseMetric):
    """Every score, to compare runs by."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            self.results.append((sample['video_id'], sample['pred_score'].tolist()))

    def compute_metrics(self, results):
        return dict(first_class=sum(score[0] for _, score in results))


MODEL = dict(
    type='MemoryRecognizer3D',
    backbone=dict(
        type='MeMViT',
        arch=dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]),
        spatial_size=16,
        temporal_size=4,
        adaptive_kv_stride=(1, 2, 2),
        memory_gap=1,
    ),
    cls_head=dict(
        type='MViTHead',
        num_classes=VIDEOS,
        in_channels=16,
        average_clips='prob',
    ),
)


def runner_of(tmp_path, train_cfg: dict, **kwargs) -> Runner:
    def loader(shuffle, **dataset):
        return dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=shuffle),
            dataset=dict(type='RandomClips', **dataset),
        )

    cfg = dict(
        default_scope='mmaction',
        work_dir=str(tmp_path),
        experiment_name=tmp_path.name,
        model=MODEL,
        train_dataloader=loader(True),
        # Two of the videos, twelve clips.
        val_dataloader=loader(False, indices=2 * SECONDS),
        test_dataloader=loader(False, indices=2 * SECONDS),
        train_cfg=train_cfg,
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        val_evaluator=dict(type='Scores'),
        test_evaluator=dict(type='Scores'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='MemoryResetHook')],
        default_hooks=dict(checkpoint=None),
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Runner.from_cfg(Config({**cfg, **kwargs}))
