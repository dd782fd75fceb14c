// A contact sheet of predictions. Only cards near the window exist, so that thousands open at once.
// It is a classic script: browsers do not load modules from files.
"use strict";

/**
 * @typedef {object} Item
 * @property {string} file
 * @property {string} [link] Address of the image itself.
 * @property {string} [small] Address of its thumbnail.
 * @property {string} [error] Why it could not be read.
 * @property {[number, number][]} scores Class and probability, score or share; the highest first.
 */

/**
 * `colours`: of the classes, as CSS writes them; empty where nothing is drawn.
 *
 * @type {{task: string, classes: string[], colours: string[], items: Item[]}}
 */
const DATA = JSON.parse(byId("data").textContent ?? "");

/** Rows of cards that are added and removed together. */
const ROWS = 8;

/** Cards are this wide at least, with the gap between them, in pixels. */
const LEAST_WIDTH = 162;

/** What the select says of images that could not be read. */
const UNREAD = "unread";

const NUMBERS = new Intl.NumberFormat("en");

/** @type {number[]} Places in `DATA.items` of what is shown, in order. */
let shown = [];
let columns = 1;
/** @type {number} Place in `shown` of what the dialog shows. */
let current = 0;

/** @param {string} id */
function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** @param {string} id */
function valueOf(id) {
  return /** @type {HTMLInputElement | HTMLSelectElement} */ (byId(id)).value;
}

/**
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {...(Node | string)} inside
 */
function element(tag, attributes, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside); // never parsed as HTML, whatever the name of a file
  return made;
}

/** @param {number} share */
function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/**
 * The highest score of an item, or its score of a class; -1 where it has none.
 *
 * @param {Item} item
 * @param {string} wanted A class's number; empty for any.
 */
function certainty(item, wanted) {
  // Of a classifier only the most probable class counts.
  const scores = DATA.task === "classification" ? item.scores.slice(0, 1) : item.scores;
  const found = scores.find(([label]) => wanted === "" || label === Number(wanted));
  return found ? found[1] : -1;
}

/** The places of the items that the filters let through, in their order. */
function filtered() {
  const wanted = valueOf("class");
  const [from, to] = [Number(valueOf("from")) / 100, Number(valueOf("to") || 100) / 100];
  const text = valueOf("text").trim().toLowerCase();
  const certain = DATA.items.map((item) => certainty(item, wanted === UNREAD ? "" : wanted));
  const places = [...DATA.items.keys()].filter((place) => {
    const item = DATA.items[place];
    if (text && !item.file.toLowerCase().includes(text)) return false;
    if (wanted === UNREAD) return item.error !== undefined;
    // Without a class, images without any score count as well, at 0 %.
    const share = wanted === "" ? Math.max(0, certain[place]) : certain[place];
    return share >= from && share <= to;
  });
  const names = new Intl.Collator("en", { numeric: true });
  /** @type {Record<string, (one: number, other: number) => number>} */
  const orders = {
    given: (one, other) => one - other,
    sure: (one, other) => certain[other] - certain[one],
    unsure: (one, other) => certain[one] - certain[other],
    name: (one, other) => names.compare(DATA.items[one].file, DATA.items[other].file),
  };
  return places.sort(orders[valueOf("order")]);
}

/** Fills groups of cards that come near the window, and empties those that are far. */
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const group = /** @type {HTMLElement} */ (target);
      if (!isIntersecting) {
        if (!group.contains(document.activeElement)) group.replaceChildren();
      } else if (!group.childElementCount) fill(group);
    }
  },
  { rootMargin: "150% 0px" },
);

/** @param {HTMLElement} group */
function fill(group) {
  const [first, end] = [Number(group.dataset.first), Number(group.dataset.end)];
  const cards = [];
  for (let place = first; place < end; place++) cards.push(cardOf(place));
  group.replaceChildren(...cards);
}

/** @param {number} place In `shown`. */
function cardOf(place) {
  const item = DATA.items[shown[place]];
  const image = item.small
    ? element("img", { src: item.small, alt: "", loading: "lazy", decoding: "async" })
    : element("span", { class: "none" }, item.error ?? "no thumbnail");
  const [name, share] = wordsOf(item);
  const top = element("span", { class: "scores" }, element("span", {}, name), element("span", {}, share));
  const file = element("span", { class: "file", title: item.file }, item.file.split(/[\\/]/).pop() ?? "");
  const button = element("button", { type: "button" }, image, top, file);
  button.addEventListener("click", () => open(place));
  return element("li", {}, button);
}

/**
 * What a card says under its image.
 *
 * @param {Item} item
 * @returns {[string, string]}
 */
function wordsOf(item) {
  if (item.error !== undefined) return ["not read", ""];
  if (!item.scores.length) return ["nothing", ""];
  const [label, share] = item.scores[0];
  if (DATA.task !== "detection") return [DATA.classes[label], percent(share)];
  const counts = new Map();
  for (const [one] of item.scores) counts.set(one, (counts.get(one) ?? 0) + 1);
  const sorted = [...counts].sort(([one], [other]) => one - other);
  const words = sorted.map(([one, count]) => `${count} ${DATA.classes[one]}`);
  return [words.join(", "), ""];
}

/** Show what the filters let through. */
function render() {
  shown = filtered();
  byId("count").textContent =
    `${NUMBERS.format(shown.length)} of ${NUMBERS.format(DATA.items.length)} images`;
  layOut();
}

/** Make empty groups of the right height; the watcher fills those in view. */
function layOut() {
  const sheet = byId("sheet");
  watcher.disconnect();
  const style = getComputedStyle(sheet);
  const width = sheet.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  columns = Math.max(2, Math.floor(width / LEAST_WIDTH));
  sheet.style.setProperty("--columns", String(columns));
  const size = columns * ROWS;
  const groups = [];
  for (let first = 0; first < shown.length; first += size) {
    const end = Math.min(first + size, shown.length);
    const rows = Math.ceil((end - first) / columns);
    const group = element("ul", { "data-first": String(first), "data-end": String(end) });
    group.style.height = `calc(${rows} * (var(--side) + var(--text)) + ${rows - 1} * .6rem)`;
    groups.push(group);
  }
  sheet.replaceChildren(...groups);
  for (const group of groups) watcher.observe(group);
}

/**
 * Show one image large.
 *
 * @param {number} place In `shown`.
 */
function open(place) {
  if (place < 0 || place >= shown.length) return;
  current = place;
  const item = DATA.items[shown[place]];
  const numbers = [place + 1, shown.length].map((one) => NUMBERS.format(one));
  byId("one-name").textContent = `${item.file} (${numbers.join(" of ")})`;
  /** @type {HTMLButtonElement} */ (byId("before")).disabled = place === 0;
  /** @type {HTMLButtonElement} */ (byId("after")).disabled = place === shown.length - 1;
  const image = /** @type {HTMLImageElement} */ (byId("one-image"));
  image.hidden = !item.small;
  if (item.small) image.src = item.small;
  const link = /** @type {HTMLAnchorElement} */ (byId("one-link"));
  link.hidden = !item.link;
  if (item.link) link.href = item.link;
  const rows = item.scores.map(([label, share]) => {
    const name = element("span", { class: "name" }, DATA.classes[label]);
    const row = element("li", {}, name, element("span", {}, percent(share)));
    if (DATA.colours.length) {
      row.prepend(element("span", { class: "swatch" }));
      /** @type {HTMLElement} */ (row.firstChild).style.background = DATA.colours[label];
    }
    row.style.setProperty("--share", `${100 * share}%`);
    return row;
  });
  if (item.error !== undefined) rows.push(element("li", {}, `not read: ${item.error}`));
  byId("one-scores").replaceChildren(...rows);
  const dialog = /** @type {HTMLDialogElement} */ (byId("one"));
  if (!dialog.open) dialog.showModal();
}

/** The filters and their defaults; the address keeps the others, so that a link shows the same images. */
const DEFAULTS = { class: "", from: "0", to: "100", text: "", order: "given" };

function saveFilters() {
  const params = new URLSearchParams();
  for (const [id, initial] of Object.entries(DEFAULTS)) {
    const value = valueOf(id);
    if (value !== initial) params.set(id, value);
  }
  const hash = params.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function start() {
  const counts = new Map();
  for (const { scores } of DATA.items) {
    const labels = scores.map(([label]) => label);
    const once = new Set(DATA.task === "classification" ? labels.slice(0, 1) : labels);
    for (const label of once) counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  const failed = DATA.items.filter(({ error }) => error !== undefined).length;
  byId("class").append(
    new Option("any", ""),
    ...DATA.classes.flatMap((name, label) =>
      counts.has(label) ? [new Option(`${name} (${counts.get(label)})`, String(label))] : [],
    ),
    ...(failed ? [new Option(`not read (${failed})`, UNREAD)] : []),
  );
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
    if (id in DEFAULTS) /** @type {HTMLInputElement} */ (byId(id)).value = value;
  }
  const filters = /** @type {HTMLFormElement} */ (byId("filters"));
  const changed = () => (saveFilters(), render());
  filters.addEventListener("input", changed);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(changed)); // once the values are back
  byId("before").addEventListener("click", () => open(current - 1));
  byId("after").addEventListener("click", () => open(current + 1));
  // Of the document: a button that has the focus loses it where it is disabled.
  document.addEventListener("keydown", ({ key }) => {
    if (!(/** @type {HTMLDialogElement} */ (byId("one")).open)) return;
    if (key === "ArrowLeft") open(current - 1);
    if (key === "ArrowRight") open(current + 1);
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) layOut(); // a phone's bars change the height alone
    width = innerWidth;
  });
  render();
}

start();
