// Resizes images in the browser. Nothing is sent from here.

const MAX_SIDE = 1024; // pixels; the network sees 32 x 32

/** A JPEG copy whose longer side has at most 1024 pixels. Throws if the browser cannot decode the image. */
export async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  const name = file.name.replace(/\.[^.]*$/, "");
  return new File([blob], `${name}-smaller.jpg`, { type: "image/jpeg" });
}
