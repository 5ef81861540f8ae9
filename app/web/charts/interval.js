import { svg } from "../elements.js";
import { percent } from "../format.js";
import { fitted } from "./fitted.js";

const HEIGHT = 44;
const MARGIN = 26; // pixels: half the text of a tick

/** A value and its interval on a scale with a tick at every whole percent. */
export function intervalChart({ value, ci95: [low, high] }, summary) {
  const from = Math.floor(low * 100 - 0.5) / 100;
  const to = Math.min(1, Math.ceil(high * 100 + 0.5) / 100);
  const ticks = [];
  for (let tick = Math.round(from * 100); tick <= Math.round(to * 100); tick += 1) ticks.push(tick / 100);
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
