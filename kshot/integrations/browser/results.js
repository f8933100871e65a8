"use strict";
// Predictions as a person reads them. Names come from the user and are only ever set as text.

const SHOWN = 5; // classes of a query

/** The novelty of logits, by the score of the run. */
function novelty(logits, score) {
  const most = Math.max(...logits);
  const sum = logits.reduce((total, each) => total + Math.exp(each - most), 0);
  return { energy: -(most + Math.log(sum)), nearest: -most, probability: 1 - 1 / sum }[score];
}

/** The label and the probability of each class that logits give. */
function answerOf(logits, classes) {
  const used = logits.slice(0, classes.length);
  const most = Math.max(...used);
  const sizes = used.map((each) => Math.exp(each - most));
  const total = sizes.reduce((sum, each) => sum + each, 0);
  const probabilities = sizes.map((each) => each / total);
  const outside = about.reject && novelty(used, about.reject.score) > about.reject.threshold;
  return { label: outside ? about.out_of_scope : classes[used.indexOf(most)], probabilities };
}

/** What a prediction says: of classes as `answerOf`, of numbers their values in the units of the data. */
function answersOf(predictions, classes) {
  const { kind, mean, std } = about.targets;
  if (kind !== "numbers") return predictions.map((logits) => answerOf(logits, classes));
  return predictions.map((row) => ({ values: row.map((value, number) => value * std[number] + mean[number]) }));
}

function element(tag, text, className = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className });
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

/** A query with its label and the likeliest classes as bars. */
function classResult(shown, { label, probabilities }, classes) {
  const item = document.createElement("li");
  const text = element("div", "", "answer");
  text.append(element("p", label, "label"));
  const bars = element("ul", "", "bars");
  const order = classes.map((_, number) => number).sort((a, b) => probabilities[b] - probabilities[a]);
  for (const number of order.slice(0, SHOWN)) {
    const bar = document.createElement("li");
    const fill = element("span", "", "bar");
    fill.style.setProperty("--share", probabilities[number]);
    bar.append(element("span", classes[number], "name"), fill, element("span", percent(probabilities[number]), "number"));
    bars.append(bar);
  }
  text.append(bars);
  if (order.length > SHOWN) text.append(element("p", `and ${order.length - SHOWN} less likely classes`, "small"));
  const head = element("div", "", "query");
  head.append(shown);
  item.append(head, text);
  return item;
}

/** Show the answers to queries. */
function showResults(shown, answers, classes) {
  const place = document.getElementById("results");
  place.replaceChildren();
  if (!answers.length) return;
  if (about.targets.kind !== "numbers") {
    const list = element("ol", "", "answers");
    answers.forEach((answer, row) => list.append(classResult(shown[row], answer, classes)));
    place.append(list);
    return;
  }
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of ["row", ...about.targets.columns]) head.append(Object.assign(element("th", name), { scope: "col" }));
  const body = table.createTBody();
  answers.forEach((answer, row) => {
    const cells = body.insertRow();
    cells.append(element("td", row + 1), ...answer.values.map((value) => element("td", Number(value.toPrecision(6)))));
  });
  place.append(table);
}
