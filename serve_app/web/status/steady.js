/** Rows that hold still while somebody points at one. No I/O. */

/**
 * @template T
 * @typedef {{key: string, value: T, gone: boolean}} Row gone: it is no longer there, and keeps its place for now
 */

/**
 * The rows to be shown.
 * @template T
 * @param {Row<T>[]} before that are shown
 * @param {T[]} values as they are now, in their own order
 * @param {(value: T) => string} keyOf
 * @param {boolean} held no row may come, go or change its place: only what stands in it changes
 * @returns {{rows: Row<T>[], more: number}} more: how many are there that are not shown yet
 */
export function settle(before, values, keyOf, held) {
  const now = new Map(values.map((value) => [keyOf(value), value]));
  if (!held) return { rows: [...now].map(([key, value]) => ({ key, value, gone: false })), more: 0 };
  const rows = before.map(({ key, value }) => ({ key, value: now.get(key) ?? value, gone: !now.has(key) }));
  const shown = new Set(before.map(({ key }) => key));
  return { rows, more: [...now.keys()].filter((key) => !shown.has(key)).length };
}
