"use strict";
// Rows of a table as kshot reads them: numbers standardised, words one-hot or as codes, missing values marked.

/** The rows of a CSV as arrays of trimmed cells, with the line of each; the first has the names of the columns. */
function parseCsv(text, delimiter) {
  const head = text.split("\n", 1)[0];
  const sign = delimiter || ["\t", ";", ","].reduce((best, each) => (head.split(each).length > head.split(best).length ? each : best), ",");
  const rows = [];
  let row = [], cell = "", quoted = false, line = 1, first = 1;
  const endRow = () => {
    row.push(cell.trim());
    if (row.length > 1 || row[0] !== "") rows.push({ cells: row, line: first });
    (row = []), (cell = "");
  };
  const content = text.replace(/\r\n?/g, "\n").replace(/^\uFEFF/, "");
  for (let i = 0; i < content.length; i++) {
    const each = content[i];
    if (each === "\n") line++;
    if (quoted) {
      if (each !== '"') cell += each;
      else if (content[i + 1] === '"') cell += content[++i];
      else quoted = false;
    } else if (each === '"' && cell === "") quoted = true;
    else if (each === sign) row.push(cell.trim()), (cell = "");
    else if (each === "\n") endRow(), (first = line);
    else cell += each;
  }
  if (quoted) throw new Error(`Line ${first}: a quoted value does not end.`);
  endRow();
  return rows;
}

/** A number as the run's data write it, or NaN. */
function numberOf(text) {
  const plain = about.inputs.decimal === "," ? text.replace(",", ".") : text;
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
}

/** The value of a cell of a column: a number, a word or several; null where it is missing. */
function valueOf(text, column, where) {
  if (text === "" || about.inputs.missing.includes(text)) return null;
  if (column.kind === "number") {
    const value = numberOf(text);
    if (!Number.isFinite(value)) throw new Error(`${where}: ${text} is not a number.`);
    return value;
  }
  if (column.kind === "boolean") {
    const word = text.toLowerCase();
    if (["true", "yes", "1"].includes(word)) return 1;
    if (["false", "no", "0"].includes(word)) return 0;
    throw new Error(`${where}: ${text} is neither true nor false.`);
  }
  return column.kind === "set" ? text.split(/\s*[|;]\s*/) : text;
}

/** The features of a row, in the order that the run has: numbers, which of them are missing, words, sets. */
function featuresOf(values, columns) {
  const numbers = [], gaps = [], words = [], sets = [];
  columns.forEach((column, at) => {
    const value = values[at];
    if (column.kind === "number" || column.kind === "boolean") {
      const scaled = value === null ? 0 : (value - column.mean) / column.std;
      const clip = about.inputs.clip ?? Infinity;
      numbers.push(Math.min(clip, Math.max(-clip, scaled)));
      if (column.gaps) gaps.push(value === null ? 1 : 0);
    } else if (column.kind === "category") {
      const known = value === null ? -1 : column.words.indexOf(value);
      const missing = value === null && column.gaps ? 1 : 0;
      words.push(...column.rows[known >= 0 ? known : column.words.length + missing]);
    } else {
      const sum = new Array(column.rows[0].length).fill(0);
      for (const word of value ?? []) {
        const known = column.words.indexOf(word);
        if (known >= 0) column.rows[known].forEach((part, i) => (sum[i] += part));
      }
      sets.push(...(column.counted ? sum : sum.map((part) => Math.min(1, part))));
    }
  });
  return [...numbers, ...gaps, ...words, ...sets];
}

/** The rows of a CSV: their cells in `others`, and their features as the inputs of a graph. */
function readTable(text, others) {
  const { columns, by_position } = about.inputs;
  const [head, ...rows] = parseCsv(text, about.inputs.delimiter);
  if (!rows.length) throw new Error("Give a line with the names of the columns, and then a line for each row.");
  const names = [...columns.map((column) => column.name), ...others];
  const places = names.map((name, number) => (by_position ? number : head.cells.indexOf(name)));
  const missing = names.filter((_, number) => places[number] < 0 || places[number] >= head.cells.length);
  if (missing.length) throw new Error(`The table has no column ${missing.join(", ")}; it has ${head.cells.join(", ")}.`);
  const cell = (row, name) => {
    const text = row.cells[places[names.indexOf(name)]];
    if (text === undefined) throw new Error(`Line ${row.line} has ${row.cells.length} values, and ${head.cells.length} are named.`);
    return text;
  };
  const features = rows.map((row) =>
    featuresOf(columns.map((column) => checked(valueOf(cell(row, column.name), column, `Line ${row.line}, ${column.name}`), row, column)), columns),
  );
  return {
    inputs: { values: Float32Array.from(features.flat()), shape: [features.length, features[0].length] },
    rows: rows.map((row) => ({ line: row.line, others: others.map((name) => cell(row, name)) })),
  };
}

/** A value; an input without a name has no mean that could stand for it. */
function checked(value, row, column) {
  if (value === null && about.inputs.by_position) throw new Error(`Line ${row.line}, ${column.name}: the value is missing.`);
  return value;
}
