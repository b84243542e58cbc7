"""A config's backbone against MMAction2's MViT and against its twin without memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from mmengine.config import ConfigDict

from .case import Case
from .complexity import backbone_cost, clip_shape
from .processes import Result, measure

MVIT, OURS, TWIN, SAVING = 'MViT', 'memory full', 'no memory', 'with_cp'
NAMES = {
    MVIT: "MMAction2's MViT",
    OURS: 'MeMViT, memory full',
    TWIN: 'MeMViT, no memory',
    SAVING: 'memory full, with_cp',
}
# Arguments of MeMViT that MMAction2's MViT has, too.
SHARED = (
    'arch spatial_size temporal_size in_channels out_scales drop_path_rate '
    'use_abs_pos_embed interpolate_mode pool_kernel dim_mul head_mul '
    'adaptive_kv_stride rel_pos_embed residual_pooling dim_mul_in_attention '
    'with_cls_token output_cls_token rel_pos_zero_init mlp_ratio qkv_bias norm_cfg '
    'patch_cfg'
).split()


def backbones(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Configs of what is compared, by name.

    Args:
        cfg (dict): Config of a :class:`MeMViT`.

    Raises:
        ValueError: If it is the config of another backbone.
    """
    if str(cfg.get('type')).split('.')[-1] != 'MeMViT':
        raise ValueError(
            f'the backbone is of type {cfg.get("type")!r}: only configs of MeMViT can '
            "be compared with MMAction2's MViT."
        )
    cfg = ConfigDict(cfg).to_dict()
    cfg.update(type='MeMViT', with_cp=False)
    return {
        MVIT: dict(type='MViT', **{k: cfg[k] for k in SHARED if k in cfg}),
        OURS: cfg,
        TWIN: dict(cfg, memory_layers=()),
        SAVING: dict(cfg, with_cp=True),
    }


@dataclass
class Comparison:
    """What was measured of all of them, forward and in training, by name."""

    forward: dict[str, Result]
    training: dict[str, Result]
    macs: dict[str, int]
    """Multiply-adds of one clip, with and without memory."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, the ratios of the table included."""
        kinds = dict(forward=self.forward, training=self.training)
        found = {
            kind: {name: result.to_dict() for name, result in results.items()}
            for kind, results in kinds.items()
        }
        return dict(found, macs=self.macs, ratios=self.ratios())

    def ratios(self) -> dict[str, Optional[float]]:
        """What the issue of speed is about, as numbers."""
        forward, training = self.forward, self.training
        found = {}
        for kind, results in (('forward', forward), ('training', training)):
            if not {MVIT, OURS} <= results.keys():
                continue
            mvit, ours = results[MVIT], results[OURS]
            found[f'{kind} against MViT'] = ours.median / mvit.median
            found[f'{kind} against MViT, CPU time'] = _over(
                ours.cpu_median, mvit.cpu_median
            )
            found[f'{kind} peak memory against MViT'] = ours.peak_bytes / max(
                mvit.peak_bytes, 1
            )
            for name, result in results.items():
                if result.operators is not None:
                    found[f'{kind} {name} / its products'] = result.operators['ratio']
        if {OURS, TWIN} <= forward.keys():
            ours, twin = forward[OURS], forward[TWIN]
            found['forward, memory on / off'] = ours.median / twin.median
            found['forward, memory on / off, CPU time'] = _over(
                ours.cpu_median, twin.cpu_median
            )
        found['multiply-adds, memory on / off'] = _over(
            self.macs.get(OURS, 0), self.macs.get(TWIN, 0)
        )
        if {OURS, SAVING, MVIT} <= training.keys():
            ours, saving, mvit = training[OURS], training[SAVING], training[MVIT]
            found['with_cp, time against without'] = saving.median / ours.median
            found['with_cp, peak memory against without'] = (
                saving.peak_bytes / ours.peak_bytes
            )
            found['with_cp, peak memory against MViT'] = (
                saving.peak_bytes / mvit.peak_bytes
            )
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        lines = []
        for title, results in (
            ('forward, no gradient', self.forward),
            ('forward + backward', self.training),
        ):
            if not results:
                continue
            lines.append(
                f'{title:24}{"seconds":>9}{"ratio":>7}{"CPU s":>9}{"ratio":>7}'
                f'{"clips/s":>9}{"peak MB":>9}{"ratio":>7}{"/ products":>12}'
            )
            base = results.get(MVIT) or next(iter(results.values()))
            for name, result in results.items():
                lines.append(f'  {NAMES[name]:22}{_columns(result, base)}')
        lines += [f'{name:48}{value:7.3f} x' for name, value in self.ratios().items()]
        return '\n'.join(lines)


def _columns(result: Result, base: Result) -> str:
    products = ''
    if result.operators is not None:
        products = f'{result.operators["ratio"]:10.2f} x'
    return (
        f'{result.median:9.3f}{result.median / base.median:7.2f}'
        f'{result.cpu_median:9.3f}{_over(result.cpu_median, base.cpu_median) or 0:7.2f}'
        f'{result.clips_per_second:9.2f}{result.peak_bytes / 2**20:9.0f}'
        f'{result.peak_bytes / max(base.peak_bytes, 1):7.2f}{products:>12}'
    )


def _over(value: float, base: float) -> Optional[float]:
    return value / base if base else None


def compare(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 5,
    what: Sequence[str] = ('forward', 'training'),
    profile: bool = False,
    only: Optional[Sequence[str]] = None,
) -> Comparison:
    """Measure a backbone, its twins and MMAction2's MViT alternating.

    Args:
        cfg (dict): Config of a :class:`MeMViT`.
        template (Case): Size, batch, device, dtype, threads and ``compiled`` of all.
        repeats (int): Measured runs of each.
        what (sequence[str]): 'forward', 'training' or both.
        profile (bool): Profile a run of each, too.
        only (sequence[str], optional): Of :func:`backbones`, those.

    Raises:
        ValueError: If the backbone is not MeMViT, or one of them fails.
    """
    chosen = backbones(cfg)
    layers = cfg.get('memory_layers')
    if layers is not None and not layers:
        # It has none: it is its own twin.
        del chosen[OURS], chosen[SAVING]
    chosen = {k: v for k, v in chosen.items() if only is None or k in only}
    clip = clip_shape(cfg, template.size)
    macs = {
        name: backbone_cost(chosen[name], clip).macs
        for name in (OURS, TWIN)
        if name in chosen
    }
    found: dict[str, dict[str, Result]] = dict(forward={}, training={})
    for kind in what:
        cases = {
            name: replace(
                template,
                name=f'{NAMES[name]}, {kind}',
                backbone=backbone,
                training=kind == 'training',
                # MMAction2's is what it is.
                compiled=template.compiled and name != MVIT,
            )
            for name, backbone in chosen.items()
            # Checkpointing has a meaning in training only.
            if name != SAVING or kind == 'training'
        }
        results = measure(list(cases.values()), repeats, profile)
        found[kind] = dict(zip(cases, results))
    return Comparison(found['forward'], found['training'], macs)
