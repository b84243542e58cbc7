"""ClipMemory: whose past a row gets, what is kept, for how long."""

import copy
import io
import warnings

import pytest
import torch

from memvit_mm.models import ClipMemory, Stream
from memvit_mm.models.memory.layers import KeyValue, LevelSpec, MemorySpec, Written
from memvit_mm.models.memory.schedule import published_levels

CHANNELS = 2


def spec_of(tokens, compressed_tokens, ages):
    level = LevelSpec(ages, source=0, form=1, tokens=compressed_tokens)
    return MemorySpec(CHANNELS, tokens, (level,))


SPECS = {'layer0': spec_of(4, 1, ages=(2, 4))}
LIKE = torch.zeros(1)


def play(memory, clips, compress=True):
    """One step: clips are (stream, time, value). Returns what was read."""
    step = memory.step([Stream(s) for s, _, _ in clips], [t for _, t, _ in clips])
    (past,) = step.read(SPECS, like=LIKE)['layer0']
    values = torch.tensor([float(v) for _, _, v in clips])
    current = values[:, None, None].expand(-1, 4, CHANNELS)
    written = Written(KeyValue(current, current + 0.5))
    if compress:
        # The mean over the tokens stands for the compression.
        recent = past.recent
        means = (x.mean(1, keepdim=True) for x in recent)
        written.compressed = (KeyValue(*means),)
    step.write({'layer0': written})
    step.commit()
    return past


def read(past, row=0):
    """(older, recent) keys of a row, None where the slot is empty."""
    older, recent = past.older.key[row, 0, 0].item(), past.recent.key[row, 0, 0].item()
    valid = past.valid[row].tolist()
    return older if valid[0] else None, recent if valid[1] else None


def test_the_clips_gap_and_twice_gap_back_are_read():
    memory = ClipMemory()
    seen = [read(play(memory, [('a', t, t)])) for t in range(1, 8)]
    assert seen == [
        (None, None),
        (None, None),
        (None, 1),
        (None, 2),
        (1, 3),
        (2, 4),
        (3, 5),
    ]


@pytest.mark.parametrize('gap', [1, 2, 3])
@pytest.mark.parametrize('length', [1, 2, 3])
def test_the_published_schedule(length, gap):
    (level,) = published_levels(length, gap)
    assert level.ages == tuple(gap * i for i in range(1, length + 1))


def test_empty_slots_are_hidden_and_zero():
    past = play(ClipMemory(), [('a', 1, 7), ('b', 1, 8)])
    assert not past.valid.any()
    assert past.recent.key.shape == (2, 4, CHANNELS)
    assert past.older.key.shape == (2, 1, CHANNELS)
    assert past.recent.key.abs().sum() == 0 and past.older.value.abs().sum() == 0


def test_a_row_reads_its_own_stream_in_any_batch():
    memory = ClipMemory()
    for t in range(1, 5):
        order = [('a', t, t), ('b', t, 10 + t), ('c', t, 20 + t)]
        play(memory, order[t % 3 :] + order[: t % 3])
    past = play(memory, [('c', 5, 0), ('new', 5, 0), ('a', 5, 0)])
    assert [read(past, row) for row in range(3)] == [(21, 23), (None, None), (1, 3)]


def test_a_clip_is_compressed_when_it_is_first_read_and_then_kept_so():
    memory = ClipMemory()
    for t in range(1, 5):
        play(memory, [('a', t, t)])
    (clips,) = memory._clips.values()
    kept = [clip.layers['layer0'] for clip in clips]
    sizes = [{form: len(pair.key) for form, pair in k.forms.items()} for k in kept]
    assert sizes == [{1: 1}, {1: 1}, {0: 4}, {0: 4}]


def test_time_that_does_not_go_on_starts_afresh_with_one_warning():
    memory = ClipMemory()
    for t in (1, 2, 3):
        play(memory, [('a', t, t)])
    with pytest.warns(UserWarning, match='SequentialClipSampler') as caught:
        assert read(play(memory, [('a', 2, 2)])) == (None, None)
        assert read(play(memory, [('a', 2, 2)])) == (None, None)
    assert len(caught) == 1
    # It is a start like any other.
    play(memory, [('a', 3, 3)])
    assert read(play(memory, [('a', 4, 4)])) == (None, 2)


def test_two_clips_of_a_stream_need_a_step_each():
    memory = ClipMemory()
    with pytest.raises(ValueError, match="two clips of one stream.*video='a'"):
        memory.step([Stream('a'), Stream('a')], [4, 3])


def test_runs_views_and_epochs_are_streams_of_their_own():
    memory = ClipMemory()
    streams = [
        Stream('a'),
        Stream('a', view=1),
        Stream('a', run=1),
        Stream('a', 0, 0, 1),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step = memory.step(streams, [3, 3, 1, 1])
    step.read(SPECS, like=LIKE)
    step.commit()
    assert set(memory.streams) == set(streams)
    memory.reset('a')
    assert len(memory) == 0


def test_reset_of_a_video_leaves_the_others():
    memory = ClipMemory()
    for t in (1, 2, 3):
        play(memory, [('a', t, t), ('b', t, t)])
    memory.reset('a')
    memory.reset('no such stream')
    past = play(memory, [('a', 4, 4), ('b', 4, 4)])
    assert read(past, 0) == (None, None) and read(past, 1) == (None, 2)


def test_the_least_recently_used_stream_goes_first():
    memory = ClipMemory(max_streams=2)
    play(memory, [('a', 1, 1)])
    play(memory, [('b', 1, 1)])
    play(memory, [('a', 2, 2)])
    play(memory, [('c', 1, 1)])
    assert [s.video for s in memory.streams] == ['a', 'c']
    with pytest.raises(ValueError, match='max_streams=2'):
        memory.step([Stream(x) for x in 'abc'], [9, 9, 9])


class Owner:
    """Whoever reads a stream."""


def test_open_streams_make_no_room():
    memory, owners = ClipMemory(max_streams=2), dict(a=Owner(), b=Owner())
    for name, owner in owners.items():
        memory.open(name, owner)
    for t in (1, 2):
        for name in 'ab':
            play(memory, [(name, t, t)])
    with pytest.raises(ValueError, match='for 3 streams, but it keeps max_streams=2'):
        play(memory, [('c', 1, 1)])
    assert [s.video for s in memory.streams] == ['a', 'b']
    assert read(play(memory, [('a', 3, 3), ('b', 3, 3)])) == (None, 1)
    # The one that is over does, and so does one that nobody reads any more.
    memory.reset('a')
    play(memory, [('c', 1, 1)])
    del owners['b'], owner
    play(memory, [('d', 1, 1)])
    assert [s.video for s in memory.streams] == ['c', 'd']


def test_the_least_recently_used_stream_may_be_open():
    memory, owner = ClipMemory(max_streams=3), Owner()
    memory.open('a', owner)
    for number, name in enumerate('abcde'):
        play(memory, [(name, number, number)])
    assert [s.video for s in memory.streams] == ['a', 'd', 'e']


def test_a_copy_has_no_open_streams(tmp_path):
    memory, owner = ClipMemory(max_streams=1), Owner()
    memory.open('a', owner)
    play(memory, [('a', 1, 1)])
    torch.save(memory, tmp_path / 'memory.pth')
    loaded = torch.load(tmp_path / 'memory.pth', weights_only=False)
    for other in (copy.deepcopy(memory), loaded):
        assert other.owner('a') is None and [s.video for s in other.streams] == ['a']
        play(other, [('b', 1, 1)])
    assert memory.owner('a') is owner


def test_a_stream_that_comes_back_when_it_is_forgotten_is_told_once():
    memory = ClipMemory(max_streams=2)
    for name in 'abc':
        play(memory, [(name, 1, 1)])
    with pytest.warns(UserWarning, match="of 'a' at 2 .* max_streams=2 of") as caught:
        for t in (2, 3):
            for name in 'abc':
                play(memory, [(name, t, t)])
    assert len(caught) == 1


def test_videos_one_after_the_other_are_not_told():
    memory = ClipMemory(max_streams=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(2):
            for name in 'abc':
                # The second time they begin again.
                for t in (1, 2, 3):
                    play(memory, [(name, t, t)])
        # Nor are those whose memory is loaded.
        saved = memory.state_dict()
        for name in 'de':
            play(memory, [(name, 1, 1)])
        memory.load_state_dict(saved)
        play(memory, [('c', 5, 5)])
        # Nor are those that begin anew in between.
        memory.reset('a')
        play(memory, [('a', 4, 4)])
        memory.reset()
        play(memory, [('b', 4, 4)])


def test_bytes_are_counted_and_flat():
    memory = ClipMemory(max_streams=3)
    sizes = []
    for t in range(400):
        play(memory, [(f'v{t // 20}', t, t), ('camera', t, t)])
        sizes.append(memory.num_bytes)
    # Three streams: two raw clips of 4 tokens and two compressed of 1, keys and values.
    assert max(sizes) == 3 * 2 * (2 * 4 + 2 * 1) * CHANNELS * 4
    assert sizes[399] == sizes[219], 'at the end of a video each'
    memory.reset()
    assert memory.num_bytes == 0


def test_a_failed_step_leaves_no_trace():
    memory = ClipMemory()
    for t in (1, 2, 3):
        play(memory, [('a', t, t)])
    step = memory.step([Stream('a')], [4])
    with pytest.raises(RuntimeError, match=r'^Call read\(\) before write\(\).$'):
        step.write({})
    step.read(SPECS, like=LIKE)
    step.write({'layer0': Written(KeyValue(torch.ones(1, 4, 2), torch.ones(1, 4, 2)))})
    # No commit: an error came.
    assert read(play(memory, [('a', 4, 4)])) == (None, 2)


def test_state_travels_through_a_file_in_mid_video():
    memory = ClipMemory()
    for t in range(1, 6):
        play(memory, [('a', t, t), (('b', 1), t, 10 + t)])
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored = ClipMemory()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.num_bytes == memory.num_bytes
    for other in (memory, restored):
        past = play(other, [('a', 6, 6), (('b', 1), 6, 16)])
        assert read(past, 0) == (2, 4) and read(past, 1) == (12, 14)


def test_saved_layers_in_another_order():
    """As a file may have them."""
    specs = {f'layer{i}': spec_of(4, 1, ages=(2, 4)) for i in (0, 1)}
    memory = ClipMemory()
    for time in (1, 2):
        step = memory.step([Stream('a')], [time])
        step.read(specs, like=LIKE)
        clips = {n: torch.full((1, 4, CHANNELS), float(n[-1])) for n in specs}
        step.write({n: Written(KeyValue(x, x + 2)) for n, x in clips.items()})
        step.commit()
    state = memory.state_dict()
    for clip in state['streams'][0]['clips']:
        clip['layers'] = dict(reversed(clip['layers'].items()))
    restored = ClipMemory()
    restored.load_state_dict(state)
    past = restored.step([Stream('a')], [3]).read(specs, like=LIKE)
    for name, (level,) in past.items():
        assert level.valid.tolist() == [[False, True]]
        assert level.recent.key.unique().tolist() == [float(name[-1])]
        assert level.recent.value.unique().tolist() == [float(name[-1]) + 2]


def test_set_aside_and_restore():
    memory = ClipMemory()
    for t in (1, 2):
        play(memory, [('a', t, t)])
    taken = memory.num_bytes
    memory.set_aside()
    assert len(memory) == 0 and memory.num_bytes == taken
    play(memory, [('a', 1, 1)])
    memory.restore()
    assert read(play(memory, [('a', 3, 3)])) == (None, 1)
    with pytest.raises(RuntimeError, match='set_aside'):
        memory.restore()


def test_frames_of_another_size_start_afresh():
    memory = ClipMemory()
    for t in (1, 2):
        play(memory, [('a', t, t)])
    step = memory.step([Stream('a')], [3])
    with pytest.warns(UserWarning, match='changed their size'):
        past = step.read({'layer0': spec_of(9, 2, ages=(2, 4))}, like=LIKE)
    assert not past['layer0'][0].valid.any()


def test_what_is_kept_carries_no_gradient_and_not_the_batch():
    memory = ClipMemory()
    step = memory.step([Stream('a'), Stream('b')], [1, 1])
    step.read(SPECS, like=LIKE)
    big = torch.zeros(2, 4, CHANNELS, requires_grad=True)
    step.write({'layer0': Written(KeyValue(big * 2, big * 3))})
    step.commit()
    kept = memory._clips[Stream('a')][-1].layers['layer0']
    assert not kept.forms[0].key.requires_grad
    memory.reset('b')
    assert memory.num_bytes == 2 * 4 * CHANNELS * 4


def test_rows_are_used_again():
    """The tensors of the tables grow with what is kept, not with what has passed."""
    memory, rows = ClipMemory(max_streams=3), []
    for t in range(200):
        play(memory, [(f'v{t // 5}', t, t), ('camera', t, t)])
        (plan,) = memory._plans.values()
        tables = plan.groups[0].tables.values()
        rows.append([table._rows for table in tables])
    # Three streams with two clips in each form, and a row of zeros.
    assert rows[-1] == [1 + 3 * 2] * 2
    assert all(len(x) == 7 for table in tables for x in table._tensors.values())
    memory.reset()
    assert not any(table._tensors for table in tables)


def test_steps_side_by_side():
    """Each begun before the other is done."""
    memory = ClipMemory()
    for time in (1, 2, 3):
        steps = [memory.step([Stream(name)], [time]) for name in 'ab']
        read = [step.read(SPECS, like=LIKE)['layer0'][0] for step in steps]
        clip = torch.full((1, 4, CHANNELS), float(time))
        for step in steps:
            step.write({'layer0': Written(KeyValue(clip, clip))})
            step.commit()
    assert [past.valid.tolist() for past in read] == [[[False, True]]] * 2


def test_what_was_set_aside_does_not_grow():
    memory = ClipMemory()
    play(memory, [('a', 1, 1)])
    memory.set_aside()
    for time in range(4):
        play(memory, [(f'v{n}', time, n) for n in range(9)])
    memory.restore()
    (plan,) = memory._plans.values()
    assert [table._rows for table in plan.groups[0].tables.values()] == [2, 1]


def test_more_layers_than_were_saved_start_afresh():
    memory = ClipMemory()
    for time in (1, 2):
        play(memory, [('a', time, time)])
    restored = ClipMemory()
    restored.load_state_dict(memory.state_dict())
    step = restored.step([Stream('a')], [3])
    with pytest.warns(UserWarning, match='another schedule'):
        past = step.read({**SPECS, 'layer2': SPECS['layer0']}, like=LIKE)
    assert not any(level.valid.any() for (level,) in past.values())


@pytest.mark.parametrize('dtype', [None, 'bfloat16', torch.float16])
def test_the_type_in_which_is_kept(dtype):
    memory = ClipMemory(dtype=dtype)
    values = torch.randn(1, 4, CHANNELS).bfloat16()
    spec = {'layer0': spec_of(4, 1, ages=(1,))}
    for time in (1, 2):
        step = memory.step([Stream('a')], [time])
        recent = step.read(spec, like=values)['layer0'][0].recent.key
        step.write({'layer0': Written(KeyValue(values, values.float() + 1))})
        step.commit()
    assert recent.dtype == torch.bfloat16
    torch.testing.assert_close(recent, values, atol=0, rtol=1e-2)
    sizes = {None: 2 + 4, 'bfloat16': 2 + 2, torch.float16: 2 + 2}
    assert memory.num_bytes == 4 * CHANNELS * sizes[dtype]


def test_what_inference_mode_wrote_goes_on_in_training():
    memory = ClipMemory()
    with torch.inference_mode():
        play(memory, [('a', 1, 1)])
        memory.set_aside()
        play(memory, [('a', 1, 5)])
    memory.restore()
    play(memory, [('a', 2, 2)])
    past = play(memory, [('a', 3, 3)])
    (past.recent.key * torch.ones(CHANNELS, requires_grad=True)).sum().backward()
    assert read(past) == (None, 1)


def test_a_dtype_that_is_none():
    with pytest.raises(ValueError, match="dtype='float64' of ClipMemory must be"):
        ClipMemory(dtype='float64')


def test_max_streams_must_be_positive():
    with pytest.raises(ValueError, match='max_streams=0'):
        ClipMemory(max_streams=0)
