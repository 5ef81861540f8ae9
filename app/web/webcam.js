// The camera, live: at most one still a second is classified, and none while the page is hidden.

import { predict } from "./api.js";
import { bars } from "./bars.js";
import { html } from "./elements.js";
import { explainFailure } from "./faults.js";
import { probability } from "./format.js";
import { still } from "./images.js";
import { predictQuery } from "./settings.js";
import { abstention, trust } from "./verdict.js";

const PERIOD = 1000; // milliseconds from still to still

const REFUSALS = {
  NotAllowedError: "The browser does not let this page use the camera. Allow it in the settings of the browser.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera cannot be used. Another program may be using it.",
};

/**
 * Shows `button` where the browser gives access to cameras; a click fills `place` with the picture and its answer.
 * `take([file])` makes an answer of a still, `refuse(sentence)` and `note(sentence)` tell why there is no picture. Returns `stop()`.
 */
export function webcam({ button, place }, { take, refuse, note, announce }) {
  let life = null; // aborted when the camera stops; null while it is off
  let last = null; // the still whose answer is shown

  const video = html("video", { muted: true, playsinline: true, "aria-label": "The picture of your camera" });
  const said = html("div", { class: "said" });
  const keep = html("button", { type: "button", class: "primary", click: () => take([last]) }, "Keep this answer");
  const off = html("button", { type: "button", class: "quiet", click: () => stop({ focus: true }) }, "Stop the camera");
  place.append(
    html("div", { class: "picture" }, video),
    html("div", { class: "live" }, said, html("div", { class: "tools" }, keep, off)),
  );

  async function start() {
    if (life) return;
    life = new AbortController();
    const { signal } = life;
    try {
      const wanted = { facingMode: { ideal: "environment" }, width: { ideal: 640 } };
      await watch(await navigator.mediaDevices.getUserMedia({ video: wanted }), signal);
    } catch (failure) {
      if (signal.aborted) return;
      stop();
      refuse(REFUSALS[failure.name] ?? `The camera stopped. ${failure.message}`);
    }
  }

  async function watch(stream, signal) {
    const release = () => {
      for (const track of stream.getTracks()) track.stop();
      video.srcObject = null;
    };
    signal.addEventListener("abort", release);
    if (signal.aborted) {
      release(); // stopped while the visitor was asked
      return;
    }
    stream.getVideoTracks()[0].addEventListener("ended", () => stop());
    said.replaceChildren(html("p", { class: "headline" }, "Looking…"));
    keep.hidden = true;
    place.hidden = false;
    button.hidden = true;
    off.focus();
    video.srcObject = stream;
    await video.play();
    while (!signal.aborted) {
      const next = new Promise((resolve) => setTimeout(resolve, PERIOD));
      const taken = await still(video, `camera-${new Date().toISOString().slice(11, 19).replaceAll(":", "-")}.jpg`);
      const answer = await ask(taken, signal);
      if (signal.aborted) return;
      last = taken;
      show(answer);
      await next;
    }
  }

  async function ask(image, signal) {
    try {
      return (await predict(image, predictQuery(), { signal })).answer;
    } catch (failure) {
      if (signal.aborted) return null;
      const { title, advice } = explainFailure(failure, image);
      throw new Error(`${title}. ${advice}`);
    }
  }

  function show(answer) {
    const { predictions, abstain, prediction_set: set } = answer;
    const [{ label, probability: value }] = predictions;
    const before = said.querySelector(".headline").dataset.said;
    const now = abstain ? "I don’t know" : label;
    const headline = html("p", { class: "headline", "data-said": now }, now);
    if (!abstain) headline.append(" ", html("span", { class: "sure" }, probability(value)));
    place.dataset.state = abstain ? "abstained" : "answered";
    said.replaceChildren(
      headline,
      bars(predictions, abstain ? [] : (set?.labels ?? []))[0],
      abstain ? abstention(answer) : trust(answer),
    );
    keep.hidden = false;
    if (now !== before) announce(`Camera: ${now}`);
  }

  function stop({ focus = false } = {}) {
    if (!life) return;
    life.abort();
    life = null;
    place.hidden = true;
    button.hidden = false;
    if (focus) button.focus();
  }

  button.hidden = !navigator.mediaDevices?.getUserMedia; // browsers give it to HTTPS and localhost only
  button.addEventListener("click", start);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden || !life) return;
    stop();
    note("The camera was stopped, because the page was hidden.");
  });
  return stop;
}
