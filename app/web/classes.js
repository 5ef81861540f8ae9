// The classes that the model knows: all of them as chips, or a search field if they are many.

import { freshId, html } from "./elements.js";
import { count } from "./format.js";

const MAX_CHIPS = 30;

/** A heading and the classes, as elements. */
export function knownClasses(labels) {
  const headingId = freshId("known");
  const heading = html("h3", { id: headingId }, `It knows ${count(labels.length)} classes`);
  const chips = html("ul", { class: "chips", "aria-labelledby": headingId });
  const show = (shown) => chips.replaceChildren(...shown.map((label) => html("li", {}, label)));
  if (labels.length <= MAX_CHIPS) {
    show(labels);
    return [heading, chips];
  }
  const fieldId = freshId("search");
  const found = html("p", { class: "hint", role: "status" });
  const field = html("input", { type: "search", id: fieldId, autocomplete: "off", input: () => search() });
  function search() {
    const wanted = field.value.trim().toLowerCase();
    const matches = labels.filter((label) => label.toLowerCase().includes(wanted));
    show(matches.slice(0, MAX_CHIPS));
    const first = matches.length > MAX_CHIPS ? `The first ${MAX_CHIPS} of ` : "";
    found.textContent = wanted
      ? `${first}${count(matches.length)} classes contain “${wanted}”.`
      : `The first ${MAX_CHIPS}. Search for others.`;
  }
  search();
  return [heading, html("label", { for: fieldId }, "Does it know"), field, chips, found];
}
