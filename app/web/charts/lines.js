// Line charts with two linear axes, for the model's tab.

import { html, svg } from "../elements.js";
import { fitted } from "./fitted.js";

const HEIGHT = 240;
export const MARGIN = { top: 12, right: 20, bottom: 44, left: 52 };

/**
 * {figure, redraw}. `x`, `y`: {label, from, to, ticks, format}. `series`: [{name, kind, points: [[x, y], ...], dots,
 * line}], where `kind` is the CSS class that colours the series; without `line` there are only the dots. `summary` is the chart's text for screen readers. `mark()`
 * returns the x of a vertical line, or null for none; `redraw()` moves the line there.
 */
export function lineChart({ x, y, series, summary, mark = () => null }) {
  let line = null;
  const place = { x: () => 0, y: () => 0 };

  function draw(width) {
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    place.x = (value) => MARGIN.left + ((value - x.from) / (x.to - x.from)) * (right - MARGIN.left);
    place.y = (value) => bottom - ((value - y.from) / (y.to - y.from)) * (bottom - MARGIN.top);
    line = mark() === null ? null : svg("line", { class: "mark", y1: MARGIN.top, y2: bottom });
    const picture = svg(
      "svg",
      { role: "img", "aria-label": summary, width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` },
      y.ticks.map((tick) =>
        svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: place.y(tick), y2: place.y(tick) }),
      ),
      y.ticks.map((tick) =>
        svg("text", { class: "tick", x: MARGIN.left - 8, y: place.y(tick) + 4, "text-anchor": "end" }, y.format(tick)),
      ),
      x.ticks.map((tick) =>
        svg("text", { class: "tick", x: place.x(tick), y: bottom + 18, "text-anchor": "middle" }, x.format(tick)),
      ),
      svg("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
      svg(
        "text",
        { class: "axis-label", x: (MARGIN.left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
        x.label,
      ),
      line,
      series.map(curve),
    );
    redraw();
    return picture;
  }

  function curve({ kind, points, dots, line: joined = true }) {
    const path = points
      .map(([a, b], index) => `${index ? "L" : "M"}${round(place.x(a))} ${round(place.y(b))}`)
      .join("");
    return svg(
      "g",
      { class: `curve ${kind}` },
      joined ? svg("path", { d: path }) : null,
      dots ? points.map(([a, b]) => svg("circle", { cx: place.x(a), cy: place.y(b), r: 3.5 })) : [],
    );
  }

  function redraw() {
    line?.setAttribute("x1", place.x(mark()));
    line?.setAttribute("x2", place.x(mark()));
  }

  const legend = html(
    "ul",
    { class: "legend", "aria-hidden": "true" },
    series.map(({ name, kind }) => html("li", { class: kind }, html("i"), name)),
  );
  const figure = html("figure", {}, html("figcaption", { class: "chart-title" }, y.label), legend, fitted(draw));
  return { figure, redraw };
}

/** About `wanted` round numbers that span the values from `low` to `high`. */
export function niceTicks(low, high, wanted = 4) {
  const raw = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const ticks = [];
  for (let index = Math.floor(low / step); ; index += 1) {
    ticks.push(Number((index * step).toPrecision(12)));
    if (index * step >= high) return ticks;
  }
}

function round(value) {
  return Math.round(value * 10) / 10;
}
