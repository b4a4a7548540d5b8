// Shows /api/status and, for each volume in sight, its points. Text comes to the page as text only (textContent), so that
// a name or label of any characters is shown as it is.
'use strict';

const REFRESH_MS = 2000;
const POINTS_SHOWN = 500;
const MAP_COLUMNS = 64;
const HISTORY_STEP_S = 5;
const SVG = 'http://www.w3.org/2000/svg';
const CLASSES = [
  ['app', 'application frozen'],
  ['fs', 'file system frozen'],
  ['crash', 'as after a power cut'],
  ['fuzzy', 'not restorable'],
];
// Seconds since the last write, and what it is called; beyond the last: not in this session.
const AGES = [[10, '10 s'], [60, '1 min'], [600, '10 min'], [3600, '1 h'], [Infinity, 'earlier']];
// In the order in which they are counted.
const GLYPHS = { live: '●', baseline: '◐', resync: '◐', stopping: '◌', paused: '‖', recording: '▲', failed: '✕', stopped: '■', silent: '?' };

const cards = new Map();
let lastAnswer = null;

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(name, attributes, title) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (title !== undefined) {
    const told = document.createElementNS(SVG, 'title');
    told.textContent = title;
    node.append(told);
  }
  return node;
}

function picture(kind, box, label, children) {
  const node = shape('svg', { class: kind, viewBox: box, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
  node.append(...children);
  return node;
}

function bytes(count) {
  if (count < 1024) return `${count} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];
  const power = Math.min(Math.floor(Math.log2(count) / 10), units.length);
  const value = count / 2 ** (10 * power);
  return `${value.toFixed(value < 100 ? 1 : 0)} ${units[power - 1]}`;
}

function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const rate = (count) => `${bytes(count)}/s`;
const seconds = (time) => Date.parse(time) / 1000;
const clock = (at) => new Date(at * 1000).toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'medium' });

function tone(volume) {
  if (['paused', 'failed', 'stopped', 'silent', 'recording'].includes(volume.standing)) return 'bad';
  if (volume.problems.some((problem) => problem.urgent)) return 'bad';
  return volume.standing === 'live' && volume.problems.length === 0 ? 'good' : 'warn';
}

// Four shapes besides four colours: whoever can't tell these tells those.
function markShape(kind, x, y, size, title, labelled) {
  const place = { class: `mark ${kind}${labelled ? ' labelled' : ''}` };
  const s = size;
  const outlines = {
    app: `M${x} ${y - s}L${x + s} ${y}L${x} ${y + s}L${x - s} ${y}Z`,
    fs: `M${x - s} ${y}A${s} ${s} 0 1 1 ${x + s} ${y}A${s} ${s} 0 1 1 ${x - s} ${y}Z`,
    crash: `M${x} ${y - s}L${x + s} ${y + s}L${x - s} ${y + s}Z`,
    fuzzy: `M${x - s} ${y - s}L${x + s} ${y + s}M${x - s} ${y + s}L${x + s} ${y - s}`,
  };
  return shape('path', { ...place, d: outlines[kind] ?? outlines.fuzzy }, title);
}

function fact(name, text, wide = false, kind = '') {
  return element('div', wide ? { class: 'wide' } : {}, element('dt', {}, name), element('dd', kind ? { class: kind } : {}, text));
}

function caption(left, right) {
  return element('figcaption', {}, element('span', {}, left), element('span', {}, right));
}

function facts(status, now) {
  const mark = status.last_mark;
  const counters = status.counters;
  const list = element('dl');
  if (status.scan_total_bytes > status.scan_done_bytes) {
    list.append(fact('copied', `${bytes(status.scan_done_bytes)} of ${bytes(status.scan_total_bytes)}`, true, 'warn'));
  }
  list.append(fact('last mark', mark === null ? 'none yet' : `${mark.id} ${mark.class}, ${duration(now - seconds(mark.time))} ago`));
  if (!hasTargets(status)) {
    const { age_ms: age, lag_bytes: lag, error } = status.replicas[0];
    list.append(fact('replica lag', age === null ? 'not at a mark' : `${duration(age / 1000)}, ${bytes(lag)}`, false, error === null ? '' : 'warn'));
  }
  list.append(fact('not journaled yet', bytes(status.pending_bytes)));
  if (status.kind !== 'tree') {
    const used = status.ring_bytes > 0 ? Math.ceil((100 * status.ring_used_bytes) / status.ring_bytes) : 0;
    list.append(fact('ring', `${used} % of ${bytes(status.ring_bytes)}`, false, status.overrun ? 'warn' : ''));
  }
  list.append(fact('capture', `${status.capture || 'files'} by ${status.rung}`));
  if (status.kind === 'tree') {
    list.append(fact('changes', `${counters.seen} seen, ${status.missing} missed`, true));
  } else {
    list.append(fact('gap', status.gap_open ? 'until the next mark' : 'none', false, status.gap_open ? 'warn' : ''));
    list.append(fact('writes', `${counters.seen} seen = ${counters.emitted} emitted + ${counters.marked} marked`, true));
  }
  return list;
}

const hasTargets = (status) => status.replicas.length + status.left_out.length > 1;

// As `status` calls it; a sign and a word besides the colour.
function standsOf(replica) {
  if (replica.error !== null) return ['✕ fails', 'bad'];
  if (replica.mark === null) return ['◐ incomplete', 'warn'];
  return replica.behind_marks > 1 ? ['◔ behind', 'warn'] : ['● current', 'good'];
}

function targets(status) {
  if (!hasTargets(status)) return null;
  const row = (target, [stands, kind], far) => element('li', {},
    element('span', { class: 'place' }, target), element('span', { class: kind }, stands), element('span', { class: 'far' }, far));
  const rows = status.replicas.map((replica) => {
    const { age_ms: age, lag_bytes: lag, behind_marks: marks } = replica;
    const far = age === null ? 'not at a mark' : `${duration(age / 1000)}, ${bytes(lag)}${marks > 1 ? `, ${marks} marks` : ''}`;
    return row(replica.target, standsOf(replica), far);
  });
  const left = status.left_out.map(({ target, mark }) => row(target, ['○ left out', ''], mark === null ? 'at no mark' : `at mark ${mark}`));
  return element('figure', {}, caption('targets', 'how far behind'), element('ul', { class: 'targets' }, ...rows, ...left));
}

function groupCard(group, now) {
  const mark = group.last_mark;
  const failed = group.last_mark_error !== null;
  const [sign, kind] = failed ? ['✕ mark failed', 'bad'] : mark === null ? ['◌ no mark yet', 'warn'] : ['● marked', 'good'];
  const title = element('h2', {}, `group ${group.name}`, element('small', {}, group.volumes.join(', ')));
  const list = element('dl');
  if (mark === null) {
    list.append(fact('last mark', 'none since the service was started', true));
  } else {
    const classes = [...new Set(mark.members.map((member) => member.class))];
    list.append(fact('last mark', `${duration(now - seconds(mark.time))} ago`), fact('class', classes.join(', ')));
    if (mark.frozen_ms !== null) list.append(fact('frozen', `${mark.frozen_ms} ms`));
    list.append(fact('restore each volume with --to', `mark:${mark.name}`, true));
  }
  const due = group.mark_every_ms === null ? 'by hand' : `every ${duration(group.mark_every_ms / 1000)}`;
  list.append(fact('due', due));
  const state = element('span', { class: `state ${kind}` }, sign);
  return element('article', { 'data-group': group.name }, element('header', {}, title, state), problemList(group.problems), list);
}

function renderGroups(groups, now) {
  byId('groups').hidden = groups.length === 0;
  const sorted = [...groups].sort((a, b) => (a.last_mark_error === null) - (b.last_mark_error === null));
  byId('groups').replaceChildren(...sorted.map((group) => groupCard(group, now)));
}

function spark(status) {
  const history = status.write_history;
  const peak = Math.max(1, ...history);
  const points = history.map((value, index) => [index, 38 - (36 * value) / peak]);
  const line = points.map(([x, y]) => `${x} ${y.toFixed(1)}`).join('L');
  const last = Math.max(history.length - 1, 1);
  const told = `written: ${rate(status.write_rate)} now, at most ${rate(history.length ? Math.max(...history) : 0)}`;
  const children = history.length < 2 ? [] : [
    shape('path', { class: 'area', d: `M0 40L${line}L${last} 40Z` }),
    shape('path', { class: 'line', d: `M${line}` }),
  ];
  const span = duration(Math.max(history.length, 1) * HISTORY_STEP_S);
  return element('figure', {},
    caption(`writes: ${rate(status.write_rate)}`, `at most ${rate(history.length ? Math.max(...history) : 0)} in ${span}`),
    picture('spark', `0 0 ${last} 40`, told, children));
}

function writeMap(status, now) {
  const map = status.write_map;
  if (map.length === 0) return null;
  const outlines = Array(AGES.length + 1).fill('');
  let recent = 0;
  map.forEach((at, index) => {
    const age = at === 0 ? AGES.length : AGES.findIndex(([limit]) => now - at < limit);
    if (age <= 1) recent += 1;
    outlines[age] += `M${index % MAP_COLUMNS} ${Math.floor(index / MAP_COLUMNS)}h.9v.9h-.9z`;
  });
  const told = `${recent} of ${map.length} parts of the volume were written within the last minute`;
  const children = outlines.map((d, age) => shape('path', { class: `age${age}`, d }));
  const rows = Math.ceil(map.length / MAP_COLUMNS);
  const part = status.size_bytes === null ? '' : `a cell is ${bytes(Math.ceil(status.size_bytes / map.length))}`;
  return element('figure', {}, caption('where it was written last', part),
    picture('map', `0 0 ${MAP_COLUMNS} ${rows}`, told, children));
}

function timeline(card, now) {
  const listing = card.listing;
  if (card.pointsTrouble) return element('figure', {}, caption('points', card.pointsTrouble));
  if (listing === null) return element('figure', {}, caption('points', '…'));
  const width = Math.max(card.node.clientWidth - 26, 200);
  const wanted = Number(byId('window').value);
  const first = listing.points.length ? seconds(listing.points[0].time) : now - 60;
  const from = wanted > 0 ? now - wanted : Math.min(first, now - 60);
  const margin = 8;
  const x = (at) => margin + ((width - 2 * margin) * (at - from)) / Math.max(now - from, 1);
  const children = [];
  for (const stretch of listing.stretches) {
    const [begin, end] = [Math.max(seconds(stretch.from_time), from), seconds(stretch.to_time)];
    if (end < from) continue;
    children.push(shape('rect', { class: 'stretch', x: x(begin).toFixed(1), y: 1, height: 42, width: Math.max(x(end) - x(begin), 1).toFixed(1) },
      'every instant can be restored, class crash'));
  }
  // A line for each class, the best above.
  const shown = listing.points.filter((point) => seconds(point.time) >= from);
  const line = (point) => Math.max(CLASSES.findIndex(([name]) => name === point.class), 0);
  for (const point of shown) {
    const automatic = ['', 'baseline', 'resync', 'stop'].includes(point.label);
    const title = `mark ${point.id} (${point.class}) ${clock(seconds(point.time))}${point.label ? ` ${point.label}` : ''}`;
    children.push(markShape(point.class, Number(x(seconds(point.time)).toFixed(1)), 7 + 10 * line(point), automatic ? 3 : 4.5, title, !automatic));
  }
  const counts = CLASSES.map(([name]) => [name, shown.filter((point) => point.class === name).length]);
  const told = counts.filter(([, count]) => count > 0).map(([name, count]) => `${count} ${name}`).join(', ') || 'none';
  const many = listing.points.length >= POINTS_SHOWN ? ` of the last ${POINTS_SHOWN}` : '';
  return element('figure', {},
    caption(`points${many}: ${told}`, `from ${clock(from)}`),
    picture('timeline', `0 0 ${width} 44`, `points: ${told}`, children));
}

function problemList(problems) {
  if (problems.length === 0) return null;
  return element('ul', { class: 'problems' }, ...problems.map((problem) =>
    element('li', problem.urgent ? { class: 'urgent' } : {}, `${problem.urgent ? '!' : '-'} ${problem.what}`, element('small', {}, problem.next_step))));
}

function fill(card, now) {
  const volume = card.volume;
  const status = volume.status;
  const kind = status === null ? null
    : status.kind === 'tree' ? 'directory tree' : status.size_bytes === null ? null : bytes(status.size_bytes);
  const told = [volume.name, kind, volume.group === null ? null : `group ${volume.group}`].filter((part) => part !== null);
  const title = element('h2', {}, status?.source || volume.name, told.length === 1 ? null : element('small', {}, told.join(', ')));
  const glyph = volume.standing === 'live' && tone(volume) !== 'good' ? '!' : GLYPHS[volume.standing] ?? '?';
  const state = element('span', { class: `state ${tone(volume)}` }, `${glyph} ${volume.standing}`);
  const parts = [element('header', {}, title, state), problemList(volume.problems)];
  if (status !== null) {
    parts.push(facts(status, now), targets(status));
    if (status.write_history.length > 0) parts.push(spark(status));
    parts.push(timeline(card, now), writeMap(status, now));
  } else if (volume.recorded_bytes !== null) {
    parts.push(element('dl', {}, fact('recorded', `${bytes(volume.recorded_bytes)} at least`)));
  }
  card.node.replaceChildren(...parts.filter((part) => part !== null));
}

function summary(volumes, groups) {
  const counts = new Map();
  for (const standing of Object.keys(GLYPHS)) counts.set(standing, 0);
  for (const volume of volumes) counts.set(volume.standing, (counts.get(volume.standing) ?? 0) + 1);
  const states = [...counts].filter(([, count]) => count > 0).map(([state, count]) => `${count} ${state}`).join(', ');
  const urgent = volumes.filter((volume) => tone(volume) === 'bad').length + groups.filter((group) => group.last_mark_error !== null).length;
  const noun = volumes.length === 1 ? 'volume' : 'volumes';
  const attention = urgent === 0 ? '' : ` — ${urgent} ${urgent === 1 ? 'needs' : 'need'} attention`;
  const grouped = groups.length === 0 ? '' : `; ${groups.length} ${groups.length === 1 ? 'group' : 'groups'}`;
  return volumes.length === 0 ? 'nothing is protected' : `${volumes.length} ${noun}: ${states}${grouped}${attention}`;
}

function render() {
  const { volumes, groups } = lastAnswer;
  const now = seconds(lastAnswer.now);
  byId('summary').textContent = summary(volumes, groups);
  renderGroups(groups, now);
  byId('none').hidden = volumes.length > 0;
  byId('controls').hidden = volumes.length === 0;
  byId('legend').hidden = volumes.length === 0;
  const rank = { bad: 0, warn: 1, good: 2 };
  // Each of these comes in the order of what it is called.
  const sorted = [...volumes].sort((a, b) => rank[tone(a)] - rank[tone(b)]);
  const filter = byId('filter').value.toLowerCase();
  const present = new Set(volumes.map((volume) => volume.name));
  for (const [name, card] of cards) {
    if (!present.has(name)) {
      card.node.remove();
      cards.delete(name);
    }
  }
  sorted.forEach((volume, index) => {
    let card = cards.get(volume.name);
    if (card === undefined) {
      card = { node: element('article', { 'data-volume': volume.name }), listing: null, pointsTrouble: '', newest: null, inSight: false };
      cards.set(volume.name, card);
    }
    card.volume = volume;
    card.node.hidden = !`${volume.name} ${volume.status?.source ?? ''} ${volume.standing} ${volume.group ?? ''}`.toLowerCase().includes(filter);
    const main = byId('volumes');
    if (main.children[index] !== card.node) main.insertBefore(card.node, main.children[index] ?? null);
    fill(card, now);
  });
}

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(30000) });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// One after the other: a journal may be long. Only what is in sight, and only after another mark.
async function fetchPoints() {
  for (const card of [...cards.values()]) {
    const status = card.volume.status;
    const newest = status?.last_mark?.id ?? 'none';
    const place = card.node.getBoundingClientRect();
    const inSight = place.bottom > -500 && place.top < innerHeight + 500 && !card.node.hidden;
    if (status === null || !inSight || card.newest === newest) continue;
    try {
      card.listing = await get(`/api/volumes/${encodeURIComponent(card.volume.name)}/points?last=${POINTS_SHOWN}`);
      card.pointsTrouble = '';
      card.newest = newest;
    } catch (error) {
      card.pointsTrouble = `not to be had: ${error.message}`;
    }
    fill(card, seconds(lastAnswer.now));
  }
}

async function refresh() {
  if (!document.hidden) {
    const trouble = byId('trouble');
    try {
      lastAnswer = await get('/api/status');
      trouble.hidden = true;
      render();
      await fetchPoints();
    } catch (error) {
      const since = lastAnswer === null ? '' : ` What is shown is as of ${clock(seconds(lastAnswer.now))}.`;
      trouble.textContent = `afterwrite serve does not answer (${error.message}).${since}`;
      trouble.hidden = false;
    }
  }
  setTimeout(refresh, REFRESH_MS);
}

function legend() {
  for (const [name, meaning] of CLASSES) {
    const icon = shape('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' });
    icon.append(markShape(name, 8, 8, 5));
    byId('classes').append(element('li', {}, icon, `${name}: ${meaning}`));
  }
  const icon = shape('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true', class: 'timeline' });
  icon.append(shape('rect', { class: 'stretch', x: 0, y: 2, width: 16, height: 12 }));
  byId('classes').append(element('li', {}, icon, 'every instant'));
  [...AGES.map(([limit, name]) => (limit === Infinity ? name : `written within ${name}`)), 'not in this session'].forEach((name, age) => {
    const cell = shape('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' });
    cell.append(shape('rect', { class: `age${age}`, x: 1, y: 1, width: 14, height: 14 }));
    byId('ages').append(element('li', {}, cell, name));
  });
}

legend();
for (const id of ['filter', 'window']) byId(id).addEventListener('input', () => lastAnswer && render());
addEventListener('resize', () => lastAnswer && render());
refresh();
