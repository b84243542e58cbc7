"""Memory added to MMAction2's public MViTv2-S, Apache licensed, and trained on AVA.

    python tools/deployment/convert_checkpoint.py ZOO.pth WEIGHTS.pth --config THIS_FILE
    tools/dist_train.sh THIS_FILE 8 --cfg-options load_from=WEIGHTS.pth

ZOO.pth is `mvit-small-p244_32xb16-16x4x1-200e_kinetics400-rgb_20230201-23284ff3.pth` of
MMAction2's model zoo, trained on Kinetics-400. The attention is MViTv2's (it projects,
then pools), so that these weights keep their meaning; what memory adds begins at its
initial values. The recipe is MeMViT-16's; it has not been run on AVA here.
"""

_base_ = './memvit_ava.py'

model = dict(backbone=dict(pool_first=False))
