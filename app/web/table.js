// Tables: one that its column heads sort, and a plain one.

import { html } from "./elements.js";

/**
 * A table that is sorted by the column whose head is clicked; at first by the first column. `columns`: [{name,
 * value(row), show(row), numeric}]. The first column holds the row headers. `announce` tells screen readers the order.
 */
export function sortableTable({ caption, columns, rows, announce }) {
  const body = html("tbody");
  let sorted = { column: columns[0], descending: false };

  const heads = columns.map((column) => {
    const button = html(
      "button",
      { type: "button", click: () => sortBy(column) },
      column.name,
      html("span", { class: "arrow", "aria-hidden": "true" }),
    );
    return html("th", { scope: "col", class: column.numeric ? "numeric" : null }, button);
  });

  function sortBy(column) {
    // Numbers start with the largest. A second click reverses the order.
    const descending = sorted.column === column ? !sorted.descending : Boolean(column.numeric);
    sorted = { column, descending };
    render();
    announce(`Sorted by ${column.name}, ${descending ? "descending" : "ascending"}.`);
  }

  function render() {
    const { column, descending } = sorted;
    columns.forEach((other, index) => {
      if (other === column) heads[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
      else heads[index].removeAttribute("aria-sort");
    });
    const order = [...rows].sort((a, b) => {
      const [one, two] = [column.value(a), column.value(b)];
      const less = typeof one === "string" ? one.localeCompare(two) : one - two;
      return descending ? -less : less;
    });
    body.replaceChildren(
      ...order.map((row) =>
        html(
          "tr",
          {},
          columns.map((each, index) =>
            index === 0
              ? html("th", { scope: "row" }, each.show(row))
              : html("td", { class: each.numeric ? "numeric" : null }, each.show(row)),
          ),
        ),
      ),
    );
  }

  render();
  return scrollable(
    caption,
    html(
      "table",
      { class: "sortable" },
      html("caption", { class: "visually-hidden" }, caption),
      html("thead", {}, html("tr", {}, heads)),
      body,
    ),
  );
}

/** A table that cannot be sorted. `rows` are arrays of text that start with the row header. */
export function plainTable({ caption, columns, rows }) {
  const head = columns.map((name, index) => html("th", { scope: "col", class: index ? "numeric" : null }, name));
  const lines = rows.map(([first, ...others]) =>
    html(
      "tr",
      {},
      html("th", { scope: "row" }, first),
      others.map((text) => html("td", { class: "numeric" }, text)),
    ),
  );
  return scrollable(
    caption,
    html(
      "table",
      {},
      html("caption", { class: "visually-hidden" }, caption),
      html("thead", {}, html("tr", {}, head)),
      html("tbody", {}, lines),
    ),
  );
}

/** The table in a region that scrolls by touch, mouse or keyboard if it is too large. */
function scrollable(caption, table) {
  return html("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, table);
}
