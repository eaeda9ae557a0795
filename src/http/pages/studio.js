"use strict";
const $ = (id) => document.getElementById(id);
const form = $("form"), pictures = $("pictures"), canvas = $("canvas");
let job = null, source = null, drawn = false, mask = null;

const say = (text, wrong = false) => {
  $("message").textContent = text;
  $("message").classList.toggle("wrong", wrong);
};
const busy = (is) => { $("go").disabled = is; $("cancel").disabled = !is; };

const figure = (src, caption, isPreview = false) => {
  const box = document.createElement("figure"), image = new Image(), text = document.createElement("figcaption");
  image.src = src;
  text.textContent = caption;
  const link = document.createElement("a");
  if (!isPreview) {
    link.href = src;
    link.download = caption.replace(/\W+/g, "-") + "." + src.slice("data:image/".length, src.indexOf(";"));
    link.title = "Save";
  }
  link.append(image);
  box.append(link, text);
  box.classList.toggle("preview", isPreview);
  return box;
};

const options = (select, names, chosen) => {
  for (const name of names) select.add(new Option(name, name, name === chosen, name === chosen));
};

const start = async () => {
  for (;;) {
    const ready = await (await fetch("/ready")).json();
    if (ready.ready) break;
    $("model").textContent = `${ready.reason} ${Math.round(100 * ready.progress)} %`;
    await new Promise((wake) => setTimeout(wake, 700));
  }
  const can = await (await fetch("/v1/capabilities")).json();
  $("model").textContent = `${can.model.name} (${can.model.family})`;
  const defaults = can.defaults;
  for (const name of ["width", "height", "steps", "guidance_scale"]) form[name].value = defaults[name];
  for (const side of ["width", "height"]) { form[side].step = can.sizes.multiple_of; form[side].max = can.sizes.max; }
  form.n.max = can.limits.images;
  options(form.sampler, can.samplers, defaults.sampler);
  options(form.schedule, can.schedules, defaults.schedule);
  options(form.lora, can.loras.map((lora) => lora.name));
  $("loraBox").hidden = can.loras.length === 0;
};

const request = () => {
  const body = { preview_every: 1 };
  for (const name of ["width", "height", "steps", "guidance_scale", "n"])
    if (form[name].value !== "") body[name] = Number(form[name].value);
  for (const name of ["prompt", "sampler", "schedule"]) body[name] = form[name].value;
  if (form.negative_prompt.value) body.negative_prompt = form.negative_prompt.value;
  if (form.lora.value) body.loras = [{ name: form.lora.value }];
  let text = JSON.stringify(body);
  // A seed may have more digits than a number of JavaScript keeps.
  if (/^-?\d+$/.test(form.seed.value)) text = text.replace(/}$/, `,"seed":${form.seed.value}}`);
  if (!source) return ["/txt2img", text];
  const rest = { image: source.src, strength: Number(form.strength.value) };
  if (drawn) rest.mask = mask.toDataURL("image/png");
  return [drawn ? "/inpaint" : "/img2img", text.replace(/}$/, "," + JSON.stringify(rest).slice(1))];
};

const show = (event) => {
  switch (event.type) {
    case "queued": say(event.position ? `${event.position} before this one` : "next"); break;
    case "started": say("reading the prompt"); break;
    case "progress":
      $("progress").value = event.percent;
      say(`step ${event.step} of ${event.total}, ${(event.eta_ms / 1000).toFixed(1)} s left`);
      break;
    case "preview":
      pictures.replaceChildren(figure(`data:image/${event.format};base64,${event.image}`, "preview", true));
      $("pictures").scrollIntoView({ block: "nearest" });
      break;
    case "complete":
      $("progress").value = 100;
      pictures.replaceChildren(...event.images.map((image) =>
        figure(`data:image/${image.format};base64,${image.b64_json}`, `${image.width}×${image.height}, seed ${image.seed}`)));
      say([`${event.timings.total_s.toFixed(1)} s`, ...(event.warnings ?? [])].join("; "));
      break;
    case "error": say(event.message, true); break;
    case "cancelled": say("cancelled"); pictures.replaceChildren(); break;
  }
};

const paint = async () => {
  busy(true);
  $("progress").value = 0;
  // On a phone the pictures are below the form.
  $("message").scrollIntoView({ behavior: "smooth", block: "nearest" });
  try {
    const [path, body] = request();
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (!answer.ok) return say((await answer.json()).error.message, true);
    job = answer.headers.get("x-job-id");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      const frames = text.split("\n\n");
      text = frames.pop();
      for (const frame of frames) {
        const data = frame.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
        if (data && data !== "[DONE]") show(JSON.parse(data.replace(/"seed":(\d{16,})/g, '"seed":"$1"')));
      }
    }
  } catch (error) {
    say(String(error), true);
  } finally {
    busy(false);
    job = null;
  }
};

form.addEventListener("submit", (event) => { event.preventDefault(); paint(); });
$("cancel").addEventListener("click", () => job && fetch(`/v1/jobs/${job}`, { method: "DELETE" }));

const blank = () => {
  drawn = false;
  const pen = mask.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, mask.width, mask.height);
  canvas.getContext("2d").drawImage(source, 0, 0);
};
$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    const image = new Image();
    image.onload = () => {
      source = image;
      mask = document.createElement("canvas");
      canvas.width = mask.width = image.naturalWidth;
      canvas.height = mask.height = image.naturalHeight;
      blank();
      $("source").hidden = false;
    };
    image.src = reader.result;
  };
  reader.readAsDataURL(file);
});
$("clear").addEventListener("click", blank);
$("remove").addEventListener("click", () => { source = null; drawn = false; $("file").value = ""; $("source").hidden = true; });
let last = null;
const draw = (event) => {
  if (!last) return;
  const scale = canvas.width / canvas.clientWidth;
  const at = [event.offsetX * scale, event.offsetY * scale];
  for (const [surface, colour] of [[canvas, "#3b82f6"], [mask, "#fff"]]) {
    const pen = surface.getContext("2d");
    pen.strokeStyle = colour;
    pen.lineWidth = 28 * scale;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(at[0] + 0.01, at[1]);
    pen.stroke();
  }
  last = at;
  drawn = true;
};
canvas.addEventListener("pointerdown", (event) => {
  const scale = canvas.width / canvas.clientWidth;
  last = [event.offsetX * scale, event.offsetY * scale];
  canvas.setPointerCapture(event.pointerId);
  draw(event);
});
canvas.addEventListener("pointermove", draw);
canvas.addEventListener("pointerup", () => { last = null; });
start().catch((error) => say(String(error), true));
