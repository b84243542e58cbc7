"""`memvit_ava.py` from videos (decord) instead of folders of frames.

tools/dist_train.sh configs/memvit_ava_videos.py 8
"""

_base_ = [
    '_base_/models/memvit_16_ava.py',
    '_base_/datasets/ava_videos.py',
    '_base_/schedules/memvit_sgd_30e.py',
    '_base_/default_runtime.py',
]

default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3, save_best='auto'),
    logger=dict(interval=20),
)
