// Connects the parts of the page. Each image becomes a card; the model's tab is filled when it is first opened.

import { onUnauthorized, useKey } from "./api.js";
import { knownClasses } from "./classes.js";
import { description } from "./documents.js";
import { gallery } from "./gallery.js";
import { listen } from "./intake.js";
import { limit } from "./limit.js";
import { modelTab } from "./model.js";
import { settings } from "./settings.js";
import { tabs } from "./tabs.js";
import { webcam } from "./webcam.js";

const MAX_CONCURRENT_REQUESTS = 4; // a single visitor leaves room for others

const byId = (id) => document.getElementById(id);

const places = { list: byId("answers"), head: byId("answers-head"), summary: byId("summary") };
const answers = gallery(places, { limited: limit(MAX_CONCURRENT_REQUESTS), announce });

function announce(text) {
  byId("announce").textContent = text;
}

function take(files) {
  if (files.length === 0) return;
  byId("refusal").textContent = "";
  byId("note").textContent = "";
  go("classify");
  answers.add(files);
}

function refuse(sentence) {
  go("classify");
  byId("refusal").textContent = sentence;
}

byId("clear").addEventListener("click", () => {
  answers.clear();
  announce("All answers are removed.");
  byId("choose").focus();
});

function askForKey(sentence) {
  const form = byId("key");
  form.querySelector("label").textContent = sentence;
  form.hidden = false;
  byId("key-value").focus();
}

onUnauthorized(({ rejected }) => {
  byId("more").hidden = true; // a browser follows links without the key
  askForKey(rejected ? "The service does not know this key. Try another." : "This service needs an API key");
});

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key-value").value.trim();
  byId("key-value").value = "";
  if (!/^[!-~]+$/.test(key)) {
    // An HTTP header cannot carry it. Word processors, for example, put typographic quotation marks around a key.
    askForKey("This cannot be a key. A key has only ASCII letters, digits and punctuation.");
    return;
  }
  byId("key").hidden = true;
  useKey(key);
});

function note(sentence) {
  byId("note").textContent = sentence;
}

listen({ take, refuse, note });

const stopCamera = webcam({ button: byId("live"), place: byId("webcam") }, { take, refuse, note, announce });

const go = tabs(document.querySelector("[role=tablist]"), (id) => {
  if (id !== "model") return;
  stopCamera();
  modelTab(byId("model"), announce);
});

description().then(
  ({ classes, name, version }) => {
    byId("known").replaceChildren(...knownClasses(classes));
    byId("known").hidden = false;
    byId("model-name").textContent = `Answers come from ${name} ${version}`;
  },
  () => {}, // the next answer will show what is wrong
);

settings(byId("settings"), { changed: answers.again, note, announce }).catch(() => {});
