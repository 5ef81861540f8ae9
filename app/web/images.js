// Pictures made in the browser. Nothing is sent from here.

const MAX_SIDE = 1024; // pixels; no network sees more than 224 x 224

/** A JPEG copy whose longer side has at most 1024 pixels. Throws if the browser cannot decode the image. */
export async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const name = file.name.replace(/\.[^.]*$/, "");
  const copy = await jpeg(bitmap, bitmap.width, bitmap.height, `${name}-smaller.jpg`);
  bitmap.close();
  return copy;
}

/** What the video shows now, as a JPEG. */
export function still(video, name) {
  return jpeg(video, video.videoWidth, video.videoHeight, name);
}

async function jpeg(source, width, height, name) {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], name, { type: "image/jpeg" });
}
