// Small helpers for the page's elements and for numbers in words.

/**
 * An element of the page.
 *
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} #${id}`);
  return found;
}

/**
 * A new element. Texts are never read as HTML, whatever a class may be called.
 *
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {...(Node | string)} inside
 */
export function element(tag, attributes = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

/**
 * A list of terms and what they are.
 *
 * @param {HTMLElement} list A `dl`.
 * @param {[string, string | number][]} pairs
 */
export function describe(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([term, value]) => {
      const text = String(value);
      const size = text.length > 12 ? "words" : "figure";
      return element("div", {}, element("dt", {}, term), element("dd", { class: size }, text));
    }),
  );
}

/** @param {number} share */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @param {number} time Milliseconds. */
export function milliseconds(time) {
  return `${time.toFixed(time < 100 ? 1 : 0)} ms`;
}

/** @param {number} value A small number, such as a difference. */
export function small(value) {
  return value === 0 ? "0" : value.toPrecision(2);
}
