// How many artificially damaged images are still classified correctly, by the kind of damage.

import { html } from "../elements.js";
import { percent } from "../format.js";
import { plainTable } from "../table.js";

/** [{name, right, accuracy}] of the report, the worst kind first; `right` is the mean over all strengths. */
export function kindsOfDamage({ corruptions }) {
  return corruptions
    .map(({ name, accuracy }) => ({
      name: name.replaceAll("_", " "),
      right: accuracy.reduce((a, b) => a + b, 0) / accuracy.length,
      accuracy,
    }))
    .sort((a, b) => a.right - b.right);
}

/** Elements. `robustness` is that of the report. */
export function robustnessChart(robustness) {
  const kinds = kindsOfDamage(robustness);
  return [
    html(
      "ol",
      { class: "bars damage" },
      kinds.map(({ name, right }) => {
        const bar = html("i");
        bar.style.inlineSize = `${right * 100}%`;
        return html(
          "li",
          {},
          html("span", { class: "name" }, name),
          html("span", { class: "track", "aria-hidden": "true" }, bar),
          html("span", { class: "value" }, percent(right)),
        );
      }),
    ),
    html(
      "details",
      {},
      html("summary", {}, "Each strength, as a table"),
      plainTable({
        caption: "Accuracy by damage and its strength",
        columns: ["Damage", ...kinds[0].accuracy.map((_, index) => `Strength ${index + 1}`)],
        rows: kinds.map(({ name, accuracy }) => [name, ...accuracy.map((value) => percent(value))]),
      }),
    ),
  ];
}
