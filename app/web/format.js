// Numbers and lists as text.

/** 0.9526 -> "95.3 %". The space is a no-break space. */
export function percent(fraction, digits = 1) {
  return `${(fraction * 100).toFixed(digits)}\u00a0%`;
}

/** A coverage level without trailing zeros: 0.99 -> "99 %", 0.995 -> "99.5 %" */
export function level(fraction) {
  return `${Number((fraction * 100).toPrecision(6))}\u00a0%`;
}

/** A probability. It never reads 0 % or 100 %: the model is never certain. */
export function probability(value) {
  if (value > 0.9995) return ">\u00a099.9\u00a0%";
  if (value < 0.0005) return "<\u00a00.1\u00a0%";
  return percent(value);
}

/** ["cat", "dog", "deer"] -> "cat, dog or deer" */
export function alternatives(labels) {
  return new Intl.ListFormat("en-GB", { type: "disjunction" }).format(labels);
}

/** 123456 bytes -> "123 kB" */
export function fileSize(size) {
  if (size < 1000) return `${size} bytes`;
  if (size < 999_500) return `${Math.round(size / 1000)} kB`;
  return `${(size / 1e6).toFixed(1)} MB`;
}

/** 10000 -> "10,000" */
export function count(number) {
  return number.toLocaleString("en");
}

/** 7.12 -> "7.1 ms" */
export function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)}\u00a0ms` : `${Math.round(value)}\u00a0ms`;
}

/** 1.0029 -> "1.00" */
export function decimal(value, digits = 2) {
  return value.toFixed(digits);
}
