"use strict";
// Images as kshot decodes them: upright, on white, grey by ITU-R 601, the central square, scaled by the filter of Pillow.

const LANCZOS = 3; // support of the filter, in pixels of the smaller image
const BITS = 22; // of its weights, which are whole numbers in Pillow

/** The pixels of an image file or canvas: {width, height, data}, RGBA on white. */
async function pixelsOf(source) {
  const bitmap = await createImageBitmap(source, { imageOrientation: "from-image" });
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The channels of an image, each a Uint8ClampedArray: one of grey, or red, green and blue. */
function channelsOf({ data }, count) {
  const channels = Array.from({ length: count }, () => new Uint8ClampedArray(data.length / 4));
  for (let i = 0, at = 0; at < data.length; i++, at += 4) {
    if (count === 1) channels[0][i] = (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 32768) >> 16;
    else for (let channel = 0; channel < 3; channel++) channels[channel][i] = data[at + channel];
  }
  return channels;
}

function lanczos(x) {
  const sinc = (y) => (y === 0 ? 1 : Math.sin(Math.PI * y) / (Math.PI * y));
  return x >= -LANCZOS && x < LANCZOS ? sinc(x) * sinc(x / LANCZOS) : 0;
}

/** For each of `size` pixels, the first pixel of a row that it is made of, and their weights as whole numbers. */
function weightsOf(length, start, end, size) {
  const scale = (end - start) / size;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, number) => {
    const centre = start + (number + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - LANCZOS * stretch + 0.5));
    const last = Math.min(length, Math.trunc(centre + LANCZOS * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => lanczos((i + first - centre + 0.5) / stretch));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => Math.trunc((weight / total) * 2 ** BITS + (weight < 0 ? -0.5 : 0.5))) };
  });
}

/** The rows of an image made of weighted pixels, written as its columns: twice gives an image scaled both ways. */
function scaledAcross(pixels, width, height, weights) {
  const scaled = new Uint8ClampedArray(weights.length * height);
  weights.forEach(({ first, weights: each }, x) => {
    for (let y = 0; y < height; y++) {
      let sum = 2 ** (BITS - 1);
      for (let i = 0; i < each.length; i++) sum += each[i] * pixels[y * width + first + i];
      scaled[x * height + y] = Math.floor(sum / 2 ** BITS);
    }
  });
  return scaled;
}

/** The central square of a channel, scaled to `size`. */
function fitted(pixels, width, height, size) {
  if (width === size && height === size) return pixels;
  const side = Math.min(width, height);
  const left = (width - side) / 2;
  const top = (height - side) / 2;
  const isWide = width !== size || left > 0;
  const isHigh = height !== size || top > 0;
  const across = isWide ? weightsOf(width, left, left + side, size) : unscaled(size);
  const down = isHigh ? weightsOf(height, top, top + side, size) : unscaled(size);
  return scaledAcross(scaledAcross(pixels, width, height, across), height, size, down);
}

function unscaled(size) {
  return Array.from({ length: size }, (_, number) => ({ first: number, weights: [2 ** BITS] }));
}

/** An image as the run takes it: Uint8ClampedArray of channels × size × size. */
async function imageOf(source, { channels, size }, invert) {
  const pixels = await pixelsOf(source);
  const image = new Uint8ClampedArray(channels * size * size);
  channelsOf(pixels, channels).forEach((channel, number) =>
    image.set(fitted(channel, pixels.width, pixels.height, size), number * size * size),
  );
  return invert ? image.map((value) => 255 - value) : image;
}

/** Images as the inputs of a graph. */
function inputsOf(images, { channels, size }) {
  const values = new Float32Array(images.length * channels * size * size);
  images.forEach((image, number) => values.set(Float32Array.from(image, (value) => value / 255), number * image.length));
  return { values, shape: [images.length, channels, size, size] };
}
