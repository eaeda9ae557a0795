"use strict";
const add = (parent, tag, text) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
};
const range = (field) => {
  const parts = [];
  if (field.enum) parts.push(field.enum.join(", "));
  if (field.minimum !== undefined || field.maximum !== undefined)
    parts.push(`${field.minimum ?? ""} to ${field.maximum ?? "the worker's limit"}`);
  if (field.maxLength) parts.push(`up to ${field.maxLength} characters`);
  if (field.default !== undefined) parts.push(`default ${JSON.stringify(field.default)}`);
  return parts.join("; ");
};
const fields = (section, schema) => {
  const table = add(section, "table");
  for (const [name, field] of Object.entries(schema.properties)) {
    const row = add(table, "tr");
    const cell = add(row, "td");
    add(cell, "code", name);
    if (schema.required?.includes(name)) add(cell, "small", " required");
    add(row, "td", field.type ?? "");
    const text = add(row, "td", field.description ?? "");
    add(text, "br");
    add(text, "small", range(field));
  }
};
(async () => {
  const api = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = api.info.description;
  document.getElementById("example").textContent =
    `curl -N -X POST ${location.origin}/txt2img -H 'Content-Type: application/json' -d '{"prompt":"a red apple"}'`;
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(methods)) {
      if (!["get", "post", "delete"].includes(method)) continue;
      const section = add(document.getElementById("routes"), "section");
      const title = add(section, "h2");
      add(title, "b", method.toUpperCase());
      add(title, "code", path);
      add(section, "p", operation.summary);
      if (operation.description) add(section, "p", operation.description);
      const reference = Object.values(operation.requestBody?.content ?? {})[0]?.schema.$ref;
      if (reference) fields(section, api.components.schemas[reference.split("/").pop()]);
      const answers = Object.entries(operation.responses)
        .map(([status, answer]) => status + (answer.content ? " " + Object.keys(answer.content).join(", ") : ""));
      add(section, "p").append(add(section, "small", "Answers: " + answers.join(" · ")));
    }
})();
