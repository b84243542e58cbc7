"""EpicMetric in real runs: validation and test, one process and two."""

import json
import logging
import os
import pickle
import re
import socket

import numpy as np
import pytest
import torch
from epic_made import (
    NOUNS,
    VERBS,
    make_rows,
    make_scores,
    second_opinion,
    write_annotations,
)
from mmaction.registry import METRICS
from mmaction.structures import ActionDataSample
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner

from memvit_mm.evaluation import (
    EpicMetric,
    epic_metrics,
    read_labels,
    read_predictions,
    read_submission,
)
from memvit_mm.evaluation.epic.predictions import match
from memvit_mm.structures import is_skipped

# An odd number, so that DefaultSampler repeats a sample for two processes.
ROWS = make_rows(41)
NAMES = [row['narration_id'] for row in ROWS]
VERB, NOUN = make_scores(ROWS)


class Stream(BaseDataset):
    """Segments as EpicKitchensDataset gives them, with clips in between."""

    def __init__(self, skip=(), repeat=(), leave_out=()):
        self.skip, self.repeat, self.leave_out = skip, repeat, leave_out
        super().__init__(pipeline=[self.pack])

    def load_data_list(self):
        found = []
        for number, row in enumerate(ROWS):
            name = row['narration_id']
            for copy in range((name not in self.leave_out) + (name in self.repeat)):
                common = dict(video_id=row['video_id'], number=number)
                found.append(
                    dict(common, narration_id=name, timestamp=2.0 * number + copy / 4)
                )
                if number % 3:
                    context = dict(narration_id=None, timestamp=2.0 * number + 1)
                    found.append(dict(common, **context))
        return found

    def pack(self, info):
        sample = ActionDataSample()
        keys = ('video_id', 'timestamp', 'sample_idx', 'narration_id')
        sample.set_metainfo({key: info[key] for key in keys})
        if info['narration_id'] in self.skip:
            sample.set_metainfo(dict(skipped='a.mp4 is damaged.', skipped_file='a.mp4'))
        return dict(inputs=torch.tensor(info['number']), data_samples=sample)


class Toy(BaseModel):
    """Knows the scores of every segment, and leaves out clips that were skipped."""

    def __init__(self, nan=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.nan = nan

    def forward(self, inputs, data_samples=None, mode='tensor'):
        found = []
        for number, sample in zip(inputs, data_samples):
            if not is_skipped(sample):
                verb = torch.from_numpy(VERB)[number].clone()
                if sample.narration_id == self.nan:
                    verb[6] = torch.nan
                sample.set_field(verb, 'verb_logits')
                sample.set_field(torch.from_numpy(NOUN)[number], 'noun_logits')
                found.append(sample)
        return found


def make_runner(folder, metric, data=None, model=None, sequential=True, **options):
    loader = dict(
        batch_size=3,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
        dataset=data or Stream(),
    )
    if sequential:
        loader['batch_sampler'] = dict(type='SequentialClipSampler', shuffle=False)
    return Runner(
        model=model or Toy(),
        work_dir=str(folder / 'work'),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=[metric],
        # mmengine would name GPUs
        cfg=dict(
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)
        ),
        default_scope='mmaction',
        log_level='ERROR',
        experiment_name=f'{folder.name}-{np.random.randint(10**9)}',
        **options,
    )


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory, monkeypatch):
    """What is written beside a log that there is not comes into the working folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp('cwd'))


@pytest.fixture(scope='module')
def annotations(tmp_path_factory):
    folder = tmp_path_factory.mktemp('epic') / 'annotations'
    return str(write_annotations(folder, ROWS))


@pytest.fixture(scope='module')
def expected():
    return second_opinion(ROWS, VERB, NOUN)


def with_prefix(values):
    return {f'epic/{key}': value for key, value in values.items()}


@pytest.mark.parametrize('task', ['recognition', 'anticipation'])
def test_test(tmp_path, annotations, expected, task):
    metric = dict(
        type='EpicMetric',
        task=task,
        annotations=annotations,
        dump=str(tmp_path / 'new' / 'a.npz'),
        submission=str(tmp_path / 'new' / 'a.zip'),
        submission_fields=dict(sls_pt=1),
    )
    values = make_runner(tmp_path, metric).test()
    assert values == pytest.approx(with_prefix(getattr(expected, task)), abs=1e-9)
    assert all(type(value) is float for value in values.values())
    # What was written scores the same.
    labels = read_labels(annotations)
    for name in ('a.npz', 'a.zip'):
        found = match(read_predictions(str(tmp_path / 'new' / name)), labels)
        assert with_prefix(epic_metrics(task, found, labels).values) == values
    header, _ = read_submission(str(tmp_path / 'new' / 'a.zip'))
    assert header['sls_pt'] == 1 and header['challenge'] == f'action_{task}'


def run_in_process(rank, world_size, port, folder, annotations):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank),
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    os.chdir(folder)
    torch.distributed.init_process_group('gloo')
    skip = NAMES[4]
    found = []
    for sequential in (True, False):
        for data in (Stream(), Stream(skip=[skip])):
            dump = folder / f'{len(found)}.npz'
            metric = EpicMetric('recognition', annotations, dump=str(dump))
            options = dict(
                launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='gloo'))
            )
            runner = make_runner(folder, metric, data, sequential=sequential, **options)
            found.append(runner.test())
    (folder / f'{rank}.pkl').write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path, annotations, expected):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        run_in_process,
        args=(2, port, tmp_path, annotations),
        nprocs=2,
        start_method='fork',  # spares the imports
    )
    results = [pickle.loads((tmp_path / f'{rank}.pkl').read_bytes()) for rank in (0, 1)]
    assert results[0] == results[1]
    rest = [i for i in range(41) if i != 4]
    skipped = second_opinion([ROWS[i] for i in rest], VERB[rest], NOUN[rest])
    for number, found in enumerate(results[0]):
        values = (skipped if number % 2 else expected).recognition
        assert found == pytest.approx(with_prefix(values), abs=1e-9)
        dumped = np.load(tmp_path / f'{number}.npz')
        names = [name for i, name in enumerate(NAMES) if number % 2 == 0 or i != 4]
        # A sample that DefaultSampler repeats is there once.
        assert sorted(dumped['narration_id'].tolist()) == sorted(names)


class Log:
    """What a metric logs."""

    def __init__(self, monkeypatch):
        self.records = []
        logger = MMLogger(f'test-{id(self)}')
        handler = logging.Handler()
        handler.emit = self.records.append
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        monkeypatch.setattr(MMLogger, 'get_current_instance', lambda *_: logger)

    @property
    def text(self):
        return '\n'.join(record.getMessage() for record in self.records)


def batch(*names, verb=None, **more):
    """Data samples of some segments, as to_dict() gives them."""
    return [
        dict(
            narration_id=name,
            verb_logits=torch.from_numpy(
                (VERB if verb is None else verb)[NAMES.index(name)]
            ),
            noun_logits=torch.from_numpy(NOUN[NAMES.index(name)]),
            **more,
        )
        for name in names
    ]


def test_the_log_has_the_table(annotations, monkeypatch):
    metric = METRICS.build(
        dict(type='EpicMetric', task='anticipation', annotations=annotations)
    )
    metric.process(None, batch(*NAMES))
    metric.process(None, [dict(narration_id=None)])
    log = Log(monkeypatch)
    metric.evaluate(42)
    assert 'class-mean recall@5 in percent, 41 segments of' in log.text
    assert 'overall   mt5r' in log.text and 'tail      mt5r' in log.text


class TestSkipped:
    def test_they_do_not_count(self, tmp_path, annotations, monkeypatch):
        skip = [NAMES[4], NAMES[20]]
        paths = {'dump': tmp_path / 'a.npz', 'submission': tmp_path / 'a.json'}
        metric = EpicMetric(
            'recognition', annotations, **{k: str(p) for k, p in paths.items()}
        )
        log = Log(monkeypatch)
        values = make_runner(tmp_path, metric, Stream(skip=skip)).test()
        rest = [i for i, name in enumerate(NAMES) if name not in skip]
        expected = second_opinion([ROWS[i] for i in rest], VERB[rest], NOUN[rest])
        assert values == pytest.approx(with_prefix(expected.recognition), abs=1e-9)
        assert '2 segments (P01_02_4, P01_03_20) could not be read' in log.text
        assert np.load(paths['dump'])['skipped'].tolist() == sorted(skip)
        # The challenge takes all segments.
        assert '2 segments (P01_02_4, P01_03_20) have no prediction: since' in log.text
        _, written = read_submission(str(paths['submission']))
        row = written.narration_ids.index(NAMES[20])
        assert len(written) == 41 and len(np.unique(written.verb[row])) == 1
        assert written.verb[row, 0] == pytest.approx(-np.log(VERBS), abs=1e-5)
        assert written.noun[row, 0] == pytest.approx(-np.log(NOUNS), abs=1e-5)


class TestTestSet:
    def test_no_number(self, tmp_path, annotations, monkeypatch):
        path = tmp_path / 'a.zip'
        metric = EpicMetric('anticipation', annotations, 'test', submission=str(path))
        log = Log(monkeypatch)
        assert make_runner(tmp_path, metric).test() == {}
        assert 'timestamps.csv has no labels, so there are no numbers.' in log.text
        assert f'The submission is in {path}.' in log.text
        assert len(read_submission(str(path))[1]) == 41

    def test_nothing_to_write(self, tmp_path, annotations, monkeypatch):
        log = Log(monkeypatch)
        metric = EpicMetric('anticipation', annotations, 'test')
        assert make_runner(tmp_path, metric).test() == {}
        assert 'no numbers; submission=OUT.zip writes them' in log.text


class TestNothingIsLost:
    """Whatever is wrong with the predictions: first they are written."""

    def fails(self, folder, annotations, sentence, *args, **options):
        dump = folder / 'a.npz'
        metric = EpicMetric('recognition', annotations, dump=str(dump), **options)
        with pytest.raises(ValueError, match=sentence):
            make_runner(folder, metric, *args).test()
        return read_predictions(str(dump))

    def test_missing(self, tmp_path, annotations):
        sentence = rf'has no prediction for 1 segment \({NAMES[7]}\) of the 41'
        data = Stream(leave_out=[NAMES[7]])
        found = self.fails(tmp_path, annotations, sentence, data)
        assert len(found) == 40
        metric = EpicMetric('recognition', annotations, allow_missing=True)
        assert len(make_runner(tmp_path, metric, data).test()) == 12

    def test_without_a_dump_they_are_beside_the_log(self, tmp_path, annotations):
        metric = EpicMetric('recognition', annotations)
        runner = make_runner(tmp_path, metric, Stream(leave_out=[NAMES[7]]))
        with pytest.raises(ValueError, match='; the predictions are in .*npz') as error:
            runner.test()
        path = re.search(r'are in (\S*\.npz)', str(error.value))[1]
        assert str(tmp_path) in path and len(read_predictions(path)) == 40

    def test_what_the_dataset_leaves_out_is_not_missed(self, tmp_path, annotations):
        metric = EpicMetric('recognition', annotations)
        runner = make_runner(tmp_path, metric, Stream(leave_out=[NAMES[7]]))
        runner.test_loop.evaluator.dataset_meta = dict(left_out=[NAMES[7]])
        assert len(runner.test()) == 12

    def test_twice(self, tmp_path, annotations):
        sentence = rf'The model predicts 1 segment \({NAMES[7]}\) more than once'
        data = Stream(repeat=[NAMES[7]])
        assert len(self.fails(tmp_path, annotations, sentence, data)) == 42

    def test_not_finite(self, tmp_path, annotations):
        sentence = f"verb_logits nan for segment '{NAMES[7]}', entry 6"
        found = self.fails(tmp_path, annotations, sentence, None, Toy(NAMES[7]))
        assert np.isnan(found.verb).sum() == 1

    def test_of_another_split(self, tmp_path, annotations):
        others = write_annotations(tmp_path / 'others', ROWS[:30])
        # At once, before anything has been computed in vain.
        metric = EpicMetric('recognition', str(others))
        with pytest.raises(ValueError, match="has segment '.*', which is not in .*oth"):
            make_runner(tmp_path, metric).test()


class TestMistakesAreToldBeforeTheTest:
    def expect(self, sentence, *args, error=ValueError, **options):
        with pytest.raises(error, match=sentence):
            EpicMetric(*args, **options)

    def test_options(self, annotations, tmp_path):
        self.expect("task must be one of .* got 'both'", 'both', annotations)
        self.expect('Give annotations, the folder of', 'recognition')
        self.expect(
            'There is no .*EPIC_100_validation.csv',
            'recognition',
            str(tmp_path),
            error=FileNotFoundError,
        )
        self.expect(
            'none.csv does not exist: check ann_file of EpicMetric, the evaluator.$',
            'recognition',
            ann_file='none.csv',
            error=FileNotFoundError,
        )
        self.expect('give both or none', 'recognition', annotations, num_verbs=3)
        self.expect(
            'submission writes .json or .zip, not a.txt',
            'recognition',
            annotations,
            submission='a.txt',
        )
        self.expect(
            'dump writes .npz, not a.pkl', 'recognition', annotations, dump='a.pkl'
        )
        self.expect(
            'sls_td 7', 'recognition', annotations, submission_fields=dict(sls_td=7)
        )

    def test_places(self, annotations, tmp_path):
        (tmp_path / 'file').touch()
        self.expect(
            'its folder cannot be made',
            'recognition',
            annotations,
            dump=str(tmp_path / 'file' / 'a.npz'),
        )
        (tmp_path / 'a.json').mkdir()
        self.expect(
            'a.json cannot be written: it is a folder',
            'recognition',
            annotations,
            submission=str(tmp_path / 'a.json'),
        )

    def test_first_batch(self, annotations):
        metric = EpicMetric('recognition', annotations)
        with pytest.raises(ValueError, match="'narration_id' to the meta_keys of Pack"):
            metric.process(None, [dict(verb_logits=torch.zeros(97))])
        with pytest.raises(ValueError, match="segment 'a' has no verb_logits"):
            metric.process(None, [dict(narration_id='a')])
        with pytest.raises(
            ValueError,
            match=r"'verb_logits': \[5\], .* expected .*'verb_logits': \[97\].*: num_v",
        ):
            metric.process(None, batch(NAMES[0], verb=VERB[:, :5]))
        metric.process(None, batch(NAMES[0]))
        explicit = dict(
            action_scores=torch.zeros(2), action_pairs=torch.zeros(2, 2, dtype=int)
        )
        with pytest.raises(
            ValueError, match='action_pairs.*, expected .* have as many actions'
        ):
            metric.process(None, batch(NAMES[1], **explicit))

    def test_too_few_actions_for_a_submission(self, annotations, tmp_path):
        path = str(tmp_path / 'a.zip')
        metric = EpicMetric('recognition', annotations, submission=path)
        explicit = dict(
            action_scores=torch.zeros(99), action_pairs=torch.zeros(99, 2, dtype=int)
        )
        with pytest.raises(ValueError, match='scores of 99 actions and a submission n'):
            metric.process(None, batch(NAMES[1], **explicit))

    def test_a_number_outlives_a_submission_that_cannot_be_written(
        self, annotations, tmp_path, monkeypatch
    ):
        folder = tmp_path / 'full'
        metric = EpicMetric(
            'recognition', annotations, submission=str(folder / 'a.zip')
        )
        metric.process(None, batch(*NAMES))
        folder.rmdir()
        folder.touch()
        log = Log(monkeypatch)
        with pytest.raises(ValueError, match='a.zip cannot be written .*: choose ano'):
            metric.evaluate(41)
        assert 'all      top-1' in log.text


def test_explicit_actions_of_the_model(annotations):
    pairs = torch.tensor([[row['verb_class'], row['noun_class']] for row in ROWS])
    metric = EpicMetric('recognition', annotations)
    for name, pair in zip(NAMES, pairs):
        other = (pair + 1) % 97
        metric.process(
            None,
            batch(
                name,
                action_pairs=torch.stack([other, pair]),
                action_scores=torch.tensor([0.2, 0.7]),
            ),
        )
    values = metric.evaluate(41)
    assert values['epic/all_action_accuracy_at_1'] == 100.0
    assert values['epic/all_verb_accuracy_at_1'] < 100.0


def test_no_prediction_at_all(annotations):
    metric = EpicMetric('recognition', annotations)
    metric.process(None, [dict(narration_id=None)])
    with pytest.raises(ValueError, match='The model has no prediction of any segment'):
        metric.evaluate(1)


def test_values_are_json(tmp_path, annotations):
    """A subset without segments has no number, and the log's file none that is nan."""
    few = [row for row in ROWS if row['participant_id'] != 'P03']
    folder = str(write_annotations(tmp_path / 'few', few))
    metric = EpicMetric('anticipation', folder)
    metric.process(None, batch(*(row['narration_id'] for row in few)))
    values = metric.evaluate(len(few))
    assert set(values) == {
        f'epic/{subset}_{part}_mt5r'
        for subset in ('overall', 'tail')
        for part in ('verb', 'noun', 'action')
    }
    json.dumps(values, allow_nan=False)
