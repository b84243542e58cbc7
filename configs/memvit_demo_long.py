"""`memvit_demo.py` goes on to cues that are up to 30 seconds ago.

    python tools/data/make_demo_dataset.py data/memvit_demo
    python tools/train.py configs/memvit_demo.py
    python tools/data/make_demo_dataset.py data/memvit_demo_long --delay 30
    python tools/train.py configs/memvit_demo_long.py

It starts from the weights of `memvit_demo.py`, as a long schedule starts from a
published checkpoint, and reads each of the last 32 clips, one a second. The metrics
`2s/memory`, `8s/memory` and so on are mAP over the classes that need memory, in the
validation videos of that delay (`--delay 30` alone makes all of their files). Without
the weights of `memvit_demo.py`, name others: `--cfg-options load_from=...`. The
published schedule on the same data: `--cfg-options model.backbone.memory_levels=None
model.roi_head.shared_head.memory_levels=None`.
"""

_base_ = './memvit_demo.py'

load_from = 'work_dirs/memvit_demo/epoch_6.pth'

data_root = 'data/memvit_demo_long/'
notes = f'{data_root}annotations/'
labels = dict(label_file=f'{notes}action_list.pbtxt')
exclude = dict(exclude_file=f'{notes}excluded_val.csv')

model = dict(
    backbone=dict(
        memory_levels=[
            dict(type='pool', ages=(2, 4), stride=(4, 1, 1)),
            dict(type='pool', ages=(1, 3, *range(5, 33)), tokens=2),
        ]
    ),
    roi_head=dict(
        shared_head=dict(memory_levels=[dict(type='keep', ages=range(1, 33), tokens=5)])
    ),
)

train_dataloader = dict(
    dataset=dict(
        data_root=data_root, proposal_file=f'{notes}proposals_train.pkl', **labels
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        proposal_file=f'{notes}proposals_val.pkl',
        **labels,
        **exclude,
    )
)
test_dataloader = val_dataloader

evaluator = dict(
    type='MemoryAVAMetric',
    num_classes=15,
    class_groups=_base_.class_groups,
    **labels,
    **exclude,
)
val_evaluator = [
    dict(evaluator, ann_file=f'{notes}val.csv'),
    # The videos of one delay; the keyframes of all others have no annotation there.
    *[
        dict(
            evaluator,
            ann_file=f'{notes}val_{delay}s.csv',
            ignore_empty_frames=True,
            prefix=f'{delay}s',
        )
        for delay in (2, 4, 8, 16, 30)
    ],
]
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=2e-5,
        by_epoch=True,
        begin=1,
        end=2,
        convert_to_iter_based=True,
    ),
]
