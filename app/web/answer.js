// The card of one image. It is busy at first, then shows an answer or a failure.

import { curl, predict } from "./api.js";
import { freshId, html } from "./elements.js";
import { explanation } from "./explanation.js";
import { explainFailure } from "./faults.js";
import { fileSize, milliseconds, probability } from "./format.js";
import { smaller } from "./images.js";
import { abstention, trust } from "./verdict.js";

const VISIBLE_BARS = 4; // until the visitor asks for all classes

/**
 * A list item for the file, whose classification starts at once. `limited(work)` runs `work` as soon as few enough
 * requests are under way. `announce` tells screen readers. `removed()` is called when the card is gone.
 */
export function answerCard(file, { limited, announce, removed }) {
  const life = new AbortController();
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
  const article = html("article", { "aria-labelledby": headlineId }, figure, said, remove);
  const item = html("li", { class: "answer" }, article);

  item.dismiss = () => {
    life.abort();
    URL.revokeObjectURL(address);
    item.remove();
    removed();
  };

  /** Removes the card. The focus moves to the next card, or to the button that chooses images. */
  function leave() {
    const neighbour = item.nextElementSibling ?? item.previousElementSibling;
    item.dismiss();
    (neighbour?.querySelector(".close") ?? document.getElementById("choose")).focus();
  }

  function show(state, ...content) {
    item.dataset.state = state;
    article.setAttribute("aria-busy", String(state === "busy"));
    said.replaceChildren(
      html("p", { class: "file" }, html("span", { class: "file-name" }, file.name), ` ${fileSize(file.size)}`),
      ...content.flat().filter(Boolean),
    );
  }

  const headline = (...text) => html("h4", { class: "headline", id: headlineId }, ...text);

  function busy(text) {
    show(
      "busy",
      headline(text),
      html("div", { class: "bars ghost", "aria-hidden": "true" }, html("i"), html("i"), html("i")),
    );
  }

  async function run() {
    busy("Classifying…");
    try {
      const onWait = (seconds) => {
        const text = `The service is busy. Trying again in ${seconds} s…`;
        busy(text);
        announce(`${file.name}: ${text}`);
      };
      const got = await limited(() => predict(file, { signal: life.signal, onWait }));
      answered(got);
    } catch (failure) {
      if (!life.signal.aborted) failed(failure);
    }
  }

  function answered({ answer, milliseconds: here }) {
    const { predictions, abstain, prediction_set: set } = answer;
    const [best] = predictions;
    const map = explanation({ file, predictions, figure, signal: life.signal, announce });
    const tools = [
      html("div", { class: "tools" }, map.toggle, asCurl(file, announce)),
      map.options,
      timing(answer.timing_ms, here),
    ];
    if (abstain) {
      show(
        "abstained",
        headline("I don’t know"),
        abstention(answer),
        html("p", { class: "hint" }, "Do not rely on its best guesses:"),
        bars(predictions, []),
        tools,
      );
      announce(`${file.name}: I don’t know. The model abstains.`);
    } else {
      show(
        "answered",
        headline(best.label, " ", html("span", { class: "sure" }, probability(best.probability))),
        trust(answer),
        bars(predictions, set?.labels ?? []),
        tools,
      );
      announce(`${file.name}: ${best.label}, ${probability(best.probability)}.`);
    }
  }

  function failed(failure) {
    const { title, advice, smaller: shrinkable, again } = explainFailure(failure, file);
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
      "failed",
      headline(title),
      html("p", { class: "verdict" }, advice),
      actions.length ? html("div", { class: "tools" }, actions) : null,
      html("p", { class: "hint detail" }, `Details: ${failure.message}${id}`),
    );
    announce(`${file.name}: ${title}. ${advice}`);
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

  run();
  return item;
}

function bars(predictions, inSet) {
  const rows = predictions.map(({ label, probability: value }, place) => {
    const bar = html("i");
    bar.style.inlineSize = `${value * 100}%`;
    const member = inSet.includes(label);
    return html(
      "li",
      { class: member ? "in-set" : null, hidden: place >= VISIBLE_BARS && !member },
      html(
        "span",
        { class: "name" },
        label,
        member ? html("span", { class: "visually-hidden" }, ", in the set") : null,
      ),
      html("span", { class: "track", "aria-hidden": "true" }, bar),
      html("span", { class: "value" }, probability(value)),
    );
  });
  const hidden = rows.filter((row) => row.hidden);
  const list = html("ol", { class: "bars" }, rows);
  const more = html(
    "button",
    {
      type: "button",
      class: "link",
      "aria-expanded": "false",
      click: () => {
        const open = more.getAttribute("aria-expanded") === "false";
        more.setAttribute("aria-expanded", String(open));
        more.textContent = open ? "Fewer classes" : "All classes";
        for (const row of hidden) row.hidden = !open;
      },
    },
    "All classes",
  );
  return hidden.length ? [list, more] : [list];
}

function timing({ decode, queue, inference, total }, here) {
  const text =
    `${milliseconds(here)} with the network, ${milliseconds(total)} in the service: ` +
    `decoding ${milliseconds(decode)}, waiting ${milliseconds(queue)}, inference ${milliseconds(inference)}`;
  return html("p", { class: "timing" }, text);
}

function asCurl(file, announce) {
  const command = html("code", {}, curl(file.name));
  const copy = html("button", { type: "button", class: "quiet", click: () => copyText() }, "Copy");
  async function copyText() {
    try {
      await navigator.clipboard.writeText(command.textContent);
      copy.textContent = "Copied";
      announce("The command is copied.");
    } catch {
      // Browsers allow access to the clipboard only over HTTPS and on localhost.
      getSelection().selectAllChildren(command);
      announce("The command is selected. Copy it with your keyboard.");
    }
  }
  return html("details", { class: "curl" }, html("summary", {}, "As curl"), html("pre", {}, command), copy);
}

function cross() {
  return html("span", { "aria-hidden": "true" }, "×");
}
