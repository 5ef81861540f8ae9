// The reliability diagram: how often answers of some probability are right, and how many images say so.

import { html, svg } from "../elements.js";
import { count, percent } from "../format.js";
import { plainTable } from "../table.js";
import { fitted } from "./fitted.js";
import { lineChart, MARGIN } from "./lines.js";

const MIN_IMAGES = 30; // of a bin; fewer say little, and are drawn faintly
const HEIGHT = 76; // pixels of the columns
const DIGIT = 7.5; // pixels
const FOOT = 4;

/** The diagram, the numbers of images below it, and both as a table. `before` and `after` are those of the report. */
export function reliabilityChart(before, after) {
  const bins = [...(before.bins ?? []), ...after.bins];
  const points = (those) => those.map((bin) => [bin.confidence, bin.accuracy]);
  const solid = (those) => points((those ?? []).filter(({ images }) => images >= MIN_IMAGES));
  const faint = points(bins.filter(({ images }) => images < MIN_IMAGES));
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const format = (value) => percent(value, 0);
  const sentences = after.bins.map(
    ({ confidence, accuracy: right, images }) =>
      `answers given with ${format(confidence)} are right ${format(right)} of the time (${count(images)} images)`,
  );
  const series = [
    {
      name: "ideal",
      kind: "ideal",
      points: [
        [0, 0],
        [1, 1],
      ],
    },
    { name: "not calibrated", kind: "second", dots: true, points: solid(before.bins) },
    { name: "calibrated", kind: "first", dots: true, points: solid(after.bins) },
  ];
  if (faint.length)
    series.push({ name: `fewer than ${MIN_IMAGES} images`, kind: "faint", dots: true, line: false, points: faint });
  const { figure } = lineChart({
    x: { label: "Probability of the answer", from: 0, to: 1, ticks, format },
    y: { label: "Share of right answers", from: 0, to: 1, ticks, format },
    series,
    summary: `Reliability: ${sentences.join("; ")}`,
  });
  return [
    figure,
    html(
      "figure",
      { "aria-hidden": "true" }, // the table says the same
      html("figcaption", { class: "chart-title" }, "Images with such a probability"),
      fitted((width) => columns(after.bins, width)),
    ),
    html(
      "details",
      {},
      html("summary", {}, "These as a table"),
      plainTable({
        caption: "Reliability by probability",
        columns: ["Probability", "Right", "Images"],
        rows: after.bins.map((bin) => [percent(bin.confidence), percent(bin.accuracy), count(bin.images)]),
      }),
    ),
  ];
}

/** A column a bin, below its point; their heights are logarithms, or all but the largest would vanish. */
function columns(bins, width) {
  const largest = Math.log10(1 + Math.max(...bins.map(({ images }) => images)));
  const bottom = HEIGHT - FOOT;
  const room = bottom - 16; // for the number over the highest column
  let free = Number.POSITIVE_INFINITY; // where the next number may end; the surest answers come first
  return svg(
    "svg",
    { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` },
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
    [...bins].reverse().map(({ confidence, images }) => {
      const x = MARGIN.left + confidence * (width - MARGIN.left - MARGIN.right);
      const height = (room * Math.log10(1 + images)) / largest;
      const text = count(images);
      const half = (text.length * DIGIT) / 2;
      const fits = x + half <= free;
      if (fits) free = x - half;
      return svg(
        "g",
        { class: images < MIN_IMAGES ? "column few" : "column" },
        svg("rect", { x: x - 4, y: bottom - height, width: 8, height }),
        fits ? svg("text", { x, y: bottom - height - 4, "text-anchor": "middle" }, text) : null,
      );
    }),
  );
}
