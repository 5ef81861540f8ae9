// The network from the picture to the classes: how many places each layer looks at, and how many features of each.

import { html } from "../elements.js";
import { count } from "../format.js";

// MobileNetV2, Sandler et al. 2018, table 2: channels, blocks, stride. The second stride is the model's.
const STAGES = [
  [16, 1, 1],
  [24, 2, null],
  [32, 3, 2],
  [64, 4, 2],
  [96, 3, 1],
  [160, 3, 2],
  [320, 1, 1],
];
const FIRST = 32; // channels
const LAST = 1280;

/** A list of the layers, or null for a network that is no MobileNetV2. `model` is the service's description. */
export function architectureChart(model) {
  if (model.architecture.name !== "mobilenet_v2") return null;
  const layers = layersOf(model);
  const widest = Math.max(...layers.map(({ side }) => side));
  return html(
    "ol",
    { class: "layers" },
    layers.map(({ name, size, side }) => {
      const bar = html("i");
      bar.style.inlineSize = `${(100 * side) / widest}%`;
      return html(
        "li",
        {},
        html("span", { class: "name" }, name),
        html("span", { class: "layer", "aria-hidden": "true" }, bar),
        html("span", { class: "value" }, size),
      );
    }),
  );
}

/** "32 × 32 or 64 × 64": the pixels of a picture in the network's input. */
export function inputSizes({ input, photographs }) {
  return [input, photographs]
    .filter(Boolean)
    .map(({ height, width }) => square(height, width))
    .join(" or ");
}

function layersOf(model) {
  const { architecture, classes, input } = model;
  let side = input.height;
  const layers = [{ name: "Picture", size: inputSizes(model), side }];
  if (architecture.enlarge > 1) {
    side *= architecture.enlarge;
    layers.push({ name: "Enlarged", size: square(side, side), side });
  }
  const add = (name, channels, stride) => {
    side = Math.ceil(side / stride);
    layers.push({ name, size: `${square(side, side)} × ${count(channels)}`, side });
  };
  add("First layer", FIRST, architecture.stem_stride);
  for (const [channels, blocks, stride] of STAGES)
    add(blocks === 1 ? "1 block" : `${blocks} blocks`, channels, stride ?? architecture.stage2_stride);
  add("Last layer", LAST, 1);
  layers.push({ name: "Mean", size: count(LAST), side: 1 }, { name: "Classes", size: count(classes.length), side: 1 });
  return layers;
}

function square(height, width) {
  return `${height} × ${width}`;
}
