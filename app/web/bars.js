// The probabilities of an answer as bars.

import { html } from "./elements.js";
import { probability } from "./format.js";

const VISIBLE_BARS = 4; // until the visitor asks for all classes

/** The bars, those of `inSet` marked, and a button for the others if some are hidden. */
export function bars(predictions, inSet) {
  const rows = predictions.map(({ label, probability: value }, place) => {
    const bar = html("i");
    bar.style.inlineSize = `${value * 100}%`;
    const member = inSet.includes(label);
    return html(
      "li",
      { class: member ? "in-set" : null, hidden: place >= VISIBLE_BARS && !member },
      html(
        "span",
        { class: "name" },
        label,
        member ? html("span", { class: "visually-hidden" }, ", in the set") : null,
      ),
      html("span", { class: "track", "aria-hidden": "true" }, bar),
      html("span", { class: "value" }, probability(value)),
    );
  });
  const hidden = rows.filter((row) => row.hidden);
  const list = html("ol", { class: "bars" }, rows);
  const more = html(
    "button",
    {
      type: "button",
      class: "link",
      "aria-expanded": "false",
      click: () => {
        const open = more.getAttribute("aria-expanded") === "false";
        more.setAttribute("aria-expanded", String(open));
        more.textContent = open ? "Fewer classes" : "All classes";
        for (const row of hidden) row.hidden = !open;
      },
    },
    "All classes",
  );
  return hidden.length ? [list, more] : [list];
}
