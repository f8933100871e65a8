"use strict";
// The graphs of this page, computed by onnxruntime-web on the processor. All files are in the page itself.

const about = JSON.parse(document.getElementById("about").textContent);

/** The bytes of a packed part of the page. */
async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The graphs by name: "predict", and "adapt" where the page has it. */
async function openGraphs() {
  const script = new Blob([await unpacked("runtime")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  ort.env.wasm.numThreads = 1; // further threads need a server that isolates the page
  ort.env.wasm.wasmBinary = await unpacked("wasm");
  const graphs = { Tensor: ort.Tensor };
  for (const name of ["adapt", "predict"]) {
    if (document.getElementById(name)) graphs[name] = await ort.InferenceSession.create(await unpacked(name));
  }
  return graphs;
}

/** The outputs of a graph; inputs that it has not are left out. */
function compute(graph, inputs) {
  return graph.run(Object.fromEntries(graph.inputNames.map((name) => [name, inputs[name]])));
}

/** The state that a support set gives: its inputs and targets are {values, shape}. */
async function adapt(graphs, support) {
  const count = support.inputs.shape[0];
  return compute(graphs.adapt, {
    inputs: new graphs.Tensor("float32", support.inputs.values, support.inputs.shape),
    targets: new graphs.Tensor("float32", support.targets.values, support.targets.shape),
    weight: new graphs.Tensor("float32", new Float32Array(count).fill(1), [count]),
  });
}

/** The prediction for each query, of which there is one at least, as an array of numbers. */
async function predict(graphs, state, inputs) {
  const given = { ...state, inputs: new graphs.Tensor("float32", inputs.values, inputs.shape) };
  const { prediction } = await compute(graphs.predict, given);
  const width = prediction.data.length / inputs.shape[0];
  return Array.from({ length: inputs.shape[0] }, (_, row) => [...prediction.data.slice(row * width, (row + 1) * width)]);
}

/** Class numbers as one-hot targets, of as many columns as the graph takes. */
function oneHot(numbers, width) {
  const values = new Float32Array(numbers.length * width);
  numbers.forEach((number, row) => (values[row * width + number] = 1));
  return { values, shape: [numbers.length, width] };
}

/** The width of the targets of some classes. */
function widthFor(classes) {
  const ways = about.targets.ways;
  if (classes.length < 2) throw new Error("Give examples of at least two classes.");
  if (ways && classes.length > ways) throw new Error(`This model is for ${ways} classes at most, and there are ${classes.length}.`);
  return ways || classes.length;
}
