"""`memvit_ava.py` without the two things that it does otherwise on purpose.

    tools/dist_train.sh configs/memvit_ava_published.py 8

Augmentation is drawn for each clip anew, and the compression of memory stays as it
starts, since no gradient reaches it in the published code. For MeMViT-24:
`configs/memvit_24_ava.py --cfg-options train_dataloader.dataset.pipeline.2.per=clip
optim_wrapper.paramwise_cfg.custom_keys.compress.lr_mult=0.0`.
"""

_base_ = './memvit_ava.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(per='clip')
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(compress=dict(lr_mult=0.0))))
