// Accuracy and loss over the epochs of training, as curves and as a table.

import { html } from "../elements.js";
import { decimal, percent } from "../format.js";
import { plainTable } from "../table.js";
import { lineChart, niceTicks } from "./lines.js";

/** Elements. `history` is that of the report, a row an epoch. */
export function trainingCharts(history) {
  return [
    html(
      "div",
      { class: "pair" },
      chart(history, "accuracy", "Accuracy", (value, digits = 0) => percent(value, digits)),
      chart(history, "loss", "Loss (nats)", (value) => decimal(value), 0),
    ),
    html(
      "details",
      {},
      html("summary", {}, "The same as a table"),
      plainTable({
        caption: "Training by epoch",
        columns: ["Epoch", "Accuracy", "Accuracy, held out", "Loss", "Loss, held out"],
        rows: history.map((row) => [
          String(row.epoch),
          percent(row.train_accuracy, 2),
          percent(row.validation_accuracy, 2),
          decimal(row.train_loss, 3),
          decimal(row.validation_loss, 3),
        ]),
      }),
    ),
  ];
}

function chart(history, quantity, label, format, from) {
  const epochs = history.map((row) => row.epoch);
  const last = history.at(-1);
  const series = [
    ["train", "training, augmented", "second"],
    ["validation", "held-out images", "first"],
  ].map(([part, name, kind]) => ({
    name,
    kind,
    dots: true,
    points: history.map((row) => [row.epoch, row[`${part}_${quantity}`]]),
  }));
  const values = series.flatMap(({ points }) => points.map(([, value]) => value));
  const ticks = niceTicks(from ?? Math.min(...values), Math.max(...values));
  return lineChart({
    x: {
      label: "Epoch",
      from: epochs[0],
      to: Math.max(epochs.at(-1), epochs[0] + 1),
      ticks: epochTicks(epochs),
      format: String,
    },
    y: { label, from: ticks[0], to: ticks.at(-1), ticks, format },
    series,
    summary:
      `${label} by epoch: at the end ${format(last[`validation_${quantity}`], 2)} on held-out images, ` +
      `${format(last[`train_${quantity}`], 2)} on augmented training images`,
  }).figure;
}

function epochTicks(epochs) {
  const step = Math.ceil(epochs.length / 8);
  return epochs.filter((_, index) => index % step === 0);
}
