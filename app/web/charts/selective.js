// Wrong answers by the share of images that are answered, with a slider for that share.

import { html } from "../elements.js";
import { percent } from "../format.js";
import { lineChart, niceTicks } from "./lines.js";

/** Elements. `curve` is that of the report. */
export function selectiveChart(curve) {
  const format = (value) => percent(value, 0);
  const risk = curve.map(({ coverage, accuracy: right }) => [coverage, 1 - right]);
  const ticks = niceTicks(0, Math.max(...risk.map(([, value]) => value), 0.01));
  const said = html("output", { class: "said-output" });
  const slider = html("input", {
    type: "range",
    id: "coverage",
    min: 0,
    max: curve.length - 1,
    step: 1,
    value: nearest(curve, 0.9),
    input: () => tell(),
  });
  const at = () => curve[Number(slider.value)];
  const { figure, redraw } = lineChart({
    x: { label: "Share of images that are answered", from: 0, to: 1, ticks: [0, 0.25, 0.5, 0.75, 1], format },
    y: { label: "Share of wrong answers", from: 0, to: ticks.at(-1), ticks, format },
    series: [{ name: "surest answers first", kind: "first", points: risk }],
    summary:
      `Wrong answers by the share of images that are answered: ${percent(1 - curve.at(-1).accuracy, 2)} for all ` +
      `images, ${percent(1 - curve[nearest(curve, 0.5)].accuracy, 2)} for the surest half`,
    mark: () => at().coverage,
  });
  function tell() {
    const { coverage, accuracy: right } = at();
    const text = `Answering the surest ${percent(coverage, 0)}: ${percent(right, 2)} right`;
    said.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    redraw();
  }
  tell();
  return [
    figure,
    html("div", { class: "slider" }, html("label", { for: "coverage" }, "Images answered"), slider, said),
  ];
}

function nearest(curve, coverage) {
  const gaps = curve.map((point) => Math.abs(point.coverage - coverage));
  return gaps.indexOf(Math.min(...gaps));
}
