// The confusion matrix, an SVG after the ARIA pattern of a grid. Hover or focus shows a count, a click explains it.

import { html, svg } from "../elements.js";
import { count, percent } from "../format.js";
import { fitted } from "./fitted.js";

const OVERHANG = 14; // pixels: the last, rotated column head reaches beyond its column
const DIGIT = 0.66; // the width of a bold digit, in font sizes
const MIN_FONT = 6; // pixels; smaller counts are left out
const MISTAKES = 8; // that are listed beside the matrix
const MOST_CLASSES = 40; // whose cells can be told apart
const LONGEST_HEAD = 12; // characters

/** The opacity of a cell. Medium values are left out: neither light nor dark text has enough contrast on them. */
function opacity(share, right) {
  if (!right) return Math.min(0.42, Math.sqrt(share) * 1.6); // the root makes small shares of mistakes visible
  return share > 0.5 ? 0.82 + 0.18 * share ** 6 : 0.4 * share;
}

function short(label) {
  return label.length > LONGEST_HEAD ? `${label.slice(0, LONGEST_HEAD - 1)}…` : label;
}

/** A figure of `matrix`: counts by true class (rows) and predicted class (columns), in the order of `labels`. */
export function confusionChart({ labels, matrix }) {
  const n = labels.length;
  const totals = matrix.map((row) => row.reduce((a, b) => a + b, 0));
  const predicted = labels.map((_, column) => matrix.reduce((sum, row) => sum + row[column], 0));
  const readout = html("p", { class: "readout", "aria-hidden": "true" });
  const meaning = html("p", { class: "meaning", role: "status" });
  let current = [0, 0]; // row and column of the cell that Tab reaches
  let chosen = null;
  let cells = [];
  let heads = { rows: [], columns: [] };

  const share = (row, column) => matrix[row][column] / Math.max(1, totals[row]);

  function draw(width) {
    const wide = width >= 480;
    const left = wide ? 92 : 74;
    const top = wide ? 84 : 70;
    const side = Math.max(8, Math.min(48, (width - left - OVERHANG) / n));
    const size = left + side * n + 2;
    heads = { rows: [], columns: [] };
    cells = [];
    const columns = labels.map((label, column) => {
      const [x, y] = [left + side * (column + 0.5), top - 8];
      const head = svg(
        "text",
        { role: "columnheader", class: "head", x, y, transform: `rotate(-45 ${x} ${y})` },
        short(label),
      );
      heads.columns.push(head);
      return head;
    });
    const rows = labels.map((label, row) => {
      const y = top + side * (row + 0.5) + 4;
      const head = svg(
        "text",
        { role: "rowheader", class: "head", x: left - 8, y, "text-anchor": "end" },
        short(label),
      );
      heads.rows.push(head);
      cells.push(labels.map((_, column) => cell(row, column, left, top, side)));
      return svg("g", { role: "row" }, head, cells[row]);
    });
    const picture = svg(
      "svg",
      {
        role: "grid",
        "aria-label": "Confusion matrix: rows are true classes, columns predicted classes",
        "aria-readonly": "true",
        width: size,
        height: top + side * n + 2,
        class: side < 30 ? "confusion small" : "confusion",
        keydown: move,
        pointerleave: () => tell(chosen),
      },
      svg(
        "g",
        { role: "row" },
        svg(
          "text",
          { role: "columnheader", class: "head corner", x: left - 8, y: top - 8, "text-anchor": "end" },
          "true class",
        ),
        columns,
      ),
      rows,
    );
    cells[current[0]][current[1]].setAttribute("tabindex", "0");
    if (chosen) cells[chosen[0]][chosen[1]].setAttribute("aria-selected", "true");
    return picture;
  }

  function cell(row, column, left, top, side) {
    const value = matrix[row][column];
    const right = row === column;
    const strength = opacity(share(row, column), right);
    const x = left + side * column;
    const y = top + side * row;
    const font = Math.min(12, (side - 4) / (DIGIT * String(value).length));
    const text = svg("text", { x: x + side / 2, y: y + side / 2 + font / 3, "text-anchor": "middle" }, String(value));
    text.style.fontSize = `${font.toFixed(1)}px`;
    return svg(
      "g",
      {
        role: "gridcell",
        tabindex: "-1",
        class: `cell ${right ? "right" : "wrong"}${strength > 0.5 ? " strong" : ""}`,
        "aria-label": describe(row, column),
        "aria-selected": "false",
        pointerenter: () => tell([row, column]),
        focus: () => tell([row, column]),
        click: () => choose(row, column),
      },
      svg("rect", { class: "ground", x: x + 1, y: y + 1, width: side - 2, height: side - 2, rx: 4 }),
      svg("rect", {
        class: "ink",
        x: x + 1,
        y: y + 1,
        width: side - 2,
        height: side - 2,
        rx: 4,
        "fill-opacity": strength.toFixed(3),
      }),
      value && font >= MIN_FONT ? text : null,
    );
  }

  function describe(row, column) {
    const what = row === column ? `${labels[row]}, recognised` : `${labels[row]}, taken for ${labels[column]}`;
    return `${what}: ${count(matrix[row][column])}`;
  }

  function tell(place) {
    for (const head of [...heads.rows, ...heads.columns]) head.classList.remove("lit");
    if (!place) {
      readout.textContent = "Point at a cell to see its count. Select it for an explanation.";
      return;
    }
    const [row, column] = place;
    heads.rows[row].classList.add("lit");
    heads.columns[column].classList.add("lit");
    readout.textContent = describe(row, column);
  }

  function choose(row, column) {
    focusOn(row, column);
    mark(row, column);
  }

  function mark(row, column) {
    if (chosen) cells[chosen[0]][chosen[1]].setAttribute("aria-selected", "false");
    chosen = [row, column];
    cells[row][column].setAttribute("aria-selected", "true");
    meaning.textContent = row === column ? explainRecognised(row) : explainMistake(row, column);
    tell(chosen);
  }

  function explainRecognised(row) {
    const label = labels[row];
    const right = matrix[row][row];
    const recall = percent(right / Math.max(1, totals[row]));
    const precision = percent(right / Math.max(1, predicted[row]));
    return (
      `The model recognised ${count(right)} of ${count(totals[row])} images of class ${label}: recall ${recall}. ` +
      `It predicted ${label} ${count(predicted[row])} times and was right ${count(right)} times: ` +
      `precision ${precision}.`
    );
  }

  function explainMistake(row, column) {
    const [label, other] = [labels[row], labels[column]];
    const wrong = matrix[row][column];
    const mistakes = totals[row] - matrix[row][row];
    const most = Math.max(...matrix[row].filter((_, index) => index !== row));
    const rank = wrong > 0 && wrong === most ? " No other wrong class was predicted more often." : "";
    return (
      `The model took ${count(wrong)} (${percent(share(row, column))}) of ${count(totals[row])} images ` +
      `of class ${label} for ${other}. It made ${count(mistakes)} mistakes with this class.${rank} ` +
      `Conversely, it took ${count(matrix[column][row])} of ${count(totals[column])} images of class ${other} ` +
      `for ${label}.`
    );
  }

  function move(event) {
    const [row, column] = current;
    const next = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? n - 1 : row, n - 1],
    }[event.key];
    if (next) {
      event.preventDefault();
      focusOn(...next.map((place) => Math.min(n - 1, Math.max(0, place))));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(row, column);
    }
  }

  function focusOn(row, column) {
    cells[current[0]][current[1]].setAttribute("tabindex", "-1");
    current = [row, column];
    cells[row][column].setAttribute("tabindex", "0");
    cells[row][column].focus();
  }

  /** The most frequent mistakes; a click on one selects its cell. */
  function frequentMistakes() {
    const wrong = matrix.flatMap((counts, row) => counts.map((value, column) => ({ value, row, column })));
    const most = wrong
      .filter(({ value, row, column }) => value > 0 && row !== column)
      .sort((a, b) => b.value - a.value)
      .slice(0, MISTAKES);
    if (most.length === 0) return null;
    return html(
      "div",
      { class: "mistakes" },
      html("h4", {}, "Most frequent mistakes"),
      html(
        "ol",
        {},
        most.map(({ row, column }) =>
          html(
            "li",
            {},
            n > MOST_CLASSES
              ? describe(row, column)
              : html(
                  "button",
                  { type: "button", class: "link", click: () => mark(row, column) },
                  describe(row, column),
                ),
          ),
        ),
      ),
    );
  }

  if (n > MOST_CLASSES)
    return html(
      "figure",
      { class: "matrix" },
      html("p", { class: "meaning" }, `A matrix of ${count(n)} classes is too large to be shown. The report has it.`),
      frequentMistakes(),
    );
  tell(null);
  return html("figure", { class: "matrix" }, readout, fitted(draw), meaning, frequentMistakes());
}
