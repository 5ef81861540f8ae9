// What the service says of its model. Each document is requested once, when it is first wanted; after a failure, again.

import { getJson } from "./api.js";

/** Classes, levels, version, provenance. */
export const description = once("model");

/** The measures of the model's quality. */
export const report = once("metrics/report");

function once(path) {
  let requested = null;
  return () => {
    requested ??= getJson(path).catch((failure) => {
      requested = null;
      throw failure;
    });
    return requested;
  };
}
