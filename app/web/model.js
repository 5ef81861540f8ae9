// The model's tab: charts and tables of the report that the service has about its model.

import { getPicture } from "./api.js";
import { architectureChart, inputSizes } from "./charts/architecture.js";
import { confusionChart } from "./charts/confusion.js";
import { intervalChart } from "./charts/interval.js";
import { reliabilityChart } from "./charts/reliability.js";
import { robustnessChart } from "./charts/robustness.js";
import { selectiveChart } from "./charts/selective.js";
import { trainingCharts } from "./charts/training.js";
import { description, report as getReport } from "./documents.js";
import { html } from "./elements.js";
import { explainFailure } from "./faults.js";
import { count, decimal, level, percent } from "./format.js";
import { plainTable, sortableTable } from "./table.js";
import { weaknesses } from "./weaknesses.js";

let state = "new"; // then "loading", then "shown" or "failed"; after a failure the next visit tries again

/** Fill the panel. The report is requested once. */
export async function modelTab(panel, announce) {
  if (state === "loading" || state === "shown") return;
  state = "loading";
  panel.setAttribute("aria-busy", "true");
  panel.replaceChildren(html("p", { class: "hint" }, "Loading the report…"));
  try {
    const [report, model] = await Promise.all([getReport(), description()]);
    panel.replaceChildren(...sections(report, model, announce));
    state = "shown";
  } catch (failure) {
    state = "failed";
    const { title, advice } = explainFailure(failure);
    const again = html(
      "button",
      { type: "button", class: "primary", click: () => modelTab(panel, announce) },
      "Try again",
    );
    panel.replaceChildren(html("div", { class: "notice" }, html("h2", {}, title), html("p", {}, advice), again));
    announce(`${title}. ${advice}`);
  } finally {
    panel.removeAttribute("aria-busy");
  }
}

function sections(report, model, announce) {
  return [
    html(
      "div",
      { class: "intro" },
      html("h2", {}, "How good is it?"),
      html(
        "p",
        { class: "lead" },
        `Measured on ${count(report.n)} test images. ` +
          "They were used neither to train the model nor to choose anything about it.",
      ),
    ),
    html(
      "div",
      { class: "cards" },
      accuracy(report),
      report.conformal || report.calibration ? promises(report) : null,
      report.photographs ? photographs(report.photographs) : null,
      badAt(report),
      perClass(report, announce),
      confusion(report),
      mistakes(),
      report.robustness ? robustness(report.robustness) : null,
      training(report.history, model),
      report.calibration ? reliability(report.calibration) : null,
      report.selective ? riskCoverage(report.selective) : null,
      report.conformal ? predictionSets(report, model) : null,
      architecture(model),
    ),
  ];
}

function card(title, { wide = false, lead = null } = {}, ...content) {
  return html(
    "section",
    { class: wide ? "card wide" : "card" },
    html("h3", {}, title),
    lead ? html("p", { class: "card-lead" }, lead) : null,
    ...content,
  );
}

function accuracy({ accuracy: { value, ci95 }, n }) {
  const range = `95 % interval ${percent(ci95[0], 2)} to ${percent(ci95[1], 2)}`;
  return card(
    "Accuracy",
    {},
    html("p", { class: "figure" }, percent(value, 2)),
    html(
      "p",
      { class: "hint" },
      `${count(Math.round(value * n))} of ${count(n)} images classified correctly; ${range}`,
    ),
    intervalChart({ value, ci95 }, `Accuracy ${percent(value, 2)}, ${range}`),
  );
}

function promises({ conformal, calibration, abstention }) {
  const facts = [];
  if (calibration)
    facts.push([
      percent(calibration.after.ece.value, 2),
      "is the average gap between probability and accuracy (expected calibration error)",
    ]);
  const levels = conformal?.levels ?? [];
  const shown = levels.find(({ coverage }) => coverage === 0.99) ?? levels.at(-1);
  if (shown)
    facts.push([
      percent(shown.served_coverage, 2),
      `of the prediction sets at level ${level(shown.coverage)} contain the true class`,
    ]);
  if (abstention)
    facts.push([percent(1 - abstention.kept, 1), "of these images get no answer, although they belong to its classes"]);
  if (abstention?.refused)
    facts.push([
      percent(abstention.refused.value, 1),
      `of ${count(abstention.others)} pictures of other things get no answer; none of them should get one`,
    ]);
  return card(
    "How far to trust it",
    {},
    html(
      "dl",
      { class: "facts" },
      facts.map(([value, text]) => html("div", {}, html("dt", {}, value), html("dd", {}, text))),
    ),
  );
}

function photographs({ n, others, accuracy: { value }, macro_recall: mean, conformal, abstention, per_class: rows }) {
  const promised = conformal.levels.find(({ coverage }) => coverage === 0.99);
  const facts = [
    [
      percent(value, 1),
      `of ${count(n)} photographs are classified correctly; ${percent(mean, 1)} is the mean of the classes`,
    ],
    promised && [
      percent(promised.served_coverage, 1),
      `of the prediction sets at level ${level(0.99)} contain the true class`,
    ],
    [percent(1 - abstention.kept.value, 1), "of these photographs get no answer, although they belong to its classes"],
    [
      percent(abstention.refused.value, 1),
      `of ${count(others)} photographs of other things get no answer; none of them should get one`,
    ],
  ];
  return card(
    "Photographs",
    {
      lead:
        "Images with a side of 64 pixels or more. Training saw no photographs of their kinds. " +
        `There were photographs of ${rows.length} of its classes.`,
    },
    html(
      "dl",
      { class: "facts" },
      facts.filter(Boolean).map(([share, text]) => html("div", {}, html("dt", {}, share), html("dd", {}, text))),
    ),
  );
}

function badAt(report) {
  return card(
    "What it is bad at",
    {},
    html(
      "ul",
      { class: "sentences" },
      weaknesses(report).map((sentence) => html("li", {}, sentence)),
    ),
  );
}

function perClass({ per_class: rows }, announce) {
  const lowest = Math.min(...rows.map((row) => row.f1_ci95[0]));
  const score = (name, key) => ({ name, numeric: true, value: (row) => row[key], show: (row) => percent(row[key]) });
  return card(
    "Class by class",
    {
      wide: true,
      lead:
        "Precision is the share of right answers among those that name the class. " +
        "Recall is the share of the class that the model finds. F1 is the harmonic mean of both.",
    },
    sortableTable({
      caption: "Scores by class",
      announce,
      rows,
      columns: [
        { name: "Class", value: (row) => row.label, show: (row) => row.label },
        score("Precision", "precision"),
        score("Recall", "recall"),
        score("F1", "f1"),
        {
          name: "F1, 95 % interval",
          numeric: true,
          value: (row) => row.f1_ci95[0],
          show: (row) => interval(row.f1_ci95, lowest),
        },
        { name: "Images", numeric: true, value: (row) => row.support, show: (row) => count(row.support) },
      ],
    }),
  );
}

/** The interval as text and as a strip. All strips share a scale from `lowest` to 1. */
function interval([low, high], lowest) {
  const strip = html("i");
  strip.style.insetInlineStart = `${(100 * (low - lowest)) / (1 - lowest)}%`;
  strip.style.inlineSize = `${(100 * (high - low)) / (1 - lowest)}%`;
  return html(
    "span",
    { class: "interval" },
    html("span", { class: "strip", "aria-hidden": "true" }, strip),
    `${percent(low)} to ${percent(high)}`,
  );
}

function confusion({ per_class: rows, confusion_matrix: matrix }) {
  const labels = [...rows].sort((a, b) => a.class_id - b.class_id).map((row) => row.label);
  return card(
    "Confusion matrix",
    { wide: true, lead: "Each row is a true class, each column a predicted class." },
    confusionChart({ labels, matrix }),
  );
}

/** The bundle's picture of them. Older bundles have none: then there is no such card. */
function mistakes() {
  const { image, shown } = reportPicture("mistakes", "Test images with their class, and what the model said instead");
  const place = card(
    "Mistakes that it was sure of",
    {
      wide: true,
      lead:
        "Above each test image stands its class, and below that what the model said and how surely. " +
        "Some may have a wrong class in the data set.",
    },
    html("div", { class: "scroll", role: "region", "aria-label": "Pictures of mistakes", tabindex: "0" }, image),
  );
  place.hidden = true;
  shown.then(
    () => {
      place.hidden = false;
    },
    () => place.remove(),
  );
  return place;
}

function robustness(measured) {
  return card(
    "When pictures are damaged",
    {
      wide: true,
      lead:
        `The share of right answers for ${count(measured.n)} test images that were damaged on purpose, in ` +
        `${measured.corruptions[0].accuracy.length} strengths. Without damage it is ` +
        `${percent(measured.clean_accuracy)}, on average with damage ${percent(measured.mean_accuracy)}.`,
    },
    ...robustnessChart(measured),
  );
}

function training(history, { provenance }) {
  const passes = provenance.config?.epochs ?? history.length;
  // Training for a given time on a GPU leaves out images that fill no batch, and ends within an epoch.
  const others =
    passes === history.length
      ? ""
      : `The curves have ${history.length} points: one after each epoch of whole batches, and one at the end. `;
  return card(
    "How it was trained",
    {
      wide: true,
      lead:
        `${passes} pass${passes === 1 ? "" : "es"} over the training images. ${others}The images were changed at random and partly covered. ` +
        "This makes them harder, so the model does better on held-out images.",
    },
    ...trainingCharts(history),
  );
}

function reliability({ before, after, temperature }) {
  const lead =
    "About nine in ten answers with a probability of 90 % should be right. " +
    `The average gap is ${percent(after.ece.value, 2)}. ` +
    `Before calibration it was ${percent(before.ece.value, 2)} (temperature ${decimal(temperature)}).`;
  const title = "Do probabilities mean what they say?";
  if (after.bins?.length) return card(title, { lead }, ...reliabilityChart(before, after));
  const { image, shown } = reportPicture("reliability", `Reliability diagram. ${lead}`); // older reports lack the bins
  shown.catch(() => image.remove());
  return card(title, { lead }, image);
}

/** {image, shown}: a picture of the report, and a promise that is kept when it has come. */
function reportPicture(name, alt) {
  const image = html("img", { alt, class: "report-picture" });
  const shown = getPicture(`metrics/report/${name}.png`).then((blob) => {
    image.src = URL.createObjectURL(blob);
  });
  return { image, shown };
}

function riskCoverage({ curve, aurc }) {
  return card(
    "What if it answers only when it is sure?",
    {
      lead:
        "Without its least sure answers the model makes fewer mistakes. " +
        `The area under the curve is ${decimal(aurc.value, 4)}; 0 is best.`,
    },
    ...selectiveChart(curve),
  );
}

function architecture(model) {
  const chart = architectureChart(model);
  if (!chart) return null;
  return card(
    "How it is built",
    {
      wide: true,
      lead:
        `A MobileNetV2 of ${count(model.parameters)} parameters and ${count(model.macs)} multiply-adds for each ` +
        "picture. From layer to layer it looks at fewer places, and at more features of each.",
    },
    html(
      "div",
      { class: "pair" },
      chart,
      html(
        "ul",
        { class: "limits" },
        [
          `It gets a picture with ${inputSizes(model)} pixels. Whatever is smaller than one of them is lost.`,
          "It gives one class to a whole picture. It counts nothing, and draws no outlines.",
          `It knows ${count(model.classes.length)} classes. For anything else, the best answer is “I don’t know”.`,
        ].map((sentence) => html("li", {}, sentence)),
      ),
    ),
  );
}

function predictionSets({ conformal, photographs: ofPhotographs }, { data_set: of }) {
  const table = (caption, { levels }) =>
    plainTable({
      caption,
      columns: ["Level", "With the true class", "Mean number of classes", "With one class"],
      rows: levels.map(({ coverage, served_coverage: held, mean_size: size, sizes }) => [
        level(coverage),
        percent(held, 2),
        decimal(size),
        percent(sizes[0] / sizes.reduce((a, b) => a + b, 0)),
      ]),
    });
  return card(
    "Prediction sets",
    {
      wide: true,
      lead:
        "Instead of one class, the model can name a set of classes. The set is made to contain the true class as " +
        "often as you ask for.",
    },
    of?.one_kind ? null : html("h4", {}, "Thumbnails"),
    table("Prediction sets by level", conformal),
    ...(ofPhotographs
      ? [html("h4", {}, "Photographs"), table("Prediction sets of photographs by level", ofPhotographs.conformal)]
      : []),
  );
}
