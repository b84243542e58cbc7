"""A report in a browser: clicks, keys and values."""

import base64
import re

import numpy as np
import pytest
from browser import open_browser, open_page, until
from report_samples import (
    ACTIONS,
    COUNT,
    NOUNS,
    RUDE,
    SIZE,
    STRIDE,
    VERBS,
    epic,
    keyframes,
    people,
    plain,
    written,
)

from memvit_mm.apis import write_report


@pytest.fixture(scope='module')
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope='module')
def epic_report(tmp_path_factory):
    return write_report(
        tmp_path_factory.mktemp('epic') / 'report.html',
        epic(0),
        dict(name=f'{RUDE}.mp4', size=SIZE, fps=29.97, duration=STRIDE * COUNT),
        without_memory=epic(1),
        keyframes=keyframes(),
        memory_seconds=8,
        clip_seconds=STRIDE,
    )


@pytest.fixture(scope='module')
def people_report(tmp_path_factory):
    return write_report(
        tmp_path_factory.mktemp('people') / 'report.html',
        people(0),
        dict(name='room.mp4', size=SIZE, duration=13),
        without_memory=people(1),
        keyframes=keyframes(step=1.0),
    )


def point(page, panel, row, of, time, start=0.0, end=STRIDE * COUNT):
    """Where a class and a time are in the timeline, in pixels of the window."""
    canvas = page.locator('#timeline canvas').nth(panel)
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    x = area['x'] + area['width'] * (time - start) / (end - start)
    return x, area['y'] + area['height'] * (row + 0.5) / of


def labels(page, panel):
    return page.locator('#timeline .labels').nth(panel).locator('div').all_inner_texts()


def clock(page):
    return page.locator('#clock').inner_text().split(' / ')[0]


def tip(page, place):
    """What is shown under the pointer: its heading, and values by their names."""
    x, y = place
    for _ in range(100):  # scrolling hides it, and may end after the pointer came
        page.mouse.move(x, y - 1)
        page.mouse.move(x, y)
        page.wait_for_timeout(30)
        if page.locator('#tip').is_visible():
            break
    lines = page.locator('#tip div').all()
    values = dict(line.locator('span').all_inner_texts() for line in lines)
    return page.locator('#tip strong').inner_text(), values


def middle(locator):
    locator.scroll_into_view_if_needed()
    area = locator.bounding_box()
    return area['x'] + area['width'] / 2, area['y'] + area['height'] / 2


def test_timeline(browser, epic_report):
    with_memory, without = epic(0), epic(1)
    with open_page(browser, epic_report) as page:
        # Verbs with memory and, beneath, without; then nouns.
        assert page.locator('#timeline canvas').count() == 4
        titles = page.locator('#timeline h3').all_inner_texts()
        assert titles == [
            f'{group} {memory} memory'
            for group in ('Verbs', 'Nouns')
            for memory in ('with', 'without')
        ]
        for panel, (field, names) in enumerate(
            [('verb_scores', VERBS)] * 2 + [('noun_scores', NOUNS)] * 2
        ):
            rows = labels(page, panel)
            assert len(rows) == min(6, len(names))
            for row, number in ((0, 0), (len(rows) - 1, 7)):
                at = with_memory[number].time - 0.5
                name, values = tip(page, point(page, panel, row, len(rows), at))
                assert name == rows[row]
                place = names.index(name)
                for key, which in (('with', with_memory), ('without', without)):
                    score = getattr(which[number], field)[place]
                    shown = float(values[f'{key} memory'])
                    assert shown == pytest.approx(score, abs=6e-4)
        # A click goes there, and everything follows.
        page.mouse.click(*point(page, 0, 0, 4, 13.2))
        assert clock(page) == '0:13.2'
        assert page.locator('#now-time').inner_text() == '0:14.0'
        best, score = with_memory[6].top_verbs(1)[0]
        bars = page.locator('#now-list .bars').first
        assert bars.locator('.name').first.inner_text() == best
        assert float(bars.locator('.value').first.inner_text()) == pytest.approx(
            score, abs=6e-4
        )
        said = page.locator('#timeline').get_attribute('aria-valuetext')
        assert said.startswith('0:13.2') and best in said
        page.mouse.move(0, 0)
        assert page.locator('#tip').is_hidden()


def test_keys(browser, epic_report):
    with open_page(browser, epic_report) as page:
        assert clock(page) == '0:02.0'
        page.locator('#timeline').focus()
        for key, time in (
            ('ArrowRight', '0:04.0'),
            ('ArrowRight', '0:06.0'),
            ('ArrowLeft', '0:04.0'),
            ('Home', '0:00.0'),
            ('End', '0:24.0'),
            ('ArrowRight', '0:24.0'),
        ):
            page.keyboard.press(key)
            assert clock(page) == time
        page.keyboard.press('Home')
        page.select_option('#speed', '16')
        page.locator('#timeline').focus()
        page.keyboard.press(' ')
        until(page, "document.querySelector('#clock').innerText > '0:05'")
        assert page.locator('#play').get_attribute('aria-label') == 'Pause'
        page.wait_for_selector('#play[aria-label=Play]')  # at the end
        assert clock(page) == '0:24.0'
        # Keys belong to the text that is typed.
        page.locator('#search').click()
        page.keyboard.press('Home')
        assert clock(page) == '0:24.0'


def test_choices(browser, epic_report):
    pairs = list(zip(epic(0), epic(1)))
    with open_page(browser, epic_report) as page:
        differ = [
            one.top_verbs(1)[0][0] != other.top_verbs(1)[0][0]
            or one.top_nouns(1)[0][0] != other.top_nouns(1)[0][0]
            for one, other in pairs
        ]
        assert f'in {sum(differ)} of 12' in page.locator('#effect').inner_text()
        page.click('#next-change')
        assert clock(page) == f'0:{2 * (differ.index(True, 1) + 1):02d}.0'
        page.uncheck('#show-without')
        assert page.locator('#timeline canvas').count() == 2
        page.select_option('#view', 'lines')
        assert tip(page, point(page, 0, 0, 4, 3.5))[0] == labels(page, 0)[0]
        page.check('#show-without')
        assert 'dashed' in page.locator('#timeline h3').first.inner_text()
        # Something is drawn.
        colours = page.evaluate(
            "new Set(new Uint32Array(document.querySelector('#timeline canvas')"
            ".getContext('2d').getImageData(0, 0, 300, 100).data.buffer)).size"
        )
        assert colours > 3
        # A class is found, and put into the timeline.
        page.fill('#search', 'NOUN 8')
        assert page.locator('#search-count').inner_text() == '1 found'
        box = page.locator('#classes-table input')
        shown = box.is_checked()
        box.click()
        assert ('noun 8' in labels(page, 1)) is not shown
        peaks = [one.noun_scores[8] for one, _ in pairs]
        cells = page.locator('#classes-table tbody td').all_inner_texts()
        assert float(cells[3]) == pytest.approx(max(peaks), abs=6e-4)
        assert float(cells[5]) == pytest.approx(np.mean(peaks), abs=6e-4)
        page.click('#classes-table .seek')
        assert clock(page) == f'0:{2 * (int(np.argmax(peaks)) + 1):02d}.0'


def test_names_are_only_text(browser, epic_report):
    with open_page(browser, epic_report, 'Content Security Policy') as page:
        assert page.title() == f'Actions in {RUDE}.mp4'
        assert page.locator('h1').inner_text() == f'Actions in {RUDE}.mp4'
        assert page.locator('script').count() == 2
        assert page.locator('img').count() == 1
        assert set(labels(page, 0)) == set(VERBS)
        # Nor would a script run that got in by another way.
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), "
            "{textContent: 'window.broken = 1'}))"
        )
        assert page.evaluate('window.broken') is None


def test_people(browser, people_report):
    found = people(0)
    with open_page(browser, people_report) as page:
        page.mouse.click(*point(page, 0, 0, 4, 6.1, end=13))
        assert page.locator('#now-time').inner_text() == '0:06.0'
        stage = page.locator('#stage').bounding_box()
        assert stage['width'] / stage['height'] == pytest.approx(160 / 120, rel=0.01)
        boxes = page.locator('.box')
        assert boxes.count() == 2
        for place, box in enumerate(boxes.all()):
            area = box.bounding_box()
            x1, y1, x2, y2 = found[5].boxes[place]
            scale = stage['width'] / 160
            assert area['x'] - stage['x'] == pytest.approx(x1 * scale, abs=1)
            assert area['y'] - stage['y'] == pytest.approx(y1 * scale, abs=1)
            assert area['width'] == pytest.approx((x2 - x1) * scale, abs=1)
            # Number 0 is no action.
            scores = found[5].scores[place, 1:]
            best = ACTIONS[1 + scores.argmax()]
            number = (7, 3)[place]
            label = box.get_attribute('aria-label')
            assert label.startswith(f'Person {number}: {best} {scores.max():.2f}')
        name, values = tip(page, middle(boxes.nth(1)))
        assert name == 'Person 3 at 0:06.0'
        for action, score in zip(ACTIONS[1:], found[5].scores[1, 1:]):
            assert float(values[action]) == pytest.approx(score, abs=6e-4)
        # Everybody's highest score, then only hers.
        name = labels(page, 0)[1]
        place = ACTIONS.index(name)
        values = tip(page, point(page, 0, 1, 4, 6.1, end=13))[1]
        highest = found[5].scores[:, place]
        assert float(values['with memory']) == pytest.approx(highest.max(), abs=6e-4)
        assert values['most of all'] == f'Person {(7, 3)[highest.argmax()]}'
        boxes.nth(1).click()
        assert page.locator('#person').input_value() == '3'
        for panel, key, which in ((0, 'with', found), (1, 'without', people(1))):
            values = tip(page, point(page, panel, 1, 4, 6.1, end=13))[1]
            shown = float(values[f'{key} memory'])
            assert shown == pytest.approx(which[5].scores[1, place], abs=6e-4)
        # She was not there before.
        values = tip(page, point(page, 0, 1, 4, 2.0, end=13))[1]
        assert values['with memory'] == '–'
        page.uncheck('#show-boxes')
        assert page.locator('.box').count() == 0


def test_table_of_people(browser, people_report):
    found = people(0)
    with open_page(browser, people_report) as page:
        rows = page.locator('#people-table tbody tr')
        assert rows.count() == 2
        number, seen, clips, actions = rows.nth(1).locator('td').all_inner_texts()
        assert (number, seen, clips) == ('Person 3', '0:05.0 – 0:11.0', '7')
        mean = np.mean([one.scores[1, 1:] for one in found[4:11]], axis=0)
        name, score = re.match(r'(.+?) (0\.\d+)', actions).groups()
        assert name == ACTIONS[1 + mean.argmax()]
        assert float(score) == pytest.approx(mean.max(), abs=6e-4)
        assert 'current' not in (rows.nth(1).get_attribute('class') or '')
        rows.nth(1).locator('.seek').first.click()
        assert clock(page) == '0:05.0'
        assert 'current' in rows.nth(1).get_attribute('class')
        page.keyboard.press('End')
        assert page.locator('#now-list').inner_text() == 'Nobody is seen.'
        assert page.locator('.box').count() == 0


def test_people_who_are_not_tracked(browser, tmp_path):
    found = people(0, tracked=False)
    path = write_report(tmp_path / 'a.html', found, dict(size=SIZE))
    with open_page(browser, path) as page:
        rows = page.locator('#people-table tbody tr')
        assert rows.count() == 4 + 2 * 7
        cells = rows.nth(5).locator('td').all_inner_texts()
        assert cells[:3] == ['0:05.0', 'Box 2', '0.90']
        assert page.locator('#person-choice').is_hidden()
        assert page.locator('#without-choice').is_hidden()
        rows.nth(5).locator('.seek').click()
        assert page.locator('.box').count() == 2  # on black


def test_nobody(browser, tmp_path):
    nobody = people(0)[-1:]
    path = write_report(tmp_path / 'a.html', nobody, dict(size=SIZE), nobody)
    with open_page(browser, path) as page:
        table = page.locator('#people-table tbody').inner_text()
        assert table == 'Nobody was found in this video.'
        assert page.locator('#classes-table tbody tr').count() == 4


def test_pictures(browser, epic_report):
    with open_page(browser, epic_report) as page:
        image = page.locator('#picture')
        before = image.get_attribute('src')
        page.mouse.click(*point(page, 0, 0, 4, 15.9))
        assert image.get_attribute('alt') == 'The video at 0:16.0'
        # The 8th of them.
        content = base64.b64decode(image.get_attribute('src').split(',')[1])
        assert content == keyframes()[7].jpeg
        assert image.get_attribute('src') != before
        assert page.evaluate("document.querySelector('#picture').naturalWidth") == 160


@pytest.fixture(scope='module')
def webm(tmp_path_factory):
    return written(tmp_path_factory.mktemp('clip') / 'clip.webm', 'VP80')


def test_video(browser, tmp_path, webm):
    video = dict(name='clip.webm', size=SIZE, duration=4)
    path = write_report(
        tmp_path / 'a.html', plain(2), video, keyframes=keyframes(2), clip_file=webm
    )
    with open_page(browser, path) as page:
        assert page.locator('#picture').is_hidden()
        until(page, "document.querySelector('#video').readyState >= 2")
        page.mouse.click(*point(page, 0, 0, 4, 3, end=4))
        until(page, "Math.abs(document.querySelector('#video').currentTime - 3) < 0.1")
        page.keyboard.press('Home')
        page.click('#play')
        until(page, "document.querySelector('#clock').innerText > '0:01'")
        page.click('#play')
        assert page.evaluate("document.querySelector('#video').paused")
        at = page.evaluate("document.querySelector('#video').currentTime")
        assert float(clock(page)[2:]) == pytest.approx(at, abs=0.3)


def test_pictures_where_the_video_does_not_play(browser, tmp_path, webm):
    (tmp_path / 'cut.webm').write_bytes(webm.read_bytes()[:500])
    path = write_report(
        tmp_path / 'a.html',
        plain(2),
        dict(duration=4),
        keyframes=keyframes(2),
        clip_file=tmp_path / 'cut.webm',
    )
    with open_page(browser, path) as page:
        page.locator('#picture').wait_for(state='visible')
        assert page.locator('#video').is_hidden()
        assert page.locator('#picture').get_attribute('alt') == 'The video at 0:02.0'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phone(browser, people_report, scheme):
    phone = dict(viewport=dict(width=360, height=740), is_mobile=True, has_touch=True)
    with open_page(browser, people_report, color_scheme=scheme, **phone) as page:
        wide = page.evaluate('document.documentElement.scrollWidth')
        assert wide == 360
        x, y = point(page, 0, 0, 4, 4.0, end=13)
        page.touchscreen.tap(x, y)
        assert page.locator('#now-time').inner_text() == '0:04.0'
        # Text stands out against cards, buttons and the page (WCAG: 4.5 to 1).
        for front in ('text', 'soft', 'accent', 'other'):
            for back in ('page', 'card', 'hover'):
                assert contrast(page, front, back) >= 4.5, (front, back)
        dark = luminance(page, 'card') < 0.1
        assert dark == (scheme == 'dark')
        # Everything that can be used has a name.
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, input, select')].filter(e => "
            "!e.getAttribute('aria-label') && !e.closest('label') && "
            '!e.innerText.trim() && !e.hidden).length'
        )
        assert nameless == 0


def luminance(page, name):
    colour = page.evaluate(
        'name => { const e = document.createElement("p"); document.body.append(e);'
        'e.style.color = `var(--${name})`; const c = getComputedStyle(e).color;'
        'e.remove(); return c.match(/[0-9.]+/g).map(Number); }',
        name,
    )
    parts = np.array(colour[:3]) / 255
    parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(parts @ [0.2126, 0.7152, 0.0722])


def contrast(page, front, back):
    low, high = sorted(luminance(page, name) for name in (front, back))
    return (high + 0.05) / (low + 0.05)


def test_an_hour_of_many_classes(browser, tmp_path):
    names = [f'action {number}' for number in range(400)]
    found = plain(3600, 400, names)
    path = write_report(tmp_path / 'a.html', found, dict(name='hour'))
    assert path.stat().st_size < 4_000_000
    with open_page(browser, path) as page:
        assert len(labels(page, 0)) == 10
        assert page.locator('#classes-table tbody tr').count() == 12
        page.fill('#search', '399')
        page.locator('#classes-table input').check()
        assert labels(page, 0)[-1] == 'action 399'
        # A pixel of the timeline shows several clips; the value is that of one.
        _, values = tip(page, point(page, 0, 10, 11, 5000.0, end=7200))
        number = next(int(v[5:]) - 1 for v in values.values() if v.startswith('clip'))
        assert abs(found[number].time - 5000) < 10
        assert float(values['score']) == pytest.approx(
            found[number].scores[399], abs=6e-4
        )
        page.keyboard.press('End')
        assert clock(page) == '2:00:00.0'


def test_one_clip_alone(browser, tmp_path):
    path = write_report(tmp_path / 'a.html', plain(1), {})
    with open_page(browser, path) as page:
        assert page.locator('h1').inner_text() == 'Actions in video'
        assert page.locator('#stage').is_hidden()
        page.keyboard.press('ArrowRight')
        assert clock(page) == '0:02.0'
