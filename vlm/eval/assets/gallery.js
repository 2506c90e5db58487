// The gallery: cards are made as they come near the window, from the data that lies in the page.
const read = id => JSON.parse(document.getElementById(id).textContent);
const cards = read('cards'), pictures = read('pictures');
const tools = document.querySelector('.tools'), gallery = document.querySelector('.gallery');
const buttons = [...tools.querySelectorAll('button')], selects = [...tools.querySelectorAll('select')];
const sought = tools.querySelector('input'), count = tools.querySelector('output');
const AT_ONCE = 48;
let found = [], shown = 0;

function make(tag, look, ...inside) {
  const element = document.createElement(tag);
  if (look) element.className = look;
  element.append(...inside);
  return element;
}

function picture(number) {
  const image = make('img');
  image.alt = '';
  image.src = pictures[number];
  return image;
}

function said(one) {
  const words = make('dd', {1: 'good', 0: 'bad'}[one.good] ?? '', ...one.pictures.map(picture));
  words.append(one.answer ? one.answer : make('em', '', 'nothing'));
  if (one.score) words.append(make('small', '', one.score));
  if (one.answer.length > 280) {
    words.classList.add('long');
    words.title = 'click to read it all';
    words.addEventListener('click', () => words.classList.toggle('open'));
  }
  return [make('dt', '', one.label), words];
}

function card(one) {
  const seen = one.pictures.length ? one.pictures.map(picture) : [make('p', '', 'no picture')];
  const lines = one.said.flatMap(said);
  if (one.references.length) lines.unshift(make('dt', '', 'expected'), make('dd', '', one.references.join(' · ')));
  const chips = make('div', 'chips', make('span', '', one.category), make('span', 'verdict', one.verdict_text));
  const whole = make('article', 'card is-' + one.verdict, make('div', 'shown', ...seen),
    make('div', 'words', chips, make('p', 'asked', one.question), make('dl', '', ...lines)));
  whole.title = one.id;
  return whole;
}

function text(one) {
  const all = [one.id, one.question, ...one.references, ...one.said.map(answer => answer.answer)];
  return one.text ??= all.join('\n').toLowerCase();
}

function more() {
  gallery.append(...found.slice(shown, shown + AT_ONCE).map(card));
  shown = Math.min(shown + AT_ONCE, found.length);
}

function show() {
  const verdict = buttons.find(button => button.getAttribute('aria-pressed') === 'true')?.value ?? '';
  const words = sought.value.toLowerCase().split(/\s+/).filter(Boolean);
  found = cards.filter(one => (!verdict || one.verdict === verdict || (verdict === 'changed' && one.changed)) &&
    selects.every(select => !select.value || one[select.name] === select.value) &&
    words.every(word => text(one).includes(word)));
  gallery.replaceChildren();
  shown = 0;
  more();
  if (!found.length) gallery.append(make('p', 'none', 'Nothing matches.'));
  count.textContent = `${found.length.toLocaleString('en')} of ${cards.length.toLocaleString('en')}`;
}

function press(value) {
  for (const button of buttons) button.setAttribute('aria-pressed', button.value === value);
}

// A link such as #verdict=wrong&category=colour leads to those answers.
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (![...asked.keys()].some(key => key === 'verdict' || key === 'search' || selects.some(one => one.name === key))) return;
  press(asked.get('verdict') ?? '');
  for (const select of selects) select.value = asked.get(select.name) ?? '';
  sought.value = asked.get('search') ?? '';
  show();
  tools.scrollIntoView();
}

for (const button of buttons) button.addEventListener('click', () => { press(button.value); show(); });
for (const select of selects) select.addEventListener('change', show);
sought.addEventListener('input', show);
addEventListener('hashchange', follow);
const end = document.getElementById('end');
const watch = new IntersectionObserver(entries => {
  if (!entries.at(-1).isIntersecting || shown >= found.length) return;
  more();
  watch.unobserve(end);  // so that it reports again if the end is still near
  watch.observe(end);
}, {rootMargin: '1500px'});
watch.observe(end);
tools.hidden = false;
show();
follow();
