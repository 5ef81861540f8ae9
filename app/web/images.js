// What the browser itself does with images: nothing leaves it here.

const SIDE = 1024; // pixels; the network sees 32

/** A smaller copy that any service takes. Throws where the browser cannot read the image. */
export async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
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
