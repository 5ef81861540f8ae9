// A table whose columns sort it.

import { html } from "./elements.js";

/**
 * `columns`: [{name, value(row), show(row), numeric}]. The first is each row's header. Sorted as `rows` come, at first
 * by the first column; `announce` tells screen readers what a click did.
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
    // Numbers from the largest first; a second click turns it round.
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

/** A table that stays as it is; `rows` are arrays of text, the first the row's header. */
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

/** Wider than a phone, it scrolls by itself, and by the keyboard. */
function scrollable(caption, table) {
  return html("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, table);
}
