// The card of one image. It is busy at first, then shows an answer or a failure.

import { predict } from "./api.js";
import { bars } from "./bars.js";
import { asCode } from "./code.js";
import { freshId, html } from "./elements.js";
import { explanation } from "./explanation.js";
import { explainFailure } from "./faults.js";
import { feedback } from "./feedback.js";
import { alternatives, fileSize, milliseconds, probability } from "./format.js";
import { smaller } from "./images.js";
import { stateOf } from "./outcome.js";
import { predictQuery } from "./settings.js";
import { abstention, trust } from "./verdict.js";

/**
 * {item, outcome, run, dismiss}: a list item for the file; `outcome()` is what became of it (see outcome.js); `run()`
 * classifies it, with the settings of that moment; `dismiss()` removes it. `limited(work)` runs `work` as soon as few
 * enough requests are under way. `announce` tells screen readers. `changed()` is called after each change of the
 * outcome, `removed()` when the card is gone.
 */
export function answerCard(file, { limited, announce, changed, removed }) {
  let life = new AbortController(); // of what shows the current answer
  let outcome = { file, state: "busy" };
  const headlineId = freshId("answer");
  const address = URL.createObjectURL(file);
  const picture = html("img", {
    src: address,
    alt: `Your image ${file.name}`,
    load: () => picture.classList.toggle("tiny", picture.naturalWidth <= 64 && picture.naturalHeight <= 64),
    error: () => picture.replaceWith(html("span", { class: "no-picture", "aria-hidden": "true" }, "?")),
  });
  const said = html("div", { class: "said" });
  const remove = html(
    "button",
    { type: "button", class: "close", "aria-label": `Remove ${file.name}`, click: leave },
    cross(),
  );
  const figure = html("figure", { class: "picture" }, picture);
  const more = html(
    "button",
    { type: "button", class: "link more", "aria-expanded": "false", click: open },
    "Details",
    html("span", { class: "visually-hidden" }, ` of ${file.name}`),
  );
  const article = html("article", { "aria-labelledby": headlineId }, figure, said, more, remove);
  const item = html("li", { class: "answer" }, article);

  /** Shows all that is said, or the short form again. Only compact cards have a short form. */
  function open() {
    const opened = item.classList.toggle("open");
    more.setAttribute("aria-expanded", String(opened));
    more.firstChild.data = opened ? "Less" : "Details";
  }

  function dismiss() {
    life.abort();
    URL.revokeObjectURL(address);
    item.remove();
    removed();
  }

  /** Removes the card. The focus moves to the next card, or to the button that chooses images. */
  function leave() {
    const others = [...item.parentElement.children].filter((other) => other === item || !other.hidden);
    const place = others.indexOf(item);
    const neighbour = others[place + 1] ?? others[place - 1];
    dismiss();
    (neighbour?.querySelector(".close") ?? document.getElementById("choose")).focus();
  }

  function show(now, ...content) {
    outcome = { file, ...now };
    item.dataset.state = now.state;
    article.setAttribute("aria-busy", String(now.state === "busy"));
    said.replaceChildren(
      html("p", { class: "file" }, html("span", { class: "file-name" }, file.name), ` ${fileSize(file.size)}`),
      ...content.flat().filter(Boolean),
    );
    changed();
  }

  const headline = (...text) => html("h4", { class: "headline", id: headlineId }, ...text);

  function busy(text) {
    show(
      { state: "busy" },
      headline(text),
      html("div", { class: "bars ghost", "aria-hidden": "true" }, html("i"), html("i"), html("i")),
    );
  }

  async function run() {
    life.abort();
    life = new AbortController();
    const { signal } = life;
    busy("Classifying…");
    try {
      const onWait = (seconds) => {
        const text = `The service is busy. Trying again in ${seconds} s…`;
        busy(text);
        announce(`${file.name}: ${text}`);
      };
      await limited(async () => {
        const query = predictQuery();
        answered(await predict(file, query, { signal, onWait }), query);
      });
    } catch (failure) {
      if (!signal.aborted) failed(failure);
    }
  }

  function answered({ answer, milliseconds: here, requestId }, query) {
    const { predictions, abstain, prediction_set: set } = answer;
    const [best] = predictions;
    const map = explanation({ file, predictions, figure, signal: life.signal, announce });
    const tools = [
      feedback({ requestId, answer, fileName: file.name, signal: life.signal, announce }),
      html("div", { class: "tools" }, map.toggle, asCode({ fileName: file.name, query, answer, announce })),
      map.options,
      timing(answer.timing_ms, here),
    ];
    if (abstain) {
      announce(`${file.name}: I don’t know. The model abstains.`);
      show(
        { state: "abstained", answer },
        headline("I don’t know"),
        abstention(answer),
        html("p", { class: "hint" }, "Do not rely on its best guesses:"),
        bars(predictions, []),
        tools,
      );
    } else {
      announce(`${file.name}: ${best.label}, ${probability(best.probability)}.`);
      const unsure = stateOf({ state: "answered", answer }) === "unsure";
      show(
        { state: "answered", answer },
        headline(best.label, " ", html("span", { class: "sure" }, probability(best.probability))),
        unsure ? html("p", { class: "hint short" }, `or ${alternatives(set.labels.slice(1))}`) : null,
        trust(answer),
        bars(predictions, set?.labels ?? []),
        tools,
      );
    }
  }

  function failed(failure) {
    const { title, advice, smaller: shrinkable, again } = explainFailure(failure, file);
    announce(`${file.name}: ${title}. ${advice}`);
    const actions = [];
    if (shrinkable)
      actions.push(
        html("button", { type: "button", class: "primary", click: shrink }, "Make it smaller here and try again"),
      );
    if (again)
      actions.push(
        html("button", { type: "button", class: shrinkable ? "quiet" : "primary", click: run }, "Try again"),
      );
    const id = failure.instance ? ` (request ${failure.instance})` : "";
    show(
      { state: "failed", failure },
      headline(title),
      html("p", { class: "verdict" }, advice),
      actions.length ? html("div", { class: "tools" }, actions) : null,
      html("p", { class: "hint detail" }, `Details: ${failure.message}${id}`),
    );
  }

  async function shrink() {
    busy("Making it smaller…");
    try {
      file = await smaller(file);
    } catch {
      failed({ code: "undecodable_image", message: "this browser cannot read the image" });
      return;
    }
    run();
  }

  return { item, outcome: () => outcome, run, dismiss };
}

function timing({ decode, queue, inference, total }, here) {
  const text =
    `${milliseconds(here)} with the network, ${milliseconds(total)} in the service: ` +
    `decoding ${milliseconds(decode)}, waiting ${milliseconds(queue)}, inference ${milliseconds(inference)}`;
  return html("p", { class: "timing" }, text);
}

function cross() {
  return html("span", { "aria-hidden": "true" }, "×");
}
