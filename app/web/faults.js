// Explains failures to visitors. The card shows the technical detail below the explanation.

import { fileSize } from "./format.js";

const FORMATS = "The service reads JPEG, PNG, WebP, GIF, BMP and AVIF.";
const USUAL_LIMIT = 1e6; // bytes of an upload: nginx's default limit

/** {title, advice, smaller, again}: `smaller` and `again` say whether a smaller copy or another attempt may help. */
export function explainFailure({ code }, file) {
  const size = file ? ` This file has ${fileSize(file.size)}.` : "";
  switch (code) {
    case "payload_too_large":
      return {
        title: "This file is too large",
        advice: `The service accepts only smaller files.${size}`,
        smaller: true,
      };
    case "image_too_large":
      return {
        title: "This image has too many pixels",
        advice: "The service accepts only smaller images.",
        smaller: true,
      };
    case "unsupported_media_type":
      return { title: "This is not an image that the service can read", advice: FORMATS };
    case "undecodable_image":
      return file?.size === 0
        ? { title: "This file is empty", advice: "It contains no data. Choose another file." }
        : { title: "This image is damaged", advice: "The file is incomplete or corrupt. Save or download it again." };
    case "invalid_parameter":
      return {
        title: "The model does not have these settings",
        advice: "It may be another model than before. Reload this page, and choose the settings again.",
        again: true,
      };
    case "overloaded":
      return {
        title: "The service is busy",
        advice: "The page tried several times. Try again in a while.",
        again: true,
      };
    case "deadline_exceeded":
    case "request_timeout":
      return { title: "That took too long", advice: "The service or the connection is slow now.", again: true };
    case "unavailable":
      return { title: "The service is restarting", advice: "Try again in a few seconds.", again: true };
    case "unreachable": {
      // A server that refuses a body in the middle of the upload looks the same here as a broken connection.
      const large = file?.size > USUAL_LIMIT;
      return {
        title: "The service cannot be reached",
        advice: large
          ? `Check your network connection. If it works, the file (${fileSize(file.size)}) may be too large.`
          : "Check your network connection.",
        smaller: large,
        again: true,
      };
    }
    default: {
      const [, status] = /^proxy_(\d+)$/.exec(code) ?? [];
      return status
        ? explainProxy(status, size)
        : { title: "Something went wrong in the service", advice: "Your picture is not the cause.", again: true };
    }
  }
}

/** What an answer of the proxy in front of the service means. */
function explainProxy(status, size) {
  switch (status) {
    case "413":
      return {
        title: "This file is too large",
        advice: `The proxy in front of the service accepts only smaller uploads.${size}`,
        smaller: true,
      };
    case "429":
      return {
        title: "Too many requests",
        advice: "The proxy in front of the service lets fewer through. Try again in a while.",
        again: true,
      };
    case "401":
    case "403":
      return {
        title: "The proxy in front of the service refuses access",
        advice: "It may want a login or a key. Reload this page to log in.",
        again: true,
      };
    case "502":
    case "503":
    case "504":
      return {
        title: "The service is not reachable behind its proxy",
        advice: "The proxy answers, but the service does not. Try again in a while.",
        again: true,
      };
    default:
      return {
        title: "A proxy answered instead of the service",
        advice: "Your picture is not the cause. If the proxy wants a login, reload this page.",
        again: true,
      };
  }
}
