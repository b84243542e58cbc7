"""`memvit_ava.py` with a memory that reads every clip of the last 32 seconds.

    tools/dist_train.sh configs/memvit_ava_long.py 8

AVA has a clip each second. Those 2 and 4 seconds back are read as finely as in the
published schedule, the 30 others up to 32 seconds back as 2 tokens per layer, and of
each clip 16 people. Start as `memvit_ava.py` does, from Kinetics weights or from a
published checkpoint.

`memvit_ava.py` stays the default: the paper found two memories enough on AVA, and more
did not help there. Whether a longer reach pays on real data is not known here: this
config was not trained on AVA here.
"""

_base_ = './memvit_ava.py'

older = (1, 3, *range(5, 33))
model = dict(
    backbone=dict(
        memory_levels=[
            dict(type='pool', ages=(2, 4), stride=(4, 2, 2)),
            dict(type='pool', ages=older, tokens=2),
        ]
    ),
    roi_head=dict(
        shared_head=dict(
            memory_levels=[
                dict(type='keep', ages=(2, 4)),
                dict(type='keep', ages=older, tokens=16),
            ]
        )
    ),
)
