// Elements without markup in strings: what comes from a file name or an answer stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `attributes`: null and false are left out, functions are listeners. */
export function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

let made = 0;

/** An id that nothing else on the page has. */
export function freshId(prefix) {
  made += 1;
  return `${prefix}-${made}`;
}
