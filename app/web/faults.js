// Explains failures to visitors. The card shows the technical detail below the explanation.

import { fileSize } from "./format.js";

const FORMATS = "The service reads JPEG, PNG, WebP, GIF, BMP and AVIF.";

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
    case "unreachable":
      return {
        title: "The service cannot be reached",
        advice: "Check your network connection.",
        smaller: large(file),
        again: true,
      };
    default:
      return { title: "Something went wrong in the service", advice: "Your picture is not the cause.", again: true };
  }
}

function large(file) {
  return file?.size > 4e6;
}
