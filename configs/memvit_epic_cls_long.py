"""`memvit_epic_cls.py` with a memory that reads each clip of the last 32 seconds or so.

    tools/dist_train.sh configs/memvit_epic_cls_long.py 8

Where there is no segment, a clip comes every 2 seconds, and 16 clips back are 32
seconds; it is less where segments follow each other more closely, and up to half more
where gaps are just too short for a clip of their own. The clips 2 and 4
back are read as finely as in the published schedule, the 14 others as 2 tokens per
layer.

`memvit_epic_cls.py` stays the default: the paper found two memories enough on AVA, and
more did not help there. Whether a longer reach pays on real data is not known here:
this config was not trained on EPIC-KITCHENS-100 here.
"""

_base_ = './memvit_epic_cls.py'

model = dict(
    backbone=dict(
        memory_levels=[
            dict(type='pool', ages=(2, 4), stride=(4, 2, 2)),
            dict(type='pool', ages=(1, 3, *range(5, 17)), tokens=2),
        ]
    )
)
