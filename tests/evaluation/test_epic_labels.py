import numpy as np
import pytest
from epic_made import HEADER, make_rows, write_annotations, write_csv

from memvit_mm.evaluation import read_labels


@pytest.fixture
def folder(tmp_path):
    return write_annotations(tmp_path / 'annotations', make_rows(12))


def test_folder(folder):
    labels = read_labels(str(folder))
    rows = make_rows(12)
    assert labels.narration_ids == tuple(row['narration_id'] for row in rows)
    assert labels.participants[:3] == ('P01', 'P02', 'P03')
    assert labels.classes.tolist() == [
        [row['verb_class'], row['noun_class']] for row in rows
    ]
    assert labels.num_classes == (97, 300)
    assert labels.unseen == {'P03'} and labels.tail == ({3, 7, 11}, {2, 5, 8, 13})
    assert labels.has_labels and labels.notes == ()


def test_test_set_has_no_labels(folder):
    labels = read_labels(str(folder), 'test')
    assert len(labels.narration_ids) == 12 and not labels.has_labels
    assert labels.classes.tolist() == [[-100, -100]] * 12
    assert labels.notes == (
        f'There is no EPIC_100_unseen_participant_ids_test.csv in {folder}: no unseen '
        'numbers.',
    )


def test_rows_without_a_start_are_not_expected(folder):
    """EpicKitchensDataset leaves them out, too."""
    rows = make_rows(12)
    rows[5]['start_timestamp'] = ''
    write_csv(folder / 'EPIC_100_validation.csv', HEADER, rows)
    assert len(read_labels(str(folder)).narration_ids) == 11


def test_classes_of_the_folder(folder):
    for kind, count in (('verb', 14), ('noun', 17)):
        write_csv(
            folder / f'EPIC_100_{kind}_classes.csv',
            ['id', 'key'],
            [dict(id=number, key=f'does {number}') for number in range(count)],
        )
    assert read_labels(str(folder)).num_classes == (14, 17)
    assert read_labels(str(folder), num_classes=(20, 30)).num_classes == (20, 30)


def test_a_file_by_name(folder):
    alone = read_labels(ann_file=str(folder / 'EPIC_100_validation.csv'))
    assert (alone.classes == read_labels(str(folder)).classes).all()
    assert alone.tail is alone.unseen is None and len(alone.notes) == 3
    assert list(alone.subsets(np.arange(12))) == ['all']


class TestErrors:
    def expect(self, sentence, *args, error=ValueError, **options):
        with pytest.raises(error, match=sentence) as raised:
            read_labels(*args, **options)
        assert '\n' not in str(raised.value)

    def test_arguments(self, folder, tmp_path):
        self.expect(
            'Give annotations, the folder of the official CSV files, or ann_file'
        )
        self.expect("one of train, validation, test, got 'val'", str(folder), 'val')
        self.expect(
            'There is no .*EPIC_100_validation.csv: annotations must be the folder',
            str(tmp_path / 'none'),
            error=FileNotFoundError,
        )

    def test_missing_files(self, tmp_path):
        self.expect(
            'Annotation file .*none.csv does not exist',
            ann_file=str(tmp_path / 'none.csv'),
            error=FileNotFoundError,
        )

    def test_class_out_of_range(self, folder):
        rows = make_rows(12)
        rows[3]['noun_class'] = 300
        write_csv(folder / 'EPIC_100_validation.csv', HEADER, rows)
        self.expect(
            rf"validation.csv:5: narration '{rows[3]['narration_id']}' has the "
            "noun_class '300', expected a number from 0 to 299",
            str(folder),
        )

    def test_missing_column(self, folder):
        path = folder / 'EPIC_100_validation.csv'
        header = [name for name in HEADER if name != 'noun_class']
        write_csv(path, header, make_rows(12))
        self.expect("lacks the column 'noun_class' .*check annotations", str(folder))

    def test_tail_list(self, folder):
        path = folder / 'EPIC_100_tail_verbs.csv'
        write_csv(path, ['verb'], [{'verb': 5}, {'verb': 97}])
        self.expect("tail_verbs.csv has the verb '97', expected.* 0 to 96", str(folder))
        write_csv(path, ['noun'], [{'noun': 5}])
        self.expect("tail_verbs.csv lacks the column 'verb'", str(folder))
