import { svg } from "../elements.js";
import { percent } from "../format.js";
import { fitted } from "./fitted.js";

const HEIGHT = 44;
const EDGE = 26; // room for half a tick's text

/** A value and its interval on a scale of whole percent around them. */
export function intervalChart({ value, ci95: [low, high] }, summary) {
  const from = Math.floor(low * 100 - 0.5) / 100;
  const to = Math.min(1, Math.ceil(high * 100 + 0.5) / 100);
  const ticks = [];
  for (let tick = Math.round(from * 100); tick <= Math.round(to * 100); tick += 1) ticks.push(tick / 100);
  return fitted((width) => {
    const place = (fraction) => EDGE + ((fraction - from) / (to - from)) * (width - 2 * EDGE);
    return svg(
      "svg",
      { role: "img", "aria-label": summary, width, height: HEIGHT, class: "interval" },
      svg("line", { class: "axis", x1: EDGE, x2: width - EDGE, y1: 14, y2: 14 }),
      ticks.map((tick) => svg("line", { class: "axis", x1: place(tick), x2: place(tick), y1: 10, y2: 18 })),
      ticks.map((tick) =>
        svg("text", { class: "tick", x: place(tick), y: 38, "text-anchor": "middle" }, percent(tick, 0)),
      ),
      svg("line", { class: "range", x1: place(low), x2: place(high), y1: 14, y2: 14 }),
      svg("circle", { class: "value", cx: place(value), cy: 14, r: 6 }),
    );
  });
}
