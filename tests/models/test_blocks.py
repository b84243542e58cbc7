"""The plan of the blocks, as a table."""

from memvit_mm.models import MeMViT
from memvit_mm.models.blocks import plan_blocks
from memvit_mm.models.memory.schedule import published_levels

SMALL = """
 0   96->96   1 heads  8x56x56  q 1x1x1  kv 1x8x8  reads 2,4
 1   96->192  2 heads  8x56x56  q 1x2x2  kv 1x4x4  reads -
 2  192->192  2 heads  8x28x28  q 1x1x1  kv 1x4x4  reads 2,4
 3  192->384  4 heads  8x28x28  q 1x2x2  kv 1x2x2  reads -
 4  384->384  4 heads  8x14x14  q 1x1x1  kv 1x2x2  reads 2,4
 5  384->384  4 heads  8x14x14  q 1x1x1  kv 1x2x2  reads -
"""


def table(plans) -> str:
    def by(numbers) -> str:
        return 'x'.join(map(str, numbers))

    return '\n'.join(
        f'{layer:2d}  {plan.in_dims:3d}->{plan.out_dims:<4d} {plan.num_heads} heads  '
        f'{by(plan.input_size)}  q {by(plan.stride_q)}  kv {by(plan.stride_kv)}  '
        f'reads {",".join(str(a) for n in plan.levels for a in n.ages) or "-"}'
        for layer, plan in enumerate(plans)
    )


def test_memvit_16():
    plans = plan_blocks(
        MeMViT.arch_zoo['small'],
        (8, 56, 56),
        drop_path_rate=0.3,
        memory_layers=range(0, 16, 2),
        levels=published_levels(2, 2),
    )
    assert table(plans[:6]) == SMALL.strip('\n')
    assert plans[-1].input_size == (8, 7, 7) and plans[-1].out_dims == 768
    assert [plan.drop_path for plan in plans[::15]] == [0.0, 0.3]


def test_odd_sizes_are_rounded_up_and_in_the_tables_down():
    arch = dict(embed_dims=4, num_layers=3, num_heads=1, downscale_indices=[0, 1])
    sizes = [(p.input_size, p.table_size) for p in plan_blocks(arch, (4, 7, 7))]
    assert sizes == [
        ((4, 7, 7), (4, 7, 7)),
        ((4, 4, 4), (4, 3, 3)),
        ((4, 2, 2), (4, 1, 1)),
    ]
