"""A config's backbone against MMAction2's, and against itself without memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

from mmengine.config import ConfigDict

from .complexity import Cost, backbone_cost, clip_shape
from .measure import Case, Result, Table, measure

THEIRS, OURS, BASELINE = 'MMAction2', 'memory full', 'no memory'
SAVING, PUBLISHED = 'with_cp', 'published schedule'
# What ``only`` of :func:`compare` takes.
SHORT = {
    'MMAction2': THEIRS,
    'memory': OURS,
    'no-memory': BASELINE,
    'with-cp': SAVING,
    'published': PUBLISHED,
}
# The braces stand for the type of the backbone.
NAMES = {
    THEIRS: "MMAction2's {}",
    OURS: '{}, memory full',
    BASELINE: '{}, no memory',
    SAVING: 'memory full, with_cp',
    PUBLISHED: 'the published schedule',
}
# By the type of our backbone: MMAction2's, and the arguments that both have.
COUNTERPARTS = {
    'MeMViT': (
        'MViT',
        'arch spatial_size temporal_size in_channels out_scales drop_path_rate '
        'use_abs_pos_embed interpolate_mode pool_kernel dim_mul head_mul '
        'adaptive_kv_stride rel_pos_embed residual_pooling dim_mul_in_attention '
        'with_cls_token output_cls_token rel_pos_zero_init mlp_ratio qkv_bias norm_cfg '
        'patch_cfg',
    ),
    'MemoryViT': (
        'VisionTransformer',
        'img_size patch_size in_channels embed_dims depth num_heads mlp_ratio qkv_bias '
        'qk_scale drop_rate attn_drop_rate drop_path_rate norm_cfg init_values '
        'use_learnable_pos_emb num_frames tubelet_size use_mean_pooling '
        'return_feat_map',
    ),
}
# Name of a ratio, in which a figure's name fills the braces: what is divided by what.
RATIOS = {
    'forward{} against MMAction2': ('forward', OURS, THEIRS),
    'training{} against MMAction2': ('training', OURS, THEIRS),
    'forward{}, memory on / off': ('forward', OURS, BASELINE),
    'forward{} against two clips': ('forward', OURS, PUBLISHED),
    'training{} against two clips': ('training', OURS, PUBLISHED),
    'with_cp{} against without': ('training', SAVING, OURS),
    'with_cp{} against MMAction2': ('training', SAVING, THEIRS),
}
FIGURES = {'': 'median', ' CPU time': 'cpu_median', ' peak memory': 'peak_bytes'}


def backbones(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Configs of what is compared, by name.

    Args:
        cfg (dict): Config of a :class:`MeMViT` or :class:`MemoryViT`.

    Raises:
        ValueError: If it is the config of another backbone.
    """
    kind = str(cfg.get('type')).split('.')[-1]
    if kind not in COUNTERPARTS:
        raise ValueError(
            f'the backbone is of type {cfg.get("type")!r}: only configs of '
            f"{' and '.join(COUNTERPARTS)} can be compared with MMAction2's backbones."
        )
    theirs, shared = COUNTERPARTS[kind]
    cfg = ConfigDict(cfg).to_dict()
    cfg.update(type=kind, with_cp=False)
    chosen = {
        THEIRS: dict(type=theirs, **{k: cfg[k] for k in shared.split() if k in cfg}),
        OURS: cfg,
        BASELINE: dict(cfg, memory_layers=()),
        SAVING: dict(cfg, with_cp=True),
    }
    if kind == 'MeMViT' and cfg.get('memory_levels') is not None:
        chosen[PUBLISHED] = dict(cfg, memory_levels=None)
    return chosen


@dataclass
class Comparison:
    """What was measured of all of them, forward and in training, by name."""

    forward: dict[str, Result]
    training: dict[str, Result]
    costs: dict[str, Cost]
    """Of one clip, by name."""

    def to_dict(self) -> dict[str, Any]:
        """The figures and their ratios as numbers, lists and dicts."""
        found = {
            kind: {name: result.to_dict() for name, result in results.items()}
            for kind, results in self._kinds().items()
        }
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        return dict(found, costs=costs, ratios=self.ratios())

    def ratios(self) -> dict[str, float]:
        """How they compare, by what is divided by what."""
        found = {}
        for name, (kind, over, under) in RATIOS.items():
            results = self._kinds()[kind]
            if {over, under} <= results.keys():
                for words, figure in FIGURES.items():
                    a, b = (getattr(results[key], figure) for key in (over, under))
                    found[name.format(words)] = a / max(b, 1e-9)
        for name, under in (
            ('multiply-adds, memory on / off', BASELINE),
            ('multiply-adds against two clips', PUBLISHED),
        ):
            if {OURS, under} <= self.costs.keys():
                found[name] = self.costs[OURS].macs / self.costs[under].macs
        if {OURS, PUBLISHED} <= self.costs.keys():
            kept = (self.costs[name].stream_bytes for name in (OURS, PUBLISHED))
            found['kept of a stream against two clips'] = next(kept) / next(kept)
        return found

    def _kinds(self) -> dict[str, dict[str, Result]]:
        return dict(forward=self.forward, training=self.training)

    def __str__(self) -> str:
        lines = []
        for title, results in (
            ('forward, no gradient', self.forward),
            ('forward + backward', self.training),
        ):
            if results:
                rows = {
                    NAMES[name].format(result.case.backbone['type']): result
                    for name, result in results.items()
                }
                lines.append(str(Table(title, rows)))
        lines += [f'{name:48}{value:7.3f} x' for name, value in self.ratios().items()]
        return '\n'.join(lines)


def compare(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 5,
    what: Sequence[str] = ('forward', 'training'),
    only: Optional[Sequence[str]] = None,
) -> Comparison:
    """Measure a backbone, MMAction2's and the others of :func:`backbones` in turn.

    Args:
        cfg (dict): Config of a :class:`MeMViT` or :class:`MemoryViT`.
        template (Case): Size, batch, device, dtype, threads and ``compiled`` of all.
        repeats (int): Measured runs of each.
        what (sequence[str]): 'forward', 'training' or both.
        only (sequence[str], optional): Those alone, of 'MMAction2', 'memory',
            'no-memory', 'with-cp' and, if it has a schedule, 'published'.

    Raises:
        ValueError: If the backbone is another or has not what ``only`` names, or if
            one of them fails.
    """
    chosen = backbones(cfg)
    layers = cfg.get('memory_layers')
    if layers is not None and not layers:
        # It has no memory: it is its own baseline.
        del chosen[OURS], chosen[SAVING]
        chosen.pop(PUBLISHED, None)
    known = {short: name for short, name in SHORT.items() if name in chosen}
    for short in only or known:
        if short not in known:
            raise ValueError(
                f'only={short} (--only): there is no such case for a '
                f'{chosen[BASELINE]["type"]}; choose from {", ".join(known)}.'
            )
    wanted = {known[short] for short in only or known}
    chosen = {k: v for k, v in chosen.items() if k in wanted}
    clip = clip_shape(cfg, template.size)
    costs = {
        name: backbone_cost(chosen[name], clip)
        for name in (OURS, BASELINE, PUBLISHED)
        if name in chosen
    }
    found: dict[str, dict[str, Result]] = dict(forward={}, training={})
    for kind in what:
        cases = {
            name: replace(
                template,
                name=f'{NAMES[name].format(backbone["type"])}, {kind}',
                backbone=backbone,
                training=kind == 'training',
                # MMAction2's stays as it is.
                compiled=template.compiled and name != THEIRS,
            )
            for name, backbone in chosen.items()
            # Checkpointing has a meaning in training only.
            if name != SAVING or kind == 'training'
        }
        found[kind] = dict(zip(cases, measure(list(cases.values()), repeats)))
    return Comparison(found['forward'], found['training'], costs)
