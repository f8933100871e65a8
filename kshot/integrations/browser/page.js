"use strict";
// What the page does: it opens the graphs, adapts when asked, and predicts whenever a state or the queries change.

const page = { graphs: null, state: null, classes: [], predictions: [], answers: [], turn: 0 };

/** Say something in the line of the status; faults stand out. */
function say(text, isFault = false) {
  const status = document.getElementById("status");
  status.textContent = text;
  status.classList.toggle("fault", isFault);
}

/** The message of an error, for a person. */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}

/** The state is that of the examples before: say so, since predictions stay. */
function supportChanged() {
  if (page.state) say("The examples have changed: press Adapt.");
}

async function adaptNow() {
  const button = document.getElementById("adapt-now");
  button.disabled = true;
  try {
    const { classes, ...support } = form.support();
    say("Adapting …");
    page.state = await adapt(page.graphs, support);
    page.classes = classes;
    const count = support.inputs.shape[0];
    say(`Adapted to ${count} examples${classes.length ? ` of ${classes.length} classes` : ""}.`);
    await predictNow();
  } catch (error) {
    say(messageOf(error), true);
  } finally {
    button.disabled = false;
  }
}

/** Predict for the queries that are there, unless they changed again meanwhile. */
async function predictNow() {
  if (!page.state) return;
  const turn = ++page.turn;
  try {
    const { inputs, shown } = form.queries();
    const predictions = shown.length ? await predict(page.graphs, page.state, inputs) : [];
    if (turn !== page.turn) return;
    page.predictions = predictions;
    page.answers = answersOf(predictions, page.classes);
    showResults(shown, page.answers, page.classes);
  } catch (error) {
    say(messageOf(error), true);
  }
}

async function open() {
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
  try {
    form.open({ queries: predictNow, support: supportChanged });
    say("Opening the model …");
    page.graphs = await openGraphs();
  } catch (error) {
    say(`The model could not be opened: ${messageOf(error)}. A current version of Chrome, Edge, Firefox or Safari is needed.`, true);
    return;
  }
  const button = document.getElementById("adapt-now");
  if (button) {
    button.disabled = false;
    button.addEventListener("click", adaptNow);
    say("Ready: give examples, and press Adapt.");
  } else {
    page.state = {};
    page.classes = about.targets.classes ?? [];
    say("Ready: give queries.");
    await predictNow();
  }
}

open();
