import { html } from "../elements.js";

/** A figure that calls `draw(width)` for a new picture when its width changes. So the text keeps its size. */
export function fitted(draw) {
  const figure = html("div", { class: "chart" });
  let drawnFor = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width === drawnFor || width === 0) return;
    drawnFor = width;
    figure.replaceChildren(draw(width));
  }).observe(figure);
  return figure;
}
