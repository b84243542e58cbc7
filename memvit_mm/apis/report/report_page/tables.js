// Classes and their peaks, with a search; people and what they do.

const MORE = 25; // rows at a time

function seekButton(clip) {
  return make(
    'button',
    {
      class: 'seek',
      onclick: () => goTo(clip),
      'aria-label': `Go to ${clock(clips.time[clip])}`,
    },
    clock(clips.time[clip]),
  );
}

function head(table, columns) {
  table.replaceChildren(
    make(
      'thead',
      {},
      make(
        'tr',
        {},
        ...columns.map(([name, kind]) =>
          make('th', { scope: 'col', class: kind || null }, name),
        ),
      ),
    ),
    make('tbody'),
  );
  return table.querySelector('tbody');
}

function moreButton(button, left, grow) {
  button.hidden = left <= 0;
  button.textContent =
    left > 4 * MORE
      ? `Show ${4 * MORE} more of ${left.toLocaleString()}`
      : `Show ${left} more`;
  button.onclick = grow;
}

// ------------------------------------------------------------------ classes

let classesShown = 0;
function drawClasses() {
  const query = $('search').value.trim().toLowerCase();
  const found = groups
    .flatMap((group) => group.ranking().map((entry) => ({ ...entry, group })))
    .filter(({ name }) => name.toLowerCase().includes(query))
    .sort((a, b) => b.peak - a.peak);
  $('search-count').textContent = query
    ? `${found.length.toLocaleString()} found`
    : `${found.length.toLocaleString()} in all`;
  const several = groups.length > 1;
  const body = head($('classes-table'), [
    ['Show', 'tick'],
    ['Class'],
    ...(several ? [['Kind']] : []),
    ['Peak', 'number'],
    ['at', 'number'],
    ['Mean', 'number'],
    ...(comparing() ? [['Without memory', 'number']] : []),
  ]);
  for (const { group, c, name, peak, at, mean, without } of found.slice(
    0,
    classesShown,
  )) {
    const list = pinned.get(group);
    const choice = make('input', {
      type: 'checkbox',
      checked: list.includes(c),
      'aria-label': `${name} in the timeline`,
      onchange: (event) => {
        if (event.target.checked) list.push(c);
        else list.splice(list.indexOf(c), 1);
        update({ pinned: true });
      },
    });
    body.append(
      make(
        'tr',
        {},
        make('td', { class: 'tick' }, choice),
        make('td', { class: 'class' }, name),
        ...(several ? [make('td', {}, group.title.slice(0, -1).toLowerCase())] : []),
        make('td', { class: 'number' }, digits(Number.isFinite(peak) ? peak : null)),
        make('td', { class: 'number' }, rows ? seekButton(at) : ''),
        make('td', { class: 'number' }, digits(mean)),
        ...(comparing() ? [make('td', { class: 'number off' }, digits(without))] : []),
      ),
    );
  }
  moreButton($('more-classes'), found.length - classesShown, () => {
    classesShown += 4 * MORE;
    drawClasses();
  });
}

// ------------------------------------------------------------------- people

// Whoever is tracked, or every box.
function everybody() {
  if (!tracks) return Array.from({ length: rows }, (_, row) => ({ rows: [row] }));
  const found = new Map();
  for (let row = 0; row < rows; row++) {
    if (!found.has(tracks[row])) found.set(tracks[row], { rows: [] });
    found.get(tracks[row]).rows.push(row);
  }
  return [...found.values()];
}

function meansOf(group, somebody, c, which) {
  let sum = 0,
    number = 0;
  for (const row of somebody.rows) {
    const score = group.score(row, c, which);
    if (score !== null) {
      sum += score;
      number++;
    }
  }
  return number ? sum / number : null;
}

function actionsOf(somebody, k) {
  const [group] = groups;
  const found = group.names.map((name, c) => ({
    name,
    c,
    score: meansOf(group, somebody, c, 'scores'),
  }));
  found.sort((a, b) => b.score - a.score);
  return found.slice(0, k).map(({ name, c, score }) => {
    const item = make('em', {}, name, ' ', digits(score));
    if (group.hasWithout)
      item.append(
        ' ',
        make(
          'span',
          { class: 'off', title: 'without memory' },
          `(${digits(meansOf(group, somebody, c, 'without'))})`,
        ),
      );
    return item;
  });
}

let everyone = [];
let peopleShown = MORE;
function drawPeople() {
  const body = head(
    $('people-table'),
    tracks
      ? [['Person'], ['Seen'], ['Clips', 'number'], ['Actions, by mean score']]
      : [['Time'], ['Box'], ['Certainty', 'number'], ['Actions']],
  );
  for (const somebody of everyone.slice(0, peopleShown)) {
    const row = somebody.rows[0],
      last = somebody.rows[somebody.rows.length - 1];
    const name = make(
      'span',
      { style: { '--who': colourOf(row) } },
      make('span', { class: 'chip' }),
      nameOf(row),
    );
    const line = tracks
      ? [
          make('td', { class: 'fixed' }, name),
          make(
            'td',
            { class: 'fixed' },
            seekButton(clipOf[row]),
            ' – ',
            seekButton(clipOf[last]),
          ),
          make('td', { class: 'number', 'data-unit': ' clips' }, somebody.rows.length),
        ]
      : [
          make('td', { class: 'fixed' }, seekButton(clipOf[row])),
          make('td', { class: 'fixed' }, name),
          make('td', { class: 'number' }, (people.sure[row] / 1000).toFixed(2)),
        ];
    somebody.line = make('tr', {}, ...line, make('td', {}, ...actionsOf(somebody, 3)));
    body.append(somebody.line);
  }
  if (!rows)
    body.append(
      make('tr', {}, make('td', { colspan: 4 }, 'Nobody was found in this video.')),
    );
  moreButton($('more-people'), everyone.length - peopleShown, () => {
    peopleShown += 4 * MORE;
    drawPeople();
    markPeople();
  });
}

function markPeople() {
  const now = new Set();
  for (let row = first[state.clip]; row < first[state.clip + 1]; row++)
    now.add(tracks ? tracks[row] : row);
  for (const {
    line,
    rows: [row],
  } of everyone.slice(0, peopleShown))
    line.classList.toggle('current', now.has(tracks ? tracks[row] : row));
}

function startTables() {
  classesShown = Math.min(MORE, groups.length > 1 ? 16 : 12);
  $('search').addEventListener('input', drawClasses);
  drawClasses();
  if (!people) return;
  $('people').hidden = false;
  everyone = everybody();
  drawPeople();
  markPeople();
  if (tracks) {
    const choose = $('person');
    $('person-choice').hidden = false;
    choose.append(
      make('option', { value: '' }, 'everybody'),
      ...everyone.map(({ rows: [row] }) =>
        make('option', { value: tracks[row] }, `${tracks[row]}`),
      ),
    );
    choose.addEventListener('change', () =>
      update({ person: choose.value === '' ? null : Number(choose.value) }),
    );
  }
  let marked = -1;
  state.told.push((change) => {
    if ('person' in change)
      $('person').value = state.person === null ? '' : state.person;
    if (marked !== state.clip) {
      marked = state.clip;
      markPeople();
    }
  });
}
