"use strict";
// The form for images: a card for each class and one for the queries, each with files, drops and drawings.

const FIRST_CLASSES = 2;

/** A card for images; it calls `changed` when they change. */
class ImageBox {
  constructor(element, changed) {
    Object.assign(this, { element, changed, images: [], pictures: element.querySelector(".pictures") });
    const files = element.querySelector("input[type=file]");
    files.addEventListener("change", async () => {
      await this.addFiles([...files.files]);
      files.value = "";
    });
    element.querySelector(".draw")?.addEventListener("click", async () => {
      const drawing = await drawingPad.ask();
      if (drawing) this.add(await imageOf(drawing, about.inputs, false), "drawing");
    });
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.addFiles([...event.dataTransfer.files]);
    });
  }

  async addFiles(files) {
    const invert = Boolean(document.getElementById("invert")?.checked);
    const bad = [];
    for (const file of files) {
      try {
        this.add(await imageOf(file, about.inputs, invert), file.name);
      } catch {
        bad.push(file.name);
      }
    }
    if (bad.length) say(`Not an image that this browser reads: ${bad.join(", ")}.`, true);
  }

  add(image, name) {
    const entry = { image, name };
    this.images.push(entry);
    const item = document.createElement("li");
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => {
      this.images.splice(this.images.indexOf(entry), 1);
      item.remove();
      this.changed();
    });
    item.append(pictureOf(image, name), remove);
    this.pictures.append(item);
    this.changed();
  }
}

/** An image as the model sees it. */
function pictureOf(image, name) {
  const { channels, size } = about.inputs;
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size, className: "picture" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  const data = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = image[(channels === 1 ? 0 : c) * size * size + i];
    data.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

/** A dialog to draw in, with the mouse, a pen or a finger. */
const drawingPad = {
  ask() {
    const dialog = document.getElementById("pad");
    const canvas = dialog.querySelector("canvas");
    const context = canvas.getContext("2d");
    const ink = about.inputs.paper === "black" ? "white" : "black";
    const clear = () => {
      context.fillStyle = about.inputs.paper;
      context.fillRect(0, 0, canvas.width, canvas.height);
    };
    let last = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
    };
    const line = (event) => {
      if (!last) return;
      const next = place(event);
      Object.assign(context, { strokeStyle: ink, lineWidth: canvas.width / 11, lineCap: "round" });
      context.beginPath();
      context.moveTo(...last);
      context.lineTo(...next);
      context.stroke();
      last = next;
    };
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = place(event);
      line(event);
    };
    canvas.onpointermove = line;
    canvas.onpointerup = canvas.onpointercancel = () => (last = null);
    dialog.querySelector(".clear").onclick = clear;
    clear();
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((answer) => (dialog.onclose = () => answer(dialog.returnValue === "add" ? canvas : null)));
  },
};

const form = {
  classes: [],

  open(changed) {
    this.changed = changed.support;
    this.queryBox = new ImageBox(document.getElementById("queries"), changed.queries);
    const more = document.getElementById("more");
    more?.addEventListener("click", () => this.addClass().element.querySelector("input[type=text]").focus());
    for (let number = 0; more && number < FIRST_CLASSES; number++) this.addClass();
  },

  addClass() {
    const element = document.getElementById("class").content.firstElementChild.cloneNode(true);
    const box = new ImageBox(element, this.changed);
    box.name = element.querySelector("input[type=text]");
    box.name.value = `class ${this.classes.length + 1}`;
    box.name.addEventListener("input", this.changed);
    element.querySelector(".remove").addEventListener("click", () => {
      this.classes.splice(this.classes.indexOf(box), 1);
      element.remove();
      this.changed();
    });
    this.classes.push(box);
    document.getElementById("classes").append(element);
    this.changed();
    return box;
  },

  /** The support set: its inputs, targets and the names of its classes. */
  support() {
    const used = this.classes.filter((box) => box.images.length);
    const classes = used.map((box) => box.name.value.trim());
    if (classes.includes("")) throw new Error("Give each class a name.");
    if (new Set(classes).size < classes.length) throw new Error("Two classes have the same name: rename one.");
    const width = widthFor(classes);
    const numbers = used.flatMap((box, number) => box.images.map(() => number));
    const images = used.flatMap((box) => box.images.map((each) => each.image));
    return { inputs: inputsOf(images, about.inputs), targets: oneHot(numbers, width), classes };
  },

  /** The queries: their inputs, and an element that shows each. */
  queries() {
    const { images } = this.queryBox;
    return {
      inputs: inputsOf(images.map((each) => each.image), about.inputs),
      shown: images.map((each) => pictureOf(each.image, each.name)),
    };
  },
};
