// What went wrong, in words for whoever holds the picture; the service's own words follow as a detail.

import { fileSize } from "./format.js";

const FORMATS = "JPEG, PNG, WebP, GIF, BMP and AVIF can be read.";

/** {title, advice, smaller, again}: whether a smaller copy, or another try, may help. */
export function explainFailure({ code }, file) {
  const size = file ? ` It has ${fileSize(file.size)}.` : "";
  switch (code) {
    case "payload_too_large":
      return { title: "This file is too large", advice: `The service takes smaller ones.${size}`, smaller: true };
    case "image_too_large":
      return { title: "This image has too many pixels", advice: "The service takes smaller ones.", smaller: true };
    case "unsupported_media_type":
      return { title: "This is not an image the service can read", advice: FORMATS };
    case "undecodable_image":
      return file?.size === 0
        ? { title: "This file is empty", advice: "Nothing is in it that could be an image." }
        : { title: "This image is damaged", advice: "It is cut short or corrupt. Try to save or send it again." };
    case "overloaded":
      return { title: "The service is busy", advice: "It was asked several times. Try again in a while.", again: true };
    case "deadline_exceeded":
    case "request_timeout":
      return { title: "That took too long", advice: "The service or the connection is slow now.", again: true };
    case "unavailable":
      return { title: "The service is restarting", advice: "Try again in a few seconds.", again: true };
    case "unreachable":
      return {
        title: "The service cannot be reached",
        advice: "Is the network there?",
        smaller: large(file),
        again: true,
      };
    default:
      return { title: "Something went wrong in the service", advice: "It is not your picture's fault.", again: true };
  }
}

function large(file) {
  return file?.size > 4e6;
}
