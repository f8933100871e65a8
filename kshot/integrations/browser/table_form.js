"use strict";
// The form for tables: a text of CSV for the examples, and one for the queries.

const form = {
  open(changed) {
    for (const name of ["support", "queries"]) {
      const text = document.getElementById(`${name}-text`);
      if (!text) continue;
      text.addEventListener("input", changed[name]);
      const file = document.getElementById(`${name}-file`);
      file.addEventListener("change", async () => {
        if (file.files.length) text.value = await file.files[0].text();
        file.value = "";
        changed[name]();
      });
    }
  },

  /** The support set: its inputs, targets and the names of its classes, if it has classes. */
  support() {
    const { kind, columns, mean, std } = about.targets;
    const { inputs, rows } = readTable(document.getElementById("support-text").value, columns);
    for (const row of rows) {
      if (row.others.some((text) => text === "" || about.inputs.missing.includes(text))) {
        throw new Error(`Line ${row.line}: a value of ${columns.join(" or ")} is missing.`);
      }
    }
    if (kind === "numbers") {
      const values = rows.flatMap((row) =>
        row.others.map((text, number) => {
          const value = numberOf(text);
          if (!Number.isFinite(value)) throw new Error(`Line ${row.line}, ${columns[number]}: ${text} is not a number.`);
          return (value - mean[number]) / std[number];
        }),
      );
      return { inputs, targets: { values: Float32Array.from(values), shape: [rows.length, columns.length] }, classes: [] };
    }
    const labels = rows.map((row) => row.others[0]);
    const classes = kind === "shared" ? about.targets.classes : [...new Set(labels)].sort();
    const unknown = rows.find((row) => !classes.includes(row.others[0]));
    if (unknown) throw new Error(`Line ${unknown.line}: ${unknown.others[0]} is none of ${classes.join(", ")}.`);
    const width = kind === "shared" ? classes.length : widthFor(classes);
    return { inputs, targets: oneHot(labels.map((label) => classes.indexOf(label)), width), classes };
  },

  /** The queries: their inputs, and an element that names the line of each. */
  queries() {
    const text = document.getElementById("queries-text").value;
    if (!text.trim()) return { inputs: { values: new Float32Array(0), shape: [0] }, shown: [] };
    const { inputs, rows } = readTable(text, []);
    return { inputs, shown: rows.map((_, number) => document.createTextNode(`row ${number + 1}`)) };
  },
};
