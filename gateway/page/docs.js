// Draws /openapi.json for a reader: one fold a route, with fields, answers and who may call.

const document_ = await (await fetch("/openapi.json")).json();
const make = (tag, text = "", kind = "") => Object.assign(document.createElement(tag), { textContent: text, className: kind });
const resolve = (schema) => (schema?.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : schema) ?? {};

function typeName(schema) {
  if (!schema || !Object.keys(schema).length) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeName).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `${typeName(schema.items)}[]`;
  return schema.type ?? "any";
}

function fields(schema) {
  const { properties = {}, required = [] } = resolve(schema);
  const list = make("dl");
  for (const [name, field] of Object.entries(properties)) {
    const note = [typeName(field), required.includes(name) ? "required" : "", field.description ?? ""].filter(Boolean).join(" · ");
    list.append(make("dt", name), make("dd", note));
  }
  return list;
}

function fold(path, method, operation) {
  const element = make("details", "", "card");
  const head = make("summary");
  head.append(make("code", `${method.toUpperCase()} ${path}`), ` ${operation.summary}`);
  element.append(head, make("p", `Takes: ${operation.security.map((s) => Object.keys(s)[0]).join(", ") || "no credential"}`, "quiet"));
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    const list = make("dl");
    for (const p of parameters) list.append(make("dt", p.name), make("dd", `${p.in} · ${typeName(p.schema)}`));
    element.append(make("h3", "Parameters"), list);
  }
  const body = operation.requestBody?.content["application/json"].schema;
  if (body) element.append(make("h3", "Body"), fields(body));
  element.append(make("h3", "Answers"));
  for (const [status, answer] of Object.entries(operation.responses)) {
    element.append(make("p", `${status} ${answer.description}`));
    const shape = answer.content?.["application/json"]?.schema;
    if (shape) element.append(fields(shape));
  }
  element.dataset.text = `${method} ${path} ${operation.summary}`.toLowerCase();
  return element;
}

const folds = Object.entries(document_.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => fold(path, method, operation)),
);
document.getElementById("version").textContent = document_.info.version;
document.getElementById("routes").append(...folds);

const find = document.getElementById("find");
const narrow = () => {
  const wanted = find.value.trim().toLowerCase();
  for (const element of folds) element.hidden = !element.dataset.text.includes(wanted);
};
find.addEventListener("input", narrow);
narrow(); // what was typed before the routes were there
