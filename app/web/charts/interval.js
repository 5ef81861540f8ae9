import { svg } from "../elements.js";
import { percent } from "../format.js";
import { fitted } from "./fitted.js";

const HEIGHT = 44;
const MARGIN = 26; // pixels: half the text of a tick

const STEPS = [1, 2, 5, 10, 20]; // percent between ticks
const MOST_TICKS = 8;

/** A value and its interval on a scale of percent, from 0 to 1. */
export function intervalChart({ value, ci95: [low, high] }, summary) {
  const least = Math.max(0, low * 100 - 0.5);
  const most = Math.min(100, high * 100 + 0.5);
  const step = STEPS.find((one) => Math.ceil(most / one) - Math.floor(least / one) < MOST_TICKS);
  const ticks = [];
  for (let tick = Math.floor(least / step); tick <= Math.ceil(most / step); tick += 1) ticks.push((tick * step) / 100);
  const [from, to] = [ticks[0], ticks.at(-1)];
  return fitted((width) => {
    const place = (fraction) => MARGIN + ((fraction - from) / (to - from)) * (width - 2 * MARGIN);
    return svg(
      "svg",
      { role: "img", "aria-label": summary, width, height: HEIGHT, class: "interval" },
      svg("line", { class: "axis", x1: MARGIN, x2: width - MARGIN, y1: 14, y2: 14 }),
      ticks.map((tick) => svg("line", { class: "axis", x1: place(tick), x2: place(tick), y1: 10, y2: 18 })),
      ticks.map((tick) =>
        svg("text", { class: "tick", x: place(tick), y: 38, "text-anchor": "middle" }, percent(tick, 0)),
      ),
      svg("line", { class: "range", x1: place(low), x2: place(high), y1: 14, y2: 14 }),
      svg("circle", { class: "value", cx: place(value), cy: 14, r: 6 }),
    );
  });
}
